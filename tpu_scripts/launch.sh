#!/usr/bin/env bash
# Starts a run on every host of a TPU slice, again after preemptions. See --help.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'HELP'
usage: launch.sh --name SLICE --zone ZONE --run RUN [OPTIONS] -- COMMAND [ARGUMENT...]

Starts COMMAND on every host of a slice that setup.sh made ready, and returns. Each host runs
it again as long as it ends with status 75, hyperjax's "stopped by SIGTERM, state saved, start
me again", and gives up on any other (host_run.sh --help). logs.sh looks at it, stop.sh ends it.

  --name SLICE       the slice's name
  --zone ZONE        its zone
  --run RUN          a name for the run: each host appends its output to hyperjax-host/RUN.log
  --copy FROM=TO     before the start, copy this folder or gs:// address to the host's own disk,
                     unless TO exists; repeatable: the weights
  --project PROJECT  its project (else the one that gcloud is set to)
  --dry-run          print the exact command, quoted for a shell, and run nothing
  -h, --help         print this

The processes find one another by themselves. The arguments reach the hosts exactly as they are
given; MODEL_DIR must be a gs:// address, or a folder that all of them see.

Example:
  launch.sh --name pod --zone us-west4-b --run mtf --copy gs://my-bucket/weights=/tmp/weights -- \
    hyperjax train --gin_file=models/llama2_7b.gin --gin_file=systems/hyperllama.gin \
    --gin_file=data/p3.gin --gin_file=runs/mtf.gin --gin_file=meshes/fsdp.gin \
    --gin.P3_DIR=P3/data --gin.BATCH_SIZE=64 --gin.REMAT=full \
    --gin.DATA_DIR=gs://my-bucket/stores/p3 --gin.MODEL_DIR=gs://my-bucket/runs/mtf \
    --gin.MODEL_SOURCE=/tmp/weights --gin.TRAIN_STEPS=10000
HELP
}

takes='command'
name='' zone='' project='' run='' copy=()
parse 'name zone project run' '' 'copy' "$@"
need name zone run
matches run "$run" '[A-Za-z0-9_.-]+' 'a plain name'

words=(bash "$host_folder/host_run.sh")
for pair in "${copy[@]}"; do
  matches copy "$pair" '[^=]+=[^=]+' 'of the form FROM=TO'
  words+=(--copy "$pair")
done
on_hosts all "$(detached "$host_folder/$run.log" "${words[@]}" -- "${rest[@]}")"
