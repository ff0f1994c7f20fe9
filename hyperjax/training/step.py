"""One training step, the same for every system: producer, downstream, loss."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Float

from hyperjax.core import sharding
from hyperjax.core.batch import Batch
from hyperjax.hypermodels import loops
from hyperjax.hypermodels.in_context import InContext
from hyperjax.training import losses

Tree = Any


class System(nnx.Module):
  """A producer and the downstream model that it serves (stored once, also where both use it)."""

  def __init__(self, producer: nnx.Module, downstream: nnx.Module):
    self.producer, self.downstream = producer, downstream

  def __call__(self, batch: Batch) -> Float[Array, "B M W V"]:
    """The logits of the batch's targets under the producer's phi."""
    return loops.of(self.producer)(self.producer, self.downstream, batch)


@dataclasses.dataclass(frozen=True)
class Parts:
  """A system taken apart: plain dicts of arrays, so that only `trained` meets the optimizer.

  Attributes:
    graph: what `merge` needs to put the system together again.
    trained: the parameters that the run changes, at least float32.
    frozen: everything else, never copied.
    axes, frozen_axes: the logical axes of every array of both.
  """

  graph: Any
  trained: Tree
  frozen: Tree
  axes: Tree
  frozen_axes: Tree


def split(system: System, train: tuple[str, ...] = ("producer",)) -> Parts:
  """Takes a system apart: the parts named in `train` ('producer', 'downstream'), and the rest."""
  chosen = nnx.All(nnx.Param, lambda path, _: path[0] in train)
  graph, *states = nnx.split(system, chosen, ...)
  return Parts(graph, *map(nnx.to_pure_dict, states), *map(sharding.axes_of, states))


def optimizer_shapes(
  transform: optax.GradientTransformation, trained: Tree, mesh: Mesh | AbstractMesh
) -> Tree:
  """What the optimizer's first state looks like and where it lies: moments as their parameters,
  factored ones (a parameter's rows or columns) as the axes that they have of it, the rest (step
  counts) on every device.

  Args:
    transform: the optimizer.
    trained: arrays, or their shapes with shardings.
    mesh: that they lie on.
  """
  parameters = dict(jax.tree_util.tree_leaves_with_path(trained))
  everywhere = NamedSharding(mesh, PartitionSpec())

  def place(path, leaf):
    # A moment's path holds its parameter's: (0, mu, 'producer', 'gist').
    parts = (path[i:j] for i in range(len(path)) for j in range(i + 1, len(path) + 1))
    owner = next((parameters[part] for part in parts if part in parameters), None)
    where = everywhere if owner is None else _beside(owner, leaf.shape, everywhere)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

  shapes = jax.eval_shape(transform.init, trained)
  return jax.tree_util.tree_map_with_path(place, shapes)


def _beside(
  parameter: jax.Array | jax.ShapeDtypeStruct, shape: tuple[int, ...], everywhere: NamedSharding
) -> Sharding:
  """Where a moment of this shape lies: as its parameter does, or, where it is a mean over one axis,
  as the other axes do. Of axes of one size the last is taken for that one."""
  if shape == parameter.shape:
    return parameter.sharding
  spec = tuple(getattr(parameter.sharding, "spec", ()))
  axes = [*zip(parameter.shape, (*spec, *[None] * len(parameter.shape)), strict=False)]
  for averaged in reversed(range(len(axes))):
    left = axes[:averaged] + axes[averaged + 1 :]
    if shape == tuple(size for size, _ in left):
      return NamedSharding(everywhere.mesh, PartitionSpec(*(target for _, target in left)))
  return everywhere


def init_optimizer(transform: optax.GradientTransformation, trained: Tree, mesh: Mesh) -> Tree:
  """The optimizer's first state, made where it lies (see `optimizer_shapes`)."""
  lying = lies(optimizer_shapes(transform, trained, mesh))
  return jax.jit(transform.init, out_shardings=lying)(trained)


