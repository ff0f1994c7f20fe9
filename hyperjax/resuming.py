"""Whether what lies in a run's folder is of the same run: training goes on from no other's."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax

from hyperjax import runs, storage
from hyperjax.training import step as step_lib


def check(folder: str | os.PathLike, now: Mapping[str, Any]) -> None:
  """Refuses to go on from the checkpoints of another run.

  Lengths, periods, optimizer, mesh, and how models are stored and computed may change.

  Args:
    folder: the run's MODEL_DIR.
    now: training's arguments 'hypermodel', 'data', 'run' and 'objective'.

  Raises:
    ValueError: names what config.gin says otherwise, and the way out.
  """
  kept = storage.folder(folder) / "checkpoints"
  if not kept.is_dir() or not any(step.name.isdigit() for step in kept.iterdir()):
    return
  try:
    before = runs.configured(folder)
  except FileNotFoundError:  # it was not trained by a command
    return
  except ValueError as error:
    raise ValueError(
      f"{folder} has checkpoints, but what they are of cannot be read ({error}): name another "
      "MODEL_DIR, or take config.gin away from there to go on from them all the same"
    ) from error
  before, now = _identity(before), _identity(now)
  changed = [f"{name} is {now.get(name)!r}, was {before.get(name)!r}"
             for name in {**before, **now} if before.get(name) != now.get(name)]  # fmt: skip
  if changed:
    raise ValueError(
      f"{folder} has checkpoints of another run ({'; '.join(changed[:5])}): name another "
      f"MODEL_DIR; with INITIAL_CHECKPOINT_PATH={folder} it starts from the parameters there"
    )


def _identity(given: Mapping[str, Any]) -> dict[str, Any]:
  """{dotted name: value} of what makes a training run the one that it is."""
  producer, data, run = (given[name] for name in ("hypermodel", "data", "run"))
  if hasattr(producer, "without_source"):  # which may lie elsewhere now
    producer = producer.without_source()
  what = {
    "hypermodel": producer, "data": data.config.portable(), "episodes": data.episodes,
    "objective": given.get("objective", step_lib.Objective()), "batch_size": run.batch_size,
    "seed": run.seed, "initial_checkpoint": run.initial_checkpoint,
  }  # fmt: skip
  parts = jax.tree_util.tree_leaves_with_path(_plain(what), is_leaf=lambda x: x is None)
  named = {jax.tree_util.keystr(path, simple=True, separator="."): value for path, value in parts}
  # A loop is a way to compute the same.
  return {name: value for name, value in named.items() if not name.endswith(".loop")}


def _plain(value: Any) -> Any:
  """Dataclasses as dicts, and their kinds."""
  if dataclasses.is_dataclass(value):
    fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return {"kind": type(value).__name__, **fields}
  if isinstance(value, Mapping):
    return {name: _plain(one) for name, one in value.items()}
  return list(map(_plain, value)) if isinstance(value, list | tuple) else value
