#!/usr/bin/env bash
# Trains with several processes on this machine. `--help` explains the options.
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains with several processes on this machine: to try what a pod will do, or one process per GPU.

usage: launch/local_multiprocess.sh [options] -- arguments of jaxcomp.main

options
  --processes N       how many (default 2)
  --devices D         virtual CPU devices of each process (default: real devices, not CPU ones)
  --gpus LIST         GPUs, as 0,1,2,3: one for each process; sets --processes to their number
  --port P            of process 0 (default: a free one)
  --logs DIR          output of process I goes to DIR/process_I.log (default: a temporary folder);
                      that of process 0 is shown too
  --dry-run           print the commands instead of running them
  -h, --help          this text

PYTHON=FILE in front of it: the interpreter (default python).

All processes end when one fails. SIGINT, SIGTERM and SIGHUP are handed on: the run saves and stops; the
same command goes on. The global batch is that of the config, whatever the number of processes.

examples
  launch/local_multiprocess.sh --processes 2 --devices 2 -- --config=configs/fpn_level.py
  launch/local_multiprocess.sh --gpus 0,1,2,3 -- --config=configs/detector.py:kitti
TEXT
}

# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

processes=2 devices='' gpus='' port='' logs='' dry_run=0
read_options 'processes|devices|gpus|port|logs' 'dry-run' '' "$@"
IFS=, read -r -a gpu_list <<<"$gpus"
if [[ -n $gpus ]]; then processes=${#gpu_list[@]}; fi
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "--processes $processes: give a number from 1"
[[ -z $devices || $devices =~ ^[1-9][0-9]*$ ]] || fail "--devices $devices: give a number from 1"
[[ ${#rest[@]} -gt 0 ]] || fail "give the arguments of jaxcomp.main behind --, as -- --config=configs/fpn_level.py"
python=${PYTHON:-python}
if [[ -z $port ]]; then
  port=12355
  if ((!dry_run)); then
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  fi
fi

words=() # of process $1
command_of() {
  words=(env)
  if [[ -n $devices ]]; then
    words+=(JAX_PLATFORMS=cpu "XLA_FLAGS=${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices")
  fi
  if [[ -n $gpus ]]; then words+=("CUDA_VISIBLE_DEVICES=${gpu_list[$1]}"); fi
  words+=("$python" -m jaxcomp.main "${rest[@]}")
  if ((processes > 1)); then
    words+=("--coordinator=127.0.0.1:$port" "--processes=$processes" "--process_id=$1")
  fi
}

if ((dry_run)); then
  for ((i = 0; i < processes; i++)); do
    command_of "$i"
    printf '%q ' "${words[@]}"
    printf '\n'
  done
  exit 0
fi

logs=${logs:-$(mktemp -d)}
mkdir -p -- "$logs"
printf 'output of the processes: %s\n' "$logs"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
members=() told=0 watchdog=''
declare -A asked=()
stop() {
  local pid
  told=1
  for pid in ${members[@]+"${members[@]}"}; do
    # Once: a second signal would end a process before it has saved.
    if [[ -n ${asked[$pid]:-} ]]; then continue; fi
    asked[$pid]=1
    kill -TERM "$pid" 2>/dev/null || true
  done
}
trap stop INT TERM HUP
trap '[[ -z $watchdog ]] || kill "$watchdog" 2>/dev/null || true' EXIT
set -m # a process group each: what a terminal sends to this script reaches them through `stop` alone
for ((i = 0; i < processes; i++)); do
  command_of "$i"
  if ((i == 0)); then
    "${words[@]}" > >(trap '' INT TERM; exec tee -- "$logs/process_0.log") 2>&1 </dev/null &
  else
    "${words[@]}" >"$logs/process_$i.log" 2>&1 </dev/null &
  fi
  members+=($!)
done
set +m
if ((told)); then stop; fi # those that were started after the signal

watch() { # ends what is left when one has failed: half a minute is enough to notice it
  (
    nap=''
    trap 'kill "$nap" 2>/dev/null; exit' TERM
    sleep 30 >/dev/null 2>&1 &
    nap=$!
    wait "$nap"
    kill -KILL "$@" 2>/dev/null
  ) &
  watchdog=$!
}

status=0
while ((${#members[@]})); do
  # Its status says too little: a trap ends it with all alive, and two may end between two waits.
  wait -n "${members[@]}" 2>/dev/null || true
  running=()
  for pid in "${members[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then running+=("$pid"); continue; fi
    code=0
    wait "$pid" || code=$?
    if ((code && !status)); then status=$code; fi
  done
  members=(${running[@]+"${running[@]}"})
  if ((status)) && [[ -z $watchdog ]] && ((${#members[@]})); then watch "${members[@]}"; fi
done
exit "$status"
