#!/usr/bin/env bash
# Starts a run on a GKE cluster of TPUs, as an xpk workload. See --help.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'HELP'
usage: xpk.sh --name WORKLOAD --cluster CLUSTER --zone ZONE --type TYPE --image IMAGE [OPTIONS]
         -- COMMAND [ARGUMENT...]

Starts the run that launch.sh starts on a slice of one's own, on a GKE cluster that xpk has
made. Kubernetes starts all its pods again where one ends with status 75 (hyperjax's "stopped
by SIGTERM, state saved, start me again") or was lost; other statuses end the workload.

  --name WORKLOAD    a name of your choice
  --cluster CLUSTER  the cluster, as `xpk cluster list` prints it
  --zone ZONE        its zone
  --type TYPE        such as v5litepod-64
  --image IMAGE      an image of tpu_scripts/Dockerfile in a registry
  --storage STORAGE  a storage of the cluster (`xpk storage attach`), for data and results
  --copy FROM=TO     before the start, copy this folder or gs:// address to the pod's own disk;
                     repeatable
  --max-restarts N   how often it may be started again (50)
  --grace SECONDS    that a pod which is taken away has for its checkpoint (60)
  --project PROJECT  the project (else the one that gcloud is set to)
  --dry-run          print the exact command, quoted for a shell, and run nothing
  -h, --help         print this

`xpk workload list` and `xpk workload delete --workload WORKLOAD` take the same --cluster,
--zone and --project.

Example:
  xpk.sh --name mtf --cluster pods --zone us-west4-b --type v5litepod-64 \
    --image us-docker.pkg.dev/my-project/images/hyperjax:1 \
    --copy gs://my-bucket/weights=/tmp/weights -- \
    hyperjax train --gin_file=models/llama2_7b.gin --gin_file=systems/hyperllama.gin \
    --gin_file=data/p3.gin --gin_file=runs/mtf.gin --gin_file=meshes/fsdp.gin \
    --gin.P3_DIR=P3/data --gin.BATCH_SIZE=64 --gin.REMAT=full \
    --gin.DATA_DIR=gs://my-bucket/stores/p3 --gin.MODEL_DIR=gs://my-bucket/runs/mtf \
    --gin.MODEL_SOURCE=/tmp/weights --gin.TRAIN_STEPS=10000
HELP
}

takes='command'
name='' cluster='' zone='' project='' type='' image='' storage='' max_restarts=50 grace=60 copy=()
parse 'name cluster zone project type image storage max-restarts grace' '' 'copy' "$@"
need name cluster zone type image
matches max-restarts "$max_restarts" '[0-9]+' 'a number'
matches grace "$grace" '[0-9]+' 'a number of seconds'
find_place

# exec: xpk passes SIGTERM to this one process. --once: Kubernetes does the starting again.
words=(exec bash "/opt/$host_folder/host_run.sh" --once)
for pair in "${copy[@]}"; do
  matches copy "$pair" '[^=]+=[^=]+' 'of the form FROM=TO'
  words+=(--copy "$pair")
done
line=$(quoted "${words[@]}" -- "${rest[@]}")

words=("--workload=$name" "--cluster=$cluster" "${place[@]}" "--tpu-type=$type" --num-slices=1)
words+=("--docker-image=$image" "--max-restarts=$max_restarts" --restart-on-exit-codes=75)
words+=("--termination-grace-period-seconds=$grace")
if [[ -n $storage ]]; then words+=("--storage=$storage"); fi
run xpk workload create "${words[@]}" "--command=$line"
