#!/usr/bin/env bash
# Trains the codecs of all five pyramid levels in turn. `--help` explains the options.
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains the codecs of pyramid levels 0 to 4 in turn, then prints a table of the five runs.

usage: launch/train_all_levels.sh [--yes] [--dry-run] [options] [-- overrides]

  --yes       do not ask before starting (nothing is asked without a terminal either)
  --dry-run   print the five commands instead of running them
  -h, --help  this text

All other options are those of launch/run_train_factorized_prior_specific_level_fpn.sh, without
--level. A level that fails does not stop the others; the exit status is then 1. An interrupt
(Ctrl-C) or a termination stops all.
TEXT
}

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
single=$root/launch/run_train_factorized_prior_specific_level_fpn.sh
levels=(0 1 2 3 4)
yes=0 dry_run=0
options=()

while (($#)); do
  case $1 in
    -y | --yes) yes=1 && shift ;;
    --dry-run) dry_run=1 && options+=("$1") && shift ;;
    -h | --help) usage && exit 0 ;;
    --level | --level=* | --fpn_level | --fpn_level=*)
      printf 'error: %s is not taken here, all levels are trained\n' "$1" >&2
      exit 1
      ;;
    --) options+=("$@") && break ;;
    *) options+=("$1") && shift ;;
  esac
done

# A wrong option should fail once, at once, and not five times after a question.
"$single" --level 0 --dry-run ${options[@]+"${options[@]}"} >/dev/null

if ((!yes && !dry_run)) && [[ -t 0 ]]; then
  read -r -p "Train levels ${levels[*]} in turn? [y/N] " answer
  if [[ ! $answer =~ ^[Yy] ]]; then
    printf 'nothing was started\n'
    exit 0
  fi
fi

folder() { printf '%s/checkpoints/fpn_specific_level_compression_level_%s' "$root" "$1"; }

# The best loss in the newest training_summary.txt of a level, read as the guide reads it.
best_loss() {
  local summary newest=''
  for summary in "$(folder "$1")"/*/training_summary.txt; do
    [[ -f $summary ]] || continue
    if [[ -z $newest || $summary -nt $newest ]]; then newest=$summary; fi
  done
  if [[ -n $newest ]]; then
    grep "Best Validation Loss:" "$newest" | cut -d' ' -f4
  else
    printf 'unknown\n'
  fi
}

done_levels=() failed_levels=() report=()
for level in "${levels[@]}"; do
  ((dry_run)) || printf '=== level %s ===\n' "$level"
  began=$SECONDS status=0
  "$single" --level "$level" ${options[@]+"${options[@]}"} || status=$?
  took=$((SECONDS - began))
  # Interrupted or terminated: the user wants to stop. Other signals, as the 137 of a level that
  # ran out of memory, concern that level alone.
  if ((status == 130 || status == 143)); then exit "$status"; fi
  if ((status)); then
    failed_levels+=("$level")
    report+=("level $level: failed after $took s")
  else
    done_levels+=("$level")
    ((dry_run)) || report+=("level $level: done in $took s, best loss $(best_loss "$level")")
  fi
done
if ((dry_run)); then exit 0; fi

printf '\n=== all levels ===\n'
printf '%s\n' "${report[@]}"
printf 'done: %s\nfailed: %s\n' "${done_levels[*]:-none}" "${failed_levels[*]:-none}"
if ((${#done_levels[@]})); then
  folders=()
  for level in "${done_levels[@]}"; do folders+=("$(folder "$level")"); done
  (cd -- "$root" && "${PYTHON:-python}" -m jaxcomp.report "${folders[@]}" \
    --out checkpoints/levels.html) || printf 'the table could not be printed\n' >&2
fi
if ((${#failed_levels[@]})); then exit 1; fi
