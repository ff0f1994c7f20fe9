"""Folders of this machine's disk and of buckets (gs://), through etils, Orbax's own way to both.

A bucket's object comes into being whole and under its own name, so nothing is renamed there. It has
no folders either: one exists as long as an object's name begins with its own.

    python -m hyperjax.storage gs://BUCKET/FOLDER TO     copies a folder to the local disk
"""

import importlib.util
import os
import pathlib
import shutil
import sys
import tempfile

import fsspec
from etils import epath

_BUCKET = "gs://"


def in_bucket(path: str | os.PathLike) -> bool:
  """Whether a path is a bucket's address."""
  return os.fspath(path).startswith(_BUCKET)


def check_address(
  path: str | os.PathLike, name: str, way_out: str, *, bucket: bool = False
) -> None:
  """Refuses an address that is not served: taken for a file's name, it would be a local one.

  Args:
    path: a folder, or an address.
    name: what the user sets it by, for the error.
    way_out: what to do instead, for the error.
    bucket: whether a bucket's address is served.

  Raises:
    ValueError: it is not.
  """
  if "://" not in os.fspath(path) or (bucket and in_bucket(path)):
    return
  allowed = f"a folder or a {_BUCKET} address" if bucket else "a folder"
  raise ValueError(f"{name} is {os.fspath(path)}, not {allowed}: {way_out}.")


def folder(path: str | os.PathLike) -> epath.Path:
  """The folder or file of that name, with pathlib's methods wherever it lies.

  Raises:
    ValueError: it lies in a bucket, and what reads buckets is not installed.
  """
  if in_bucket(path):
    # etils would take TensorFlow where it is installed, which training never imports.
    os.environ.setdefault("EPATH_USE_TF", "false")
    # No caches of names: what one host writes, the others look for at once.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    if importlib.util.find_spec("gcsfs") is None:
      raise ValueError(
        f"{os.fspath(path)}: reading buckets needs gcsfs: pip install 'hyperjax[gcs]', or mount "
        "the bucket and name the folder in it"
      )
  return epath.Path(path)


def local(path: str) -> pathlib.Path:
  """A path of the local disk as a command line names it: a shell leaves the ~ of --out=~/x."""
  return pathlib.Path(path).expanduser()


def copy_folder(address: str, to: str | os.PathLike) -> None:
  """Copies a bucket's folder to the local disk, whole or not at all; one that is there is kept.

  Several processes of a machine may ask for the same one at once.

  Raises:
    FileNotFoundError: nothing lies at that address.
    ValueError: as `folder`.
  """
  to = pathlib.Path(to)
  if to.exists():
    return
  source = folder(address)
  if not source.is_dir():
    raise FileNotFoundError(f"{address}: no such folder in the bucket")
  print(f"copying {address} to {to}", flush=True)
  to.parent.mkdir(parents=True, exist_ok=True)
  partial = pathlib.Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}."))
  try:
    fsspec.filesystem("gcs").get(f"{os.fspath(source)}/", f"{partial}/", recursive=True)
    partial.chmod(0o755)
    try:
      partial.rename(to)
    except OSError:
      if not to.exists():  # else another process of this machine was first
        raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def said(error: Exception) -> str:
  """The type and first line of an error: Orbax's and the buckets' may be pages long."""
  return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


if __name__ == "__main__":
  copy_folder(*sys.argv[1:])
