#!/usr/bin/env bash
# Runs one command on every host of a TPU slice. See --help.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: run_on_all_hosts.sh --name SLICE --zone ZONE [OPTIONS] -- COMMAND [ARGUMENT...]

Runs COMMAND at the same time on every host of a Cloud TPU slice, over ssh. A JAX program on
a slice must run on all of its hosts, or those that started wait for the others for ever.

  --name SLICE       the TPU VM's name, as `gcloud compute tpus tpu-vm list` prints it
  --zone ZONE        its zone, such as us-central2-b
  --project PROJECT  its project (else the one that gcloud is set to)
  --detach LOG       return at once; the command goes on after the connection ends and each
                     host writes its output to the file LOG
  --dry-run          print the exact command, quoted for a shell, and run nothing
  -h, --help         print this

The arguments reach the hosts exactly as they are given. For pipes, variables or several
commands, give a shell: -- bash -c 'cd hyperjax && git pull'

Example, a training run that outlives this terminal, and a look at it:
  run_on_all_hosts.sh --name pod --zone us-central2-b --detach train.log -- \
    hyperjax train --gin_file=models/llama2_7b.gin --gin_file=runs/mtf.gin
  run_on_all_hosts.sh --name pod --zone us-central2-b -- tail -n 3 train.log
HELP
}

fail() {
  echo "run_on_all_hosts.sh: $1 (--help explains)" >&2
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

name='' zone='' project='' detach='' dry_run=no

while (($# > 0)); do
  case $1 in
    --name | --zone | --project | --detach)
      if (($# < 2)) || [[ $2 == -* || -z $2 ]]; then fail "$1 needs a value"; fi
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --name=?* | --zone=?* | --project=?* | --detach=?*)
      option=${1%%=*}
      printf -v "${option#--}" '%s' "${1#*=}"
      shift
      ;;
    --dry-run) dry_run=yes && shift ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "unknown argument '$1'; the command to run comes after --" ;;
  esac
done

if [[ -z $name ]]; then fail "--name is missing"; fi
if [[ -z $zone ]]; then fail "--zone is missing"; fi
if (($# == 0)); then fail "no command after --"; fi

# The remote shell splits the line again: quoting here keeps every argument whole.
remote=$(quoted "$@")
if [[ -n $detach ]]; then
  # Without all three redirections ssh waits for the command to end.
  remote="nohup $remote > $(quoted "$detach") 2>&1 < /dev/null &"
fi

command=(gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone")
if [[ -n $project ]]; then command+=("--project=$project"); fi
command+=(--worker=all "--command=$remote")

if [[ $dry_run == yes ]]; then
  quoted "${command[@]}"
  exit 0
fi
if ! command -v gcloud > /dev/null; then
  echo "run_on_all_hosts.sh: gcloud is not installed (--dry-run shows what would run)" >&2
  exit 127
fi
exec "${command[@]}"
