#!/usr/bin/env bash
# On a host: stops the run of host_run.sh. See --help.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'HELP'
usage: host_stop.sh [--dry-run]

Sends SIGTERM to the host_run.sh of this machine, if there is one. It passes the signal on to its
command, which saves its state and ends.

  --dry-run          print the exact command, quoted for a shell, and run nothing
  -h, --help         print this

Example:
  host_stop.sh
HELP
}

parse '' '' '' "$@"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ ! -e $here/run.lock ]] || flock --nonblock "$here/run.lock" true; then
  echo "$(hostname): nothing runs here"
else
  run kill -TERM "$(cat "$here/run.pid")"
fi
