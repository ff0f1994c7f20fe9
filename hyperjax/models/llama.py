"""Llama (arXiv 2302.13971): grouped-query attention, gated SiLU MLP, tied or untied embeddings."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from hyperjax.core import attention as attention_lib
from hyperjax.core import layers, masks, positions, quantised, sharding, specs
from hyperjax.core import phi as phi_lib
from hyperjax.core import remat as remat_lib
from hyperjax.core.batch import DecoderQuery
from hyperjax.core.phi import Phi, sub

KeyValue = tuple[Array, Array]

PREFIX_SITE = "decoder.self.prefix"

@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """The architecture of a Llama; `llama_weights` reads it from config.json or GGUF metadata."""

  vocab_size: int
  d_model: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  d_mlp: int
  rope_theta: float
  norm_epsilon: float
  tie_embeddings: bool
  rope_scaling: positions.Llama3Scaling | None = None

  layout = "decoder"  # of the batches that it reads

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is int and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"LlamaConfig.{field.name} must be a positive integer, not {value!r}")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"LlamaConfig.num_heads {self.num_heads} is not a multiple of num_kv_heads "
        f"{self.num_kv_heads}"
      )
    if self.head_dim % 2:
      raise ValueError(f"LlamaConfig.head_dim {self.head_dim} is odd; RoPE rotates pairs")


class Attention(nnx.Module):
  """Self-attention of one block (or of all, with a leading layer axis)."""

  def __init__(self, c: LlamaConfig, make):
    embed, heads = ("embed", c.d_model), ("heads", c.num_heads)
    kv_heads, head_dim = ("kv_heads", c.num_kv_heads), ("head_dim", c.head_dim)
    self.q = make(embed, heads, head_dim)
    self.k = make(embed, kv_heads, head_dim)
    self.v = make(embed, kv_heads, head_dim)
    self.o = make(heads, head_dim, embed)


class MLP(nnx.Module):
  """Gated SiLU MLP."""

  def __init__(self, c: LlamaConfig, make):
    embed, mlp = ("embed", c.d_model), ("mlp", c.d_mlp)
    self.gate, self.up, self.down = make(embed, mlp), make(embed, mlp), make(mlp, embed)

  def __call__(self, x, phi):
    gate, up = layers.project_all(
      x, (self.gate[...], self.up[...]), (sub(phi, "gate"), sub(phi, "up"))
    )
    return layers.project(jax.nn.silu(gate) * up, self.down[...], sub(phi, "down"))


class Block(nnx.Module):
  """The blocks' parameters with a leading layer axis; called on one layer's slice by `Llama`."""

  def __init__(self, c: LlamaConfig, *, rngs: nnx.Rngs, dtype, attention: str):
    def make(*axes):
      names, shape = zip(*axes, strict=True)
      fan_in = shape[0] if names[0] != "heads" else shape[0] * shape[1]
      value = jax.random.normal(rngs.params(), (c.num_layers, *shape), jnp.float32) * fan_in**-0.5
      return nnx.Param(value.astype(dtype), axes=("layers", *names))

    norm = lambda: layers.RMSNorm(c.d_model, c.norm_epsilon, dtype=dtype, lead=(c.num_layers,))
    self.self_norm, self.mlp_norm = norm(), norm()
    self.self = Attention(c, make)
    self.mlp = MLP(c, make)
    self.scale, self.kernel = c.head_dim**-0.5, attention
    self.frequencies = nnx.static(
      tuple(positions.rope_frequencies(c.head_dim, c.rope_theta, c.rope_scaling))
    )

  def turn(self, at: Int[Array, "#B #M T"], dtype: Any) -> positions.Rotation:
    """The rotation of queries and keys at positions, the same in all layers."""
    return positions.rotation(at, self.frequencies, dtype)

  def __call__(
    self,
    x: Float[Array, "B M T D"],
    turn: positions.Rotation,
    mask: masks.Mask,
    phi: Phi | None = None,
    cache: tuple[Array, Array, Array | int] | None = None,
  ) -> tuple[Float[Array, "B M T D"], KeyValue]:
    """The one block function: `Llama.scan` loops over it.

    Args:
      x: activations.
      turn: the rotation at the tokens' positions, `Block.turn`.
      mask: what each query sees of the sequence (of the cache, where there is one).
      phi: this layer's part of phi.
      cache: keys and values [B, M, C, K, H], and the index at which this call's own stand in it.

    Returns:
      The activations, and this call's own keys (after RoPE) and values: [B, M, T, K, H].
    """
    own = sub(phi, "self")
    h = self.self_norm(x)
    kernels = self.self.q[...], self.self.k[...], self.self.v[...]
    q, k, v = layers.project_all(h, kernels, [sub(own, name) for name in "qkv"])
    q, k = positions.rotate(q, turn), positions.rotate(k, turn)
    keys, values = (k, v) if cache is None else layers.written(cache[:2], (k, v), cache[2], axis=2)
    prefix = sub(own, "prefix")
    y = attention_lib.attend(q, keys, values, mask, prefix, self.scale, kernel=self.kernel)
    x = x + layers.project(y, self.self.o[...], sub(own, "o"))
    x = sharding.by_episode(x + self.mlp(self.mlp_norm(x), sub(phi, "mlp")))
    return x, (k, v)


def rows_at(kv: KeyValue, index: Int[Array, "B G"]) -> KeyValue:
  """Of keys and values [B, 1, S, K, H] those at some indices of S: [B, 1, G, K, H]."""
  return jax.tree.map(
    lambda z: jnp.take_along_axis(z, index[:, None, :, None, None], 2), kv
  )


@partial(
  jax.tree_util.register_dataclass, data_fields=["own", "length"], meta_fields=["start"]
)
@dataclasses.dataclass(frozen=True)
class Cache:
  """What decoding keeps.

  Attributes:
    own: keys (after RoPE) and values of prompt and produced tokens, [L, B, M, C, K, H] each.
    length: [B, M], real tokens of each prompt.
    start: where the produced tokens begin.
  """

  own: KeyValue
  length: Array
  start: int


class Llama(nnx.Module):
  """A decoder-only downstream model.

  Attributes:
    config: the architecture.
    remat: what the backward pass recomputes: 'none', 'dots' (keeps matrix products) or 'full'.
    attention: the kernel, one of `core.attention.CHOICES`.
    activations: their dtype; that of the embeddings where none is given.
  """

  def __init__(
    self,
    config: LlamaConfig,
    *,
    rngs: nnx.Rngs,
    dtype: Any = jnp.float32,
    remat: str = "none",
    attention: str = "auto",
    activations: Any = None,
  ):
    self.config, self.remat = config, remat_lib.check(remat)
    self.attention = attention_lib.check_name(attention)
    self._activations = activations
    shape = (config.vocab_size, config.d_model)
    draw = lambda s: jax.random.normal(rngs.params(), s, jnp.float32) * s[-1] ** -0.5
    self.embed = nnx.Param(draw(shape).astype(dtype), axes=("vocab", "embed"))
    self.decoder = Block(config, rngs=rngs, dtype=dtype, attention=attention)
    self.norm = layers.RMSNorm(config.d_model, config.norm_epsilon, dtype=dtype)
    if not config.tie_embeddings:
      self.head = nnx.Param(draw(shape).astype(dtype), axes=("vocab", "embed"))

  @property
  def activations(self) -> Any:
    return self._activations or self.embed[...].dtype

  def places(self) -> dict[str, specs.Site]:
    """The sites at which phi can act."""
    c = self.config
    queries, kvs = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    fans = {
      "decoder.self.q": (c.d_model, queries),
      "decoder.self.k": (c.d_model, kvs),
      "decoder.self.v": (c.d_model, kvs),
      "decoder.self.o": (queries, c.d_model),
      "decoder.mlp.gate": (c.d_model, c.d_mlp),
      "decoder.mlp.up": (c.d_model, c.d_mlp),
      "decoder.mlp.down": (c.d_mlp, c.d_model),
    }
    return {
      PREFIX_SITE: specs.PrefixSite(c.num_layers, c.num_kv_heads, c.head_dim),
      **{site: specs.LowRankSite(c.num_layers, *fan) for site, fan in fans.items()},
    }

  def phi_spec(self, sites: Sequence[str], **sizes) -> Phi:
    """The abstract phi at these sites; sizes as `core.specs.make_spec` has them."""
    return specs.make_spec(self.places(), sites, **sizes)

  def prompted(self, prompt: Float[Array, "P D"]) -> Phi:
    """The phi of a soft prompt: embeddings in front of every input.

    The model is causal, so what they do to the text behind them is all in their keys and values:
    they are read once, and phi is that prefix (arXiv 2104.08691 for a decoder).
    """
    key, value = self.read(prompt.astype(self.activations)[None], jnp.arange(len(prompt))[None])
    out: dict = {}
    phi_lib.insert(out, PREFIX_SITE, phi_lib.whole_prefix(key, value))
    return out

  def embed_tokens(self, tokens: Int[Array, "*batch T"]) -> Float[Array, "*batch T D"]:
    """Input embeddings."""
    return quantised.plain(sharding.lookup(self.embed[...], tokens), self.activations)

  def hidden(
    self,
    x: Float[Array, "B M T D"],
    at: Int[Array, "#B #M T"],
    mask: masks.Mask,
    phi: Phi | None = None,
    collect: Int[Array, "B G"] | None = None,
  ) -> tuple[Float[Array, "B M T D"], KeyValue]:
    """All blocks over input embeddings.

    Args:
      collect: with M = 1, the positions whose keys and values are wanted; all where None.

    Returns:
      Normalised activations, and keys (after RoPE) and values [L, B, M, T or G, K, H].
    """
    turn = self.decoder.turn(at, x.dtype)

    def layer(block, x, phi_l):
      x, kv = block(x, turn, mask, phi_l)
      return x, kv if collect is None else rows_at(kv, collect)

    x, kv = self.scan(layer, x, sub(phi, "decoder"))
    return self.norm(x), kv

  def scan(self, layer: Callable, carry: Any, inputs: Any) -> tuple[Any, Any]:
    """The loop over the blocks: every pass, decoding, and both passes at once are a `layer` of it.

    Args:
      layer: (block, carry, inputs of this layer) -> carry, output of this layer.
      carry: in front of the first layer.
      inputs: a tree of arrays [L, ...].

    Returns:
      The last carry, and the outputs [L, ...].
    """
    graph, blocks = nnx.split(self.decoder)
    # In the body, so that all that a layer does shares one gather, and the backward pass another.
    block = lambda params: nnx.merge(graph, sharding.gather_layer(params))
    body = lambda carry, xs: layer(block(xs[0]), carry, xs[1])
    return jax.lax.scan(remat_lib.REMAT[self.remat](body), carry, (blocks, inputs))

  def logits(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
    """Next-token logits, at least float32."""
    table = self.embed if self.config.tie_embeddings else self.head
    wide = jnp.promote_types(x.dtype, jnp.float32)
    weights = sharding.gather(table[...], ("vocab", "embed"))
    return layers.matmul(x, weights, [1], wide)

  def start(self, phi: Phi | None) -> Int[Array, "#B 1 1"]:
    """The position of a query's first token: the length of the prefix in front of it."""
    prefix = sub(sub(sub(phi, "decoder"), "self"), "prefix")
    if prefix is None:
      return jnp.zeros((1, 1, 1), jnp.int32)
    return prefix.length[0][:, None, None]

  def __call__(self, query: DecoderQuery, phi: Phi | None = None) -> Float[Array, "B M W V"]:
    """The logits that predict each target token, computed at those positions only."""
    x = self.embed_tokens(query.tokens)
    at = self.start(phi) + jnp.arange(x.shape[2])
    x, _ = self.hidden(x, at, masks.Causal(), phi)
    return self.predict(x, query)

  def predict(
    self, x: Float[Array, "B M T D"], query: DecoderQuery
  ) -> Float[Array, "B M W V"]:
    """The logits that predict each target token, from the queries' normalised activations."""
    return self.logits(jnp.take_along_axis(x, query.target_index[..., None], 2))

  def prefill(
    self, tokens: Int[Array, "B M T"], length: Int[Array, "B M"], phi: Phi | None, room: int
  ) -> tuple[Float[Array, "B M D"], Cache]:
    """Reads prompts; returns what predicts the first new token, and a cache for `room` tokens."""
    at = self.start(phi) + jnp.arange(tokens.shape[2])
    x, kv = self.hidden(self.embed_tokens(tokens), at, masks.Causal(), phi)
    last = jnp.take_along_axis(x, (length - 1)[:, :, None, None], 2)[:, :, 0]
    # The last token that is produced is never read.
    wide = [(0, room - 1) if axis == 3 else (0, 0) for axis in range(6)]
    return last, Cache(jax.tree.map(lambda z: jnp.pad(z, wide), kv), length, tokens.shape[2])

  def advance(
    self, token: Int[Array, "B M"], step: Int[Array, ""], phi: Phi | None, cache: Cache
  ) -> tuple[Float[Array, "B M D"], Cache]:
    """Reads one more token of every row, the `step`-th behind the prompt (from 1)."""
    mask = masks.Cached(cache.length, step - 1, cache.start)
    index = cache.start + step - 1
    x, kv = self._go_on(token[..., None], step, mask, phi, cache, index)
    own = layers.written(cache.own, kv, index, axis=3)
    return x[:, :, 0], dataclasses.replace(cache, own=own)

  def branch(
    self,
    tokens: Int[Array, "B M X"],
    text: Int[Array, "B M X"],
    step: Int[Array, "B M X"],
    phi: Phi | None,
    cache: Cache,
  ) -> Float[Array, "B M X D"]:
    """Reads texts that go on from each prompt, none of which sees another.

    Args:
      tokens: the texts of a prompt, side by side.
      text: which text each token belongs to.
      step: its place behind the prompt, from 1.
      phi: as for `prefill`.
      cache: of `prefill`, with room for one token more.

    Returns:
      What predicts the token behind each one.
    """
    mask = masks.Branches(cache.length, text, cache.start)
    return self._go_on(tokens, step, mask, phi, cache, cache.start)[0]

  def _go_on(self, tokens, step, mask, phi, cache, index) -> tuple[Array, KeyValue]:
    """Normalised activations, keys and values of tokens that stand at `index` of a cache."""
    x = self.embed_tokens(tokens)
    turn = self.decoder.turn(self.start(phi) + cache.length[..., None] + step - 1, x.dtype)

    def layer(block, x, inputs):
      phi_l, keys, values = inputs
      return block(x, turn, mask, phi_l, (keys, values, index))

    x, kv = self.scan(layer, x, (sub(phi, "decoder"), *cache.own))
    return self.norm(x), kv

  def read(
    self,
    x: Float[Array, "B S D"],
    at: Int[Array, "#B S"],
    phi: Phi | None = None,
    collect: Int[Array, "B G"] | None = None,
  ) -> KeyValue:
    """Reads embedded text standing at positions `at`.

    Returns:
      Keys (after RoPE) and values at the indices `collect`, else everywhere: [L, B, S or G, K, H].
    """
    _, (key, value) = self.hidden(x[:, None], at[:, None], masks.Causal(), phi, collect)
    return key[:, :, 0], value[:, :, 0]