@dataclasses.dataclass(frozen=True)
class Objective:
  """What is minimised, a mean over target tokens.

  Attributes:
    distillation: weight of KL(frozen model that reads the support in context || model under phi),
      added to the cross-entropy (ours, beyond the papers).
    label_weight: weight of the cross-entropy.
  """

  distillation: float = 0.0
  label_weight: float = 1.0

  def __post_init__(self):
    if self.distillation < 0 or self.label_weight < 0 or not self.distillation + self.label_weight:
      raise ValueError(
        "Objective's weights must not be negative nor both 0: "
        f"distillation {self.distillation}, label_weight {self.label_weight}"
      )

  def __call__(
    self, system: System, batch: Batch, *, bos: bool = False
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss summed over the batch's target tokens, and sums of what is reported.

    Args:
      system, batch: what answers what.
      bos: queries begin with BOS, which a model that reads the support before them has read.
    """
    logits = system(batch)
    loss = losses.token_losses(logits, batch.targets, batch.weights).sum()
    exact = losses.exact_matches(logits, batch.targets, batch.weights)
    sums = {
      "loss": loss,
      "exact_match": exact.sum(where=batch.asked()),
      "queries": batch.asked().sum(dtype=jnp.float32),
      "tokens": batch.weights.sum(),
    }
    total = self.label_weight * loss
    if self.distillation:
      context = InContext()(system.downstream, batch.support)
      query = batch.query.continued() if bos else batch.query
      teacher = system.downstream(query, context)
      sums["kl"] = losses.divergences(logits, teacher, batch.weights).sum()
      total += self.distillation * sums["kl"]
    return total, sums


def make_train_step(
  graph: Any,
  optimizer: optax.GradientTransformation,
  objective: Callable[[System, Batch], tuple[jax.Array, dict[str, jax.Array]]],
  accumulate: int = 1,
  lying: tuple[Tree, Tree] | None = None,
) -> Callable[[Tree, Tree, Tree, Batch], tuple[Tree, Tree, dict[str, jax.Array]]]:
  """The compiled step (trained, optimizer state, frozen, batch) -> (trained, state, metrics).

  With `accumulate` > 1 the batch is worked off in that many equal parts, one after another; the
  loss stays the mean over all target tokens of the batch.

  Args:
    graph, optimizer: of the system, as `split` took it apart.
    objective: an `Objective`.
    accumulate: the number of parts.
    lying: the shardings that trained and state keep; XLA's choice where None.
  """

  def total(trained, frozen, batch):
    return objective(nnx.merge(graph, trained, frozen), batch)

  gradient = jax.value_and_grad(total, has_aux=True)

  def step(trained, state, frozen, batch):
    if accumulate == 1:
      (_, sums), grads = gradient(trained, frozen, batch)
    else:
      # Every n-th episode, so that each part takes as many from each device as the others.
      parts = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch
      )

      def add(carry, part):
        (_, sums), grads = gradient(trained, frozen, part)
        return jax.tree.map(jnp.add, carry, (sums, grads)), None

      first = jax.tree.map(lambda x: x[0], parts)
      shapes = jax.eval_shape(lambda p: gradient(trained, frozen, p), first)
      zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0][1], shapes[1]))
      (sums, grads), _ = jax.lax.scan(add, zero, parts)
    grads = jax.tree.map(lambda g: g / jnp.maximum(sums["tokens"], 1.0), grads)
    updates, state = optimizer.update(grads, state, trained)
    return optax.apply_updates(trained, updates), state, {
      **means(sums), "gradient_norm": optax.tree.norm(grads), "tokens": batch.real_tokens()
    }

  return jax.jit(step, donate_argnums=(0, 1), out_shardings=lying and (*lying, None))


def lies(tree: Tree) -> Tree:
  """The shardings of a tree of arrays, or of shapes that have them."""
  return jax.tree.map(lambda x: x.sharding, tree)


def means(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Per-token means of the losses and the share of queries met exactly."""
  tokens = jnp.maximum(sums["tokens"], 1.0)
  out = {name: sums[name] / tokens for name in ("loss", "kl") if name in sums}
  return {
    **out, "exact_match": sums["exact_match"] / jnp.maximum(sums["queries"], 1.0),
    "target_tokens": sums["tokens"],
  }
