#!/usr/bin/env bash
# On a TPU host: mounts a bucket as a folder. See --help.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'HELP'
usage: host_mount.sh --bucket BUCKET [OPTIONS]

Mounts a Cloud Storage bucket at /gcs with Cloud Storage FUSE, which it installs where it is
missing (Ubuntu or Debian; sudo without a password). The bucket needs a hierarchical namespace:
checkpoints come into being by renaming a folder.

  --bucket BUCKET    its name, without gs://
  --at FOLDER        another place than /gcs
  --dry-run          print the exact commands, quoted for a shell, and run nothing
  -h, --help         print this

Example:
  host_mount.sh --bucket my-bucket
HELP
}

install_gcsfuse() {
  local keyring=/usr/share/keyrings/cloud.google.asc site=https://packages.cloud.google.com/apt
  local release
  # shellcheck source=/dev/null
  release=$(source /etc/os-release && echo "${VERSION_CODENAME-}")
  run sudo curl -fsSL "$site/doc/apt-key.gpg" -o "$keyring"
  run sudo bash -c "echo 'deb [signed-by=$keyring] $site gcsfuse-$release main' \
> /etc/apt/sources.list.d/gcsfuse.list"
  # A new machine may still be installing updates.
  run sudo apt-get -o DPkg::Lock::Timeout=300 update -q
  run sudo apt-get -o DPkg::Lock::Timeout=300 install -qy gcsfuse
}

bucket='' at=/gcs
parse 'bucket at' '' '' "$@"
need bucket

if [[ $dry_run == yes ]] || ! command -v gcsfuse > /dev/null; then install_gcsfuse; fi
if [[ $dry_run != yes ]] && mountpoint -q "$at"; then
  echo "$(hostname): $at is mounted already"
  exit
fi
run sudo mkdir -p "$at"
run sudo chown "$(id -u):$(id -g)" "$at"
# No caches of names: what one host writes, the others look for at once.
run gcsfuse --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$bucket" "$at"
