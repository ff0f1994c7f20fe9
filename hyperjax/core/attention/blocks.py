"""Attention in blocks of queries: the einsum of one block after another. A block's scores are small
enough for a CPU's caches where rows are few; causal queries skip the keys behind their block."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from hyperjax.core import masks, remat
from hyperjax.core.attention import einsum
from hyperjax.core.masks import Mask
from hyperjax.core.phi import Prefix

# Queries of a block; more where these would be more blocks than the program should hold.
BLOCK = 128
_MAX_BLOCKS = 16


def attend(
  q: Float[Array, "B M T N H"],
  k: Float[Array, "B M S K H"],
  v: Float[Array, "B M S K H"],
  mask: Mask,
  prefix: Prefix | None = None,
  scale: float = 1.0,
) -> Float[Array, "B M T N H"]:
  """As `attention.attend`; the backward pass computes each block's scores again."""
  length = q.shape[2]
  size = max(BLOCK, -(-length // _MAX_BLOCKS))
  if length <= size:  # all is one block, whose scores may stay
    return einsum.attend(q, k, v, mask, prefix, scale)

  def block(start: int) -> Float[Array, "B M _ N H"]:
    stop = min(start + size, length)
    keys = stop if isinstance(mask, masks.Causal) else k.shape[2]
    rows = _Rows(mask, start, length)
    # Models call this in a loop over layers, which parts both passes: XLA merges nothing of them.
    # Only where REMAT='full' computes the output again, beside the backward pass, it may.
    work = jax.checkpoint(lambda *z: einsum.attend(*z, rows, prefix, scale), prevent_cse=False)
    return work(q[:, :, start:stop], k[:, :, :keys], v[:, :, :keys])

  out = jnp.concatenate([block(start) for start in range(0, length, size)], 2)
  return checkpoint_name(out, remat.ATTENDED)


@dataclasses.dataclass(frozen=True)
class _Rows(masks.Drawn):
  """The rows of a mask for some of its queries, from `start` on; it has `length` of them."""

  mask: Mask
  start: int
  length: int

  def dense(self, T: int, S: int) -> Bool[Array, "#B #M T S"]:
    return self.mask.dense(self.length, S)[:, :, self.start : self.start + T]
