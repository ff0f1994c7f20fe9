"""How a system's two passes, over the support and over the queries, go through the layers.

Layer l of the downstream pass needs of phi what belongs to layer l. So where the hypermodel is the
downstream Llama itself, one scan can do layer l of both: its weights are fetched once for both
passes, and where they are sharded over many devices that is most of what is sent.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hyperjax.core import masks
from hyperjax.core.batch import Batch
from hyperjax.models.llama import Llama


@dataclasses.dataclass(frozen=True)
class Reading:
  """How a Llama reads a support, and what phi becomes of it, layer by layer.

  Attributes:
    layer: (block, state, inputs of a layer) -> state, that layer's part of phi.
    state: in front of the first layer.
    inputs: what each layer has of its own, leaves [L, ...].
    length: [B|1] int32, rows of the prefix that phi is: the queries stand behind them.
  """

  layer: Callable
  state: Any
  inputs: Any
  length: Array


def two_scans(
  producer: nnx.Module, downstream: nnx.Module, batch: Batch
) -> Float[Array, "B M W V"]:
  """The logits of a batch's targets: all of phi first, then all of the downstream pass."""
  phi = producer(downstream, batch.support)
  return downstream(batch.query, phi)


def one_scan(
  producer: nnx.Module, downstream: Llama, batch: Batch
) -> Float[Array, "B M W V"]:
  """The same logits: each layer of the downstream pass right behind the producer's `reading`."""
  reading = producer.reading(downstream, batch.support)
  x = downstream.embed_tokens(batch.query.tokens)
  at = reading.length[:, None, None] + jnp.arange(x.shape[2])
  turn = downstream.decoder.turn(at, x.dtype)

  def layer(block, carry, inputs):
    state, x = carry
    state, phi = reading.layer(block, state, inputs)
    x, _ = block(x, turn, masks.Causal(), phi)
    return (state, x), None

  (_, x), _ = downstream.scan(layer, (reading.state, x), reading.inputs)
  return downstream.predict(downstream.norm(x), batch.query)


LOOPS = {"two_scans": two_scans, "one_scan": one_scan}


def check(name: str, where: str) -> None:
  """Refuses a loop that is none of `LOOPS`."""
  if name not in LOOPS:
    raise ValueError(f"{where}.loop must be one of {sorted(LOOPS)}, not {name!r}")


def of(producer: nnx.Module) -> Callable[[nnx.Module, nnx.Module, Batch], Array]:
  """The loop that a producer asks for; two scans, where it has no say."""
  return LOOPS[getattr(producer, "loop", "two_scans")]
