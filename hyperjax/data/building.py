"""Opens the data folder that a configuration describes, and has it built where it is missing."""

import json
import os
import pathlib
import shlex
import subprocess
import sys
from importlib import util as importlib_util

from hyperjax import storage
from hyperjax.data import task_modules
from hyperjax.data.manifest import COPIES, FILE, DataConfig, Manifest

# The builder must not take an accelerator's memory (or a TPU's lock) from the one that trains.
NO_ACCELERATOR = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}


def ensure(
  config: DataConfig,
  out: str | os.PathLike,
  *,
  build: bool = True,
  copies: str | os.PathLike = COPIES,
) -> Manifest:
  """Opens the data folder that `config` describes; builds it where it is missing.

  The builder is the one process that imports TensorFlow; it runs once, as a subprocess. Where
  seqio is not installed, in runs of several processes (`build=False`), and in a bucket nothing is
  built; of a bucket, stores are copied below `copies`.

  Raises:
    ValueError: the folder was built from something else, a source or a task module has changed
      since, or the builder failed.
    FileNotFoundError: the folder is missing and cannot be built here.
  """
  if storage.in_bucket(out):
    way_out = (
      "Build it with hyperjax data, and copy it there (docs/pods.md), or name another DATA_DIR."
    )
    try:
      manifest = Manifest.load(out, copies)
    except FileNotFoundError as error:
      raise FileNotFoundError(f"{error} {way_out}") from None
    if problem := _difference(manifest, config):
      raise ValueError(f"{out}: {problem} {way_out}")
    return manifest
  out = pathlib.Path(out)
  file = out.with_name(f"{out.name}.config.json")  # beside: it names this machine's paths
  arguments = ["--config_json", str(file), "--out", str(out)]
  command = f"hyperjax data {shlex.join(arguments)}"
  if (out / FILE).exists():
    manifest = Manifest.load(out)
    problem = _difference(manifest, config)
    if problem:
      try:
        _write_config(config, file)
      except OSError as error:
        command = f"not into this folder ({file} cannot be written: {error.strerror})"
      raise ValueError(f"{out}: {problem} Name another DATA_DIR, or rebuild it: {command}")
    return manifest
  _write_config(config, file)
  if not build or importlib_util.find_spec("seqio") is None:
    why = "seqio is not installed here" if build else "this run does not build data"
    raise FileNotFoundError(f"{out} is not a finished data folder and {why}. Build it: {command}")
  # The builder has TensorFlow, and reads buckets through it.
  environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "EPATH_USE_TF": "1", **NO_ACCELERATOR}
  status = subprocess.run(
    [sys.executable, "-m", "hyperjax.data", *arguments], check=False, env=environment
  )
  if status.returncode:
    raise ValueError(f"Building {out} failed (status {status.returncode}); repeat it: {command}")
  return Manifest.load(out)


def _write_config(config: DataConfig, file: pathlib.Path) -> None:
  storage.write_whole(file, json.dumps(config.to_json(), indent=1))


def _difference(manifest: Manifest, config: DataConfig) -> str | None:
  """Says in what a data folder differs from its configuration, None where it does not."""
  built, wanted = manifest.values["config"], config.portable()
  changed = [key for key in wanted if built.get(key) != wanted[key]]
  if changed:
    details = "; ".join(f"{key} is {wanted[key]}, was {built.get(key)}" for key in changed)
    return f"it was built from another configuration: {details}."
  for name, was in manifest.values.get("modules", {}).items():
    now = task_modules.identity(name)
    if None not in (was, now) and was != now:
      return f"the task module '{name}' has changed."
  for source in config.sources:
    if not source.available():  # a copied data folder, on a machine without its sources
      continue
    now = source.fingerprints()
    for task in manifest.tasks:
      for entry in manifest.values["tasks"][task]["splits"].values():
        if task in now and entry["source"] != now[task]:
          return f"the source of task '{task}' has changed."
    missing = sorted(set(manifest.values["registered"].get(source.name, [])) ^ set(now))
    if missing:
      return f"the tasks of source '{source.name}' have changed: {missing[:5]}."
  return None
