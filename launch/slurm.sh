#!/usr/bin/env bash
# Trains under Slurm. `--help` explains the options.
set -euo pipefail

usage() {
  cat <<'TEXT'
Submits a training to Slurm: one process for each GPU, on one or more nodes. Or a sweep, as an array.

usage: launch/slurm.sh [options] -- arguments of jaxcomp.main
       launch/slurm.sh --array N [options] -- arguments of launch/sweep.py

options
  --nodes N          (default 1)
  --gpus G           GPUs of each node, a process for each (default 1); 0: one CPU process a node
  --cpus C           processor cores of each process (default 8)
  --time T           limit, as Slurm writes it (default 24:00:00)
  --partition P      (default: that of the cluster)
  --workdir DIR      run directory, or the sweep's folder, that all nodes see (needed); a relative
                     one is that of the current folder
  --array N          share a sweep out among N jobs of one node each, with one run at a time on each
                     GPU; when all have ended, another job writes the report of what is finished
  --dry-run          print the batch scripts instead of submitting them
  -h, --help         this text

PYTHON=FILE in front of it: the interpreter on the nodes (default python).

Five minutes before the limit, and when the job is preempted, the run saves and is queued again; it
then goes on from there.

examples
  launch/slurm.sh --nodes 2 --gpus 4 --workdir /shared/runs/p4 -- --config=configs/fpn_level.py:kitti
  launch/slurm.sh --array 4 --workdir /shared/sweep -- --config=configs/fpn_lambda_sweep.py:kitti
TEXT
}

# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

nodes=1 gpus=1 cpus=8 time=24:00:00 partition='' workdir='' array='' dry_run=0
read_options 'nodes|gpus|cpus|time|partition|workdir|array' 'dry-run' '' "$@"
for number in "$nodes" "$gpus" "$cpus"; do
  [[ $number =~ ^[0-9]+$ ]] || fail "$number is not a number"
done
[[ ${#rest[@]} -gt 0 ]] || fail "give the arguments of jaxcomp.main behind --"
[[ -n $workdir ]] || fail "--workdir is needed: a folder that all nodes see"
if [[ $workdir != /* ]]; then workdir=$PWD/$workdir; fi # the job runs in the checkout
if [[ -n $array ]]; then
  [[ $array =~ ^[1-9][0-9]*$ ]] || fail "--array $array: give a number of jobs from 1"
  ((nodes == 1)) || fail "--nodes $nodes: each job of an array has one node"
  refuse_words '--shard|--no-report|--report-only|--dry-run' "${rest[@]}"
fi
processes=$((gpus > 0 ? gpus : 1)) # of a node

header() { # TASKS CORES LOG OPTIONS...: of a batch script
  local options=(--job-name=jaxcomp "--nodes=$nodes" "--ntasks-per-node=$1" "--cpus-per-task=$2"
    "--time=$time" --requeue "--output=$3" "${@:4}")
  if [[ -n $partition ]]; then options+=("--partition=$partition"); fi
  if ((gpus > 0)); then options+=("--gpus-per-node=$gpus"); fi
  printf '#!/bin/bash\n'
  printf '#SBATCH %s\n' "${options[@]}"
  printf 'cd %q\n' "$root"
}

until_told() { # LINE JOB: on the notice the line saves and the job is queued again
  cat <<TEXT
$1 &
step=\$!
trap 'kill -TERM \$step; wait \$step; scontrol requeue $2; exit 0' TERM
wait \$step
TEXT
}

training() {
  local line
  printf -v line '%q ' "${PYTHON:-python}" -m jaxcomp.main "${rest[@]}" "--workdir=$workdir"
  if ((nodes * processes > 1)); then line+="--coordinator=auto"; fi
  header "$processes" "$cpus" "$workdir.%j.out" --signal=B:TERM@300
  # A step does not inherit the cores of a process since Slurm 22.05.
  until_told "srun --cpus-per-task=$cpus --kill-on-bad-exit=1 $line" "\$SLURM_JOB_ID"
}

sweep_line() { # WORDS...
  printf '%q ' "${PYTHON:-python}" launch/sweep.py "${rest[@]}" "--config.sweep.root=$workdir" "$@"
}

part_of_sweep() {
  local line seen
  line="$(sweep_line --no-report)--shard=\$SLURM_ARRAY_TASK_ID/$array"
  printf -v seen '%s,' $(seq 0 $((processes - 1)))
  if ((gpus > 0)); then line+=" --devices=\${CUDA_VISIBLE_DEVICES:-${seen%,}}"; fi
  header 1 $((cpus * processes)) "$workdir.%A_%a.out" --signal=B:TERM@300 "--array=0-$((array - 1))"
  # By its number in the array: one of the jobs has the id of the whole array.
  until_told "$line" "\${SLURM_ARRAY_JOB_ID}_\$SLURM_ARRAY_TASK_ID"
}

report_of_sweep() {
  header 1 $((cpus * processes)) "$workdir.report.%j.out"
  printf '%s\n' "$(sweep_line --report-only)"
}

submit() { # SCRIPT OPTIONS...: sets `job` to its number
  job=$(sbatch --parsable "${@:2}" <<<"$1")
  job=${job%%;*}
}

if ((dry_run)); then
  if [[ -z $array ]]; then training; exit 0; fi
  part_of_sweep
  printf '\n# afterwards, with --dependency=afterany:JOB\n'
  report_of_sweep
  exit 0
fi
command -v sbatch >/dev/null || fail "sbatch is not installed: run this on the cluster"
mkdir -p -- "$(dirname -- "$workdir")"
if [[ -z $array ]]; then
  submit "$(training)"
  printf 'job %s\n' "$job"
else
  submit "$(part_of_sweep)"
  printf 'jobs %s_0 to %s_%s\n' "$job" "$job" "$((array - 1))"
  submit "$(report_of_sweep)" "--dependency=afterany:$job"
  printf 'then job %s, the report\n' "$job"
fi
