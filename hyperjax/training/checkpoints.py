"""Orbax checkpoints of what a run trains: parameters, optimizer, step; never the frozen model."""

import dataclasses
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

Tree = Any


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


class Checkpoints:
  """The checkpoints of one run, in MODEL_DIR/checkpoints; saving does not hold up training.

  A checkpoint that was being written when the process died is not taken for one: Orbax renames it
  into place when it is whole.
  """

  def __init__(
    self,
    model_dir: str | pathlib.Path,
    fingerprint: str,
    *,
    keep: int = 2,
    read_only: bool = False,
  ):
    """Opens the folder.

    Args:
      model_dir: the run's folder.
      fingerprint: of the frozen model.
      keep: how many checkpoints stay.
      read_only: nothing is made or tidied up there: the run may be going on.

    Raises:
      FileNotFoundError: there is nothing to read.
    """
    self.folder = pathlib.Path(model_dir).resolve() / "checkpoints"
    self._fingerprint = fingerprint
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

  def save(self, step: int, trained: Tree, state: Tree) -> None:
    """Starts writing; returns when the arrays are copied from the device."""
    if step == self.latest():
      return
    leaves = dict(enumerate_leaves(state))
    self._manager.save(
      step,
      args=ocp.args.Composite(
        trained=ocp.args.StandardSave(trained),
        optimizer=ocp.args.StandardSave(leaves),
        about=ocp.args.JsonSave({"step": step, "frozen_fingerprint": self._fingerprint}),
      ),
    )

  def restore(self, trained: Tree, state: Tree | None, step: int | None = None) -> Restored:
    """Reads a checkpoint into the shapes, dtypes and shardings of the given trees.

    Args:
      trained: parameters (arrays or abstract arrays) of the expected structure.
      state: optimizer state of the expected structure; None to leave it unread.
      step: which checkpoint; the newest where None.

    Raises:
      FileNotFoundError: there is no whole checkpoint.
      ValueError: it belongs to another frozen model, to parameters of another shape or to another
        optimizer.
    """
    step = self.latest() if step is None else step
    if step is None:
      raise FileNotFoundError(f"{self.folder} holds no complete checkpoint")
    about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about
    if about["frozen_fingerprint"] != self._fingerprint:
      raise ValueError(
        f"the checkpoint {self.folder}/{step} was trained on a frozen model with fingerprint "
        f"{about['frozen_fingerprint']}, this model's is {self._fingerprint}: use the model that "
        "the run's config.gin names"
      )
    self._compare_shapes(step, "trained", trained)
    items = {"trained": ocp.args.StandardRestore(abstract(trained))}
    if state is not None:
      leaves = abstract(dict(enumerate_leaves(state)))
      self._compare_shapes(step, "optimizer", leaves)
      items["optimizer"] = ocp.args.StandardRestore(leaves)
    read = self._manager.restore(step, args=ocp.args.Composite(**items))
    if state is not None:
      state = jax.tree.structure(state).unflatten(
        [read.optimizer[name] for name, _ in enumerate_leaves(state)]
      )
    return Restored(step, read.trained, state)

  def _compare_shapes(self, step: int, item: str, tree: Tree) -> None:
    stored = self._manager.item_metadata(step)[item]
    path = lambda p: ".".join(str(k.key) for k in p)
    have = {
      path(p): tuple(m.shape) for p, m in jax.tree_util.tree_leaves_with_path(stored.tree)
    }
    want = {path(p): tuple(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(tree)}
    for name in sorted(have.keys() | want.keys()):
      if have.get(name) != want.get(name):
        raise ValueError(
          f"the checkpoint {self.folder}/{step} does not fit this configuration: {item}.{name} has "
          f"shape {have.get(name, 'none')} in the file and {want.get(name, 'none')} in this run"
        )

  def wait(self) -> None:
    """Returns when everything is on disk; raises what went wrong while writing."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and frees the manager's threads."""
    self._manager.close()


def enumerate_leaves(tree: Tree) -> list[tuple[str, jax.Array]]:
  """Leaves by position: an optimizer state's own structure (named tuples) is rebuilt by optax."""
  return [(f"{i:04d}", leaf) for i, leaf in enumerate(jax.tree.leaves(tree))]


def abstract(tree: Tree) -> Tree:
  """Shapes, dtypes and shardings of the arrays of a tree."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), tree
  )
