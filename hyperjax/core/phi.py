"""phi: the task parameters that a producer emits and a downstream model consumes.

A Phi is a nested mapping that mirrors the downstream's module tree:

    {"embed": Prompt, "decoder": {"self": {"prefix": Prefix, "q": LowRank}}}

Every leaf leads with [L, B|1]: layers (the axis that the model scans; 1 where there are none) and
either one phi per episode or a single one for all.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Phi = Mapping[str, Any]

POSITIONS = ("none", "before")


@partial(
  jax.tree_util.register_dataclass,
  data_fields=["key", "value", "length"],
  meta_fields=["positions"],
)
@dataclasses.dataclass(frozen=True)
class Prefix:
  """Keys and values in front of an attention's own, padded on the right.

  Attributes:
    key: [L, B|1, P, K, H], for Llama after RoPE at positions 0..P-1.
    value: [L, B|1, P, K, H].
    length: [L, B|1] int32, real rows of each prefix; masks and the queries' positions follow it.
    positions: what T5's relative bias makes of the rows: 'none', they have no position (bias 0);
      'before', they stand at -length..-1. Llama's keys carry their positions in themselves.
  """

  key: Any
  value: Any
  length: Any
  positions: str = "none"

  fields = ("key", "value")  # the real-valued ones

  def __post_init__(self):
    if self.positions not in POSITIONS:
      raise ValueError(f"Prefix.positions must be one of {POSITIONS}, not {self.positions!r}")


@partial(jax.tree_util.register_dataclass, data_fields=["value", "length"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Prompt:
  """Input embeddings in front of a text's own, padded on the right (arXiv 2104.08691).

  Attributes:
    value: [1, B|1, P, D].
    length: [1, B|1] int32, real rows of each prompt; the text stands right behind them.
  """

  value: Any
  length: Any

  fields = ("value",)


@partial(jax.tree_util.register_dataclass, data_fields=["a", "b"], meta_fields=["scale"])
@dataclasses.dataclass(frozen=True)
class LowRank:
  """A low-rank update of a projection: W + scale * A B (LoRA, arXiv 2106.09685).

  Attributes:
    a: [L, B|1, D, R], D the projection's flattened input.
    b: [L, B|1, R, out], out its flattened output.
    scale: alpha / R.
  """

  a: Any
  b: Any
  scale: float = 1.0

  fields = ("a", "b")


Node = Prefix | Prompt | LowRank


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One abstract phi array: what a producer, a file or a sharding needs to know of it."""

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  init: Callable = jax.nn.initializers.zeros
  dtype: Any = jnp.float32


def is_leaf(x: Any) -> bool:
  return isinstance(x, Leaf)


def is_node(x: Any) -> bool:
  """True for the things that sit at a site."""
  return isinstance(x, Node)


def sub(phi: Phi | None, name: str) -> Any:
  """The part of phi that belongs to the child module `name`; None where it is not adapted."""
  return None if phi is None else phi.get(name)


def insert(tree: dict, site: str, node: Any) -> None:
  """Puts `node` at the dotted `site` ('decoder.self.q') of a nested dict, in place."""
  *parents, name = site.split(".")
  for parent in parents:
    tree = tree.setdefault(parent, {})
  tree[name] = node


def sites(phi: Phi | None) -> dict[str, Node]:
  """The nodes of a phi (or of a spec) by dotted site name.

  Raises:
    ValueError: something else sits in the tree.
  """
  found: dict[str, Node] = {}

  def walk(tree, path):
    for name, node in tree.items():
      where = f"{path}.{name}" if path else name
      if is_node(node):
        found[where] = node
      elif isinstance(node, Mapping):
        walk(node, where)
      else:
        raise ValueError(
          f"phi holds a {type(node).__name__} at {where!r}, not a Prefix, Prompt or LowRank"
        )

  walk(phi or {}, "")
  return found


def init(spec: Phi, key: jax.Array) -> Phi:
  """A phi of batch 1 drawn from the spec's initialisers."""
  leaves, tree = jax.tree.flatten(spec, is_leaf=is_leaf)
  keys = jax.random.split(key, len(leaves))
  return tree.unflatten([l.init(k, l.shape, l.dtype) for l, k in zip(leaves, keys, strict=True)])


def size(spec: Phi) -> int:
  """The number of real-valued entries of one episode's phi."""
  leaves = jax.tree.leaves(spec, is_leaf=is_leaf)
  return sum(math.prod(l.shape) for l in leaves if jnp.issubdtype(l.dtype, jnp.floating))


