"""T5 (arXiv 1910.10683), v1.0 and v1.1: encoder and decoder with relative position bias."""

import dataclasses
from collections.abc import Sequence
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
from hyperjax.core.batch import EncoderDecoderQuery
from hyperjax.core.phi import Phi, sub
from hyperjax.models.t5_blocks import ACTIVATIONS, DecoderBlock, EncoderBlock, KeyValue

PREFIX_SITES = ("encoder.self.prefix", "decoder.self.prefix", "decoder.cross.prefix")
PROMPT_SITE = "embed"  # of the encoder's input


@dataclasses.dataclass(frozen=True)
class T5Config:
  """The architecture of a T5; `t5_weights` reads it from config.json.

  Attributes:
    activation: 'relu' (v1.0) or 'gated-gelu' (v1.1 and Flan).
    tie_embeddings: the input embeddings are the output layer too, and its input is scaled by
      D^-0.5 (v1.0).
    num_buckets, max_distance: of the relative position bias.
    start_id: the token that the decoder starts from.
  """

  vocab_size: int
  d_model: int
  num_encoder_layers: int
  num_decoder_layers: int
  num_heads: int
  head_dim: int
  d_mlp: int
  activation: str
  tie_embeddings: bool
  norm_epsilon: float = 1e-6
  num_buckets: int = 32
  max_distance: int = 128
  start_id: int = 0

  layout = "encoder_decoder"  # of the batches that it reads

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      least = 0 if field.name == "start_id" else 1
      if field.type is int and (
        isinstance(value, bool) or not isinstance(value, int) or value < least
      ):
        raise ValueError(
          f"T5Config.{field.name} must be an integer of at least {least}, not {value!r}"
        )
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f"T5Config.activation must be one of {sorted(ACTIVATIONS)}, not {self.activation!r}"
      )
    exact = self.num_buckets // 4
    if self.num_buckets % 4 or self.max_distance <= exact:
      raise ValueError(
        f"T5Config: num_buckets {self.num_buckets} must be a multiple of 4, and max_distance "
        f"{self.max_distance} above a quarter of it"
      )


