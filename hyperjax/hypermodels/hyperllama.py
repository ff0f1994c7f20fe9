"""HyperLlama (arXiv 2402.16817): a Llama reads [support, gist tokens]; the gist positions' keys and
values, layer by layer, are the prefix of the downstream model.

The support stands at positions -length..-1 and the gist tokens at 0..G-1 (behind the sink, if there
is one), so their keys leave the model with the rotation that a prefix needs: RoPE is relative.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import Support
from hyperjax.core.phi import Phi
from hyperjax.hypermodels.tuned import TunedPhi
from hyperjax.models.llama import PREFIX_SITE, Llama

ATTENTION = ("decoder.self.q", "decoder.self.k", "decoder.self.v", "decoder.self.o")

Encode = Callable[[str], Sequence[int]]


def append_gist(
  llama: Llama, support: Support, gist: Float[Array, "G D"]
) -> Float[Array, "B _ D"]:
  """Embeds the support and puts the gist embeddings right behind each row's last real token."""
  size, num_gist = support.tokens.shape[1], gist.shape[0]
  x = jnp.pad(llama.embed_tokens(support.tokens), [(0, 0), (0, num_gist), (0, 0)])
  slot = jnp.arange(size + num_gist) - support.length[:, None]
  here = (slot >= 0) & (slot < num_gist)
  return jnp.where(here[..., None], gist[jnp.clip(slot, 0, num_gist - 1)].astype(x.dtype), x)


def gist_prefix(
  llama: Llama,
  support: Support,
  gist: Float[Array, "G D"],
  update: Phi | None = None,
  start: int = 0,
) -> tuple[Array, Array]:
  """Keys and values [L, B, G, K, H] of the gist tokens, which stand at start..start+G-1."""
  x = append_gist(llama, support, gist)
  at = jnp.arange(x.shape[1]) - support.length[:, None] + start
  collect = support.length[:, None] + jnp.arange(gist.shape[0])
  return llama.read(x, at, update, collect)


class HyperLlama(nnx.Module):
  """The frozen downstream Llama itself reads the support, under a tuned low-rank update.

  Attributes:
    gist: [G, D] gist embeddings.
    update: the tuned LoRA of the hypermodel pass.
    sink: token ids whose keys and values, as the frozen model alone computes them, stand in front
      of the gist: () for none.
  """

  def __init__(
    self, gist: Float[Array, "G D"], update_spec: Phi, sink: Sequence[int], *, rngs: nnx.Rngs
  ):
    self.gist = nnx.Param(gist, axes=("gist", "phi_embed"))
    self.update = TunedPhi(update_spec, rngs=rngs)
    self.sink = nnx.static(tuple(sink))

  def __call__(self, downstream: Llama, support: Support) -> Phi:
    key, value = gist_prefix(
      downstream, support, self.gist[...], self.update(), start=len(self.sink)
    )
    return behind_sink(downstream, self.sink, key, value)


def behind_sink(llama: Llama, sink: Sequence[int], key: Array, value: Array) -> Phi:
  """The prefix [sink, key/value], the sink read by the unadapted model at position 0."""
  if sink:
    x = llama.embed_tokens(jnp.asarray(sink, jnp.int32)[None])
    wide = lambda z: jnp.broadcast_to(z, (z.shape[0], key.shape[1], *z.shape[2:]))
    sink_key, sink_value = llama.read(x, jnp.arange(len(sink))[None])
    key = jnp.concatenate([wide(sink_key), key], 2)
    value = jnp.concatenate([wide(sink_value), value], 2)
  out: dict = {}
  phi_lib.insert(out, PREFIX_SITE, phi_lib.whole_prefix(key, value))
  return out


class FullHyperLlama(nnx.Module):
  """HyperLlama whose hypermodel pass is a full trained copy of the downstream model.

  Attributes:
    gist: [G, D] gist embeddings.
    body: the trained copy.
    sink: as in HyperLlama.
  """

  def __init__(self, gist: Float[Array, "G D"], body: Llama, sink: Sequence[int]):
    self.gist = nnx.Param(gist, axes=("gist", "phi_embed"))
    self.body = body
    self.sink = nnx.static(tuple(sink))

  def __call__(self, downstream: Llama, support: Support) -> Phi:
    key, value = gist_prefix(self.body, support, self.gist[...], start=len(self.sink))
    return behind_sink(downstream, self.sink, key, value)


@dataclasses.dataclass(frozen=True)
class GistConfig:
  """The gist tokens.

  Attributes:
    num_gist: G.
    init_text: the gist embeddings start from the embeddings of this text's tokens, repeated to G;
      '' starts them from noise of the embedding table's own spread.
    noise: standard deviation added, in units of the embedding table's.
    sink_text: text whose frozen keys and values stand in front of the gist; '' for none.
  """

  num_gist: int = 16
  init_text: str = "\n"
  noise: float = 0.1
  sink_text: str = ""

  def __post_init__(self):
    if self.num_gist < 1:
      raise ValueError(f"GistConfig.num_gist must be at least 1, not {self.num_gist}")

  def embeddings(self, llama: Llama, encode: Encode, key: jax.Array) -> Float[Array, "G D"]:
    """The initial gist embeddings, float32."""
    table = llama.embed[...].astype(jnp.float32)
    noise = jax.random.normal(key, (self.num_gist, table.shape[1])) * table.std()
    if not self.init_text:
      return noise
    ids = encode(self.init_text)
    repeated = [ids[i % len(ids)] for i in range(self.num_gist)]
    return table[jnp.asarray(repeated)] + self.noise * noise

  def sink(self, encode: Encode) -> tuple[int, ...]:
    """The sink's token ids."""
    return tuple(encode(self.sink_text)) if self.sink_text else ()


@dataclasses.dataclass(frozen=True)
class HyperLlamaConfig:
  """HyperLlama with LoRA on the hypermodel pass.

  Attributes:
    gist: the gist tokens.
    rank, alpha, sites: the tuned update of the hypermodel pass.
  """

  gist: GistConfig = GistConfig()
  rank: int = 16
  alpha: float = 32.0
  sites: Sequence[str] = ATTENTION

  def build(self, downstream: Llama, encode: Encode, rngs: nnx.Rngs) -> HyperLlama:
    """The hypermodel for this downstream model, at its initial values."""
    spec = downstream.phi_spec(rank=self.rank, alpha=self.alpha, sites=self.sites)
    gist = self.gist.embeddings(downstream, encode, rngs.params())
    return HyperLlama(gist, spec, self.gist.sink(encode), rngs=rngs)


@dataclasses.dataclass(frozen=True)
class FullHyperLlamaConfig:
  """HyperLlama with a full trained copy of the downstream model as its body."""

  gist: GistConfig = GistConfig()

  def build(self, downstream: Llama, encode: Encode, rngs: nnx.Rngs) -> FullHyperLlama:
    """The hypermodel for this downstream model; the copy's parameters are float32."""
    graph, params = nnx.split(downstream)
    body = nnx.merge(graph, jax.tree.map(lambda x: jnp.array(x, jnp.float32), params))
    gist = self.gist.embeddings(downstream, encode, rngs.params())
    return FullHyperLlama(gist, body, self.gist.sink(encode))
