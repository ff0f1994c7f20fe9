"""Attention whose scores are written out: what the other kernels are measured against."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hyperjax.core.masks import Mask
from hyperjax.core.phi import Prefix
from hyperjax.core.positions import Bias
from hyperjax.core.sharding import spread


def attend(
  q: Float[Array, "B M T N H"],
  k: Float[Array, "B M S K H"],
  v: Float[Array, "B M S K H"],
  mask: Mask,
  prefix: Prefix | None = None,
  scale: float = 1.0,
  bias: Bias | None = None,
) -> Float[Array, "B M T N H"]:
  """As `attention.attend`: the scores over the prefix and over the sequence are computed apart and
  normalised together."""
  batch, queries, length, num_heads, head_dim = q.shape
  kv_heads = k.shape[3]
  q = (q * scale).reshape(batch, queries, length, kv_heads, num_heads // kv_heads, head_dim)
  wide = jnp.promote_types(q.dtype, jnp.float32)
  low = jnp.finfo(wide).min
  own = jnp.einsum("bmtkgh,bmskh->bmkgts", q, k, preferred_element_type=wide)
  by_group = lambda z: z.astype(wide).reshape(*z.shape[:2], kv_heads, -1, *z.shape[3:])
  if bias is not None:
    own += by_group(bias.own)
  own = jnp.where(mask.dense(length, k.shape[2])[:, :, None, None], own, low)
  if prefix is None:
    weights = jax.nn.softmax(own, -1).astype(v.dtype)
    out = jnp.einsum("bmkgts,bmskh->bmtkgh", weights, v)
  else:
    size = prefix.key.shape[1]
    key, value = (
      spread(z, (batch, *z.shape[1:]), q.dtype) for z in (prefix.key, prefix.value)
    )
    real = jnp.arange(size) < prefix.length[:, None]
    before = jnp.einsum("bmtkgh,bpkh->bmkgtp", q, key, preferred_element_type=wide)
    if bias is not None and bias.prefix is not None:
      before += by_group(bias.prefix)
    before = jnp.where(real[:, None, None, None, None], before, low)
    weights = jax.nn.softmax(jnp.concatenate([before, own], -1), -1).astype(v.dtype)
    out = jnp.einsum("bmkgtp,bpkh->bmtkgh", weights[..., :size], value)
    out += jnp.einsum("bmkgts,bmskh->bmtkgh", weights[..., size:], v)
  return out.reshape(batch, queries, length, num_heads, head_dim)
