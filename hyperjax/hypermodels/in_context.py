"""In-context learning as a producer: the support's own keys and values are the prefix."""

import jax.numpy as jnp
from flax import nnx

from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import Support
from hyperjax.core.phi import Phi
from hyperjax.models.llama import PREFIX_SITE, Llama


class InContext(nnx.Module):
  """Reads the support once with the unadapted model; all queries of an episode share it."""

  def __call__(self, downstream: Llama, support: Support) -> Phi:
    x = downstream.embed_tokens(support.tokens)
    key, value = downstream.read(x, jnp.arange(x.shape[1])[None])
    out: dict = {}
    phi_lib.insert(out, PREFIX_SITE, phi_lib.whole_prefix(key, value, support.length))
    return out
