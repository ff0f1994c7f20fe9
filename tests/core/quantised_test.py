"""Weights in few bits: how far they are from the plain ones, and what is computed with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax.core import quantised
from hyperjax.core.layers import matmul, project
from hyperjax.core.phi import LowRank
from hyperjax.core.sharding import gather, lookup


def random(seed: int, *shape: int, dtype=jnp.float32) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


# Two layers, inputs, outputs; one scale for each output, in 4 bits for each 32 inputs of it.
KERNELS = [
  ("int8", (2, 64, 3, 4), (1,), (2, 1, 3, 4)),
  ("int8", (2, 2, 32, 5), (1, 2), (2, 1, 1, 5)),
  ("int8", (7, 64), (1,), (7, 1)),
  ("int4", (2, 64, 3, 4), (1,), (2, 2, 3, 4)),
  ("int4", (2, 2, 32, 5), (1, 2), (2, 2, 1, 5)),
  ("int4", (2, 2, 48, 5), (1, 2), (2, 2, 1, 5)),  # 32 does not divide 48
  ("int4", (7, 64), (1,), (7, 2)),
]


@pytest.mark.parametrize("qtype, shape, summed, scales", KERNELS)
def test_weights_are_at_most_half_a_scale_away(qtype, shape, summed, scales):
  w = random(0, *shape)
  found = quantised.quantise(w, qtype, summed)
  assert quantised.is_quantised(found) and not quantised.is_quantised(w)
  assert found.shape == shape and found.scale.shape == scales
  assert found.qvalue.dtype == qtype and found.dtype == jnp.float32
  # By hand: the largest number of a tile is 127.5 (7.5) scales.
  tile = [n // m for n, m in zip(shape, scales, strict=True)]
  parts = np.asarray(w).reshape([n for pair in zip(scales, tile, strict=True) for n in pair])
  largest = np.abs(parts).max(tuple(range(1, 2 * len(shape), 2)))
  scale = largest / {"int8": 127.5, "int4": 7.5}[qtype]
  np.testing.assert_allclose(found.scale, scale, rtol=1e-6)
  wide = scale
  for axis, n in enumerate(tile):
    wide = np.repeat(wide, n, axis)
  away = np.abs(np.asarray(quantised.plain(found, jnp.float32)) - np.asarray(w)) / wide
  assert away.max() < 0.5001 and away.mean() == pytest.approx(0.25, abs=0.05)


def test_half_precision_scales_add_its_own_rounding_only():
  w = random(0, 64, 5, dtype=jnp.bfloat16)[None]
  found = quantised.quantise(w, "int8", (1,))
  assert found.dtype == found.scale.dtype == jnp.bfloat16
  exact = np.asarray(w, np.float64)
  scale = np.abs(exact).max(1, keepdims=True) / 127.5
  away = np.abs(np.asarray(quantised.plain(found, jnp.float32), np.float64) - exact)
  assert (away <= scale / 2 + np.abs(exact) * 2**-7).all()


@pytest.mark.parametrize("qtype", ["int8", "int4"])
@pytest.mark.parametrize("shape, kernel, axes", [
  ((3, 4), (4, 5), (0,)), ((3, 32), (5, 32), (1,)), ((2, 3, 4, 6), (4, 6, 5, 2), (0, 1)),
])  # fmt: skip
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float32", "bfloat16")])
def test_products_and_gradients_are_those_of_the_dequantised_weights(
  qtype, shape, kernel, axes, dtypes
):
  x, w = (random(seed, *size, dtype=dtype) for seed, size, dtype in zip(
    (0, 1), (shape, kernel), dtypes, strict=True
  ))  # fmt: skip
  few = quantised.quantise(w, qtype, axes)
  wide = quantised.plain(few, w.dtype)
  ours, back = jax.vjp(lambda x: matmul(x, few, axes, jnp.float32), x)
  plain, plain_back = jax.vjp(lambda x: matmul(x, wide, axes, jnp.float32), x)
  np.testing.assert_allclose(ours, plain, rtol=1e-6, atol=1e-6)
  g = random(2, *ours.shape)
  np.testing.assert_allclose(back(g)[0], plain_back(g)[0], rtol=1e-6, atol=1e-6)


def test_an_update_comes_on_top():
  x, w = random(0, 2, 1, 4, 8), random(1, 8, 3)
  update = LowRank(random(2, 2, 8, 2), random(3, 2, 2, 3), 0.5)
  few = quantised.quantise(w, "int8", (0,))
  np.testing.assert_allclose(
    project(x, few, update), project(x, quantised.plain(few, w.dtype), update), rtol=1e-5, atol=1e-5
  )


def test_no_layers_dequantised_weights_are_kept_for_the_backward_pass():
  """The loop forward hands the loop back nothing real-valued of the weights' size."""
  few = quantised.quantise(random(0, 3, 16, 16), "int8", (1,))

  def loss(x, weights):
    layer = lambda x, w: (jnp.tanh(matmul(x, w, [0])), None)
    return jax.lax.scan(layer, x, weights)[0].sum()

  def kept(weights):
    eqns = jax.make_jaxpr(jax.grad(loss))(random(1, 5, 16), weights).jaxpr.eqns
    forward = next(eqn for eqn in eqns if eqn.primitive.name == "scan")
    return [v.aval.shape for v in forward.outvars if jnp.issubdtype(v.aval.dtype, jnp.floating)]

  assert (3, 5, 16) in kept(few) and (3, 16, 16) not in kept(few)


def test_rows_of_a_table_are_looked_up_before_they_are_dequantised():
  table = quantised.quantise(random(0, 11, 32), "int4", (1,))
  rows = jnp.asarray([[3, 10], [0, 3]])
  found = lookup(table, rows)
  assert found.qvalue.shape == (2, 2, 32) and found.qvalue.dtype == jnp.int4
  np.testing.assert_array_equal(
    quantised.plain(found, jnp.float32), quantised.plain(table, jnp.float32)[rows]
  )
  whole = gather(table, ("vocab", "embed"))
  assert whole.qtype == "int4" and whole.scale.shape == (11, 1)


def test_weights_and_bytes_are_counted(monkeypatch):
  tree = {
    "kernel": quantised.quantise(jnp.ones((2, 64, 6), jnp.bfloat16), "int4", (1,)),
    "table": quantised.quantise(jnp.ones((10, 64)), "int8", (1,)),
    "norm": jnp.ones(3),
  }
  for counted in (tree, jax.eval_shape(lambda: tree)):
    assert quantised.numbers(counted) == 2 * 64 * 6 + 10 * 64 + 3
    rest = 10 * 64 + 4 * 10 + 4 * 3 + 2 * (2 * 2 * 6)
    for packed, kernel in ((False, 2 * 64 * 6), (True, 2 * 64 * 6 // 2)):
      with monkeypatch.context() as patch:
        patch.setattr(quantised, "packs", lambda packed=packed: packed)
        assert quantised.stored_bytes(counted) == kernel + rest
  on_device = sum(x.on_device_size_in_bytes() for x in jax.tree.leaves(tree))
  assert quantised.stored_bytes(tree) == on_device
