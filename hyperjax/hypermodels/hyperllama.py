"""HyperLlama (arXiv 2402.16817): a Llama reads [support, gist tokens]; the gist positions' keys and
values, layer by layer, are the prefix of the downstream model.

The support stands at positions -length..-1 and the gist tokens at 0..G-1 (behind the sink, if there
is one), so their keys leave the model with the rotation that a prefix needs: RoPE is relative.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import Support
from hyperjax.core.phi import Phi
from hyperjax.hypermodels import gist_tokens
from hyperjax.hypermodels.gist_tokens import Encode, GistTokens
from hyperjax.hypermodels.tuned import TunedPhi
from hyperjax.models.llama import PREFIX_SITE, Llama

ATTENTION = ("decoder.self.q", "decoder.self.k", "decoder.self.v", "decoder.self.o")


def gist_prefix(
  llama: Llama,
  support: Support,
  gist: Float[Array, "G D"],
  update: Phi | None = None,
  start: int = 0,
) -> tuple[Array, Array]:
  """Keys and values [L, B, G, K, H] of the gist tokens, which stand at start..start+G-1."""
  x = gist_tokens.append(llama.embed_tokens(support.tokens), support.length, gist)
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
class GistConfig(GistTokens):
  """The gist tokens, and what stands in front of them in the prefix.

  Attributes:
    sink_text: text whose frozen keys and values stand in front of the gist; '' for none.
  """

  sink_text: str = ""

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

  train = ("producer",)  # parts of the system
  layouts = ("decoder",)  # of the models that it is for

  def build(self, downstream: Llama, encode: Encode, rngs: nnx.Rngs) -> HyperLlama:
    """The hypermodel for this downstream model, at its initial values."""
    spec = downstream.phi_spec(rank=self.rank, alpha=self.alpha, sites=self.sites)
    gist = self.gist.embeddings(downstream, encode, rngs.params())
    return HyperLlama(gist, spec, self.gist.sink(encode), rngs=rngs)


@dataclasses.dataclass(frozen=True)
class FullHyperLlamaConfig:
  """HyperLlama with a full trained copy of the downstream model as its body."""

  gist: GistConfig = GistConfig()

  train = ("producer",)  # parts of the system
  layouts = ("decoder",)  # of the models that it is for

  def build(self, downstream: Llama, encode: Encode, rngs: nnx.Rngs) -> FullHyperLlama:
    """The hypermodel for this downstream model; the copy's parameters are float32."""
    graph, params = nnx.split(downstream)
    body = nnx.merge(graph, jax.tree.map(lambda x: jnp.array(x, jnp.float32), params))
    gist = self.gist.embeddings(downstream, encode, rngs.params())
    return FullHyperLlama(gist, body, self.gist.sink(encode))
