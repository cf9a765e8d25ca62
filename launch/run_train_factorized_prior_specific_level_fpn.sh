#!/usr/bin/env bash
# Trains the codec of one feature pyramid level. `--help` explains the options.
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains the codec of one feature pyramid level and measures it with real bytes.

usage: launch/run_train_factorized_prior_specific_level_fpn.sh --level L [options] [-- overrides]

required
  --level L                   pyramid level 0, 1, 2, 3 or 4 (P2 to P6); --fpn_level is the same

options
  --config FILE[:ARGS]        config file; default configs/fpn_level.py
  --detection_checkpoint F    weights of the detector; default: those shipped with the package
  --lambda X                  weight of the rate in the loss; larger gives fewer bits
  --device N                  use accelerator N only (sets CUDA_VISIBLE_DEVICES)
  --dry-run                   print the command instead of running it
  -h, --help                  this text
  -- ...                      everything after it goes to jaxcomp.main as it is, for example
                              -- --config.training.epochs=5 --config.training.batch_size=4

PYTHON names the interpreter (default: python). Runs are written below checkpoints/ of the
repository; relative paths are taken from the present directory.

examples
  launch/run_train_factorized_prior_specific_level_fpn.sh --level 2
  launch/run_train_factorized_prior_specific_level_fpn.sh --level 0 --device 0 &
  launch/run_train_factorized_prior_specific_level_fpn.sh --level 1 --lambda 0.0005
TEXT
}

# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
here=$PWD
level='' config='' detector='' rate_weight='' device='' dry_run=0
extra=()

while (($#)); do
  case $1 in
    --level | --fpn_level | --config | --detection_checkpoint | --lambda | --device)
      [[ $# -ge 2 && -n $2 && $2 != --* ]] || fail "$1 needs a value"
      case $1 in
        --level | --fpn_level) level=$2 ;;
        --config) config=$2 ;;
        --detection_checkpoint) detector=$2 ;;
        --lambda) rate_weight=$2 ;;
        --device) device=$2 ;;
      esac
      shift 2
      ;;
    --level=* | --fpn_level=* | --config=* | --detection_checkpoint=* | --lambda=* | --device=*)
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      ;;
    --dry-run) dry_run=1 && shift ;;
    -h | --help) usage && exit 0 ;;
    --) shift && extra=("$@") && break ;;
    *) fail "unknown option '$1'; overrides of the config go after --" ;;
  esac
done

[[ -n $level ]] || fail "--level is missing; give 0, 1, 2, 3 or 4"
[[ $level =~ ^[0-4]$ ]] || fail "--level '$level' is not 0, 1, 2, 3 or 4"
[[ -z $device || $device =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "--device '$device' is not a number"

# The run starts in the root, so that checkpoints/ is one folder wherever the script is called.
from_here() {
  if [[ $1 == /* || $here == "$root" ]]; then printf '%s' "$1"; else printf '%s' "$here/$1"; fi
}
if [[ -n $config ]]; then config=$(from_here "$config"); else config=configs/fpn_level.py; fi
cd -- "$root"
file=$config arguments=''
if [[ ! -f $config && $config == *:* ]]; then
  file=${config%%:*} arguments=${config#*:},
fi
[[ -f $file ]] || fail "config file '$file' does not exist"

command=("${PYTHON:-python}" -m jaxcomp.main "--config=$file:${arguments}level=$level")
if [[ -n $rate_weight ]]; then command+=("--config.training.rate_weight=$rate_weight"); fi
if [[ -n $detector ]]; then
  detector=$(from_here "$detector")
  # A pattern is fine as well: the newest match is loaded.
  [[ -e $detector ]] || compgen -G "$detector" >/dev/null ||
    printf "warning: detection checkpoint '%s' does not exist\n" "$detector" >&2
  command+=("--config.detector.path=$detector")
fi
command+=(${extra[@]+"${extra[@]}"}) # an empty array is unset for old versions of bash

if [[ -n $device ]]; then export CUDA_VISIBLE_DEVICES=$device; fi
if ((dry_run)); then
  [[ -z $device ]] || printf 'CUDA_VISIBLE_DEVICES=%s ' "$device"
  printf -v line '%q ' "${command[@]}"
  printf '%s\n' "${line% }"
  exit 0
fi

printf 'level %s: %s\n' "$level" "${command[*]}"
status=0
"${command[@]}" || status=$?
if ((status)); then
  printf 'level %s failed with status %s; the same command goes on where it stopped\n' \
    "$level" "$status" >&2
  exit "$status"
fi
printf 'level %s is done; its files are below %s\n' \
  "$level" "$root/checkpoints/fpn_specific_level_compression_level_$level"
