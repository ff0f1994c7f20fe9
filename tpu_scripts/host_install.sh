#!/usr/bin/env bash
# On a host or in an image: installs hyperjax for TPUs. See --help.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'HELP'
usage: host_install.sh --source SOURCE [OPTIONS]

Installs hyperjax, what reads buckets, and JAX for TPUs into the folder venv beside this script, in
the versions of the requirements files beside it, with a Python of its own. What only building data
needs (TensorFlow, seqio, t5) is left out: runs of several processes never build.

  --source SOURCE    a wheel, or a git URL as pip takes it
  --python VERSION   of Python (3.12)
  --dry-run          print the exact commands, quoted for a shell, and run nothing
  -h, --help         print this

Example:
  host_install.sh --source hyperjax-0.1.0-py3-none-any.whl
HELP
}

source='' python=3.12
parse 'source python' '' '' "$@"
need source
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ $source != git+* ]]; then source="file://$(realpath -m "$source")"; fi
source="hyperjax[gcs] @ $source"

# Pins as constraints (a constraint has no folders); a package that is never wanted is overridden.
if [[ $dry_run != yes ]]; then
  grep -hE '^[A-Za-z0-9_.-]+==' "$here"/requirements{,-gcs}.txt > "$here/constraints.txt"
  printf "%s ; sys_platform == 'never'\n" seqio t5 tensorflow tensorflow-datasets \
    > "$here/overrides.txt"
fi
run python3 -m pip install --quiet --user uv
uv=(python3 -m uv)
run "${uv[@]}" venv --quiet --clear --managed-python --python "$python" "$here/venv"
run "${uv[@]}" pip install --quiet --python "$here/venv/bin/python" \
  --constraints "$here/constraints.txt" --overrides "$here/overrides.txt" 'jax[tpu]' "$source"
run "$here/venv/bin/python" -c \
  'import platform, jax, hyperjax as h; print(platform.node(), platform.python_version(), jax.__version__, h.__version__)'
