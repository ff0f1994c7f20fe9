"""A prefix phi = having read the context: reading [support, query] as one plain sequence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import Support
from hyperjax.hypermodels.in_context import InContext
from hyperjax.models.llama import PREFIX_SITE
from tests.models import tiny


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


@jax.jit
def in_context(model, support, query):
  return model(query, InContext()(model, support))


def one_sequence(model, support, query, b, m):
  """Logits of query m of episode b, read right behind the support's real tokens."""
  length, size = int(support.length[b]), query.tokens.shape[2]
  joined = jnp.concatenate([support.tokens[b, :length], query.tokens[b, m]])
  sequence = dataclasses.replace(tiny.query(1, 1, length + size), tokens=joined[None, None])
  return tiny.logits(model, sequence)[0, 0, length:]


def test_a_prefix_equals_having_read_the_support(x64):
  model, support, query = tiny.llama(jnp.float64), tiny.support(7, 3), tiny.query(2, 2, 4)
  ours = in_context(model, support, query)
  for b in range(2):
    for m in range(2):
      np.testing.assert_allclose(ours[b, m], one_sequence(model, support, query, b, m), atol=1e-9)
  without = tiny.logits(model, query)
  assert np.abs(ours - without).max() > 0.1


def test_what_pads_a_support_does_not_matter(x64):
  model, query = tiny.llama(jnp.float64), tiny.query(2, 1, 4)
  short = tiny.support(4, 2)
  padded = Support(jnp.concatenate([short.tokens, tiny.tokens(9, 2, 3)], 1), short.length)
  np.testing.assert_allclose(
    in_context(model, short, query), in_context(model, padded, query), atol=1e-9
  )


def test_it_is_what_the_spec_describes():
  model = tiny.llama()
  phi = InContext()(model, tiny.support(4, 2, size=6))
  phi_lib.check(phi, model.phi_spec([PREFIX_SITE], prefix_length=6))
  assert phi["decoder"]["self"]["prefix"].length.tolist() == [[4, 2]] * 3
