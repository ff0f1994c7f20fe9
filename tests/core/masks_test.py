"""The matrices drawn in the docstrings, and Gist against its definition in words."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperjax.core import masks


def rows(text: str) -> list[list[int]]:
  return [[int(x) for x in line.split()] for line in text.strip().splitlines()]


def test_causal_is_its_drawing():
  assert masks.Causal().dense(4, 4)[0, 0].astype(int).tolist() == rows("""
    1 0 0 0
    1 1 0 0
    1 1 1 0
    1 1 1 1
  """)


def test_cached_is_its_drawing_row_by_row():
  mask = masks.Cached(jnp.asarray([[2, 4], [0, 1]]), jnp.asarray(1), 4)
  dense = mask.dense(1, 8).astype(int)
  assert dense.shape == (2, 2, 1, 8)
  assert dense.reshape(4, 8).tolist() == rows("""
    1 1 0 0 1 1 0 0
    1 1 1 1 1 1 0 0
    0 0 0 0 1 1 0 0
    1 0 0 0 1 1 0 0
  """)


def test_branches_are_their_drawing_row_by_row():
  text = jnp.asarray([[[0, 0, 1], [0, 1, 2]]])
  dense = masks.Branches(jnp.asarray([[2, 3]]), text, 3).dense(3, 7).astype(int)
  assert dense.shape == (1, 2, 3, 7)
  assert dense.reshape(6, 7).tolist() == rows("""
    1 1 0 1 0 0 0
    1 1 0 1 1 0 0
    1 1 0 0 0 1 0
    1 1 1 1 0 0 0
    1 1 1 0 1 0 0
    1 1 1 0 0 1 0
  """)


def test_gist_is_its_drawing():
  mask = masks.Gist(jnp.asarray([2]), num_gist=2, head=4, size=2)
  assert mask.dense(8, 8)[0, 0].astype(int).tolist() == rows("""
    1 0 0 0 0 0 0 0
    1 1 0 0 0 0 0 0
    1 1 1 0 0 0 0 0
    1 1 1 1 0 0 0 0
    0 0 1 1 1 0 0 0
    0 0 1 1 1 1 0 0
    0 0 1 1 0 0 1 0
    0 0 1 1 0 0 1 1
  """)


@settings(max_examples=20, deadline=None)
@given(
  lengths=st.lists(st.integers(0, 4), min_size=3, max_size=3),
  num_gist=st.integers(1, 3),
  size=st.sampled_from([1, 2, 3, 6]),
)
def test_gist_follows_each_rows_length(lengths, num_gist, size):
  head, total = 7, 13
  dense = np.asarray(masks.Gist(jnp.asarray(lengths), num_gist, head, size).dense(total, total))
  for b, length in enumerate(lengths):
    gist = range(length, length + num_gist)
    for i in [*range(length + num_gist), *range(head, total)]:  # real tokens: not the padding
      if i < head:
        sees = set(range(i + 1))
      else:
        first = i - (i - head) % size
        sees = set(gist) | set(range(first, i + 1))
      assert set(np.flatnonzero(dense[b, 0, i])) == sees


def test_masks_go_through_jit_as_descriptions():
  mask = masks.Gist(jnp.asarray([1]), 1, 2, 1)
  dense = jax.jit(lambda m: m.dense(3, 3))(mask)
  np.testing.assert_array_equal(dense, mask.dense(3, 3))
