# What the launchers share. Sourced by them after `usage`; not a command of its own.
# shellcheck shell=bash

# shellcheck disable=SC2034  # for the launchers
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
  printf 'error: %s\n' "$1" >&2
  printf 'try: %s --help\n' "$0" >&2
  exit 1
}

# A word as every POSIX shell reads it back: also the login shells of other machines.
for_sh() {
  local _quote="'\\''"
  if [[ $1 =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
    printf %s "$1"
  else
    printf "'%s'" "${1//\'/"$_quote"}"
  fi
}

# Words as a line of such a shell.
line_of() {
  local _word _space=''
  for _word in "$@"; do
    printf %s "$_space"
    for_sh "$_word"
    _space=' '
  done
}

# refuse_words NAMES WORDS...: the launcher itself gives the options in NAMES, as '--shard|--no-report'.
refuse_words() {
  local _word
  for _word in "${@:2}"; do
    [[ ! ${_word%%=*} =~ ^($1)$ ]] || fail "${_word%%=*} is given by this script: leave it out behind --"
  done
}

# read_options VALUES FLAGS BARE ARGUMENTS...
# sets the variables that the command line names: `--name V` and `--name=V` set `name` for the names
# in VALUES (as 'name|image'), `--dry-run` sets `dry_run` to 1 for those in FLAGS, one word without
# dashes sets the variable BARE ('' for none). What stands behind `--` is the array `rest`.
read_options() {
  local _values="^($1)$" _flags="^($2)$" _bare=$3 _name _found
  shift 3
  rest=()
  while (($#)); do
    _name=${1#--} _found=''
    case $1 in
      -h | --help) usage; exit 0 ;;
      --) rest=("${@:2}"); return ;;
      --*=*)
        _name=${_name%%=*}
        if [[ $_name =~ $_values ]]; then set -- "--$_name" "${1#*=}" "${@:2}"; continue; fi
        ;;
      --*)
        if [[ $_name =~ $_flags ]]; then
          printf -v "${_name//-/_}" 1
          _found=1
        elif [[ $_name =~ $_values ]]; then
          [[ $# -ge 2 && -n $2 ]] || fail "$1 needs a value"
          printf -v "$_name" %s "$2"
          _found=2
        fi
        ;;
      [!-]*)
        if [[ -n $_bare ]]; then
          [[ -z ${!_bare} ]] || fail "two ${_bare}s: ${!_bare} and $1"
          printf -v "$_bare" %s "$1"
          _found=1
        fi
        ;;
    esac
    [[ -n $_found ]] || fail "unknown option $1; arguments of what it runs stand behind --"
    shift "$_found"
  done
}
