#!/usr/bin/env bash
# Installs hyperjax on every host of a TPU slice. See --help.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'HELP'
usage: setup.sh --name SLICE --zone ZONE --source SOURCE [OPTIONS]

Makes every host of a slice ready for launch.sh: the same Python and the versions of this
checkout's requirements files, less what only building data needs (TensorFlow, seqio). The same
command again repairs or updates.

  --name SLICE       the slice's name
  --zone ZONE        its zone
  --source SOURCE    hyperjax: a wheel on this machine, or a git URL as pip takes it, such as
                     git+https://github.com/OWNER/hyperjax@TAG
  --bucket BUCKET    mount this bucket at /gcs on every host: for what reads no gs:// addresses
  --python VERSION   of Python (3.12)
  --project PROJECT  its project (else the one that gcloud is set to)
  --dry-run          print the exact commands, quoted for a shell, and run nothing
  -h, --help         print this

gcloud reaches many hosts at once only if an agent holds its key:
  ssh-add ~/.ssh/google_compute_engine

Example, this checkout as it is:
  rm -rf build && pip wheel --no-deps --wheel-dir dist .
  setup.sh --name pod --zone us-west4-b \
    --source dist/hyperjax-0.1.0-py3-none-any.whl
HELP
}

name='' zone='' project='' source='' bucket='' python=3.12
parse 'name zone project source bucket python' '' '' "$@"
need name zone source
here=$(dirname "${BASH_SOURCE[0]}")

files=("$here"/{common,host_install,host_mount,host_run,host_stop}.sh "$here"/../requirements{,-gcs}.txt)
case $source in
  git+*) ;;
  *.whl)
    if [[ ! -f $source ]]; then fail "--source $source: no such file"; fi
    files+=("$source")
    source=$host_folder/${source##*/}
    ;;
  *) fail "--source $source is neither a wheel (.whl) nor a git URL (git+https://...)" ;;
esac

on_hosts all "mkdir -p $host_folder"
run gcloud compute tpus tpu-vm scp "${files[@]}" "$name:$host_folder/" "${place[@]}" --worker=all
if [[ -n $bucket ]]; then
  on_hosts all "$(quoted bash "$host_folder/host_mount.sh" --bucket "${bucket#gs://}")"
fi
on_hosts all "$(quoted bash "$host_folder/host_install.sh" --source "$source" --python "$python")"
