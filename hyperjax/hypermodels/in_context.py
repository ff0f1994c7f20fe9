"""In-context learning as a producer: the support's own keys and values are the prefix."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import Support
from hyperjax.core.phi import Phi
from hyperjax.hypermodels.tuned import TunedConfig, TunedPhi
from hyperjax.models.llama import PREFIX_SITE, Llama


class InContext(nnx.Module):
  """Reads the support once with the unadapted model; all queries of an episode share it."""

  def __call__(self, downstream: Llama, support: Support) -> Phi:
    return read(downstream, support)


def read(downstream: Llama, support: Support, update: Phi | None = None) -> Phi:
  """The support's keys and values, read under a low-rank update, as a prefix."""
  x = downstream.embed_tokens(support.tokens)
  key, value = downstream.read(x, jnp.arange(x.shape[1])[None], update)
  out: dict = {}
  phi_lib.insert(out, PREFIX_SITE, phi_lib.whole_prefix(key, value, support.length))
  return out


class TunedInContext(nnx.Module):
  """Few-shot multi-task fine-tuning of a Llama: full attention over the support, under an update
  that adapts the pass over the support and the pass over the queries alike."""

  def __init__(self, update: TunedPhi):
    self.update = update

  def __call__(self, downstream: Llama, support: Support) -> Phi:
    update = self.update()
    return phi_lib.merge(read(downstream, support, update), update)


@dataclasses.dataclass(frozen=True)
class TunedInContextConfig:
  """Few-shot MTF with low-rank updates; an encoder-decoder takes `TunedConfig` and inline episodes.

  Attributes:
    tuned: the update.
  """

  tuned: TunedConfig

  layouts = ("decoder",)  # of the models that it is for

  def build(self, downstream: Llama, encode, rngs: nnx.Rngs) -> TunedInContext:
    """The baseline for this downstream model, at its initial values."""
    return TunedInContext(self.tuned.build(downstream, encode, rngs))