@partial(
  jax.tree_util.register_dataclass, data_fields=["own", "memory", "length"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Cache:
  """What decoding keeps.

  Attributes:
    own: the decoder's keys and values of what was produced, [L, B, M, C, N, H] each.
    memory: the cross-attention's, [L, B, M, T, N, H] each.
    length: [B, M], real rows of the encoder's output.
  """

  own: KeyValue
  memory: KeyValue
  length: Array


class T5(nnx.Module):
  """An encoder-decoder downstream model.

  Attributes:
    config: the architecture.
    remat: what the backward pass recomputes: 'none', 'dots' (keeps matrix products) or 'full'.
    attention: the kernel, one of `core.attention.CHOICES`; self-attention has a bias, which only
      the einsum knows.
    activations: their dtype; that of the embeddings where none is given.
  """

  def __init__(
    self,
    config: T5Config,
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
    normal = lambda shape, std: jax.random.normal(rngs.params(), shape, jnp.float32) * std

    def stack(block, num_layers):
      def make(*axes, dtype=dtype, std=None):
        names, shape = zip(*axes, strict=True)
        fan_in = shape[0] if names[0] != "heads" else shape[0] * shape[1]
        value = normal((num_layers, *shape), std or fan_in**-0.5).astype(dtype)
        return nnx.Param(value, axes=("layers", *names))

      return block(config, make, lambda: norm((num_layers,)), attention)

    def norm(lead=()):
      return layers.RMSNorm(config.d_model, config.norm_epsilon, dtype=dtype, lead=lead)

    def bias():
      shape = (config.num_buckets, config.num_heads)
      return nnx.Param(normal(shape, config.d_model**-0.5).astype(dtype), axes=("buckets", "heads"))

    shape, axes = (config.vocab_size, config.d_model), ("vocab", "embed")
    self.embed = nnx.Param(normal(shape, 1.0).astype(dtype), axes=axes)
    self.encoder = stack(EncoderBlock, config.num_encoder_layers)
    self.encoder_bias, self.encoder_norm = bias(), norm()
    self.decoder = stack(DecoderBlock, config.num_decoder_layers)
    self.decoder_bias, self.decoder_norm = bias(), norm()
    if not config.tie_embeddings:
      self.head = nnx.Param(normal(shape, config.d_model**-0.5).astype(dtype), axes=axes)

  @property
  def activations(self) -> Any:
    return self._activations or self.embed[...].dtype

  def places(self) -> dict[str, specs.Site]:
    """The sites at which phi can act."""
    c = self.config
    width = c.num_heads * c.head_dim
    projections = {
      "q": (c.d_model, width), "k": (c.d_model, width), "v": (c.d_model, width),
      "o": (width, c.d_model),
    }  # fmt: skip
    mlp = {"up": (c.d_model, c.d_mlp), "down": (c.d_mlp, c.d_model)}
    if c.activation.startswith("gated"):
      mlp["gate"] = (c.d_model, c.d_mlp)
    out: dict = {PROMPT_SITE: specs.PromptSite(c.d_model)}
    for stack, num_layers, attentions in (
      ("encoder", c.num_encoder_layers, ("self",)),
      ("decoder", c.num_decoder_layers, ("self", "cross")),
    ):
      for attention in attentions:
        at = f"{stack}.{attention}"
        out[f"{at}.prefix"] = specs.PrefixSite(num_layers, c.num_heads, c.head_dim)
        for name, fans in projections.items():
          out[f"{at}.{name}"] = specs.LowRankSite(num_layers, *fans)
      for name, fans in mlp.items():
        out[f"{stack}.mlp.{name}"] = specs.LowRankSite(num_layers, *fans)
    return out

  def phi_spec(self, sites: Sequence[str], **sizes) -> Phi:
    """The abstract phi at these sites; sizes as `core.specs.make_spec` has them."""
    return specs.make_spec(self.places(), sites, **sizes)

  def prompted(self, prompt: Float[Array, "P D"]) -> Phi:
    """The phi of a soft prompt: embeddings in front of every text that the encoder reads.

    They are a part of its input, since their states depend on the text (arXiv 2104.08691).
    """
    return {PROMPT_SITE: phi_lib.whole_prompt(prompt[None, None])}

  def embed_tokens(self, tokens: Int[Array, "*batch T"]) -> Float[Array, "*batch T D"]:
    """Input embeddings of both stacks."""
    return quantised.plain(sharding.lookup(self.embed[...], tokens), self.activations)

  def encode_tokens(
    self, tokens: Int[Array, "B M T"], length: Int[Array, "B M"], phi: Phi | None
  ) -> tuple[Float[Array, "B M _ D"], masks.Whole]:
    """The encoder over texts, behind phi's soft prompt; and who sees what of its output."""
    x, length = layers.embed(self.embed_tokens, tokens, length, sub(phi, PROMPT_SITE))
    seen = masks.Whole(length)
    return self.encode(x, seen, phi)[0], seen

  def encode(
    self,
    x: Float[Array, "B M T D"],
    mask: masks.Mask,
    phi: Phi | None = None,
    collect: Int[Array, "B G"] | None = None,
  ) -> tuple[Float[Array, "B M T D"], KeyValue]:
    """The encoder over input embeddings.

    Args:
      collect: with M = 1, the positions whose keys and values are wanted; all where None.

    Returns:
      Normalised activations, and keys and values [L, B, M, T or G, N, H].
    """
    at = jnp.arange(x.shape[2])[None, None]
    bias = self._bias(self.encoder_bias, at, at, sub(sub(phi, "encoder"), "self"), True, x.dtype)

    def layer(x, inputs):
      block, phi_l = inputs
      x, kv = block(x, mask, bias, phi_l)
      if collect is not None:
        index = collect[:, None, :, None, None]
        kv = jax.tree.map(lambda z: jnp.take_along_axis(z, index, 2), kv)
      return x, kv

    x, kv = self._scan(layer, x, self.encoder, sub(phi, "encoder"))
    return self.encoder_norm(x), kv

  def memory(self, encoded: Float[Array, "B M T D"], phi: Phi | None = None) -> KeyValue:
    """The cross-attention's keys and values [L, B, M, T, N, H] of the encoder's output."""

    def layer(carry, inputs):
      block, phi_l = inputs
      return carry, block.cross.read(encoded, sub(phi_l, "cross"))

    return self._scan(layer, None, self.decoder, sub(phi, "decoder"))[1]

  def decode(
    self,
    x: Float[Array, "B M W D"],
    encoded: Float[Array, "B M T D"],
    seen: tuple[masks.Mask, masks.Mask],
    phi: Phi | None = None,
  ) -> Float[Array, "B M W D"]:
    """The decoder over input embeddings; `seen` are its masks, of itself and of the encoder."""
    at = jnp.arange(x.shape[2])[None, None]
    bias = self._bias(self.decoder_bias, at, at, sub(sub(phi, "decoder"), "self"), False, x.dtype)

    def layer(x, inputs):
      block, phi_l = inputs
      memory = block.cross.read(encoded, sub(phi_l, "cross"))
      return block(x, memory, seen, bias, phi_l)[0], None

    x, _ = self._scan(layer, x, self.decoder, sub(phi, "decoder"))
    return self.decoder_norm(x)

  def logits(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
    """Next-token logits, at least float32."""
    table = self.embed if self.config.tie_embeddings else self.head
    if self.config.tie_embeddings:
      x = x * self.config.d_model**-0.5
    wide = jnp.promote_types(x.dtype, jnp.float32)
    weights = sharding.gather(table[...], ("vocab", "embed"))
    return layers.matmul(x, weights, [1], wide)

  def __call__(
    self, query: EncoderDecoderQuery, phi: Phi | None = None
  ) -> Float[Array, "B M W V"]:
    """The logits that predict each target token."""
    encoded, text = self.encode_tokens(query.tokens, query.length, phi)
    before = jnp.pad(
      query.targets[..., :-1], [(0, 0), (0, 0), (1, 0)], constant_values=self.config.start_id
    )
    x = self.decode(self.embed_tokens(before), encoded, (masks.Causal(), text), phi)
    return self.logits(x)

  def prefill(
    self, tokens: Int[Array, "B M T"], length: Int[Array, "B M"], phi: Phi | None, room: int
  ) -> tuple[Float[Array, "B M D"], Cache]:
    """Reads prompts; returns what predicts the first new token, and a cache for `room` tokens."""
    c = self.config
    encoded, text = self.encode_tokens(tokens, length, phi)
    shape = (c.num_decoder_layers, *length.shape, room, c.num_heads, c.head_dim)
    own = (jnp.zeros(shape, encoded.dtype), jnp.zeros(shape, encoded.dtype))
    cache = Cache(own, self.memory(encoded, phi), text.length)
    return self.advance(jnp.full(length.shape, c.start_id, jnp.int32), jnp.int32(0), phi, cache)

  def advance(
    self, token: Int[Array, "B M"], step: Int[Array, ""], phi: Phi | None, cache: Cache
  ) -> tuple[Float[Array, "B M D"], Cache]:
    """Reads one more token of every row, the `step`-th behind the prompt (0 is the start token)."""
    mask = masks.Cached(jnp.zeros_like(cache.length), step, 0)
    at = step[None, None, None], jnp.arange(cache.own[0].shape[3])[None, None]
    x, kv = self._go_on(token[..., None], at, mask, phi, cache, step)
    own = layers.written(cache.own, kv, step, axis=3)
    return x[:, :, 0], dataclasses.replace(cache, own=own)

  def branch(
    self,
    tokens: Int[Array, "B M X"],
    text: Int[Array, "B M X"],
    step: Int[Array, "B M X"],
    phi: Phi | None,
    cache: Cache,
  ) -> Float[Array, "B M X D"]:
    """Reads texts behind each prompt, none of which sees another; as `Llama.branch`."""
    mask = masks.Branches(jnp.ones_like(cache.length), text, 1)  # behind the start token
    size = cache.own[0].shape[3]
    at = step, jnp.pad(step, [(0, 0), (0, 0), (1, size - 1 - step.shape[2])])
    return self._go_on(tokens, at, mask, phi, cache, 1)[0]

  def _go_on(self, tokens, at, mask, phi, cache, index) -> tuple[Array, KeyValue]:
    """Normalised activations, keys and values of tokens that stand at `index` of a cache; `at` are
    their own positions and the cache's."""
    x = self.embed_tokens(tokens)
    seen = mask, masks.Whole(cache.length)
    bias = self._bias(self.decoder_bias, *at, sub(sub(phi, "decoder"), "self"), False, x.dtype)

    def layer(x, inputs):
      block, phi_l, own, memory = inputs
      return block(x, memory, seen, bias, phi_l, (*own, index))

    x, kv = self._scan(layer, x, self.decoder, sub(phi, "decoder"), cache.own, cache.memory)
    return self.decoder_norm(x), kv

  def _bias(self, table, query_at, key_at, phi, bidirectional, dtype) -> positions.Bias:
    """The bias of a stack's self-attention, whose part of phi says where a prefix stands."""
    bias = partial(
      positions.relative_bias,
      table[...].astype(jnp.promote_types(dtype, jnp.float32)), query_at,
      bidirectional=bidirectional, max_distance=self.config.max_distance,
    )  # fmt: skip
    prefix = sub(phi, "prefix")
    if prefix is None or prefix.positions == "none":
      return positions.Bias(bias(key_at))
    size = prefix.key.shape[2]
    before = jnp.arange(size) - prefix.length[0][:, None, None]
    return positions.Bias(bias(key_at), bias(before))

  def _scan(self, layer, carry, blocks: nnx.Module, *inputs):
    """Scans `layer(carry, (block, *inputs))` over the layers."""
    graph, params = nnx.split(blocks)
    block = lambda params: nnx.merge(graph, sharding.gather_layer(params))
    body = lambda carry, xs: layer(carry, (block(xs[0]), *xs[1:]))
    return jax.lax.scan(remat_lib.REMAT[self.remat](body), carry, (params, *inputs))
