#!/usr/bin/env bash
# Shares a sweep out among several hosts. `--help` explains the options.
set -euo pipefail

usage() {
  cat <<'TEXT'
Shares a sweep out among several hosts, waits for all of them, and writes one report.

usage: launch/sweep_hosts.sh --hosts A,B,C [options] -- arguments of launch/sweep.py

options
  --hosts LIST       hosts, as a,b or me@a,me@b: the I-th of N does --shard=I/N (needed)
  --rsh COMMAND      how to reach them: COMMAND HOST LINE runs a shell line there
                     (default 'ssh -o BatchMode=yes -o ServerAliveInterval=30')
  --dir DIR          this checkout on the hosts (default: where it is here)
  --logs DIR         output of each host goes to DIR/HOST.log (default: a temporary folder); all of
                     it is shown too, each line behind [HOST]
  --dry-run          print the commands instead of running them
  -h, --help         this text

PYTHON=FILE in front of it: the interpreter on the hosts (default python).

All hosts must see the sweep's folder (--config.sweep.root=FOLDER), and each needs jaxcomp installed.
The others go on when one fails. In the end those that failed are named, and the first host measures
what is finished. SIGINT, SIGTERM and SIGHUP are handed on: the runs save and end, without a report;
so they do when the connection is lost. The same command goes on.

example
  launch/sweep_hosts.sh --hosts a,b,c --dir /shared/jaxcomp -- --config=configs/fpn_lambda_sweep.py:kitti \
    --config.sweep.root=/shared/sweep
TEXT
}

# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

hosts='' rsh='ssh -o BatchMode=yes -o ServerAliveInterval=30' dir=$root logs='' dry_run=0
read_options 'hosts|rsh|dir|logs' 'dry-run' '' "$@"
[[ -n $hosts ]] || fail "--hosts A,B,C is needed"
[[ ${#rest[@]} -gt 0 ]] || fail "give the arguments of launch/sweep.py behind --, as -- --config=configs/fpn_lambda_sweep.py"
refuse_words '--shard|--no-report|--report-only|--dry-run' "${rest[@]}"
IFS=, read -r -a names <<<"$hosts"
for name in "${names[@]}"; do
  [[ $name =~ ^[A-Za-z0-9_@.:%][A-Za-z0-9_@.:%-]*$ ]] || fail "--hosts $hosts: '$name' is not a host"
  [[ $(grep -cxF -e "$name" <(printf '%s\n' "${names[@]}")) == 1 ]] || fail "--hosts $hosts: $name is there twice"
done
read -r -a reach <<<"$rsh"

words=() # that run sweep.py with more words on a host
command_of() { # HOST WORDS...
  local sweep=("${PYTHON:-python}" launch/sweep.py "${rest[@]}" "${@:2}")
  words=("${reach[@]}" "$1" "cd $(for_sh "$dir") && exec sh launch/until_told.sh $(line_of "${sweep[@]}")")
}

part() { command_of "${names[$1]}" --no-report "--shard=$1/${#names[@]}"; }
report() { command_of "${names[0]}" --report-only; }

if ((dry_run)); then
  for i in "${!names[@]}"; do
    part "$i"
    printf '%s\n' "$(line_of "${words[@]}")"
  done
  report
  printf '%s\n' "$(line_of "${words[@]}")"
  exit 0
fi

command -v "${reach[0]}" >/dev/null || fail "--rsh $rsh: ${reach[0]} is not installed"
logs=${logs:-$(mktemp -d)}
mkdir -p -- "$logs"
printf 'output of the hosts: %s\n' "$logs"
ears=$(mktemp -d) # a pipe for each command: a line in it ends what runs at the other end
trap 'rm -rf -- "$ears"' EXIT

show() { # HOST: each line with its host, and in its log
  local line
  trap '' PIPE # the log goes on when nobody looks
  while IFS= read -r line || [[ -n $line ]]; do
    printf '%s\n' "$line" >&4
    printf '[%s] %s\n' "$1" "$line" 2>/dev/null || true
  done 4>>"$logs/$1.log"
}

members=() pipes=() told=0
start() { # HOST: runs `words`
  local pipe ear=$ears/${#members[@]}
  mkfifo -- "$ear"
  exec {pipe}<>"$ear"
  pipes+=("$pipe")
  (
    for pipe in "${pipes[@]}"; do exec {pipe}>&-; done
    # Nobody but this script holds them open: when it dies, their end stops what runs there.
    "${words[@]}" <"$ear" 2>&1 | show "$1"
  ) &
  members+=($!)
  if ((told)); then tell; fi # a signal came while it was started
}

tell() { # once: another line has no meaning
  local pipe
  for pipe in "${pipes[@]}"; do printf 'stop\n' >&"$pipe"; done
}
# shellcheck disable=SC2329  # traps call it
signalled() { # NUMBER
  if ((told)); then return 0; fi # with 0: a bare one in a trap ends this script
  told=$1
  tell
  printf 'told to stop: the runs save and end, which can take a while\n' >&2 || true
}
trap 'signalled 1' HUP
trap 'signalled 2' INT
trap 'signalled 15' TERM

status=0
wait_for() { # MEMBER HOST
  local code
  while true; do
    code=0
    wait "$1" || code=$?
    kill -0 "$1" 2>/dev/null || break # a trap ends `wait` alone
  done
  ((code)) || return 0
  if ((told && code > 128)); then return; fi # it did what it was told
  status=1
  printf 'failed: %s, with status %s: see %s\n' "$2" "$code" "$logs/$2.log" >&2
}

# A process group each: what a terminal sends to this script reaches them through `tell` alone.
set -m
for i in "${!names[@]}"; do
  if ((told)); then break; fi
  part "$i"
  start "${names[$i]}"
done
for i in "${!members[@]}"; do wait_for "${members[$i]}" "${names[$i]}"; done
if ((!told)); then
  report
  start "${names[0]}"
  wait_for "${members[-1]}" "${names[0]}"
fi
if ((told)); then exit $((128 + told)); fi
exit "$status"
