"""Checksums against sums in Python's integers."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from hyperjax.training import checksums


def expected(x: np.ndarray) -> int:
  words = np.ascontiguousarray(x).view({1: np.uint8, 2: np.uint16}.get(x.dtype.itemsize, np.uint32))
  return sum(int(word) * (2 * i + 1) for i, word in enumerate(words.ravel())) % 2**32


@pytest.mark.parametrize("dtype", [np.float32, np.int32, ml_dtypes.bfloat16, np.int8, bool])
def test_a_sum_of_words_times_odd_numbers(dtype):
  x = (np.random.default_rng(0).normal(size=[3, 4, 5]) * 9).astype(dtype)
  tree = {"a": {"b": jnp.asarray(x)}, "c": jnp.asarray(x[1, 2, 3])}
  assert checksums.of(tree) == {"a.b": expected(x), "c": expected(x[1, 2, 3:4])}


def test_float64():
  with jax.enable_x64(True):
    x = np.random.default_rng(0).normal(size=[3, 4])
    assert checksums.of({"a": jnp.asarray(x)}) == {"a": expected(x)}


def test_one_changed_bit_shows():
  x = np.zeros([300], np.float32)
  before = checksums.of({"a": jnp.asarray(x)})
  x.view(np.uint32)[211] = 1 << 31
  assert checksums.of({"a": jnp.asarray(x)}) != before
