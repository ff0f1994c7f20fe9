"""Where tokens stand: rotary position embeddings, with Llama 3's frequency scaling."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

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
