#!/usr/bin/env bash
# Trains on a Cloud TPU slice. `--help` explains the steps.
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains on a Cloud TPU slice: every host of it runs the same command.

usage: launch/tpu_pod.sh STEP [options] [-- arguments of jaxcomp.main]

steps, in this order
  create     ask for the slice as a queued resource, and wait until it is there
  copy       copy the commit that is checked out to all hosts, install it with Python 3.11 or newer
             (which it fetches where the image has an older one), mount the shared folder at
             /mnt/shared; may be repeated
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
  --allow-dirty      copy although there are uncommitted changes, which stay here
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
workdir='' nfs='' spot=0 allow_dirty=0 dry_run=0
read_options 'name|type|zone|project|runtime|workdir|nfs' 'spot|allow-dirty|dry-run' 'step' "$@"

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
  local line no_python="no Python 3.11 or newer in jaxcomp/venv: launch/tpu_pod.sh copy comes first"
  printf -v line '%q ' python3 -m jaxcomp.main "${rest[@]}" --coordinator=auto "--workdir=$workdir"
  # Only `nohup` goes to the background, with no stream of ssh, which would wait for it.
  on_all "cd jaxcomp || exit; $venv_will_do || { echo 'error: $no_python' >&2; exit 1; }; \
nohup ./venv/bin/${line}> train.out 2>&1 < /dev/null & \
sleep 2; tail -n 3 train.out; kill -0 \$! 2>/dev/null || wait \$!"
}

new_enough="-c 'import sys; sys.exit(sys.version_info < (3, 11))'"
venv_will_do="./venv/bin/python3 $new_enough 2>/dev/null"

check_committed() { # the archive holds a commit
  local changes message
  changes=$(git -C "$root" status --porcelain | sed -n '1,3s/^...//p')
  [[ -n $changes ]] || return 0
  message="uncommitted changes would not be copied (${changes//$'\n'/, })"
  ((allow_dirty || dry_run)) || fail "$message: commit them, or add --allow-dirty"
  printf 'warning: %s\n' "$message" >&2
}

copy() {
  [[ $nfs == *:/* ]] || fail "--nfs HOST:/SHARE is needed: the hosts share the run directory there"
  check_committed
  local archive
  archive=$(mktemp -d)/jaxcomp.tar.gz
  do_it git -C "$root" archive --format=tar.gz --prefix=jaxcomp/ -o "$archive" HEAD
  do_it "${tpu[@]}" tpu-vm scp "$archive" "$name:" "${place[@]}" --worker=all
  on_all "sudo apt-get install -qq nfs-common python3-venv python3-pip && sudo mkdir -p /mnt/shared && \
{ mountpoint -q /mnt/shared || sudo mount -t nfs $(printf '%q' "$nfs") /mnt/shared; }"
  install
}

install() { # with the environment of the last copy, or the image's Python, or one that uv finds or fetches
  local own="python3 $new_enough && python3 -m venv --clear venv"
  local uv="python3 -m pip install -q --user uv && python3 -m uv venv -q --clear --seed --python '>=3.11' venv"
  local none="error: no Python 3.11 or newer, and uv could not fetch one: make jaxcomp/venv with one on every host, then copy again"
  on_all "tar xzf jaxcomp.tar.gz && cd jaxcomp && { $venv_will_do || { $own; } || { $uv; } || \
{ echo '$none' >&2; exit 1; }; } && ./venv/bin/pip install -q -e . 'jax[tpu]'"
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
  copy) copy ;;
  run | resume) start ;;
  logs) do_it "${tpu[@]}" tpu-vm ssh "$name" "${place[@]}" --worker=0 --command "tail -n 50 -f jaxcomp/train.out" ;;
  delete)
    do_it "${tpu[@]}" queued-resources delete "$name" "${place[@]}" --force --quiet
    ;;
  '') fail "give a step: create, copy, run, logs, resume or delete" ;;
  *) fail "unknown step $step: create, copy, run, logs, resume or delete" ;;
esac
