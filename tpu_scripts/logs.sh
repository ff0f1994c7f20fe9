#!/usr/bin/env bash
# Shows what a run on a TPU slice prints. See --help.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'HELP'
usage: logs.sh --name SLICE --zone ZONE --run RUN [OPTIONS]

Shows the end of what a run that launch.sh started has printed.

  --name SLICE       the slice's name
  --zone ZONE        its zone
  --run RUN          the run's name, as launch.sh got it
  --worker WORKER    of which host: 0 (else), 1, ..., or all; after a failure look at all, since
                     the host that failed first says why
  --lines LINES      how many lines (20)
  --follow           go on with what comes; Ctrl-C ends it, the run goes on
  --project PROJECT  its project (else the one that gcloud is set to)
  --dry-run          print the exact command, quoted for a shell, and run nothing
  -h, --help         print this

Example:
  logs.sh --name pod --zone us-west4-b --run mtf --follow
HELP
}

name='' zone='' project='' run='' worker=0 lines=20 follow=no
parse 'name zone project run worker lines' 'follow' '' "$@"
need name zone run
matches run "$run" '[A-Za-z0-9_.-]+' 'a plain name'
matches worker "$worker" 'all|[0-9]+' 'a number or all'
matches lines "$lines" '[0-9]+' 'a number of lines'

words=(tail -n "$lines")
if [[ $follow == yes ]]; then words+=(-f); fi
on_hosts "$worker" "$(quoted "${words[@]}" "$host_folder/$run.log")"
