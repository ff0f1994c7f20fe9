"""Folders of this machine's disk and of buckets (gs://), through etils, Orbax's own way to both.

A bucket's object comes into being whole and under its own name, so nothing is renamed there. It has
no folders either: one exists as long as an object's name begins with its own.

    python -m hyperjax.storage gs://BUCKET/FOLDER TO     copies a folder to the local disk
"""

import argparse
import asyncio
import contextlib
import fcntl
import glob
import importlib.util
import os
import pathlib
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping

import fsspec
from etils import epath
from fsspec import asyn

_BUCKET = "gs://"
_AT_ONCE = 16  # folders that are copied


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
  """A path of the local disk as a command line names it: a shell leaves the ~ of --out=~/x.

  Raises:
    argparse.ArgumentTypeError: it is an address, and would be taken for a folder's name.
  """
  if "://" in path:
    raise argparse.ArgumentTypeError(
      f"{path} is an address, and this is read or written on the local disk: copy it from or to "
      "there (gcloud storage cp)"
    )
  return pathlib.Path(path).expanduser()


def copy_folder(address: str, to: str | os.PathLike) -> None:
  """Copies a bucket's folder to the local disk, as `copy_folders`."""
  copy_folders({address: to})


def copy_folders(copies: Mapping[str, str | os.PathLike]) -> None:
  """Copies a bucket's folders to the local disk, several at once; each comes whole or not at all,
  and one that is there is kept.

  Several processes of a machine may ask for the same ones at once: one copies, the others wait.
  What one that was killed or interrupted has left is removed by the next.

  Args:
    copies: {address: the copy}; all copies lie in one folder.

  Raises:
    FileNotFoundError: nothing lies at an address.
    ValueError: as `folder`.
  """
  wanted = {address: pathlib.Path(to) for address, to in copies.items()}
  missing = {os.fspath(folder(a)): to for a, to in wanted.items() if not to.exists()}
  if not missing:
    return
  parent = next(iter(missing.values())).parent
  parent.mkdir(parents=True, exist_ok=True)
  with _alone_in(parent) as alone:
    gcs = fsspec.filesystem("gcs")
    asyn.sync(gcs.loop, _copy_all, gcs, missing, alone)


async def _copy_all(
  gcs: asyn.AsyncFileSystem, missing: Mapping[str, pathlib.Path], alone: bool
) -> None:
  turns, errors = asyncio.Semaphore(_AT_ONCE), []

  async def copy(address: str, to: pathlib.Path) -> None:
    async with turns:
      if not errors:
        try:
          await _copy(gcs, address, to, alone)
        except Exception as error:
          errors.append(error)

  await asyncio.gather(*(copy(*pair) for pair in missing.items()))
  if errors:
    raise errors[0]


async def _copy(
  gcs: asyn.AsyncFileSystem, address: str, to: pathlib.Path, alone: bool
) -> None:
  if to.exists():
    return
  if not await gcs._isdir(address):
    raise FileNotFoundError(f"{address}: no such folder in the bucket")
  print(f"copying {address} to {to}", flush=True)
  mine = f".{to.name}.{platform.node()}."  # another machine may share the disk, and not the lock
  for left in to.parent.glob(f"{glob.escape(mine)}*.partial") if alone else ():
    shutil.rmtree(left)
  partial = pathlib.Path(tempfile.mkdtemp(".partial", mine, to.parent))
  try:
    await gcs._get(f"{address}/", f"{partial}/", recursive=True)
    partial.chmod(0o755)
    partial.rename(to)
  except BaseException as error:
    shutil.rmtree(partial, ignore_errors=True)
    if isinstance(error, OSError) and to.exists():  # another machine was the first
      return
    raise


@contextlib.contextmanager
def _alone_in(parent: pathlib.Path) -> Iterator[bool]:
  """Keeps out what else on this machine asks for the same; the system lets go of the killed. False
  where nothing is kept out: NFS, for one, locks no folders."""
  handle = os.open(parent, os.O_RDONLY)
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
      yield False
    else:
      yield True
  finally:
    os.close(handle)


def write_whole(path: str | os.PathLike, content: str | bytes | Iterable[bytes]) -> None:
  """Writes a file, whole or not at all, into a folder that is made where there is none.

  Args:
    path: of the local disk or of a bucket.
    content: text, bytes, or pieces that make them up.

  Raises:
    OSError: the disk does not take it.
  """
  content = content.encode() if isinstance(content, str) else content
  pieces = [content] if isinstance(content, bytes) else content
  if in_bucket(path):
    folder(path).write_bytes(b"".join(pieces))
    return
  path = pathlib.Path(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
      with os.fdopen(handle, "wb") as file:
        file.writelines(pieces)
      os.chmod(temporary, 0o644)
      os.replace(temporary, path)
    except BaseException:
      os.unlink(temporary)
      raise
  except OSError as error:
    raise OSError(f"{path} could not be written: {error.strerror or error}") from error


def said(error: Exception) -> str:
  """The type and first line of an error: Orbax's and the buckets' may be pages long."""
  return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


if __name__ == "__main__":
  copy_folder(*sys.argv[1:])
