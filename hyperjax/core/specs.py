"""The sites of a model at which phi can act, and the spec of a phi there.

A spec is an abstract phi, whose leaves are `phi.Leaf`.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from hyperjax.core.phi import Leaf, LowRank, Phi, Prefix, Prompt, insert


@dataclasses.dataclass(frozen=True)
class PrefixSite:
  """An attention that can have a prefix in front of its keys and values."""

  layers: int
  kv_heads: int
  head_dim: int


@dataclasses.dataclass(frozen=True)
class PromptSite:
  """Input embeddings that can have a prompt in front of them."""

  width: int


@dataclasses.dataclass(frozen=True)
class LowRankSite:
  """A projection that can have a low-rank update."""

  layers: int
  fan_in: int
  fan_out: int


Site = PrefixSite | PromptSite | LowRankSite


def make_spec(
  places: Mapping[str, Site],
  sites: Sequence[str],
  *,
  prefix_length: int = 0,
  positions: str = "none",
  rank: int = 0,
  alpha: float = 0.0,
) -> Phi:
  """The abstract phi at some of a model's sites.

  Args:
    places: all sites of the model.
    sites: the dotted names of those that phi acts at, as `match` has them.
    prefix_length: P of every prefix and prompt.
    positions: of every prefix.
    rank: R of every low-rank update.
    alpha: their scale is alpha / rank.

  Raises:
    ValueError: an unknown site, with the nearest valid name; a length, rank or alpha out of range.
  """
  out: dict = {}
  for site in match(sites, places):
    place = places[site]
    if isinstance(place, LowRankSite):
      node = low_rank_leaf(place.layers, place.fan_in, place.fan_out, rank, alpha)
    elif prefix_length < 1:
      raise ValueError(f"the prefix at {site!r} has length {prefix_length}; it must be at least 1")
    elif isinstance(place, PromptSite):
      node = prompt_leaf(prefix_length, place.width)
    else:
      node = prefix_leaf(
        place.layers, prefix_length, place.kv_heads, place.head_dim, positions
      )
    insert(out, site, node)
  return out


def match(patterns: Sequence[str], places: Mapping[str, Any]) -> list[str]:
  """The sites that dotted patterns name; '*' stands for any one part ('decoder.*.q').

  Raises:
    ValueError: a pattern names none.
  """
  found: dict[str, None] = {}
  for pattern in patterns:
    parts = pattern.split(".")
    hits = [
      site for site in places
      if len(site.split(".")) == len(parts)
      and all(p in ("*", s) for p, s in zip(parts, site.split("."), strict=True))
    ]  # fmt: skip
    if not hits:
      near = difflib.get_close_matches(pattern, places, 1, 0.0)[0]
      raise ValueError(f"unknown site {pattern!r}; the nearest is {near!r} of {sorted(places)}")
    found |= dict.fromkeys(hits)
  return list(found)


def prefix_leaf(
  layers: int, length: int, kv_heads: int, head_dim: int, positions: str = "none"
) -> Prefix:
  """The spec of a Prefix."""
  kv = Leaf(
    (layers, 1, length, kv_heads, head_dim),
    ("layers", "batch", "prefix", "phi_heads", "head_dim"),
    jax.nn.initializers.normal(0.5),
  )
  return Prefix(kv, kv, _length_leaf(layers, length), positions)


def prompt_leaf(length: int, width: int) -> Prompt:
  """The spec of a Prompt, drawn as the paper's random start (section 3.2)."""
  draw = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -0.5, 0.5)
  value = Leaf((1, 1, length, width), ("layers", "batch", "prefix", "phi_embed"), draw)
  return Prompt(value, _length_leaf(1, length))


def _length_leaf(layers: int, length: int) -> Leaf:
  fill = lambda key, shape, dtype: jnp.full(shape, length, dtype)
  return Leaf((layers, 1), ("layers", "batch"), fill, jnp.int32)


def low_rank_leaf(layers: int, fan_in: int, fan_out: int, rank: int, alpha: float) -> LowRank:
  """The spec of a LowRank: A is normal with variance 1/fan_in, B zero, so it starts without effect.

  Raises:
    ValueError: the rank is not in 1..min(fan_in, fan_out), or alpha is not positive.
  """
  if not 1 <= rank <= min(fan_in, fan_out):
    raise ValueError(
      f"LoRA rank {rank} is not in 1..{min(fan_in, fan_out)}, the smaller dimension of a "
      f"{fan_in} x {fan_out} projection"
    )
  if alpha <= 0:
    raise ValueError(f"LoRA alpha is {alpha}; it must be positive, else the update does nothing")
  a = Leaf(
    (layers, 1, fan_in, rank),
    ("layers", "batch", "phi_embed", "rank"),
    jax.nn.initializers.normal(fan_in**-0.5),
  )
  b = Leaf((layers, 1, rank, fan_out), ("layers", "batch", "rank", "phi_out"))
  return LowRank(a, b, alpha / rank)
