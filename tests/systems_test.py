"""A system from its configuration: its arrays, their shapes and their initial values."""

import jax
import numpy as np
import pytest

from hyperjax import runs, systems
from hyperjax.data import vocabularies
from tests import tiny as tiny_lib

tiny = tiny_lib.fixture


@pytest.fixture(scope="module")
def given(tiny):
  return runs.configured(tiny.run)


def test_shapes_without_arrays_are_those_of_the_arrays(tiny, given):
  abstract = systems.abstract_parts(given["hypermodel"], given["model"].abstract())
  downstream, _ = given["model"].load()
  vocabulary = vocabularies.load(tiny.model)
  parts = systems.build_parts(given["hypermodel"], downstream, systems.encoder(vocabulary), 0)
  for name in ("trained", "frozen"):
    one, other = getattr(abstract, name), getattr(parts, name)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(one)] == [
      (x.shape, x.dtype) for x in jax.tree.leaves(other)
    ]
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(one))


def test_the_seed_draws_the_initial_values(tiny, given):
  downstream, _ = given["model"].load()
  encode = systems.encoder(vocabularies.load(tiny.model))
  draw = lambda seed: systems.build_parts(given["hypermodel"], downstream, encode, seed).trained
  gist = lambda seed: np.asarray(draw(seed)["producer"]["gist"])
  np.testing.assert_array_equal(gist(3), gist(3))
  assert np.abs(gist(3) - gist(4)).max() > 1e-4
