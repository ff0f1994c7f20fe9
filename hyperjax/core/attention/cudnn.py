"""cuDNN's flash attention for NVIDIA GPUs, through JAX's own interface to it.

It is told who sees whom by causality and by numbers of real keys, no more. Its causal mask begins
at the first key, so nothing can stand in front of a text. JAX would also take a mask that is drawn,
but before 0.12 makes a gradient of all scores for it: as large as what is saved.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hyperjax.core import masks
from hyperjax.core.attention import devices
from hyperjax.core.phi import Prefix


def can_be_told(mask: masks.Mask, prefix: Prefix | None) -> bool:
  """Whether cuDNN knows such masks: of `Whole` itself, not of what is derived from it."""
  return prefix is None and type(mask) in (masks.Causal, masks.Whole)


def attend(
  q: Float[Array, "B M T N H"],
  k: Float[Array, "B M S K H"],
  v: Float[Array, "B M S K H"],
  mask: masks.Causal | masks.Whole,
  prefix: None = None,
  scale: float = 1.0,
) -> Float[Array, "B M T N H"]:
  """As `attention.attend`, where it `can_be_told`."""
  arrays = {"q": q * scale, "k": k, "v": v}
  if isinstance(mask, masks.Whole):
    arrays["length"] = mask.length
  return devices.run(_rows, arrays)


def _rows(arrays: Mapping[str, Array]) -> Float[Array, "B M T N H"]:
  """Every row of queries is one of cuDNN's batch."""
  shape = arrays["q"].shape
  batch, rows = shape[:2]
  flat = [arrays[name].reshape(batch * rows, *arrays[name].shape[2:]) for name in "qkv"]
  length = arrays.get("length")
  if length is not None:
    length = jnp.broadcast_to(length, (batch, rows)).reshape(-1).astype(jnp.int32)
  out = jax.nn.dot_product_attention(
    *flat, scale=1.0, is_causal=length is None, key_value_seq_lengths=length,
    implementation="cudnn",
  )  # fmt: skip
  return out.reshape(shape)
