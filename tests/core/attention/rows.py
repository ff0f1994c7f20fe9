"""Queries, keys and values with grouped heads, prefixes for them, and comparisons of kernels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax.core import attention
from hyperjax.core.attention import splash
from hyperjax.core.phi import Prefix


def random(seed: int, *shape: int, dtype=None) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def sequence(dtype=None, length: int = 4, keys: int | None = None, rows: int = 2):
  """q [2, rows, length, 6, 3], k and v [2, rows, keys, 2, 3]."""
  q = random(0, 2, rows, length, 6, 3, dtype=dtype)
  k, v = (random(seed, 2, rows, keys or length, 2, 3, dtype=dtype) for seed in (1, 2))
  return q, k, v


def prefix_of(*lengths: int, size: int = 5, dtype=None) -> Prefix:
  """A prefix of `size` rows for each of one or two episodes, real up to its length."""
  key, value = (random(seed, len(lengths), size, 2, 3, dtype=dtype) for seed in (3, 4))
  return Prefix(key, value, jnp.asarray(lengths, jnp.int32))


def run(attend, arrays, mask, prefix, weights):
  """The output, and the gradients of its weighted sum with respect to all that is real-valued."""
  real = arrays if prefix is None else (*arrays, prefix.key, prefix.value)

  def total(real):
    given = None if prefix is None else Prefix(*real[3:], prefix.length)
    out = attend(*real[:3], mask, given, 0.6)
    return (out * weights).sum(), out

  gradients, out = jax.jit(jax.grad(total, has_aux=True))(real)
  return out, gradients


def interpreted(monkeypatch) -> None:
  """Splash attention works on this machine too, in small blocks."""
  monkeypatch.setattr(splash, "BLOCKS", (128,))
  kernel = partial(splash.attend, interpret=True)
  monkeypatch.setitem(attention.KERNELS, "splash", kernel)
