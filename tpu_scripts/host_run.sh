#!/usr/bin/env bash
# On a host: runs a command, again after each preemption. See --help.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'HELP'
usage: host_run.sh [OPTIONS] -- COMMAND [ARGUMENT...]

Runs COMMAND on this machine, and again as long as it ends with status 75: `hyperjax train`
says so that it was stopped by SIGTERM, has saved its state, and goes on if it is started
again. Any other status ends this too, and is its own: 0 is done, 2 is wrong input, others are
failures that a new start would not mend.

SIGTERM to this script is passed on to COMMAND, which is not started again then: the machine is
going down, or stop.sh was called. One run at a time per machine.

  --copy FROM=TO     first copy this folder, or gs:// address, to TO, whole or not at all, unless TO
                     exists; repeatable
  --pause SECONDS    before starting again (5)
  --once             never start again: something else does, as Kubernetes under xpk.sh
  --dry-run          print the exact commands, quoted for a shell, and run nothing
  -h, --help         print this

Example:
  host_run.sh --copy gs://my-bucket/weights=/tmp/weights -- hyperjax train --gin_file=run.gin
HELP
}

say() {
  echo "host_run.sh: $(date -u +%FT%TZ) $1"
}

# A copy that was cut short keeps its other name, and is made anew.
copy_folder() {
  local from=$1 to=${2%/}
  if [[ -e $to ]]; then
    say "$to is there already"
  elif [[ $from == gs://* ]]; then
    run "$here/venv/bin/python" -m hyperjax.storage "$from" "$to"
  else
    run rm -rf "$to.partial"
    run mkdir -p "$to.partial"
    run cp -r "$from/." "$to.partial"
    run mv "$to.partial" "$to"
  fi
}

takes='command'
copy=() pause=5 once=no
parse 'pause' 'once' 'copy' "$@"
matches pause "$pause" '[0-9]+' 'a number of seconds'
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [[ $dry_run != yes ]]; then
  exec {lock}>> "$here/run.lock"
  if ! flock --nonblock "$lock"; then
    echo "host_run.sh: process $(cat "$here/run.pid") runs here already; stop.sh ends it" >&2
    exit 1
  fi
  echo $$ > "$here/run.pid"
fi

for pair in "${copy[@]}"; do
  matches copy "$pair" '[^=]+=[^=]+' 'of the form FROM=TO'
done
if [[ $dry_run == yes ]]; then
  for pair in "${copy[@]}"; do copy_folder "${pair%%=*}" "${pair#*=}"; done
  run "${rest[@]}"
  exit
fi

# A process that JAX ends because another one died would lose what Python has not yet written.
export PYTHONUNBUFFERED=1 PATH="$here/venv/bin:$PATH"
child='' stopping=no
# shellcheck disable=SC2329 # the trap calls it
pass_on() {
  stopping=yes signalled=yes
  if [[ -n $child ]]; then kill -TERM "$child" || true; fi
}
trap pass_on TERM INT

# Runs a command to its end, and passes signals on to it; leaves its status in status.
attend() {
  # The lock is this script's alone: a child that outlives it would hold it.
  "$@" {lock}>&- &
  child=$!
  signalled=yes
  # A signal ends the wait, and not yet the child.
  while [[ $signalled == yes ]]; do
    signalled=no status=0
    wait "$child" || status=$?
  done
  child=''
}

for pair in "${copy[@]}"; do
  attend copy_folder "${pair%%=*}" "${pair#*=}"
  if [[ $status != 0 || $stopping == yes ]]; then exit "$((status > 0 ? status : 143))"; fi
done

status=75
while [[ $status == 75 && $stopping == no ]]; do
  say "starts $(quoted "${rest[@]}")"
  attend "${rest[@]}"
  say "ended with status $status"
  if [[ $once == yes ]]; then break; fi
  if [[ $status == 75 && $stopping == no ]]; then sleep "$pause"; fi
done
exit "$status"
