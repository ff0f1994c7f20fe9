#!/usr/bin/env bash
# Requests a TPU slice and waits until it is there. See --help.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'HELP'
usage: create.sh --name SLICE --zone ZONE --type TYPE [OPTIONS]

Requests a Cloud TPU slice (a queued resource and its TPU VM, both called SLICE) and waits
until it is ACTIVE. The request stays in Google's queue if this script is stopped; the same
command waits on. From ACTIVE on the slice is billed: delete.sh ends that.

  --name SLICE       a name of your choice
  --zone ZONE        a zone that has the type, such as us-west4-b
  --type TYPE        generation and size: v5litepod-64 has 64 chips, on 16 hosts
  --runtime VERSION  what the hosts run (else what goes with TYPE)
  --spot             spare capacity: cheap, and taken away at any time
  --reserved         capacity that you have reserved
  --valid-for TIME   give the request up if it is not met in this time, such as 6h
  --service-account EMAIL  whom the hosts are, for access to buckets (else the project's default)
  --project PROJECT  the project (else the one that gcloud is set to)
  --poll SECONDS     between two looks (30)
  --dry-run          print the exact commands, quoted for a shell, and run nothing
  -h, --help         print this

A slice that was taken away stays in the list as SUSPENDED and holds its name and quota:
delete.sh, then the same create.sh, setup.sh and launch.sh; the run goes on.

Example:
  create.sh --name pod --zone us-west4-b --type v5litepod-64 --spot
HELP
}

# What the documentation of each generation names.
runtime_of() {
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) fail "--type $1: no runtime is known for it; name one with --runtime" ;;
  esac
}

state_of() {
  run gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    '--format=value(state.state)'
}

# Prints the words that request the slice.
request() {
  local words=(
    "$name" "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime" "${place[@]}"
  )
  if [[ $spot == yes ]]; then words+=(--spot); fi
  if [[ $reserved == yes ]]; then words+=(--reserved); fi
  if [[ -n $valid_for ]]; then words+=("--valid-until-duration=$valid_for"); fi
  if [[ -n $service_account ]]; then words+=("--service-account=$service_account"); fi
  run gcloud compute tpus queued-resources create "${words[@]}"
}

name='' zone='' project='' type='' runtime='' valid_for='' service_account='' poll=30
spot=no reserved=no
parse 'name zone project type runtime valid-for service-account poll' 'spot reserved' '' "$@"
need name zone type
matches poll "$poll" '[0-9]+' 'a number of seconds'
if [[ $spot == yes && $reserved == yes ]]; then fail "--spot and --reserved exclude each other"; fi
if [[ -z $runtime ]]; then runtime=$(runtime_of "$type"); fi
find_place

if [[ $dry_run == yes ]]; then
  request
  echo "# every $poll s until it prints ACTIVE:"
  state_of
  exit
fi

# In a shell of its own, where a missing gcloud ends that and request says so.
if ! (state_of) > /dev/null 2>&1; then request; fi
seen=''
while true; do
  state=$(state_of)
  if [[ $state != "$seen" ]]; then echo "$(date +%T) $name is $state"; fi
  seen=$state
  case $state in
    ACTIVE) break ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING)
      echo "create.sh: it will not come; delete.sh --name $name --zone $zone, then again" >&2
      exit 1
      ;;
  esac
  sleep "$poll"
done
echo "next: setup.sh"
