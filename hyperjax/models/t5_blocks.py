"""T5's blocks: attention, MLP, and what the encoder and the decoder stack of them.

A block holds all layers' parameters with a leading layer axis and is called on one layer's slice.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hyperjax.core import attention, layers, masks, positions, sharding
from hyperjax.core.phi import Phi, sub

KeyValue = tuple[Array, Array]

ACTIVATIONS = {"relu": jax.nn.relu, "gated-gelu": lambda x: jax.nn.gelu(x, approximate=True)}


class Attention(nnx.Module):
  """One attention of every block; scores are not divided by sqrt(H)."""

  def __init__(self, c: Any, make, kernel: str):
    embed, heads, head_dim = ("embed", c.d_model), ("heads", c.num_heads), ("head_dim", c.head_dim)
    self.q = make(embed, heads, head_dim, std=(c.d_model * c.head_dim) ** -0.5)
    self.k = make(embed, heads, head_dim)
    self.v = make(embed, heads, head_dim)
    self.o = make(heads, head_dim, embed)
    self.kernel = kernel

  def read(self, x: Float[Array, "B M S D"], phi: Phi | None) -> KeyValue:
    """Keys and values [B, M, S, N, H] of what is attended to."""
    return tuple(
      layers.project(x, kernel[...], sub(phi, name))
      for name, kernel in (("k", self.k), ("v", self.v))
    )

  def __call__(self, x, kv: KeyValue, mask: masks.Mask, phi: Phi | None, bias=None):
    q = layers.project(x, self.q[...], sub(phi, "q"))
    y = attention.attend(q, *kv, mask, sub(phi, "prefix"), bias=bias, kernel=self.kernel)
    return layers.project(y, self.o[...], sub(phi, "o"))


class MLP(nnx.Module):
  """ReLU or gated GELU; its last product is computed in float32."""

  def __init__(self, c: Any, make):
    embed, mlp = ("embed", c.d_model), ("mlp", c.d_mlp)
    self.activation = nnx.static(c.activation)
    if c.activation.startswith("gated"):
      self.gate = make(embed, mlp)
    self.up = make(embed, mlp)
    self.down = make(mlp, embed, dtype=jnp.float32)

  def __call__(self, x, phi):
    act = ACTIVATIONS[self.activation]
    h = layers.project(x, self.up[...], sub(phi, "up"))
    if self.activation.startswith("gated"):
      h = act(layers.project(x, self.gate[...], sub(phi, "gate"))) * h
    else:
      h = act(h)
    h = h.astype(jnp.promote_types(h.dtype, jnp.float32))
    return layers.project(h, self.down[...], sub(phi, "down")).astype(x.dtype)


class EncoderBlock(nnx.Module):
  """The encoder blocks' parameters with a leading layer axis; called on one layer's slice."""

  def __init__(self, c: Any, make, norm, kernel: str):
    self.self_norm, self.self = norm(), Attention(c, make, kernel)
    self.mlp_norm, self.mlp = norm(), MLP(c, make)

  def __call__(
    self,
    x: Float[Array, "B M T D"],
    mask: masks.Mask,
    bias: positions.Bias,
    phi: Phi | None = None,
  ) -> tuple[Float[Array, "B M T D"], KeyValue]:
    """One encoder block.

    Args:
      x: activations.
      mask: what each token sees.
      bias: the relative position bias, the same in all layers.
      phi: this layer's part of phi.

    Returns:
      The activations, and the self-attention's keys and values [B, M, T, N, H].
    """
    own = sub(phi, "self")
    h = self.self_norm(x)
    kv = self.self.read(h, own)
    x = x + self.self(h, kv, mask, own, bias)
    return sharding.by_episode(x + self.mlp(self.mlp_norm(x), sub(phi, "mlp"))), kv


class DecoderBlock(nnx.Module):
  """The decoder blocks' parameters with a leading layer axis; called on one layer's slice."""

  def __init__(self, c: Any, make, norm, kernel: str):
    self.self_norm, self.self = norm(), Attention(c, make, kernel)
    self.cross_norm, self.cross = norm(), Attention(c, make, kernel)
    self.mlp_norm, self.mlp = norm(), MLP(c, make)

  def __call__(
    self,
    x: Float[Array, "B M W D"],
    memory: KeyValue,
    seen: tuple[masks.Mask, masks.Mask],
    bias: positions.Bias,
    phi: Phi | None = None,
    cache: tuple[Array, Array, Array | int] | None = None,
  ) -> tuple[Float[Array, "B M W D"], KeyValue]:
    """One decoder block.

    Args:
      x: activations.
      memory: the cross-attention's keys and values [B, M, T, N, H] of the encoder's output.
      seen: masks of the self-attention and of the cross-attention.
      bias: the relative position bias of the self-attention, the same in all layers.
      phi: this layer's part of phi.
      cache: keys and values [B, M, C, N, H], and the index at which this call's own stand in it.

    Returns:
      The activations, and this call's own keys and values of the self-attention.
    """
    own, cross = sub(phi, "self"), sub(phi, "cross")
    h = self.self_norm(x)
    kv = self.self.read(h, own)
    seen_kv = kv if cache is None else layers.written(cache[:2], kv, cache[2], axis=2)
    x = x + self.self(h, seen_kv, seen[0], own, bias)
    x = x + self.cross(self.cross_norm(x), memory, seen[1], cross)
    return sharding.by_episode(x + self.mlp(self.mlp_norm(x), sub(phi, "mlp"))), kv
