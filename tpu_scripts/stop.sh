#!/usr/bin/env bash
# Stops the run on a TPU slice; its state is saved. See --help.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'HELP'
usage: stop.sh --name SLICE --zone ZONE [OPTIONS]

Stops the run that launch.sh started on a slice: every host's process gets SIGTERM, all save
together after the same step and end. The same launch.sh goes on from there.

  --name SLICE       the slice's name
  --zone ZONE        its zone
  --project PROJECT  its project (else the one that gcloud is set to)
  --dry-run          print the exact command, quoted for a shell, and run nothing
  -h, --help         print this

Example:
  stop.sh --name pod --zone us-west4-b
HELP
}

name='' zone='' project=''
parse 'name zone project' '' '' "$@"
need name zone
on_hosts all "bash $host_folder/host_stop.sh"
