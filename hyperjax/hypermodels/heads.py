"""MLP heads: from the states of a hypermodel's slots to the rows of a phi (arXiv 2211.12485).

Slot p gives row p of the key and the value of every layer at every prefix site; slot r gives row r
of A and of B of every layer at a low-rank site. All sizes come from the spec.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hyperjax.core import layers, sharding
from hyperjax.core import phi as phi_lib
from hyperjax.core.phi import Leaf, LowRank, Phi, Prefix

# {site: its first slot, and the one behind its last}
Slots = Mapping[str, tuple[int, int]]

# sqrt(E[gelu(z)^2]) of a standard normal z.
_GELU_RMS = 0.652


def slots_per_site(spec: Phi) -> Slots:
  """All prefixes share P slots, each low-rank site has R of its own (HyperT5)."""
  nodes = phi_lib.sites(spec)
  end = max((_size(node) for node in nodes.values() if isinstance(node, Prefix)), default=0)
  out: dict[str, tuple[int, int]] = {}
  for site, node in nodes.items():
    start = 0 if isinstance(node, Prefix) else end
    out[site] = (start, start + _size(node))
    end = max(end, start + _size(node))
  return out


def common_slots(spec: Phi) -> Slots:
  """All sites share their slots, and only the heads tell the sites apart (HyperLlama-LoRA)."""
  return {site: (0, _size(node)) for site, node in phi_lib.sites(spec).items()}


def _size(node: Prefix | LowRank) -> int:
  """P of a Prefix's spec, R of a LowRank's."""
  return (node.key if isinstance(node, Prefix) else node.b).shape[2]


def _leaves(node: Prefix | LowRank) -> dict[str, Leaf]:
  """What a site's heads make, by field."""
  fields = ("key", "value") if isinstance(node, Prefix) else ("a", "b")
  return {field: getattr(node, field) for field in fields}


class _Head(nnx.Module):
  """A two-layer MLP from the states of slots to one row per slot and layer.

  Kernels are of unit size and constants scale what they make: a step of Adam then moves a row by up
  to sqrt(width) times the rate, measured by the row's scale. Kernels that held the scale themselves
  would move it by up to width times the rate, whatever its scale; LoRA heads of 512 hidden units
  diverge so at the rates at which a LoRA trains.

  Attributes:
    scale: the root mean square of the entries at first, and what a row of zeros is measured by.
  """

  def __init__(
    self, fans: tuple[int, int, int], scale: float, zero: bool, lead: tuple[int, ...], rngs
  ):
    num_inputs, width, num_outputs = fans
    axes = ("layers",) * len(lead)
    normal = lambda *shape: jax.random.normal(rngs.params(), (*lead, *shape))
    self.scale = nnx.static(scale)
    self.up = nnx.Param(normal(num_inputs, width), axes=(*axes, "embed", "mlp"))
    self.up_bias = nnx.Param(jnp.zeros((*lead, width)), axes=(*axes, "mlp"))
    # Of zero outputs only the last kernel is zero, else nothing would ever get a gradient.
    down = normal(width, num_outputs) * (not zero)
    self.down = nnx.Param(down, axes=(*axes, "mlp", "head_out"))
    self.down_bias = nnx.Param(jnp.zeros((*lead, num_outputs)), axes=(*axes, "head_out"))

  @property
  def factors(self) -> tuple[float, float]:
    """What the products with both kernels are multiplied by, so that they have unit size."""
    num_inputs, width = self.up.shape[-2:]
    return num_inputs**-0.5, width**-0.5 / _GELU_RMS


class SharedHead(_Head):
  """One MLP for all layers, which are told apart by a learned embedding added to the state."""

  def __init__(self, num_layers: int, fans: tuple, scale: float, *, zero: bool, rngs: nnx.Rngs):
    super().__init__(fans, scale, zero, (), rngs)
    embedding = jax.random.normal(rngs.params(), (num_layers, fans[0]))
    self.layer = nnx.Param(embedding, axes=("layers", "embed"))

  def __call__(self, x: Float[Array, "B Q D"]) -> Float[Array, "L B Q out"]:
    into, out = self.factors
    # On a mesh each device makes the rows of its own episodes, with kernels that it has whole: cut
    # as they are stored, they would have it make parts of all rows and send these.
    up, down = (sharding.gather(z[...], z.get_metadata()["axes"]) for z in (self.up, self.down))
    # (x + layer) up, without a copy of x for every layer; both have unit size, so has the mean.
    layer = layers.matmul(self.layer[...], up, [0])
    h = layers.matmul(x, up, [0])[None]
    h = h + _beside(layer, (len(layer), *h.shape[1:]), x.dtype)
    h = h * (0.5**0.5 * into)
    h = jax.nn.gelu(h + _beside(self.up_bias[...], h.shape, x.dtype))
    y = _by_episode(layers.matmul(h, down, [0])) * out
    return self.scale * (y + _beside(self.down_bias[...], y.shape, x.dtype))