def check(phi: Phi | None, spec: Phi) -> None:
  """Refuses a phi that is not what `spec` describes, batch size aside.

  Called wherever a phi enters (a loaded adapter, a producer at the start of training), because a
  misspelt site would otherwise be ignored silently by `sub`.

  Raises:
    ValueError: names the unknown or missing site, or the array of another shape.
  """
  have, want = sites(phi), sites(spec)
  for site in have.keys() - want.keys():
    near = difflib.get_close_matches(site, want, 1)
    raise ValueError(
      f"phi has an unknown site {site!r}"
      + (f"; did you mean {near[0]!r}?" if near else f"; the model has {sorted(want)}")
    )
  for site in sorted(want.keys() - have.keys()):
    raise ValueError(f"phi lacks the site {site!r}; it has {sorted(have)}")
  for site, expected in want.items():
    node = have[site]
    if type(node) is not type(expected):
      raise ValueError(
        f"phi has a {type(node).__name__} at {site!r} where a {type(expected).__name__} belongs"
      )
    if isinstance(node, Prefix) and node.positions != expected.positions:
      raise ValueError(
        f"phi's positions at {site!r} are {node.positions!r}, the spec says {expected.positions!r}"
      )
    if isinstance(node, LowRank) and not math.isclose(node.scale, expected.scale):
      raise ValueError(f"phi's scale at {site!r} is {node.scale}, the spec says {expected.scale}")
    for field in dataclasses.fields(node):
      leaf = getattr(expected, field.name)
      if is_leaf(leaf):
        _check_shape(f"{site}.{field.name}", getattr(node, field.name).shape, leaf)


def _check_shape(name: str, shape: Sequence[int], leaf: Leaf) -> None:
  batch = leaf.axes.index("batch")
  rest = lambda s: tuple(s[:batch]) + tuple(s[batch + 1 :])
  if len(shape) != len(leaf.shape) or rest(shape) != rest(leaf.shape):
    want = ["B" if a == "batch" else str(n) for a, n in zip(leaf.axes, leaf.shape, strict=True)]
    raise ValueError(f"phi's {name} has shape {tuple(shape)}, the spec says ({', '.join(want)})")


def rows(phi: Phi | None) -> int:
  """The batch size of a phi: 1 if every leaf is shared by all episodes."""
  return max((leaf.shape[1] for leaf in jax.tree.leaves(phi)), default=1)


def join(phis: Sequence[Phi | None], batch: int) -> Phi | None:
  """One phi with the rows of several that a producer made for `batch` episodes each; what is shared
  by the episodes of a batch is shared by all."""
  shared = lambda leaf: leaf.shape[1] == 1 < batch
  return jax.tree.map(
    lambda *leaves: leaves[0] if shared(leaves[0]) else jnp.concatenate(leaves, 1), *phis
  )


def take(phi: Phi | None, rows: jax.Array) -> Phi | None:
  """The phi of chosen rows: leaves [L, X, ...] become [L, len(rows), ...]; shared ones stay."""
  return jax.tree.map(lambda leaf: leaf[:, rows] if leaf.shape[1] > 1 else leaf, phi)


def stack_rows(phis: Sequence[Phi]) -> Phi:
  """One batch from several phis of the same sites: prefixes and prompts padded to the longest,
  ranks to the largest (zeros), so that every row of a batch can carry its own adapter.

  Raises:
    ValueError: the phis do not have the same sites.
  """
  tables = [sites(p) for p in phis]
  names = tables[0].keys()
  for table in tables[1:]:
    if table.keys() != names:
      raise ValueError(
        f"phis of different sites cannot share a batch: {sorted(names)} and {sorted(table)}"
      )
  out: dict = {}
  for name in names:
    nodes = [t[name] for t in tables]
    if len({getattr(n, "positions", None) for n in nodes}) > 1:
      raise ValueError(f"prefixes of different positions at {name!r} cannot share a batch")
    if isinstance(nodes[0], LowRank):
      a = _stacked([n.a for n in nodes], 3)
      node = LowRank(a, _stacked([n.b * n.scale for n in nodes], 2), 1.0)
    else:
      real = {field: _stacked([getattr(n, field) for n in nodes], 2) for field in nodes[0].fields}
      length = jnp.concatenate([n.length for n in nodes], 1)
      node = dataclasses.replace(nodes[0], length=length, **real)
    insert(out, name, node)
  return out


def _stacked(arrays: Sequence[jax.Array], axis: int) -> jax.Array:
  """The rows of all arrays [L, B|1, ...], padded with zeros to the largest size of an axis."""
  size = max(x.shape[axis] for x in arrays)
  pad = lambda x: [(0, (size - n) * (i == axis)) for i, n in enumerate(x.shape)]
  return jnp.concatenate([jnp.pad(x, pad(x)) for x in arrays], 1)


def whole_prefix(
  key: jax.Array, value: jax.Array, length: jax.Array | None = None, positions: str = "none"
) -> Prefix:
  """A Prefix of key and value [L, B, P, K, H] whose rows are real up to length [B] (default P)."""
  return Prefix(key, value, _real_rows(value, length), positions)


def whole_prompt(value: jax.Array, length: jax.Array | None = None) -> Prompt:
  """A Prompt of value [1, B, P, D] whose rows are real up to length [B] (default P)."""
  return Prompt(value, _real_rows(value, length))


def _real_rows(value: jax.Array, length: jax.Array | None) -> jax.Array:
  layers, batch, size = value.shape[:3]
  real = jnp.full((batch,), size, jnp.int32) if length is None else length.astype(jnp.int32)
  return jnp.broadcast_to(real, (layers, batch))


def merge(first: Phi | None, second: Phi | None) -> Phi:
  """One phi with the sites of both.

  Raises:
    ValueError: both have a node at the same site.
  """
  out: dict = {}
  nodes = sites(first)
  for site, node in sites(second).items():
    if site in nodes:
      raise ValueError(f"both phis have a node at {site!r}")
    nodes[site] = node
  for site, node in nodes.items():
    insert(out, site, node)
  return out
