"""phi's touch points against NumPy written out in loops, and what they add to a program."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax.core.layers import RMSNorm, embed, matmul, project, project_all
from hyperjax.core.phi import LowRank, Prompt


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def random(seed: int, *shape: int) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize("rows", [1, 2])
def test_an_update_equals_merged_weights(x64, rows):
  x, kernel = random(0, 2, 3, 4, 5), random(1, 5, 2, 3)
  update = LowRank(random(2, rows, 5, 2), random(3, rows, 2, 6), 0.7)
  y = project(x, kernel, update)
  for b in range(2):
    r = b % rows
    merged = kernel + 0.7 * (update.a[r] @ update.b[r]).reshape(kernel.shape)
    np.testing.assert_allclose(y[b], np.einsum("mtd,dnh->mtnh", x[b], merged), atol=1e-12)


def test_a_projection_of_several_axes_takes_an_update(x64):
  x, kernel = random(0, 2, 1, 4, 2, 3), random(1, 2, 3, 5)
  update = LowRank(random(2, 2, 6, 2), random(3, 2, 2, 5), 1.5)
  merged = kernel + 1.5 * (update.a @ update.b).reshape(2, 2, 3, 5)
  expected = np.einsum("bmtnh,bnhd->bmtd", x, merged)
  np.testing.assert_allclose(project(x, kernel, update), expected, atol=1e-12)


def test_gradients_of_updates_are_added_behind_those_of_all_kernels(x64):
  """Else tensor parallelism sends each kernel's part of the gradient apart (docs/sharding.md)."""
  x, kernels = random(0, 2, 3, 4, 5), [random(s, 5, 2, 3) for s in (1, 2, 3)]
  updates = [LowRank(random(s, 1, 5, 2), random(s + 1, 1, 2, 6), 0.7) for s in (4, 6)]
  updates.insert(1, None)
  ours = project_all(x, kernels, updates)
  for y, kernel, update in zip(ours, kernels, updates, strict=True):
    np.testing.assert_array_equal(y, project(x, kernel, update))
  loss = lambda x: sum(y.sum() for y in project_all(x, kernels, updates))
  eqns = jax.make_jaxpr(jax.grad(loss))(x).jaxpr.eqns
  made = {out: eqn.primitive.name for eqn in eqns for out in eqn.outvars}
  sums = [e for e in eqns if e.primitive.name == "add_any" and e.outvars[0].aval.shape == x.shape]
  # The updates' gradient is of x made flat, so it arrives through a reshape.
  assert ["reshape" in [made.get(v) for v in e.invars] for e in sums] == [False, False, True]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_prompt_its_text_then_padding(rows):
  table, value = random(0, 9, 4), random(1, 1, rows, 3, 4)
  before = np.array([[2, 0, 3][:rows]])
  tokens = jnp.arange(3 * 2 * 5).reshape(3, 2, 5) % 9
  length = jnp.array([[5, 1], [2, 4], [3, 3]])
  x, real = embed(table.__getitem__, tokens, length, Prompt(value, jnp.asarray(before)))
  assert x.shape == (3, 2, 8, 4)
  for b, m in np.ndindex(3, 2):
    n, t = before[0, b % rows], int(length[b, m])
    assert real[b, m] == n + t
    np.testing.assert_array_equal(x[b, m, :n], value[0, b % rows, :n])
    np.testing.assert_array_equal(x[b, m, n : n + t], table[tokens[b, m, :t]])
  x, real = embed(table.__getitem__, tokens, length)
  np.testing.assert_array_equal(x, table[tokens])
  assert real is length


MATMULS = [((3, 4), (4, 5), (0,)), ((3, 4), (5, 4), (1,)), ((2, 3, 4, 6), (4, 6, 5, 2), (0, 1))]


