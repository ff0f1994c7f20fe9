"""The batch is a pytree of NumPy or JAX arrays that cannot be changed."""

import dataclasses

import jax
import numpy as np
import pytest

from hyperjax.core.batch import Batch, DecoderQuery, Support
from tests.models import tiny


def numpy_batch() -> Batch:
  return jax.tree.map(np.asarray, tiny.batch(4, 2))


def test_a_batch_is_a_tree_of_its_seven_arrays():
  batch = numpy_batch()
  leaves, tree = jax.tree.flatten(batch)
  assert len(leaves) == 7
  again = tree.unflatten(leaves)
  assert isinstance(again.support, Support) and isinstance(again.query, DecoderQuery)
  assert again.query.target_index is batch.query.target_index


def test_a_batch_of_numpy_arrays_goes_through_jit_unchanged():
  batch = numpy_batch()
  out = jax.jit(lambda b: b)(batch)
  for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(out), strict=True):
    assert isinstance(b, jax.Array) and a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_a_batch_cannot_be_changed_in_place():
  with pytest.raises(dataclasses.FrozenInstanceError):
    numpy_batch().targets = None
