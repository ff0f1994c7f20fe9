"""Where tokens stand: rotary position embeddings, with Llama 3's frequency scaling, and T5's
relative bias."""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
  """Llama 3.1's stretching of RoPE's low frequencies (`rope_scaling` of type 'llama3')."""

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_position_embeddings: int

  def __post_init__(self):
    if not 0 < self.low_freq_factor < self.high_freq_factor:
      raise ValueError(
        f"rope_scaling: low_freq_factor {self.low_freq_factor} must lie between 0 and "
        f"high_freq_factor {self.high_freq_factor}"
      )


def rope_frequencies(
  head_dim: int, theta: float, scaling: Llama3Scaling | None = None
) -> np.ndarray:
  """Radians per position of each rotated pair, [H/2] float64."""
  frequency = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
  if scaling is None:
    return frequency
  wavelength = 2 * math.pi / frequency
  context = scaling.original_max_position_embeddings
  smooth = (context / wavelength - scaling.low_freq_factor) / (
    scaling.high_freq_factor - scaling.low_freq_factor
  )
  smooth = np.clip(smooth, 0.0, 1.0)
  return (1 - smooth) * frequency / scaling.factor + smooth * frequency


# Cosine and sine, each [*batch, T, H/2].
Rotation = tuple[Float[Array, "..."], Float[Array, "..."]]


def rotation(
  positions: Int[Array, "*batch T"], frequencies: Sequence[float], dtype: Any = jnp.float32
) -> Rotation:
  """Cosine and sine of every pair's angle at these positions, at least float32.

  All layers turn by the same angles: computed once, in front of the layers.
  """
  dtype = jnp.promote_types(dtype, jnp.float32)
  angle = positions[..., None].astype(dtype) * jnp.asarray(frequencies, dtype)
  return jnp.cos(angle), jnp.sin(angle)


def rotate(
  x: Float[Array, "*batch T heads H"], turn: Rotation
) -> Float[Array, "*batch T heads H"]:
  """Rotary position embedding in the half-split layout of Hugging Face's Llama."""
  cos, sin = (z[..., None, :] for z in turn)
  first, second = jnp.split(x.astype(cos.dtype), 2, -1)
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], -1
  ).astype(x.dtype)


@partial(jax.tree_util.register_dataclass, data_fields=["own", "prefix"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Bias:
  """What is added to attention scores, per head.

  Attributes:
    own: [B|1, M|1, N, T, S], for the sequence's own keys.
    prefix: [B|1, M|1, N, T, P], for the keys of a prefix; None for 0.
  """

  own: Any
  prefix: Any = None


def relative_bias(
  table: Float[Array, "X N"],
  query_at: Int[Array, "*#batch T"],
  key_at: Int[Array, "*#batch S"],
  *,
  bidirectional: bool,
  max_distance: int,
) -> Float[Array, "*batch N T S"]:
  """T5's learned bias of each head for the distance from query to key (arXiv 1910.10683, 2.1).

  Args:
    table: the bias of each of X buckets of distances.
    query_at, key_at: positions.
    bidirectional: half of the buckets are for keys behind the query; else these count as distance
      0.
    max_distance: all distances from here on share the last bucket.
  """
  distance = key_at[..., None, :] - query_at[..., :, None]
  num_buckets, offset = table.shape[0], 0
  if bidirectional:
    num_buckets //= 2
    offset = jnp.where(distance > 0, num_buckets, 0)
    distance = jnp.abs(distance)
  else:
    distance = jnp.maximum(-distance, 0)
  exact = num_buckets // 2
  # The distances at which buckets of logarithmic width begin: many lie on whole numbers, where a
  # logarithm on the device may end up on either side.
  parts = np.arange(1, num_buckets - exact) / (num_buckets - exact)
  edges = np.ceil(exact * (max_distance / exact) ** parts - 1e-6).astype(np.int32)
  large = exact + jnp.searchsorted(edges, distance, side="right", method="compare_all")
  bucket = jnp.where(distance < exact, distance, large)
  return jnp.moveaxis(table[bucket + offset], -1, -3)
