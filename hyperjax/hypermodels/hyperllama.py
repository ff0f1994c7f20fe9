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
from jaxtyping import Array, Float, Int

from hyperjax.core import masks
from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import Support
from hyperjax.core.phi import Phi, Prefix
from hyperjax.hypermodels import gist_tokens, loops
from hyperjax.hypermodels.gist_tokens import Encode, GistTokens
from hyperjax.hypermodels.loops import Reading
from hyperjax.hypermodels.tuned import TunedPhi
from hyperjax.models.llama import PREFIX_SITE, KeyValue, Llama, rows_at

ATTENTION = ("decoder.self.q", "decoder.self.k", "decoder.self.v", "decoder.self.o")


def with_gist(
  llama: Llama, support: Support, gist: Float[Array, "G D"], start: int = 0
) -> tuple[Float[Array, "B _ D"], Int[Array, "B _"], Int[Array, "B G"]]:
  """What is read: embedded supports with the gist tokens behind them; where it stands, the gist
  tokens at start..start+G-1; and the indices of the gist tokens."""
  x = gist_tokens.append(llama.embed_tokens(support.tokens), support.length, gist)
  length = support.length[:, None]
  return x, jnp.arange(x.shape[1]) - length + start, length + jnp.arange(gist.shape[0])


def gist_prefix(
  llama: Llama,
  support: Support,
  gist: Float[Array, "G D"],
  update: Phi | None = None,
  start: int = 0,
) -> KeyValue:
  """Keys and values [L, B, G, K, H] of the gist tokens, which stand at start..start+G-1."""
  x, at, collect = with_gist(llama, support, gist, start)
  return llama.read(x, at, update, collect)


class HyperLlama(nnx.Module):
  """The frozen downstream Llama itself reads the support, under a tuned low-rank update.

  Attributes:
    gist: [G, D] gist embeddings.
    update: the tuned LoRA of the hypermodel pass.
    sink: token ids whose keys and values, as the frozen model alone computes them, stand in front
      of the gist: () for none.
    loop: how training goes through the layers, one of `loops.LOOPS`.
  """

  def __init__(
    self,
    gist: Float[Array, "G D"],
    update_spec: Phi,
    sink: Sequence[int],
    *,
    rngs: nnx.Rngs,
    loop: str = "two_scans",
  ):
    self.gist = nnx.Param(gist, axes=("gist", "phi_embed"))
    self.update = TunedPhi(update_spec, rngs=rngs)
    self.sink = nnx.static(tuple(sink))
    self.loop = loop

  def __call__(self, downstream: Llama, support: Support) -> Phi:
    key, value = gist_prefix(
      downstream, support, self.gist[...], self.update(), start=len(self.sink)
    )
    return behind_sink(downstream, self.sink, key, value)

  def reading(self, downstream: Llama, support: Support) -> Reading:
    """The same layer by layer, the sink being read along."""
    before = len(self.sink)
    x, at, collect = with_gist(downstream, support, self.gist[...], before)
    turn = downstream.decoder.turn(at[:, None], x.dtype)
    sink = downstream.embed_tokens(jnp.asarray(self.sink, jnp.int32)[None, None])
    sink_turn = downstream.decoder.turn(jnp.arange(before)[None, None], x.dtype)
    length = jnp.full(len(x), before + collect.shape[1], jnp.int32)

    def layer(block, state, update):
      sink, x = state
      x, kv = block(x, turn, masks.Causal(), update)
      kv = rows_at(kv, collect)
      if before:
        sink, sink_kv = block(sink, sink_turn, masks.Causal())
        kv = in_front(sink_kv, kv)
      key, value = (z[:, 0] for z in kv)
      phi: dict = {}
      phi_lib.insert(phi, PREFIX_SITE, Prefix(key, value, length))
      return (sink, x), phi["decoder"]

    return Reading(layer, (sink, x[:, None]), self.update()["decoder"], length)


def behind_sink(llama: Llama, sink: Sequence[int], key: Array, value: Array) -> Phi:
  """The prefix [sink, key/value], the sink read by the unadapted model at position 0."""
  kv = key, value
  if sink:
    x = llama.embed_tokens(jnp.asarray(sink, jnp.int32)[None])
    kv = in_front(llama.read(x, jnp.arange(len(sink))[None]), kv)
  out: dict = {}
  phi_lib.insert(out, PREFIX_SITE, phi_lib.whole_prefix(*kv))
  return out


def in_front(sink: KeyValue, own: KeyValue) -> KeyValue:
  """Keys and values [*L, 1, S, K, H] in front of each row of [*L, B, G, K, H]."""
  wide = lambda s, z: jnp.broadcast_to(s, (*z.shape[:-3], *s.shape[-3:]))
  return tuple(
    jnp.concatenate([wide(s, z), z], -3) for s, z in zip(sink, own, strict=True)
  )


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
    loop: how training goes through the layers: 'two_scans', or 'one_scan', which is equal and
      gathers sharded weights once for both passes.
  """

  gist: GistConfig = GistConfig()
  rank: int = 16
  alpha: float = 16.0
  sites: Sequence[str] = ATTENTION
  loop: str = "two_scans"

  train = ("producer",)  # parts of the system
  layouts = ("decoder",)  # of the models that it is for

  def __post_init__(self):
    loops.check(self.loop, "HyperLlamaConfig")

  def build(self, downstream: Llama, encode: Encode, rngs: nnx.Rngs) -> HyperLlama:
    """The hypermodel for this downstream model, at its initial values."""
    spec = downstream.phi_spec(rank=self.rank, alpha=self.alpha, sites=self.sites)
    gist = self.gist.embeddings(downstream, encode, rngs.params())
    return HyperLlama(gist, spec, self.gist.sink(encode), rngs=rngs, loop=self.loop)


@dataclasses.dataclass(frozen=True)
class FullHyperLlamaConfig:
  """HyperLlama with a full trained copy of the downstream model as its body."""

  gist: GistConfig = GistConfig()

  train = ("producer",)  # parts of the system
  layouts = ("decoder",)  # of the models that it is for
  copies_downstream = True  # what is trained starts as a copy of its weights

  def build(self, downstream: Llama, encode: Encode, rngs: nnx.Rngs) -> FullHyperLlama:
    """The hypermodel for this downstream model; the copy's parameters are float32."""
    graph, params = nnx.split(downstream)
    body = nnx.merge(graph, jax.tree.map(lambda x: jnp.array(x, jnp.float32), params))
    if not body.config.tie_embeddings:
      del body.head  # only keys and values are read
    gist = self.gist.embeddings(downstream, encode, rngs.params())
    return FullHyperLlama(gist, body, self.gist.sink(encode))
