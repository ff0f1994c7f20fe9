"""Weights in 8 or 4 bits: whole numbers in the place of each, and a scale for many of them (qwix).

They are dequantised where they are used, a layer at a time. qwix is imported where there is
something to do for it, by nobody else.
"""

import functools
import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Bits -> qwix's name of the type.
TYPES = {8: "int8", 4: "int4"}
# Type -> how many numbers along the last summed axis share a scale. None: all that a product sums
# over; with 16 different numbers that loses too much.
_TILES = {"int8": None, "int4": 32}


@runtime_checkable
class Quantised(Protocol):
  """What we take a `qwix.QArray` for, a pytree of two arrays; it has `ndim` and `astype` too.

  Attributes:
    qvalue: whole numbers [*shape].
    scale: [*shape / tiles], its dtype is that of the dequantised weights.
    qtype: 'int8' or 'int4'.
    shape, dtype: of the weights that it stands for.
  """

  qvalue: Any
  scale: Any
  qtype: str
  shape: Any
  dtype: Any


Weights = Float[Array, "..."] | Quantised


def is_quantised(x: Any) -> bool:
  """Whether weights are in few bits."""
  return isinstance(x, Quantised)


def quantise(x: Float[Array, "..."], qtype: str, summed: tuple[int, ...]) -> Quantised:
  """Weights rounded to the nearest multiples of their scales: at most half a scale away.

  One scale for each output channel (arXiv 2208.07339, section 3.1); in 4 bits one for each 32
  inputs of a channel, whose largest number does not coarsen the others then.

  Args:
    x: weights.
    qtype: one of `TYPES`.
    summed: their axes that products sum over, in order.

  Returns:
    The whole numbers, and scales of x's dtype.
  """
  import qwix

  *shared, last = summed
  tiles, tile = {}, _TILES[qtype]
  if tile is not None:
    shared, tiles = [], {last: tile if x.shape[last] % tile == 0 else x.shape[last]}
  each = [axis for axis in range(x.ndim) if axis not in (*shared, last)]
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return qwix.quantize(
    wide, qtype, channelwise_axes=each, tiled_axes=tiles, scale_dtype=x.dtype
  )


def plain(w: Weights, dtype: Any) -> Float[Array, "..."]:
  """Weights as an array of a dtype, dequantised where they are in few bits."""
  if is_quantised(w):
    import qwix

    w = qwix.dequantize(w)
  return w.astype(dtype)


def numbers(tree: Any) -> int:
  """How many weights a tree of arrays, or of their shapes, holds; scales are none."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree, is_leaf=is_quantised))


def stored_bytes(tree: Any) -> int:
  """The bytes that the arrays of a tree, or of their shapes, take on this machine's devices."""
  return sum(math.prod(x.shape) * _bits(x.dtype) for x in jax.tree.leaves(tree)) // 8


def _bits(dtype: Any) -> int:
  packed = jnp.issubdtype(dtype, jnp.integer) and packs()
  return jnp.iinfo(dtype).bits if packed else 8 * dtype.itemsize


@functools.cache
def packs() -> bool:
  """Whether two numbers of 4 bits share a byte on this machine's devices; on CPUs the jaxlib
  decides (0.12.0.1 packs, 0.10.2 does not)."""
  count = 2**16  # enough that what a device adds to fill its tiles does not matter
  return jnp.zeros(count, jnp.int4).on_device_size_in_bytes() < count
