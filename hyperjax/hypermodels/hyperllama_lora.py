"""HyperLlama-LoRA (ours, beyond the papers): the Llama reads [support, gist tokens] as a HyperLlama
does, and heads map the gist tokens' last states to low-rank updates.

There are R gist tokens, and the sites share them: gist token r gives row r of A and of B at every
site through the site's own heads. Tokens of their own for each site, as HyperT5 has slots, would
lengthen every pass over a support by R times the number of sites.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hyperjax.core import masks
from hyperjax.core.batch import Support
from hyperjax.core.phi import Phi
from hyperjax.hypermodels.gist_tokens import Encode, GistTokens
from hyperjax.hypermodels.heads import EmitLowRank, Heads, HeadsConfig, common_slots
from hyperjax.hypermodels.hyperllama import ATTENTION, with_gist
from hyperjax.hypermodels.tuned import TunedPhi
from hyperjax.models.llama import Llama


class HyperLlamaLoRA(nnx.Module):
  """The frozen downstream Llama itself reads the support, under a tuned low-rank update.

  Attributes:
    gist: [R, D] gist embeddings.
    update: the tuned LoRA of the hypermodel pass.
    heads: from the gist tokens' normalised states to phi.
  """

  def __init__(self, gist: Float[Array, "R D"], update: TunedPhi, heads: Heads):
    self.gist = nnx.Param(gist, axes=("gist", "phi_embed"))
    self.update, self.heads = update, heads

  def __call__(self, downstream: Llama, support: Support) -> Phi:
    x, at, where = with_gist(downstream, support, self.gist[...])
    x, _ = downstream.hidden(x[:, None], at[:, None], masks.Causal(), self.update(), where)
    return self.heads(jnp.take_along_axis(x[:, 0], where[..., None], 1))


@dataclasses.dataclass(frozen=True)
class HyperLlamaLoRAConfig:
  """HyperLlama-LoRA with LoRA on the hypermodel pass.

  Attributes:
    emit: the generated updates; there are as many gist tokens as their rank.
    heads: the MLPs that make them.
    init_text, noise: what the gist embeddings start from, as in GistTokens.
    rank, alpha, sites: the tuned update of the hypermodel pass.
  """

  emit: EmitLowRank = EmitLowRank()
  heads: HeadsConfig = HeadsConfig()
  init_text: str = "\n"
  noise: float = 0.1
  rank: int = 16
  alpha: float = 16.0
  sites: Sequence[str] = ATTENTION

  train = ("producer",)  # parts of the system
  layouts = ("decoder",)  # of the models that it is for

  def build(self, downstream: Llama, encode: Encode, rngs: nnx.Rngs) -> HyperLlamaLoRA:
    """The hypermodel for this downstream model, at its initial values."""
    spec = self.emit.spec(downstream)
    tokens = GistTokens(self.emit.rank, self.init_text, self.noise)
    gist = tokens.embeddings(downstream, encode, rngs.params())
    update = TunedPhi(
      downstream.phi_spec(self.sites, rank=self.rank, alpha=self.alpha), rngs=rngs
    )
    heads = Heads(
      self.heads, spec, common_slots(spec), self.emit.scale, gist.shape[1], rngs=rngs
    )
    return HyperLlamaLoRA(gist, update, heads)
