"""Arithmetic of phis: what several supports say together."""

from collections.abc import Sequence

import jax.numpy as jnp

from hyperjax.core import phi as phi_lib
from hyperjax.core.phi import LowRank, Phi, Prefix


def mean(phis: Sequence[Phi]) -> Phi:
  """The mean over phis of the same sites.

  Keys and values are averaged row by row. The mean of low-rank updates is the update of all ranks
  side by side, scaled by 1/n: exact, of n times the rank.

  Raises:
    ValueError: other sites, or prefixes of other lengths.
  """
  tables = [phi_lib.sites(phi) for phi in phis]
  for table in tables[1:]:
    if table.keys() != tables[0].keys():
      raise ValueError(
        f"phis of different sites have no mean: {sorted(tables[0])} and {sorted(table)}"
      )
  out: dict = {}
  for site in tables[0]:
    nodes = [table[site] for table in tables]
    phi_lib.insert(out, site, _mean(site, nodes))
  return out


def _mean(site: str, nodes: Sequence[Prefix | LowRank]) -> Prefix | LowRank:
  first = nodes[0]
  if isinstance(first, LowRank):
    a = jnp.concatenate([node.a for node in nodes], 3)
    b = jnp.concatenate([node.b * node.scale for node in nodes], 2)
    return LowRank(a, b, 1 / len(nodes))
  lengths = [node.length for node in nodes]
  if any(node.key.shape != first.key.shape for node in nodes) or any(
    bool(jnp.any(length != lengths[0])) for length in lengths
  ):
    raise ValueError(f"prefixes of different lengths at {site!r} have no mean")
  average = lambda name: jnp.mean(jnp.stack([getattr(node, name) for node in nodes]), 0)
  return Prefix(average("key"), average("value"), first.length, first.positions)
