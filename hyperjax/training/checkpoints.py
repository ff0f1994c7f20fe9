"""Orbax checkpoints of what a run trains: parameters, optimizer, step; never the frozen model."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from hyperjax import storage
from hyperjax.training import checksums

Tree = Any

# Orbax warns of what `read_only` asks for.
logging.getLogger("absl").addFilter(
  lambda record: not str(record.msg).startswith("Given directory is read only")
)


@dataclasses.dataclass
class Restored:
  """What a checkpoint holds.

  Attributes:
    step: how many steps were done; the next batch is the one of this number.
    trained: parameters.
    state: optimizer state.
  """

  step: int
  trained: Tree
  state: Tree


class DamagedError(ValueError):
  """A checkpoint that cannot be read whole."""



class Checkpoints:
  """The checkpoints of one run, in MODEL_DIR/checkpoints; saving does not hold up training.

  A checkpoint that was being written when the process died is not taken for one: Orbax renames it
  into place when it is whole, or writes a last file into it where it lies in a bucket. One whose
  contents are not what was saved is refused.
  """

  def __init__(
    self,
    model_dir: str | os.PathLike,
    fingerprint: str,
    *,
    data: str | None = None,
    keep: int = 2,
    read_only: bool = False,
  ):
    """Opens the folder.

    Args:
      model_dir: the run's folder, of the local disk or of a bucket.
      fingerprint: of the frozen model.
      data: what stands for the data that is trained on; None where it does not matter.
      keep: how many checkpoints stay.
      read_only: nothing is made or tidied up there: the run may be going on.

    Raises:
      FileNotFoundError: there is nothing to read.
    """
    self.folder = storage.folder(model_dir) / "checkpoints"
    if not storage.in_bucket(model_dir):
      self.folder = self.folder.resolve()
    self._fingerprint, self._data, self._back_to = fingerprint, data, None
    if read_only and not self.folder.is_dir():
      raise FileNotFoundError(f"{self.folder} holds no complete checkpoint")
    self._manager = ocp.CheckpointManager(
      self.folder,
      # Named here, since a manager that has not saved yet knows no item's kind.
      item_handlers={
        "trained": ocp.StandardCheckpointHandler(),
        "optimizer": ocp.StandardCheckpointHandler(),
        "about": ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        max_to_keep=None if read_only else keep,
        save_interval_steps=0 if read_only else 1,
        enable_async_checkpointing=True,
        create=not read_only,
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
      ),
    )

  def latest(self) -> int | None:
    """The step of the newest whole checkpoint."""
    return self._manager.latest_step()

  def resume(self, trained: Tree, state: Tree, back_to: int | None = None) -> Restored | None:
    """Reads where a run goes on: the newest checkpoint, or the one that it is to go back to.

    Newer ones than that are removed, once it has been read, except where they were saved after
    going back to it: so the command that asks for it may be given again, as after a preemption.

    Args:
      trained, state: as `restore` takes them: shapes do.
      back_to: the step to go back to; None for the newest.

    Returns:
      What was read; None where there is no checkpoint and none is asked for.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: as `restore`.
    """
    steps = sorted(self._manager.all_steps())
    if back_to is None:
      return self.restore(trained, state) if steps else None
    self._back_to = back_to
    if steps and self._went_back_to(steps[-1]) == back_to:
      with contextlib.suppress(DamagedError):  # one more to go back from
        return self.restore(trained, state)
    if back_to not in steps:
      raise FileNotFoundError(f"{self.folder} has no checkpoint of step {back_to} to go back to: "
                              f"it has {steps}")  # fmt: skip
    restored = self.restore(trained, state, back_to)
    for later in steps[steps.index(back_to) + 1 :]:
      self._manager.delete(later)
    return restored

  def _went_back_to(self, step: int) -> int | None:
    try:
      return self._read(step, about=ocp.args.JsonRestore())["about"].get("went_back_to")
    except DamagedError:  # which may be why it is to be removed
      return None

  def save(self, step: int, trained: Tree, state: Tree) -> None:
    """Starts writing; returns when the arrays are copied from the device.

    Raises:
      OSError: this checkpoint, or the one before it, could not be written.
    """
    if step == self.latest():
      return
    items = {"trained": trained, "optimizer": dict(enumerate_leaves(state))}
    about = {
      "step": step, "frozen_fingerprint": self._fingerprint, "data": self._data,
      "went_back_to": self._back_to, "checksums": checksums.of(items),
    }  # fmt: skip
    with self._writing():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
          about=ocp.args.JsonSave(about),
        ),
      )

  def check(self, step: int | None = None) -> tuple[int, dict[str, Any]]:
    """The step of a checkpoint and what it says of itself; reads no parameters.

    Args:
      step: which checkpoint; the newest where None.

    Raises:
      FileNotFoundError: there is no whole checkpoint.
      ValueError: it belongs to another frozen model, or to other data.
      DamagedError: what it says of itself cannot be read.
    """
    step = self.latest() if step is None else step
    if step is None:
      raise FileNotFoundError(f"{self.folder} holds no complete checkpoint")
    about = self._read(step, about=ocp.args.JsonRestore())["about"]
    if about["frozen_fingerprint"] != self._fingerprint:
      raise ValueError(
        f"the checkpoint {self.folder}/{step} was trained on a frozen model with fingerprint "
        f"{about['frozen_fingerprint']}, this model's is {self._fingerprint}: use the model that "
        "the run's config.gin names"
      )
    if self._data is not None and about.get("data") not in (None, self._data):
      raise ValueError(
        f"the checkpoint {self.folder}/{step} was trained on other data than lies in DATA_DIR now: "
        f"name another MODEL_DIR; with INITIAL_CHECKPOINT_PATH={self.folder.parent} it starts from "
        "the parameters there"
      )
    return step, about

  def parts(self) -> frozenset[str]:
    """The names of the system's parts ('producer', 'downstream') that the newest checkpoint has
    parameters of.

    Raises:
      FileNotFoundError, ValueError: as `check`.
    """
    return frozenset(self._stored(self.check()[0], "trained"))

  def restore(self, trained: Tree, state: Tree | None, step: int | None = None) -> Restored:
    """Reads a checkpoint into the shapes, dtypes and shardings of the given trees.

    Args:
      trained: parameters (arrays or abstract arrays) of the expected structure.
      state: optimizer state of the expected structure; None to leave it unread.
      step: which checkpoint; the newest where None.

    Raises:
      FileNotFoundError: there is no whole checkpoint.
      ValueError: it belongs to another frozen model, to parameters of another shape or dtype or
        to another optimizer.
      DamagedError: it cannot be read, or holds other numbers than were saved.
    """
    step, about = self.check(step)
    self._compare(step, "trained", trained)
    items = {"trained": ocp.args.StandardRestore(abstract(trained))}
    if state is not None:
      leaves = abstract(dict(enumerate_leaves(state)))
      self._compare(step, "optimizer", leaves)
      items["optimizer"] = ocp.args.StandardRestore(leaves)
    read = self._read(step, **items)
    saved = about.get("checksums", {})  # older ones have none
    for name, found in checksums.of(read).items():
      if found != saved.get(name, found):
        raise self._damaged(step, f"{name} is not what was saved")
    if state is not None:
      state = jax.tree.structure(state).unflatten(
        [read["optimizer"][name] for name, _ in enumerate_leaves(state)]
      )
    return Restored(step, read["trained"], state)

  def _read(self, step: int, **items: ocp.args.CheckpointArgs) -> dict[str, Any]:
    """Reads items of a checkpoint; whatever Orbax raises means that they cannot be read."""
    try:
      return dict(self._manager.restore(step, args=ocp.args.Composite(**items)))
    except Exception as error:
      raise self._damaged(step, storage.said(error)) from error

  def _damaged(self, step: int, why: str) -> DamagedError:
    earlier = max((s for s in self._manager.all_steps() if s < step), default=None)
    way = (
      "there is none before it" if earlier is None else
      f"the one before it is step {earlier}: to remove what is newer and train on from there, "
      f"give --gin.RESUME_STEP={earlier}"
    )
    return DamagedError(
      f"the checkpoint {self.folder}/{step} is damaged or out of reach ({why}); {way}"
    )

  def _stored(self, step: int, item: str) -> Tree:
    """What Orbax says of an item's arrays."""
    try:
      return self._manager.item_metadata(step)[item].tree
    except Exception as error:
      raise self._damaged(step, f"what it says of {item}: {storage.said(error)}") from error

  def _compare(self, step: int, item: str, tree: Tree) -> None:
    stored, wanted = checksums.named(self._stored(step, item)), checksums.named(tree)
    have, want = ({name: tuple(x.shape) for name, x in of.items()} for of in (stored, wanted))
    misfit = f"the checkpoint {self.folder}/{step} does not fit this configuration: {item}"
    for name in sorted(have.keys() | want.keys()):
      if have.get(name) != want.get(name):
        raise ValueError(
          f"{misfit}.{name} has shape {have.get(name, 'none')} in the file and "
          f"{want.get(name, 'none')} in this run"
        )
    for name in sorted(have):
      one, other = (np.dtype(of[name].dtype).name for of in (stored, wanted))
      if one != other:  # Orbax would convert it
        raise ValueError(
          f"{misfit}.{name} is {one} in the file and {other} in this run: set DTYPE as it was"
        )

  def wait(self) -> None:
    """Returns when everything is on disk.

    Raises:
      OSError: it could not be written.
    """
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and frees the manager's threads."""
    with self._writing():
      self._manager.close()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      whole = self._manager.all_steps(read=True)
      newest = f"the newest whole one is of step {max(whole)}" if whole else "there is none yet"
      raise OSError(
        f"a checkpoint could not be written to {self.folder} ({storage.said(error)}); {newest}: "
        "make room, or what it lacks, and give the same command again"
      ) from error


def enumerate_leaves(tree: Tree) -> list[tuple[str, jax.Array | jax.ShapeDtypeStruct]]:
  """Leaves by position: an optimizer state's own structure (named tuples) is rebuilt by optax."""
  return [(f"{i:04d}", leaf) for i, leaf in enumerate(jax.tree.leaves(tree))]


def abstract(tree: Tree) -> Tree:
  """Shapes, dtypes and shardings of the arrays of a tree."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), tree
  )
