"""Baselines that tune something smaller than a prefix: a soft prompt, slots behind an MLP."""

import dataclasses

import jax
from flax import nnx
from jaxtyping import Array, Float

from hyperjax.core.batch import Support
from hyperjax.core.phi import Phi
from hyperjax.hypermodels.gist_tokens import Encode, GistTokens
from hyperjax.hypermodels.heads import EmitPrefix, Heads, HeadsConfig, common_slots


class SoftPrompt(nnx.Module):
  """Prompt tuning (arXiv 2104.08691): P embeddings in front of every input.

  Attributes:
    prompt: [P, D].
  """

  def __init__(self, prompt: Float[Array, "P D"]):
    self.prompt = nnx.Param(prompt, axes=("prefix", "phi_embed"))

  def __call__(self, downstream: nnx.Module, support: Support) -> Phi:
    return downstream.prompted(self.prompt[...])


@dataclasses.dataclass(frozen=True)
class SoftPromptConfig:
  """Prompt tuning.

  Attributes:
    prompt: how many embeddings, and what they start from.
  """

  prompt: GistTokens = GistTokens()

  reads_support = False

  def build(self, downstream: nnx.Module, encode: Encode, rngs: nnx.Rngs) -> SoftPrompt:
    """The prompt at its initial values."""
    return SoftPrompt(self.prompt.embeddings(downstream, encode, rngs.params()))


class ReparameterisedPrefix(nnx.Module):
  """Prefix tuning through an MLP (arXiv 2101.00190, section 4.3): a slot for each row of the
  prefix, and heads that map it to keys and values.

  Attributes:
    slots: [P, D].
    heads: the MLPs.
  """

  def __init__(self, slots: Float[Array, "P D"], heads: Heads):
    self.slots, self.heads = nnx.Param(slots, axes=("prefix", "phi_embed")), heads

  def __call__(self, downstream: nnx.Module, support: Support) -> Phi:
    return self.heads(self.slots[...].astype(downstream.activations)[None])


@dataclasses.dataclass(frozen=True)
class ReparameterisedConfig:
  """Prefix tuning through an MLP.

  Attributes:
    emit: the prefixes.
    heads: the MLPs.
    width: of the slots.
  """

  emit: EmitPrefix = EmitPrefix(length=17)
  heads: HeadsConfig = HeadsConfig()
  width: int = 512

  reads_support = False

  def build(
    self, downstream: nnx.Module, encode: Encode, rngs: nnx.Rngs
  ) -> ReparameterisedPrefix:
    """The prefix at its initial values."""
    spec = self.emit.spec(downstream)
    heads = Heads(
      self.heads, spec, common_slots(spec), self.emit.scale, self.width, rngs=rngs
    )
    slots = jax.random.normal(rngs.params(), (heads.num_slots, self.width))
    return ReparameterisedPrefix(slots, heads)
