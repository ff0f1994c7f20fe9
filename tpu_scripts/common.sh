# shellcheck shell=bash
# Options, quoting and dry runs for the scripts of this folder, which source it. A script defines
# usage(), gives its options' variables their defaults, and calls parse.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "${0##*/}: needs bash 4.4 or newer, this is $BASH_VERSION (macOS: brew install bash)" >&2
  exit 2
fi

# Where a host keeps what the scripts bring, below the home folder.
export host_folder=hyperjax-host
# What a script takes behind --: 'command', or nothing.
takes=''
rest=()
dry_run=no

fail() {
  echo "${0##*/}: $1 (--help explains)" >&2
  exit 2
}

# Prints a command line that a shell reads as exactly these words; plain words stay readable.
quoted() {
  local word words=()
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./=:,+@%-]+$ ]]; then words+=("$word"); else words+=("${word@Q}"); fi
  done
  echo "${words[*]}"
}

# parse 'OPTION...' 'SWITCH...' 'LIST...' "$@": sets the variable of an option (--a-b sets a_b) to its
# value, of a switch to yes, and appends to the array of a list; leaves the command in rest. Every
# script also has --help and --dry-run.
parse() {
  # key, given, target: no option may be called so, a local variable would hide the script's own.
  local options=" $1 " switches=" $2 dry-run " lists=" $3 " key given
  shift 3
  while (($# > 0)); do
    case $1 in
      -h | --help) usage && exit 0 ;;
      --) break ;;
      --?*) key=${1%%=*} && key=${key#--} ;;
      *) fail "unknown argument '$1'${takes:+; the $takes to run comes after --}" ;;
    esac
    if [[ $switches == *" $key "* && $1 == "--$key" ]]; then
      printf -v "${key//-/_}" yes
      shift
      continue
    fi
    if [[ $options$lists != *" $key "* ]]; then fail "unknown argument '$1'"; fi
    if [[ $1 == *=?* ]]; then
      given=${1#*=} && shift
    elif (($# < 2)) || [[ $1 == *= || $2 == -* || -z $2 ]]; then
      fail "--$key needs a value"
    else
      given=$2 && shift 2
    fi
    if [[ $lists == *" $key "* ]]; then
      local -n target=${key//-/_}
      target+=("$given")
    else
      printf -v "${key//-/_}" '%s' "$given"
    fi
  done
  if (($# > 0)); then
    if [[ -z $takes ]]; then fail "unknown argument '--'"; fi
    shift
  fi
  rest=("$@")
  if [[ -n $takes ]] && ((${#rest[@]} == 0)); then fail "no $takes after --"; fi
}

# need OPTION...: each must have been given.
need() {
  local key given
  for key in "$@"; do
    given=${key//-/_}
    if [[ -z ${!given} ]]; then fail "--$key is missing"; fi
  done
}

# matches OPTION VALUE PATTERN MEANING: the whole value must match.
matches() {
  if [[ ! $2 =~ ^($3)$ ]]; then fail "--$1 $2 is not $4"; fi
}

# Runs a command; in a dry run prints it instead.
run() {
  if [[ $dry_run == yes ]]; then
    quoted "$@"
  elif command -v "$1" > /dev/null; then
    "$@"
  else
    echo "${0##*/}: $1 is not installed (--dry-run shows what would run)" >&2
    exit 127
  fi
}

# Sets the array place to the flags that say where the slice is.
find_place() {
  place=("--zone=${zone-}")
  if [[ -n ${project-} ]]; then place+=("--project=$project"); fi
}

# on_hosts WORKERS LINE: runs a shell line on one host (0, 1, ...) or all of the slice.
on_hosts() {
  find_place
  run gcloud compute tpus tpu-vm ssh "${name-}" "${place[@]}" "--worker=$1" "--command=$2"
}

# detached LOG WORD...: prints the shell line that runs a command beyond the end of the connection,
# its output appended to LOG. Without all three redirections ssh waits for the command to end.
detached() {
  local log=$1
  shift
  echo "nohup $(quoted "$@") >> $(quoted "$log") 2>&1 < /dev/null &"
}
