"""Gisting (arXiv 2304.08467): one model, tied weights; what follows the gist may not see what
precedes it.

Training uses the two-pass form: first [support, gist], then the queries behind the gist's keys and
values, both under the same update. `one_pass` is the paper's single masked pass; the two are equal
(test), and with M queries per support the two-pass form reads the support once.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hyperjax.core import masks
from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import DecoderQuery, Support
from hyperjax.core.phi import Phi
from hyperjax.hypermodels import gist_tokens
from hyperjax.hypermodels.gist_tokens import Encode
from hyperjax.hypermodels.hyperllama import HyperLlama, HyperLlamaConfig
from hyperjax.hypermodels.loops import Reading
from hyperjax.models.llama import Llama


class Gisting(nnx.Module):
  """A HyperLlama whose update also adapts the downstream pass: its phi is a prefix and a LoRA."""

  def __init__(self, hyper: HyperLlama):
    self.hyper = hyper

  def __call__(self, downstream: Llama, support: Support) -> Phi:
    return phi_lib.merge(self.hyper(downstream, support), self.hyper.update())

  @property
  def loop(self) -> str:
    """How training goes through the layers, one of `loops.LOOPS`."""
    return self.hyper.loop

  def reading(self, downstream: Llama, support: Support) -> Reading:
    """The same layer by layer."""
    hyper = self.hyper.reading(downstream, support)

    def layer(block, state, update):
      state, phi = hyper.layer(block, state, update)
      return state, phi_lib.merge(phi, update)

    return dataclasses.replace(hyper, layer=layer)


@dataclasses.dataclass(frozen=True)
class GistingConfig:
  """Gisting with the same kind of parameters as the HyperLlama it is compared with."""

  hyper: HyperLlamaConfig = HyperLlamaConfig()

  train = ("producer",)  # parts of the system
  layouts = ("decoder",)  # of the models that it is for

  def build(self, downstream: Llama, encode: Encode, rngs: nnx.Rngs) -> Gisting:
    """The baseline for this downstream model, at its initial values."""
    return Gisting(self.hyper.build(downstream, encode, rngs))


def one_pass(
  llama: Llama,
  support: Support,
  query: DecoderQuery,
  gist: Float[Array, "G D"],
  update: Phi | None = None,
) -> Float[Array, "B M W V"]:
  """Logits of the queries from one masked pass over [support, gist, query 1, ..., query M]."""
  batch, num_queries, length = query.tokens.shape
  num_gist = gist.shape[0]
  head = gist_tokens.append(llama.embed_tokens(support.tokens), support.length, gist)
  tail = llama.embed_tokens(query.tokens).reshape(batch, num_queries * length, -1)
  x = jnp.concatenate([head, tail], 1)
  before = jnp.arange(head.shape[1]) - support.length[:, None]
  after = jnp.tile(num_gist + jnp.arange(length), num_queries)
  at = jnp.concatenate([before, jnp.broadcast_to(after, (batch, after.size))], 1)
  mask = masks.Gist(support.length, num_gist, head.shape[1], length)
  y, _ = llama.hidden(x[:, None], at[:, None], mask, update)
  y = y[:, 0, head.shape[1]:].reshape(batch, num_queries, length, -1)
  return llama.logits(jnp.take_along_axis(y, query.target_index[..., None], 2))
