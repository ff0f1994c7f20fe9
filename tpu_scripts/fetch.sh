#!/usr/bin/env bash
# Copies a run's results from a bucket to this machine. See --help.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'HELP'
usage: fetch.sh --from gs://BUCKET/FOLDER --to FOLDER [OPTIONS]

Copies a run's folder (configuration, metrics, TensorBoard events, checkpoints) from its bucket
to this machine; what is here already and the same is not copied again, checkpoints that are gone
there are removed here. Needs no slice.

  --from gs://...    the run's folder in the bucket
  --to FOLDER        a folder here; made where it does not exist
  --no-checkpoints   leave the checkpoints there: `hyperjax evaluate` needs them, a look at the
                     curves does not
  --project PROJECT  its project (else the one that gcloud is set to)
  --dry-run          print the exact commands, quoted for a shell, and run nothing
  -h, --help         print this

Example:
  fetch.sh --from gs://my-bucket/runs/mtf --to runs/mtf
HELP
}

from='' to='' project='' no_checkpoints=no
parse 'from to project' 'no-checkpoints' '' "$@"
need from to
matches from "$from" 'gs://.+' 'an address in a bucket, gs://...'

from=${from%/} to=${to%/} words=(--recursive)
if [[ -n $project ]]; then words+=("--project=$project"); fi
run mkdir -p "$to"
run gcloud storage rsync "$from" "$to" "${words[@]}" '--exclude=^checkpoints/'
if [[ $no_checkpoints == yes ]]; then exit; fi
# Here those that are gone there would be taken for the newest. Evaluations beside them stay.
run mkdir -p "$to/checkpoints"
run gcloud storage rsync "$from/checkpoints" "$to/checkpoints" "${words[@]}" \
  --delete-unmatched-destination-objects
if [[ $dry_run == yes ]]; then exit; fi
# In a bucket a checkpoint is whole when its last object is there: one that was being written while
# it was copied is no checkpoint. (Those written through a mounted bucket have no such object.)
if [[ -n $(find "$to/checkpoints" -mindepth 2 -maxdepth 2 -name commit_success.txt -print -quit) ]]
then
  for step in "$to"/checkpoints/*/; do
    if [[ ! -e $step/commit_success.txt ]]; then run rm -rf "$step"; fi
  done
fi
