#!/usr/bin/env bash
# Runs one command on every host of a TPU slice. See --help.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'HELP'
usage: run_on_all_hosts.sh --name SLICE --zone ZONE [OPTIONS] -- COMMAND [ARGUMENT...]

Runs COMMAND at the same time on every host of a Cloud TPU slice, over ssh. A JAX program on
a slice must run on all of its hosts, or those that started wait for the others for ever.

  --name SLICE       the TPU VM's name, as `gcloud compute tpus tpu-vm list` prints it
  --zone ZONE        its zone, such as us-central2-b
  --project PROJECT  its project (else the one that gcloud is set to)
  --detach LOG       return at once; the command goes on after the connection ends and each
                     host appends its output to the file LOG
  --dry-run          print the exact command, quoted for a shell, and run nothing
  -h, --help         print this

The arguments reach the hosts exactly as they are given. For pipes, variables or several
commands, give a shell: -- bash -c 'cd hyperjax && git pull'

Example, which hosts still have how much disk:
  run_on_all_hosts.sh --name pod --zone us-central2-b -- df -h .

launch.sh starts a training run: it also starts it again after a preemption.
HELP
}

takes='command'
name='' zone='' project='' detach=''
parse 'name zone project detach' '' '' "$@"
need name zone

# The remote shell splits the line again: quoting here keeps every argument whole.
line=$(quoted "${rest[@]}")
if [[ -n $detach ]]; then line=$(detached "$detach" "${rest[@]}"); fi
on_hosts all "$line"
