"""phi as parameters."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hyperjax.core import phi as phi_lib
from hyperjax.hypermodels.tuned import NoPhi, TunedPhi
from tests.models import tiny


def tuned():
  spec = tiny.llama().phi_spec(tiny.ALL, prefix_length=4, rank=2, alpha=4.0)
  return TunedPhi(spec, rngs=nnx.Rngs(0)), spec


def test_it_is_the_spec_drawn_once():
  producer, spec = tuned()
  phi = producer(tiny.llama(), tiny.support(3, 2))
  phi_lib.check(phi, spec)
  assert phi_lib.rows(phi) == 1
  drawn = phi_lib.init(spec, nnx.Rngs(0).params())
  assert jax.tree.structure(phi) == jax.tree.structure(drawn)
  jax.tree.map(np.testing.assert_array_equal, phi, drawn)


def test_every_real_leaf_is_trained_and_a_length_is_not():
  producer, spec = tuned()
  trained = jax.tree.leaves(nnx.state(producer, nnx.Param))
  assert sum(x.size for x in trained) == phi_lib.size(spec)
  assert all(jnp.issubdtype(x.dtype, jnp.floating) for x in trained)
  rest = jax.tree.leaves(nnx.state(producer, nnx.Not(nnx.Param)))
  assert [x.dtype for x in rest] == [jnp.int32]


def test_each_parameter_is_one_leaf_of_phi():
  """More than ten leaves: their names must sort as they were flattened."""
  producer, spec = tuned()
  graph, params, rest = nnx.split(producer, nnx.Param, ...)
  gradient = jax.grad(lambda p: sum(
    number * leaf.sum()
    for number, leaf in enumerate(jax.tree.leaves(nnx.merge(graph, p, rest)()), 1)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  ))(params)
  numbers = [float(g.mean()) for g in jax.tree.leaves(gradient)]
  leaves = jax.tree.leaves(spec, is_leaf=phi_lib.is_leaf)
  assert len(leaves) == 17
  assert numbers == [n for n, l in enumerate(leaves, 1) if jnp.issubdtype(l.dtype, jnp.floating)]


def test_no_phi_is_none_and_has_no_parameters():
  assert NoPhi()(tiny.llama(), tiny.support(2)) is None
  assert not jax.tree.leaves(nnx.state(NoPhi()))
