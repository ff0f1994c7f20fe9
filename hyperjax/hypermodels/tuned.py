"""Producers that read no support: phi as parameters, and no phi at all."""

import jax
import jax.numpy as jnp
from flax import nnx

from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import Support
from hyperjax.core.phi import Phi


class TunedPhi(nnx.Module):
  """A phi of batch 1 whose leaves are parameters, drawn from the spec's initialisers."""

  def __init__(self, spec: Phi, *, rngs: nnx.Rngs):
    leaves, tree = jax.tree.flatten(spec, is_leaf=phi_lib.is_leaf)
    drawn = jax.tree.leaves(phi_lib.init(spec, rngs.params()))
    self.tree = nnx.static(tree)
    self.leaves = nnx.Dict({
      f"{index:03d}": _kind(leaf)(value, axes=leaf.axes)
      for index, (leaf, value) in enumerate(zip(leaves, drawn, strict=True))
    })

  def __call__(self, downstream=None, support: Support | None = None) -> Phi:
    return self.tree.unflatten([self.leaves[name][...] for name in sorted(self.leaves)])


def _kind(leaf: phi_lib.Leaf) -> type[nnx.Variable]:
  """Only real-valued leaves are trained; a prefix's length is not."""
  return nnx.Param if jnp.issubdtype(leaf.dtype, jnp.floating) else nnx.Variable


class NoPhi(nnx.Module):
  """Zero-shot: the downstream model as it is."""

  def __call__(self, downstream, support: Support) -> None:
    return None
