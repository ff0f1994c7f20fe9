"""Checksums of sharded arrays: the same on any mesh and any number of hosts.

What stores checkpoints has checksums of its own for some of its files only: of a large array a
changed byte would be read as another number.
"""

from typing import Any

import jax
import jax.numpy as jnp

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def named(tree: Any) -> dict[str, Any]:
  """The leaves of a tree of dicts by their keys, joined by dots."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {".".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def of(tree: Any) -> dict[str, int]:
  """{name: checksum} of the arrays of a tree of dicts, names as `named`.

  A checksum is a sum of the array's 32-bit words, each times an odd number of its own, modulo 2^32:
  a change of one word always shows, and the order of the summation never does.
  """
  leaves = named(tree)
  return dict(zip(leaves, map(int, jax.device_get(_sums([*leaves.values()]))), strict=True))


@jax.jit
def _sums(leaves: list[jax.Array]) -> list[jax.Array]:
  return [_sum(leaf) for leaf in leaves]


def _sum(x: jax.Array) -> jax.Array:
  x = x.astype(jnp.uint8) if x.dtype == bool else x
  # 64-bit numbers become pairs.
  words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
  place = jnp.zeros(words.shape, jnp.uint32)
  for axis, size in enumerate(words.shape):
    place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
  return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)
