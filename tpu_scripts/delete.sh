#!/usr/bin/env bash
# Deletes a TPU slice and its request. See --help.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'HELP'
usage: delete.sh --name SLICE --zone ZONE [OPTIONS]

Deletes a slice that create.sh made, its hosts with their disks, and its request: nothing of
it is billed any more. What is in buckets stays. stop.sh before it saves a run's last steps.

  --name SLICE       the slice's name
  --zone ZONE        its zone
  --project PROJECT  its project (else the one that gcloud is set to)
  --async            do not wait until it is gone
  --dry-run          print the exact command, quoted for a shell, and run nothing
  -h, --help         print this

Example:
  delete.sh --name pod --zone us-west4-b
HELP
}

name='' zone='' project='' async=no
parse 'name zone project' 'async' '' "$@"
need name zone
find_place

# --force: with the running hosts; --quiet: without a question.
words=("$name" "${place[@]}" --force --quiet)
if [[ $async == yes ]]; then words+=(--async); fi
run gcloud compute tpus queued-resources delete "${words[@]}"
