"""Arithmetic with phis: the mean of several, one behind another, with no model at hand."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hyperjax.core import phi as phi_lib
from hyperjax.core import positions
from hyperjax.core.phi import LowRank, Node, Phi, Prefix, Prompt

# Moves the keys of a prefix to positions that are larger by a number.
Move = Callable[[Float[Array, "L B P K H"], Int[Array, "L B"]], Float[Array, "L B P K H"]]


def rotary(frequencies: Sequence[float]) -> Move:
  """Moves keys that are stored after RoPE with these frequencies (`Llama.decoder.frequencies`)."""
  return lambda key, by: positions.rotate(
    key, positions.rotation(by[..., None], frequencies, key.dtype)
  )


def mean(phis: Sequence[Phi]) -> Phi:
  """The mean of phis of the same sites, as of several supports of one task.

  Prefixes and prompts are averaged entry by entry. The mean of low-rank updates is an update of the
  sum of their ranks, and no other is exact: A and B are set side by side, B divided by the number
  of phis.

  Args:
    phis: of the same batch size, or of 1.

  Raises:
    ValueError: no phi, other sites, or prefixes of other lengths or positions.
  """
  if not phis:
    raise ValueError("there is no phi to take the mean of")
  tables = [phi_lib.sites(phi) for phi in phis]
  for table in tables[1:]:
    if table.keys() != tables[0].keys():
      raise ValueError(
        f"phis of different sites have no mean: {sorted(tables[0])} and {sorted(table)}"
      )
  out: dict = {}
  for site in tables[0]:
    nodes = _same_kind(site, [table[site] for table in tables])
    if isinstance(nodes[0], LowRank):
      node = _side_by_side(nodes, 1 / len(nodes))
    else:
      node = _mean_rows(site, nodes)
    phi_lib.insert(out, site, node)
  return out


def concatenate(first: Phi, second: Phi, *, move: Move | None) -> Phi:
  """Both phis at once: the second's prefixes and prompts behind the first's, and the sum of their
  updates.

  What only one of them has stays as it is. They may be ragged: a row's second part begins where
  its first ends. Updates are summed by setting A and B side by side, so ranks add up.

  Args:
    first, second: of the same batch size, or of 1.
    move: moves the second's keys behind the first's: `rotary` for Llama, whose keys carry their
      positions. None for T5, whose keys do not.

  Raises:
    ValueError: nodes of other kinds at a site, or prefixes of other positions.
  """
  out: dict = {}
  one, two = phi_lib.sites(first), phi_lib.sites(second)
  for site in one | two:
    both = [table[site] for table in (one, two) if site in table]
    if len(both) == 1:
      node = both[0]
    elif isinstance(_same_kind(site, both)[0], LowRank):
      node = _side_by_side(both, 1.0)
    else:
      node = _behind(*both, move)
    phi_lib.insert(out, site, node)
  return out


def _same_kind(site: str, nodes: Sequence[Node]) -> Sequence[Node]:
  kinds = {type(node).__name__ for node in nodes}
  if len(kinds) > 1:
    raise ValueError(f"phis have nodes of different kinds at {site!r}: {sorted(kinds)}")
  modes = {node.positions for node in nodes if isinstance(node, Prefix)}
  if len(modes) > 1:
    raise ValueError(f"prefixes have different positions at {site!r}: {sorted(modes)}")
  return nodes


def _rows(arrays: Sequence[Array]) -> list[Array]:
  """The arrays [L, B|1, ...] with the largest B."""
  size = max(x.shape[1] for x in arrays)
  return [jnp.broadcast_to(x, (x.shape[0], size, *x.shape[2:])) for x in arrays]


def _mean_rows(site: str, nodes: Sequence[Prefix | Prompt]) -> Prefix | Prompt:
  sizes = {node.value.shape[2] for node in nodes}
  lengths = _rows([node.length for node in nodes])
  known = not any(isinstance(length, jax.core.Tracer) for length in lengths)
  if len(sizes) > 1 or (known and any(np.any(x != lengths[0]) for x in lengths)):
    raise ValueError(f"prefixes of different lengths at {site!r} have no mean")
  means = {
    field: sum(_rows([getattr(node, field) for node in nodes])) / len(nodes)
    for field in nodes[0].fields
  }
  return dataclasses.replace(nodes[0], length=lengths[0], **means)


def _side_by_side(nodes: Sequence[LowRank], factor: float) -> LowRank:
  a = jnp.concatenate(_rows([node.a for node in nodes]), 3)
  b = jnp.concatenate(_rows([node.b * (node.scale * factor) for node in nodes]), 2)
  return LowRank(a, b, 1.0)


def _behind(
  first: Prefix | Prompt, second: Prefix | Prompt, move: Move | None
) -> Prefix | Prompt:
  before, after = _rows([first.length, second.length])
  size = first.value.shape[2]
  at = jnp.arange(size + second.value.shape[2])
  # Index in [first, its padding, second, its padding]; what lies beyond is padding, whatever it is.
  index = jnp.where(at < before[..., None], at, at - before[..., None] + size)
  index = jnp.minimum(index, at[-1])
  if move is not None and isinstance(second, Prefix):
    second = dataclasses.replace(second, key=move(_rows([second.key, before])[0], before))

  def packed(field: str) -> Array:
    both = jnp.concatenate(_rows([getattr(first, field), getattr(second, field)]), 2)
    return jnp.take_along_axis(both, jnp.expand_dims(index, [*range(3, both.ndim)]), 2)

  fields = {field: packed(field) for field in first.fields}
  return dataclasses.replace(first, length=before + after, **fields)