class LayerHead(_Head):
  """An MLP for every layer."""

  def __init__(self, num_layers: int, fans: tuple, scale: float, *, zero: bool, rngs: nnx.Rngs):
    super().__init__(fans, scale, zero, (num_layers,), rngs)

  def __call__(self, x: Float[Array, "B Q D"]) -> Float[Array, "L B Q out"]:
    into, out = self.factors
    h = jax.vmap(lambda up: layers.matmul(x, up, [0]))(self.up[...]) * into
    h = jax.nn.gelu(h + _beside(self.up_bias[...], h.shape, x.dtype))
    y = jax.vmap(lambda h, down: layers.matmul(h, down, [0]))(h, self.down[...])
    y = _by_episode(y) * out
    return self.scale * (y + _beside(self.down_bias[...], y.shape, x.dtype))


def _by_episode(rows: Float[Array, "L B Q out"]) -> Float[Array, "L B Q out"]:
  """Each device has all rows of its episodes."""
  return sharding.constrain(rows, ("layers", "batch", None, None))


def _beside(
  z: Float[Array, "*L X"], shape: tuple[int, ...], dtype: Any
) -> Float[Array, "L B Q X"]:
  """A vector, or one of each layer, beside every row of that layer."""
  return sharding.spread(z.reshape(*z.shape[:-1], *(4 - z.ndim) * (1,), z.shape[-1]), shape, dtype)


VARIANTS = {"shared": SharedHead, "per_layer": LayerHead}


@dataclasses.dataclass(frozen=True)
class HeadsConfig:
  """The heads.

  Attributes:
    variant: 'shared' (one MLP for all layers and a learned layer embedding) or 'per_layer'.
    width: the MLPs' hidden units.
  """

  variant: str = "shared"
  width: int = 512

  def __post_init__(self):
    if self.variant not in VARIANTS:
      raise ValueError(f"HeadsConfig.variant must be one of {[*VARIANTS]}, not {self.variant!r}")
    if self.width < 1:
      raise ValueError(f"HeadsConfig.width must be at least 1, not {self.width}")


