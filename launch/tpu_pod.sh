#!/usr/bin/env bash
# Trains on a Cloud TPU slice. `--help` explains the steps.
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains on a Cloud TPU slice: every host of it runs the same command.

usage: launch/tpu_pod.sh STEP [options] [-- arguments of jaxcomp.main]

steps, in this order
  create     ask for the slice as a queued resource, and wait until it is there
  copy       copy this checkout to all hosts, install it, mount the shared folder at /mnt/shared
  run        start the training on all hosts; it goes on when you log out
  logs       follow the output of host 0
  resume     the same as run: the run directory tells where to go on
  delete     give the slice back; what it costs ends here

options
  --name N           of the slice (default jaxcomp)
  --type T           accelerator type (default v5litepod-16)
  --zone Z           (default us-west4-a)
  --project P        (default: that of gcloud)
  --runtime V        TPU software version (default v2-alpha-tpuv5-lite)
  --nfs HOST:/SHARE  a Filestore instance or another NFS server (for copy); buckets do not do,
                     since renaming is not atomic there
  --workdir DIR      run directory below /mnt/shared, as /mnt/shared/runs/NAME (for run)
  --spot             cheaper, may be taken away: the run saves on the notice; resume it
  --dry-run          print the commands instead of running them
  -h, --help         this text

examples
  launch/tpu_pod.sh create --spot
  launch/tpu_pod.sh copy --nfs 10.0.0.2:/share
  launch/tpu_pod.sh run --workdir /mnt/shared/runs/p4 -- --config=configs/fpn_level.py:kitti
  launch/tpu_pod.sh delete
TEXT
}

# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

step='' name=jaxcomp type=v5litepod-16 zone=us-west4-a project='' runtime=v2-alpha-tpuv5-lite
workdir='' nfs='' spot=0 dry_run=0
read_options 'name|type|zone|project|runtime|workdir|nfs' 'spot|dry-run' 'step' "$@"

do_it() {
  if ((dry_run)); then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}
((dry_run)) || command -v gcloud >/dev/null || fail "gcloud is not installed: https://cloud.google.com/sdk"
place=(--zone "$zone")
if [[ -n $project ]]; then place+=(--project "$project"); fi
tpu=(gcloud compute tpus)
on_all() { do_it "${tpu[@]}" tpu-vm ssh "$name" "${place[@]}" --worker=all --command "$1"; }

start() {
  [[ ${#rest[@]} -gt 0 ]] || fail "give the arguments of jaxcomp.main behind --"
  [[ -n $workdir ]] || fail "--workdir /mnt/shared/... is needed: all hosts must see it"
  [[ $workdir == /mnt/shared/?* && $workdir/ != */../* ]] || fail "--workdir $workdir: give a folder below /mnt/shared, which all hosts see"
  local line
  printf -v line '%q ' python3 -m jaxcomp.main "${rest[@]}" --coordinator=auto "--workdir=$workdir"
  on_all "cd jaxcomp && nohup ./venv/bin/${line}> train.out 2>&1 < /dev/null & sleep 2; tail -n 3 jaxcomp/train.out"
}

case $step in
  create)
    extra=()
    if ((spot)); then extra=(--spot); fi
    do_it "${tpu[@]}" queued-resources create "$name" --node-id "$name" --accelerator-type "$type" \
      --runtime-version "$runtime" "${place[@]}" ${extra[@]+"${extra[@]}"}
    if ((dry_run)); then exit 0; fi
    until [[ $("${tpu[@]}" queued-resources describe "$name" "${place[@]}" --format='value(state.state)') == ACTIVE ]]; do
      state=$("${tpu[@]}" queued-resources describe "$name" "${place[@]}" --format='value(state.state)')
      [[ $state != FAILED && $state != SUSPENDED ]] || fail "the slice is $state; delete it and ask again"
      printf 'the slice is %s; asking again in a minute\n' "$state"
      sleep 60
    done
    ;;
  copy)
    [[ $nfs == *:/* ]] || fail "--nfs HOST:/SHARE is needed: the hosts share the run directory there"
    archive=$(mktemp -d)/jaxcomp.tar.gz
    do_it git -C "$root" archive --format=tar.gz --prefix=jaxcomp/ -o "$archive" HEAD
    do_it "${tpu[@]}" tpu-vm scp "$archive" "$name:" "${place[@]}" --worker=all
    on_all "sudo apt-get install -qq nfs-common && sudo mkdir -p /mnt/shared && sudo mount -t nfs $(printf '%q' "$nfs") /mnt/shared"
    on_all "tar xzf jaxcomp.tar.gz && cd jaxcomp && python3 -m venv venv && ./venv/bin/pip install -q -e . 'jax[tpu]'"
    ;;
  run | resume) start ;;
  logs) do_it "${tpu[@]}" tpu-vm ssh "$name" "${place[@]}" --worker=0 --command "tail -n 50 -f jaxcomp/train.out" ;;
  delete)
    do_it "${tpu[@]}" queued-resources delete "$name" "${place[@]}" --force --quiet
    ;;
  '') fail "give a step: create, copy, run, logs, resume or delete" ;;
  *) fail "unknown step $step: create, copy, run, logs, resume or delete" ;;
esac
