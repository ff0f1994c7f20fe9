"""What a run trains for its frozen model: a system from its configuration."""

import dataclasses
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from hyperjax.core import sharding
from hyperjax.data.vocabularies import Vocabulary
from hyperjax.hypermodels.gist_tokens import Encode
from hyperjax.models import families
from hyperjax.training import step as step_lib


@runtime_checkable
class ProducerConfig(Protocol):
  """Builds a producer for a downstream model; `hypermodels` has one per system.

  One that starts from a file also has `load(downstream, mesh)`, whose result `build` takes last.
  """

  def build(self, downstream: families.Model, encode: Encode, rngs: nnx.Rngs) -> nnx.Module: ...


def encoder(vocabulary: Vocabulary) -> Encode:
  """A function from one text to its token ids."""
  return lambda text: vocabulary.encode_batch([text])[0]


def build_parts(
  producer: ProducerConfig,
  downstream: families.Model,
  encode: Encode,
  seed: int,
  mesh: Mesh | None = None,
) -> step_lib.Parts:
  """The system at its initial values, taken apart into trained (at least float32) and frozen.

  What is drawn or copied is made where it lies: no device ever holds all of a sharded array.

  Args:
    producer, downstream: the system; the downstream model lies on the mesh already.
    encode: from text to token ids.
    seed: of drawn values.
    mesh: what the arrays are sharded over; the default device where None.
  """
  given = _given(producer, downstream, mesh)
  system = partial(_system, producer, encode, seed)
  parts = step_lib.split(nnx.eval_shape(system, *given), trained_parts(producer))

  def make(*given):
    made = step_lib.split(system(*given), trained_parts(producer))
    return made.trained, {k: v for k, v in made.frozen.items() if k != "downstream"}

  lying = None
  if mesh is not None:
    lying = sharding.shardings(parts.trained, parts.axes, mesh), None
  trained, frozen = jax.jit(make, out_shardings=lying)(*given)
  if "downstream" in parts.frozen:
    frozen["downstream"] = nnx.to_pure_dict(nnx.state(downstream))
  return dataclasses.replace(parts, trained=trained, frozen=frozen)


def _given(producer: ProducerConfig, downstream: families.Model, mesh: Mesh | None) -> tuple:
  """What a system is built from: the downstream model, and what the producer starts from."""
  load = getattr(producer, "load", None)
  return (downstream, load(downstream, mesh)) if load else (downstream,)


def _system(
  producer: ProducerConfig, encode: Encode, seed: int, downstream: families.Model, *loaded: Any
) -> step_lib.System:
  module = producer.build(downstream, encode, nnx.Rngs(seed), *loaded)
  trained = trained_parts(producer)
  wide = jnp.promote_types(downstream.embed.dtype, jnp.float32)
  widen = lambda x: x.astype(wide) if jnp.issubdtype(x.dtype, jnp.floating) else x
  parts = {"producer": module, "downstream": downstream}
  return step_lib.System(
    *(jax.tree.map(widen, part) if name in trained else part for name, part in parts.items())
  )


def check_fits(
  producer: ProducerConfig,
  architecture: families.Config,
  bits: int | None,
  way_out: str = "set BASE_BITS to None, or name a system that leaves them frozen",
) -> None:
  """Refuses a system that is not for this kind of model, or trains its weights in few bits.

  Args:
    producer: the system.
    architecture, bits: of the downstream model.
    way_out: what to do about the bits.

  Raises:
    ValueError: names the system, and the kind of model that it is for.
  """
  layouts = getattr(producer, "layouts", (architecture.layout,))
  if architecture.layout not in layouts:
    raise ValueError(
      f"{type(producer).__name__} is for {' or '.join(layouts)} models, not for a "
      f"{type(architecture).__name__.removesuffix('Config')} ({architecture.layout}): name another "
      "file of gin/systems"
    )
  copied = getattr(producer, "copies_downstream", False)
  if bits is not None and (copied or "downstream" in trained_parts(producer)):
    raise ValueError(
      f"BASE_BITS is {bits}, but {type(producer).__name__} trains "
      f"{'a copy of the' if copied else 'the'} downstream model's weights, whose steps are smaller "
      f"than {bits} bits can tell apart: {way_out}"
    )


def reads_support(producer: ProducerConfig) -> bool:
  """Whether phi depends on the support."""
  return getattr(producer, "reads_support", True)


def trained_parts(producer: ProducerConfig) -> tuple[str, ...]:
  """Which parts of a system its training changes: 'producer', 'downstream'."""
  return getattr(producer, "train", ("producer",))


def abstract_parts(producer: ProducerConfig, downstream: families.Model) -> step_lib.Parts:
  """As `build_parts`, with shapes in place of arrays; reads and computes nothing.

  A text that the producer encodes counts as one token.

  Args:
    producer, downstream: the system; the downstream model has shapes in place of arrays too.
  """
  encode = lambda text: [0]
  given = _given(producer, downstream, None)
  system = nnx.eval_shape(partial(_system, producer, encode, 0), *given)
  return step_lib.split(system, trained_parts(producer))
