#!/usr/bin/env bash
# Trains on Google Kubernetes Engine. `--help` explains the options.
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains on a TPU slice of Google Kubernetes Engine, as an indexed Job that restarts where it stopped.

usage: launch/gke.sh [options] -- arguments of jaxcomp.main

options
  --name N           of the job (default jaxcomp)
  --image I          container image with jaxcomp and jax[tpu] (needed); launch/Dockerfile builds one
  --accelerator A    node selector (default tpu-v5-lite-podslice); also tpu-v6e-slice, tpu-v5p-slice,
                     tpu-v4-podslice and tpu7x, of which the type for XPK follows
  --topology T       chips of the slice along each axis (default 4x4)
  --chips C          chips of a host (default 4)
  --hosts H          hosts of the slice (default: as many as the topology has chips for)
  --volume CLAIM     ReadWriteMany volume claim (Filestore or another NFS) mounted at /shared (needed);
                     buckets do not do, since renaming is not atomic there
  --workdir DIR      run directory below /shared, as /shared/runs/NAME (needed)
  --xpk CLUSTER      hand it to XPK instead of kubectl; its cluster has the storage attached
  --dry-run          print the manifest (or the xpk command) instead of applying it
  -h, --help         this text

example
  launch/gke.sh --image europe-docker.pkg.dev/p/r/jaxcomp --volume runs --workdir /shared/runs/p4 \
    -- --config=configs/fpn_level.py:kitti
TEXT
}

# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

name=jaxcomp image='' accelerator=tpu-v5-lite-podslice topology=4x4 hosts='' chips=4 workdir='' volume='' xpk=''
dry_run=0
read_options 'name|image|accelerator|topology|hosts|chips|workdir|volume|xpk' 'dry-run' '' "$@"
[[ ${#rest[@]} -gt 0 ]] || fail "give the arguments of jaxcomp.main behind --"
[[ -n $image ]] || fail "--image is needed: a container with jaxcomp and jax[tpu], as launch/Dockerfile builds it"
[[ -n $workdir ]] || fail "--workdir /shared/... is needed: all hosts must see it"
[[ $workdir == /shared/?* && $workdir/ != */../* ]] || fail "--workdir $workdir: give a folder below /shared, which all hosts see"
[[ -n $volume || -n $xpk ]] || fail "--volume is needed: the claim of a volume that all hosts see"
[[ $chips =~ ^[1-9][0-9]*$ ]] || fail "--chips $chips: give a number from 1"
[[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || fail "--topology $topology: give it as 4x4 or 2x2x4"

check_hosts() { # those of the whole slice, each with its chips
  local total=$((${topology//x/*}))
  ((total % chips == 0)) || fail "--topology $topology has $total chips, which --chips $chips does not divide"
  hosts=${hosts:-$((total / chips))}
  [[ $hosts =~ ^[1-9][0-9]*$ ]] || fail "--hosts $hosts: give a number from 1"
  ((hosts * chips == total)) ||
    fail "--hosts $hosts of --chips $chips are $((hosts * chips)) chips, but --topology $topology has $total: give --hosts $((total / chips))"
}
check_hosts

tpu_type() { # what XPK calls the slice: by its cores, of which some chips have two
  local prefix cores
  case $accelerator in
    tpu-v5-lite-podslice) prefix=v5litepod cores=1 ;;
    tpu-v6e-slice) prefix=v6e cores=1 ;;
    tpu-v5p-slice) prefix=v5p cores=2 ;;
    tpu-v4-podslice) prefix=v4 cores=2 ;;
    tpu7x) prefix=tpu7x cores=2 ;;
    *) fail "--accelerator $accelerator: for --xpk give tpu-v5-lite-podslice, tpu-v6e-slice, tpu-v5p-slice, tpu-v4-podslice or tpu7x" ;;
  esac
  type=$prefix-$((hosts * chips * cores))
}
words=(python -m jaxcomp.main "${rest[@]}" "--workdir=$workdir" --coordinator=auto)

if [[ -n $xpk ]]; then
  tpu_type
  printf -v line '%q ' "${words[@]}"
  run=(xpk workload create --cluster "$xpk" --workload "$name" --docker-image "$image"
    --tpu-type "$type" --command "$line")
  if ((dry_run)); then printf '%q ' "${run[@]}"; printf '\n'; else "${run[@]}"; fi
  exit 0
fi

quoted() { # as a JSON string, which YAML reads
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}
list=''
for word in "${words[@]}"; do list+="${list:+, }$(quoted "$word")"; done
manifest=$(
  cat <<TEXT
apiVersion: v1
kind: Service
metadata:
  name: $name
spec:
  clusterIP: None
  selector:
    job-name: $name
---
apiVersion: batch/v1
kind: Job
metadata:
  name: $name
spec:
  backoffLimit: 100
  completions: $hosts
  parallelism: $hosts
  completionMode: Indexed
  template:
    spec:
      subdomain: $name
      restartPolicy: Never
      terminationGracePeriodSeconds: 300
      nodeSelector:
        cloud.google.com/gke-tpu-accelerator: $accelerator
        cloud.google.com/gke-tpu-topology: $topology
      containers:
        - name: train
          image: $(quoted "$image")
          command: [$list]
          resources:
            limits:
              google.com/tpu: $chips
          volumeMounts:
            - {name: shared, mountPath: /shared}
      volumes:
        - name: shared
          persistentVolumeClaim: {claimName: $volume}
TEXT
)
if ((dry_run)); then
  printf '%s\n' "$manifest"
else
  command -v kubectl >/dev/null || fail "kubectl is not installed"
  kubectl apply -f - <<<"$manifest"
fi
