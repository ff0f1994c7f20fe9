"""Gisting for T5 (arXiv 2304.08467): tied weights, gist tokens behind the support in the encoder.

What follows the gist sees no text before it; what precedes it sees neither the gist nor what
follows; the gist sees the support and itself; the decoder's look at the encoder begins at the gist.
Training uses the two-pass form: the encoder reads [support, gist] once for all queries, whose phi
is the gist tokens' keys and values, of the encoder's self-attention at positions -G..-1 and of the
decoder's cross-attention, which knows no positions. `one_pass` is the paper's single masked pass,
equal to it (test).
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from hyperjax.core import masks
from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import EncoderDecoderQuery, Support
from hyperjax.core.phi import Phi
from hyperjax.hypermodels import gist_tokens
from hyperjax.hypermodels.gist_tokens import Encode, GistTokens
from hyperjax.hypermodels.tuned import NoPhi, TunedPhi
from hyperjax.models.t5 import T5

ENCODER, CROSS = "encoder.self.prefix", "decoder.cross.prefix"
# T5's vocabulary has no newline, from which gist tokens start elsewhere.
START = GistTokens(init_text="")
ATTENTION = ("*.*.q", "*.*.k", "*.*.v", "*.*.o")


@partial(
  jax.tree_util.register_dataclass, data_fields=["length", "start"], meta_fields=["num_gist"]
)
@dataclasses.dataclass(frozen=True)
class EncoderGist(masks.Drawn):
  """The encoder's mask: the gist parts what follows it from what precedes it.

      support s s, gist g g, query q q        s s g g q q
                                          s   1 1 0 0 0 0
                                          s   1 1 0 0 0 0
                                          g   1 1 1 1 0 0
                                          g   1 1 1 1 0 0
                                          q   0 0 1 1 1 1
                                          q   0 0 1 1 1 1

  Attributes:
    length: [B, M] int32, real tokens of support, gist and query together.
    start: [B, M] int32, where the gist stands: behind the support's real tokens.
    num_gist: G.
  """

  length: Int[Array, "B M"]
  start: Int[Array, "B M"]
  num_gist: int

  def dense(self, T: int, S: int) -> Bool[Array, "B M T S"]:
    i, j = jnp.arange(T)[:, None], jnp.arange(S)[None]
    start = self.start[..., None, None]
    end = start + self.num_gist
    hidden = ((i < start) & (j >= start)) | ((i < end) & (j >= end)) | ((i >= end) & (j < start))
    return masks.Whole(self.length).dense(T, S) & ~hidden


@partial(jax.tree_util.register_dataclass, data_fields=["length", "start"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class CrossGist(masks.Whole):
  """The decoder's look at the encoder: it begins at the gist.

  Attributes:
    length: [B, M] int32, real tokens of support, gist and query together.
    start: [B, M] int32, where the gist stands.
  """

  start: Int[Array, "B M"]

  def real(self, S: int) -> Bool[Array, "B M S"]:
    return super().real(S) & (jnp.arange(S) >= self.start[..., None])


def gist_phi(
  t5: T5, support: Support, gist: Float[Array, "G D"], update: Phi | None = None
) -> Phi:
  """The gist tokens' keys and values, of the encoder and as the cross-attention reads them."""
  num_gist, start = gist.shape[0], support.length[:, None]
  x = gist_tokens.append(t5.embed_tokens(support.tokens), support.length, gist)[:, None]
  where = start + jnp.arange(num_gist)
  mask = EncoderGist(start + num_gist, start, num_gist)
  encoded, own = t5.encode(x, mask, update, where)
  encoded = jnp.take_along_axis(encoded, where[:, None, :, None], 2)
  out: dict = {}
  for site, pair, positions in (
    (ENCODER, own, "before"), (CROSS, t5.memory(encoded, update), "none")
  ):  # fmt: skip
    key, value = (z[:, :, 0] for z in pair)
    phi_lib.insert(out, site, phi_lib.whole_prefix(key, value, positions=positions))
  return out


class GistingT5(nnx.Module):
  """Gist tokens that the downstream model itself reads, and what is trained for both passes.

  Attributes:
    gist: [G, D] gist embeddings.
    update: the tied LoRA; NoPhi where the model itself is trained.
  """

  def __init__(self, gist: Float[Array, "G D"], update: TunedPhi | NoPhi):
    self.gist = nnx.Param(gist, axes=("gist", "phi_embed"))
    self.update = update

  def __call__(self, downstream: T5, support: Support) -> Phi:
    update = self.update(downstream, support)
    return phi_lib.merge(gist_phi(downstream, support, self.gist[...], update), update)


@dataclasses.dataclass(frozen=True)
class GistingT5Config:
  """Gisting with a LoRA of the whole pass.

  Attributes:
    gist: the gist tokens.
    rank, alpha, sites: the LoRA; by default of all maps of every attention.
  """

  gist: GistTokens = START
  rank: int = 16
  alpha: float = 16.0
  sites: Sequence[str] = ATTENTION

  train = ("producer",)  # parts of the system
  layouts = ("encoder_decoder",)  # of the models that it is for

  def build(self, downstream: T5, encode: Encode, rngs: nnx.Rngs) -> GistingT5:
    """The baseline for this downstream model, at its initial values."""
    spec = downstream.phi_spec(self.sites, rank=self.rank, alpha=self.alpha)
    gist = self.gist.embeddings(downstream, encode, rngs.params())
    return GistingT5(gist, TunedPhi(spec, rngs=rngs))


@dataclasses.dataclass(frozen=True)
class FullGistingT5Config:
  """Gisting that trains the whole model, as HyperT5 trains the whole of its body."""

  gist: GistTokens = START

  train = ("producer", "downstream")  # parts of the system
  layouts = ("encoder_decoder",)  # of the models that it is for

  def build(self, downstream: T5, encode: Encode, rngs: nnx.Rngs) -> GistingT5:
    """The baseline for this downstream model, at its initial values."""
    return GistingT5(self.gist.embeddings(downstream, encode, rngs.params()), NoPhi())


def one_pass(
  t5: T5,
  support: Support,
  query: EncoderDecoderQuery,
  gist: Float[Array, "G D"],
  update: Phi | None = None,
) -> Float[Array, "B M W V"]:
  """Logits of the queries, each from one masked pass over [support, gist, query]."""
  num_gist, size, queries = gist.shape[0], support.tokens.shape[1], query.tokens.shape[1]
  head = gist_tokens.append(t5.embed_tokens(support.tokens), support.length, gist)
  x = jnp.concatenate([
    jnp.repeat(head[:, None], queries, 1), t5.embed_tokens(query.tokens)
  ], 2)
  # The padding between gist and query goes to the end: T5's distances count places.
  start = jnp.broadcast_to(support.length[:, None], query.length.shape)
  place = jnp.arange(x.shape[2])
  gap = (size - start)[..., None]
  order = jnp.where(place < start[..., None] + num_gist, place, (place + gap) % x.shape[2])
  x = jnp.take_along_axis(x, order[..., None], 2)
  length = start + num_gist + query.length
  encoded, _ = t5.encode(x, EncoderGist(length, start, num_gist), update)
  before = jnp.pad(
    query.targets[..., :-1], [(0, 0), (0, 0), (1, 0)], constant_values=t5.config.start_id
  )
  seen = masks.Causal(), CrossGist(length, start)
  return t5.logits(t5.decode(t5.embed_tokens(before), encoded, seen, update))
