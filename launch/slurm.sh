#!/usr/bin/env bash
# Trains under Slurm. `--help` explains the options.
set -euo pipefail

usage() {
  cat <<'TEXT'
Submits a training to Slurm: one process for each GPU, on one or more nodes.

usage: launch/slurm.sh [options] -- arguments of jaxcomp.main

options
  --nodes N          (default 1)
  --gpus G           GPUs of each node, a process for each (default 1); 0: one CPU process a node
  --cpus C           processor cores of each process (default 8)
  --time T           limit, as Slurm writes it (default 24:00:00)
  --partition P      (default: that of the cluster)
  --workdir DIR      run directory that all nodes see (needed)
  --dry-run          print the batch script instead of submitting it
  -h, --help         this text

Five minutes before the limit, and when the job is preempted, the run saves and is queued again; it
then goes on from there.

example
  launch/slurm.sh --nodes 2 --gpus 4 --workdir /shared/runs/p4 -- --config=configs/fpn_level.py:kitti
TEXT
}

# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

nodes=1 gpus=1 cpus=8 time=24:00:00 partition='' workdir='' dry_run=0
read_options 'nodes|gpus|cpus|time|partition|workdir' 'dry-run' '' "$@"
for number in "$nodes" "$gpus" "$cpus"; do
  [[ $number =~ ^[0-9]+$ ]] || fail "$number is not a number"
done
[[ ${#rest[@]} -gt 0 ]] || fail "give the arguments of jaxcomp.main behind --"
[[ -n $workdir ]] || fail "--workdir is needed: a folder that all nodes see"

tasks=$((gpus > 0 ? gpus : 1))
printf -v line '%q ' "${PYTHON:-python}" -m jaxcomp.main "${rest[@]}" "--workdir=$workdir"
if ((nodes * tasks > 1)); then line+="--coordinator=auto"; fi
script=$(
  cat <<TEXT
#!/bin/bash
#SBATCH --job-name=jaxcomp
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$tasks
#SBATCH --cpus-per-task=$cpus
#SBATCH --time=$time
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
#SBATCH --output=$workdir.%j.out
$([[ -z $partition ]] || echo "#SBATCH --partition=$partition")
$( ((gpus == 0)) || echo "#SBATCH --gpus-per-node=$gpus")
cd $(printf '%q' "$root")
srun --kill-on-bad-exit=1 $line &
step=\$!
trap 'kill -TERM \$step; wait \$step; scontrol requeue \$SLURM_JOB_ID; exit 0' TERM
wait \$step
TEXT
)
script=$(grep -v '^$' <<<"$script")
if ((dry_run)); then
  printf '%s\n' "$script"
else
  command -v sbatch >/dev/null || fail "sbatch is not installed: run this on the cluster"
  mkdir -p -- "$(dirname -- "$workdir")"
  sbatch <<<"$script"
fi
