"""Producers that read no support, as their `reads_support` says: phi as parameters, and no phi."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import Support
from hyperjax.core.phi import Phi

# The axes of a phi that is parameters: it has no batch, and is sharded as the model's weights are.
_OWN = {"batch": "shared", "phi_embed": "embed", "phi_out": "embed"}


class TunedPhi(nnx.Module):
  """A phi of batch 1 whose leaves are parameters, drawn from the spec's initialisers."""

  def __init__(self, spec: Phi, *, rngs: nnx.Rngs):
    leaves, tree = jax.tree.flatten(spec, is_leaf=phi_lib.is_leaf)
    drawn = jax.tree.leaves(phi_lib.init(spec, rngs.params()))
    self.tree = nnx.static(tree)
    self.leaves = nnx.Dict({
      f"{index:03d}": _kind(leaf)(value, axes=tuple(_OWN.get(a, a) for a in leaf.axes))
      for index, (leaf, value) in enumerate(zip(leaves, drawn, strict=True))
    })

  @classmethod
  def starting_from(cls, phi: Phi, spec: Phi) -> "TunedPhi":
    """The same kind of parameters, starting from a phi of batch 1.

    Raises:
      ValueError: the phi is not what `spec` describes.
    """
    phi_lib.check(phi, spec)
    tuned = cls(spec, rngs=nnx.Rngs(0))
    for name, value in zip(sorted(tuned.leaves), jax.tree.leaves(phi), strict=True):
      tuned.leaves[name][...] = value.astype(tuned.leaves[name].dtype)
    return tuned

  def __call__(self, downstream=None, support: Support | None = None) -> Phi:
    return self.tree.unflatten([self.leaves[name][...] for name in sorted(self.leaves)])


def _kind(leaf: phi_lib.Leaf) -> type[nnx.Variable]:
  """Only real-valued leaves are trained; a prefix's length is not."""
  return nnx.Param if jnp.issubdtype(leaf.dtype, jnp.floating) else nnx.Variable


class NoPhi(nnx.Module):
  """Zero-shot: the downstream model as it is."""

  def __call__(self, downstream, support: Support) -> None:
    return None


@dataclasses.dataclass(frozen=True)
class TunedConfig:
  """One phi for all episodes: prefix tuning (arXiv 2101.00190) or LoRA (arXiv 2106.09685).

  Trained on a mixture it is the multi-task baseline (MTF), and the shared start of `hyperjax tune`.

  Attributes:
    sites: where phi acts, dotted names, '*' standing for any one part ('decoder.*.q').
    prefix_length, positions: of the prefixes.
    rank, alpha: of the low-rank updates.
  """

  sites: Sequence[str]
  prefix_length: int = 0
  positions: str = "none"
  rank: int = 0
  alpha: float = 0.0

  reads_support = False

  def spec(self, downstream: nnx.Module) -> Phi:
    """The abstract phi for this downstream model."""
    return downstream.phi_spec(
      self.sites, prefix_length=self.prefix_length, positions=self.positions, rank=self.rank,
      alpha=self.alpha,
    )  # fmt: skip

  def build(self, downstream: nnx.Module, encode, rngs: nnx.Rngs) -> TunedPhi:
    """The phi at its initial values."""
    return TunedPhi(self.spec(downstream), rngs=rngs)


@dataclasses.dataclass(frozen=True)
class FullConfig:
  """Full fine-tuning: no phi, the downstream model itself is trained."""

  train = ("downstream",)
  reads_support = False

  def build(self, downstream: nnx.Module, encode, rngs: nnx.Rngs) -> NoPhi:
    """Nothing but the downstream model has parameters."""
    return NoPhi()