class Heads(nnx.Module):
  """A head for each real-valued leaf of a spec.

  Attributes:
    norm: of the slots' states, so that the outputs start at their scale whatever the body.
    heads: {'decoder_self_prefix_key': ...}.
    num_slots: the number of states that are read.
  """

  def __init__(
    self,
    config: HeadsConfig,
    spec: Phi,
    slots: Slots,
    scale: Callable[[str, Leaf], float],
    num_inputs: int,
    *,
    rngs: nnx.Rngs,
  ):
    """Draws the heads.

    Args:
      config: their form.
      spec: what they make.
      slots: which states each site's rows come from.
      scale: of a field's leaf, the root mean square of its entries at first; a B starts
        at zero, and only its steps are measured by it.
      num_inputs: the width of the states.
    """
    nodes = phi_lib.sites(spec)
    self.num_slots = max(end for _, end in slots.values())
    self.plan = nnx.static(tuple(_Site.of(site, slots[site], nodes[site]) for site in nodes))
    self.norm = layers.RMSNorm(num_inputs, 1e-6, dtype=jnp.float32)
    self.heads = nnx.Dict({
      _name(site, field): VARIANTS[config.variant](
        leaf.shape[0],
        (num_inputs, config.width, math.prod(leaf.shape[2:]) // _size(node)),
        scale(field, leaf),
        zero=field == "b",  # so that the first phi has no effect
        rngs=rngs,
      )
      for site, node in nodes.items()
      for field, leaf in _leaves(node).items()
    })

  def __call__(self, states: Float[Array, "B Q D"]) -> Phi:
    """The phi of every episode from the states of its slots."""
    states = self.norm(states)
    out: dict = {}
    for site in self.plan:
      x = states[:, slice(*site.slots)]
      rows = {field: self.heads[_name(site.name, field)](x) for field in site.fields}
      phi_lib.insert(out, site.name, site.node(rows))
    return out


@dataclasses.dataclass(frozen=True)
class _Site:
  """What a site's rows become, as a hashable part of the module's graph.

  Attributes:
    name, slots: the site, and which states are its.
    fields: what its heads make.
    heads: K and H of a Prefix, () of a LowRank.
    meta: a Prefix's positions or a LowRank's scale.
  """

  name: str
  slots: tuple[int, int]
  fields: tuple[str, ...]
  heads: tuple[int, ...]
  meta: str | float

  @classmethod
  def of(cls, name: str, slots: tuple[int, int], node: Prefix | LowRank) -> "_Site":
    if isinstance(node, Prefix):
      return cls(name, slots, tuple(_leaves(node)), node.key.shape[3:], node.positions)
    return cls(name, slots, tuple(_leaves(node)), (), node.scale)

  def node(self, rows: Mapping[str, Float[Array, "L B R out"]]) -> Prefix | LowRank:
    if not self.heads:
      return LowRank(rows["a"].swapaxes(2, 3), rows["b"], self.meta)
    key, value = (rows[f].reshape(*rows[f].shape[:3], *self.heads) for f in self.fields)
    return phi_lib.whole_prefix(key, value, positions=self.meta)


def _name(site: str, field: str) -> str:
  return f"{site}.{field}".replace(".", "_")


@dataclasses.dataclass(frozen=True)
class EmitPrefix:
  """A hypermodel emits prefixes.

  Attributes:
    length: P.
    key_scale, value_scale: the root mean square of generated keys and values at first. By default
      that of the embedded SmolLM2-135M's own, 2.07 and 0.99 over all layers of a text (a T5 at its
      own initialisation: 1.0 and 1.0); `tests/hypermodels/heads_test.py -k own` measures it.
    sites: patterns as `specs.match` has them; the default is every attention.
  """

  length: int = 32
  key_scale: float = 2.0
  value_scale: float = 1.0
  sites: Sequence[str] = ("*.*.prefix",)

  def __post_init__(self):
    for name in ("length", "key_scale", "value_scale"):
      if not getattr(self, name) > 0:
        raise ValueError(f"EmitPrefix.{name} must be positive, not {getattr(self, name)!r}")

  def spec(self, downstream: Any) -> Phi:
    """The phi that is made for this downstream model; its rows have no position.

    Raises:
      ValueError: a pattern names no site, or one that is no prefix's.
    """
    # A rank, so that a projection among the sites is refused for what it is.
    sizes = dict(prefix_length=self.length, positions="none", rank=1, alpha=1.0)
    return _check_kind(downstream.phi_spec(self.sites, **sizes), Prefix, "EmitPrefix")

  def scale(self, field: str, leaf: Leaf) -> float:
    """The root mean square of what a field's head makes at first."""
    return {"key": self.key_scale, "value": self.value_scale}[field]


@dataclasses.dataclass(frozen=True)
class EmitLowRank:
  """A hypermodel emits low-rank updates.

  Attributes:
    rank: R.
    alpha: the updates are scaled by alpha / rank.
    sites: patterns as `specs.match` has them; the default is the query and the value map of every
      attention (arXiv 2211.12485).
  """

  rank: int = 16
  alpha: float = 16.0
  sites: Sequence[str] = ("*.*.q", "*.*.v")

  def spec(self, downstream: Any) -> Phi:
    """The phi that is made for this downstream model.

    Raises:
      ValueError: the rank exceeds a projection's smaller dimension; a pattern names no site, or one
        that is no projection's.
    """
    sizes = dict(rank=self.rank, alpha=self.alpha, prefix_length=1)
    return _check_kind(downstream.phi_spec(self.sites, **sizes), LowRank, "EmitLowRank")

  def scale(self, field: str, leaf: Leaf) -> float:
    """Of A as `specs.low_rank_leaf` has it; of B likewise, by the outputs."""
    return {"a": leaf.shape[2] ** -0.5, "b": leaf.shape[3] ** -0.5}[field]


def _check_kind(spec: Phi, kind: type, name: str) -> Phi:
  """The spec, where all its nodes are of this kind."""
  for site, node in phi_lib.sites(spec).items():
    if not isinstance(node, kind):
      raise ValueError(f"{name}.sites: {site!r} holds a {type(node).__name__}")
  return spec