@pytest.mark.parametrize("shape, kernel, axes", MATMULS)
@pytest.mark.parametrize("dtypes", [
  ("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("bfloat16", "float32"),
  ("float32", "float32"),
])  # fmt: skip
def test_a_product_and_its_gradients_are_those_of_rounded_operands(shape, kernel, axes, dtypes):
  x, w = (
    jnp.asarray(random(seed, *size), dtype)
    for seed, size, dtype in zip((0, 1), (shape, kernel), dtypes, strict=True)
  )
  narrow = min(dtypes)  # "bfloat16" where there is one
  exact = [np.asarray(z.astype(narrow), np.float64) for z in (x, w)]
  inner = tuple(range(len(shape) - len(axes), len(shape)))
  want = np.tensordot(*exact, (inner, axes))
  y, back = jax.vjp(lambda x, w: matmul(x, w, axes, jnp.float32), x, w)
  np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
  assert matmul(x, w, axes).dtype == x.dtype
  g = jnp.asarray(random(2, *y.shape), jnp.float32)
  rounded = np.asarray(g.astype(narrow), np.float64)
  outputs = tuple(axis for axis in range(len(kernel)) if axis not in axes)
  rows = tuple(range(len(shape) - len(axes)))
  dx = np.tensordot(rounded, exact[1], (tuple(range(len(rows), y.ndim)), outputs))
  dw = np.moveaxis(np.tensordot(exact[0], rounded, (rows, rows)), range(len(axes)), axes)
  for ours, reference, like in zip(back(g), (dx, dw), (x, w), strict=True):
    assert ours.dtype == like.dtype
    tolerance = 2**-8 if ours.dtype == jnp.bfloat16 else 1e-5  # of a result's last bit
    np.testing.assert_allclose(
      np.asarray(ours, np.float64), reference, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_gradient_of_a_parameter_of_low_rank_is_a_sum_in_its_own_type(dtype):
  """Devices add it up. Here it has 11 significant bits, of which bfloat16 would keep 8."""
  x = jnp.full((1, 300, 1, 4), 2.0**-8, dtype).at[:, 0].set(1)
  kernel, b = jnp.zeros((4, 3), dtype), jnp.ones((1, 2, 3), jnp.float32)
  loss = lambda a: project(x, kernel, LowRank(a, b, 1.0)).astype(jnp.float32).sum()
  gradient = jax.grad(loss)(jnp.ones((1, 4, 2), jnp.float32))
  np.testing.assert_array_equal(gradient, np.full((1, 4, 2), 3 * (1 + 299 / 256)))


def test_the_gradient_of_a_prompt_is_a_sum_in_its_own_type():
  """Over 301 texts, a number that bfloat16 does not have."""
  tokens, length = jnp.zeros((7, 43, 4), jnp.int32), jnp.full((7, 43), 4)
  embedded = lambda tokens: jnp.zeros((*tokens.shape, 3), jnp.bfloat16)

  def loss(value):
    x, _ = embed(embedded, tokens, length, Prompt(value, jnp.full((1, 1), 5, jnp.int32)))
    return x.astype(jnp.float32).sum()

  gradient = jax.grad(loss)(jnp.ones((1, 1, 5, 3), jnp.float32))
  np.testing.assert_array_equal(gradient, np.full((1, 1, 5, 3), 301.0))


@pytest.mark.parametrize("rows", [1, 3])  # one for all episodes, and each one's own
def test_an_update_saved_in_half_precision_does_not_round_activations(rows):
  x, kernel = random(0, 1, 3, 4, 5), jnp.zeros((5, 6))
  wide = LowRank(random(2, 1, 5, 2), random(3, 1, 2, 6), 1.0)
  saved = jax.tree.map(lambda w: w.astype(jnp.bfloat16), wide)
  update = jax.tree.map(lambda w: jnp.repeat(w, rows, 0), saved)
  y = project(jnp.repeat(x, rows, 0), kernel, update)
  a, b = (np.asarray(w, np.float32)[0] for w in (saved.a, saved.b))
  np.testing.assert_allclose(y[0], np.asarray(x)[0] @ a @ b, atol=1e-5)


def test_narrow_operands_never_meet_wide_ones_in_a_product():
  """Neither forward nor in the gradient: XLA would widen the narrow one."""
  x, w = jnp.ones((3, 4), jnp.float32), jnp.ones((4, 5), jnp.bfloat16)
  loss = lambda x, w: (matmul(x, w, [0]) ** 2).sum()
  text = jax.jit(jax.grad(loss, (0, 1))).lower(x, w).as_text()
  kind = r"tensor<\w+x(\w+)>"
  products = re.findall(rf"dot_general.* : \({kind}, {kind}\) -> {kind}", text)
  results = [("f32",), ("f32",), ("bf16",)]  # of the product, and of x's and w's gradients
  assert sorted(products) == sorted(("bf16", "bf16", *result) for result in results), text


def test_no_phi_adds_no_operation():
  x, kernel = jnp.zeros((2, 1, 4, 5)), jnp.zeros((5, 6))
  without = jax.make_jaxpr(lambda x, w: project(x, w))(x, kernel)
  with_none = jax.make_jaxpr(lambda x, w: project(x, w, None))(x, kernel)
  assert str(without) == str(with_none)
  names = [e.primitive.name for e in without.eqns]
  assert names.count("dot_general") == 1 and set(names) <= {"dot_general", "reshape", "transpose"}


def test_rms_norm_is_its_formula():
  norm = RMSNorm(6, 0.1, dtype=jnp.float32)
  norm.scale[...] = random(1, 6).astype(jnp.float32)
  x = np.asarray(random(0, 2, 3, 6), np.float32)
  expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * np.asarray(norm.scale[...])
  np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-5)


def test_rms_norm_is_computed_in_float32():
  """1 + 2^-8 is 1 in bfloat16: squares summed there would lose it."""
  norm = RMSNorm(256, 0.0, dtype=jnp.float32)
  x = jnp.asarray(100 * random(0, 256), jnp.bfloat16)
  wide = np.asarray(x, np.float64)
  expected = wide / np.sqrt((wide**2).mean())
  ours = norm(x)
  assert ours.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(ours, np.float64), expected, rtol=2**-8)
