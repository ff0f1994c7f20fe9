"""The einsum against NumPy written out in loops, and what it adds to a program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax.core import masks
from hyperjax.core.attention import splash
from hyperjax.core.attention.einsum import attend
from hyperjax.core.phi import Prefix
from tests.core.attention.rows import prefix_of, random, sequence


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def by_hand(q, k, v, mask, prefix, scale):
  """Attention, one query and one head at a time."""
  q, k, v = (np.asarray(z) for z in (q, k, v))
  out = np.zeros(q.shape)
  per_group = q.shape[3] // k.shape[3]
  for b, m, t, n in np.ndindex(*q.shape[:4]):
    group = n // per_group
    keys, values = k[b, m, mask[t], group], v[b, m, mask[t], group]
    if prefix is not None:
      r = b % prefix.key.shape[0]
      length = int(prefix.length[r])
      keys = np.concatenate([prefix.key[r, :length, group], keys])
      values = np.concatenate([prefix.value[r, :length, group], values])
    scores = np.exp(scale * keys @ q[b, m, t, n])
    out[b, m, t, n] = scores / scores.sum() @ values
  return out


@pytest.mark.parametrize("lengths", [None, (5,), (3,), (5, 2), (0, 1)])
def test_attention_is_a_weighted_mean_of_what_is_seen(x64, lengths):
  prefix = lengths and prefix_of(*lengths)
  ours = attend(*sequence(), masks.Causal(), prefix, 0.6)
  expected = by_hand(*sequence(), np.tri(4, dtype=bool), prefix, 0.6)
  np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_what_pads_a_prefix_has_no_influence(x64):
  prefix = prefix_of(3, 1)
  out = lambda p: attend(*sequence(), masks.Causal(), p)
  gradient = jax.grad(lambda p: (out(p) ** 2).sum(), allow_int=True)(prefix)
  padding = np.arange(5) >= np.asarray(prefix.length)[:, None]
  for leaf in (gradient.key, gradient.value):
    moved = np.abs(leaf).sum((2, 3)) > 0
    np.testing.assert_array_equal(moved, ~padding)


def test_no_prefix_adds_no_operation():
  arrays = sequence(np.float32)
  without = jax.make_jaxpr(lambda q, k, v: attend(q, k, v, masks.Causal()))(*arrays)
  with_none = jax.make_jaxpr(lambda q, k, v: attend(q, k, v, masks.Causal(), None))(*arrays)
  assert str(without) == str(with_none)
  assert str(without).count("dot_general[") == 2 and "concatenate" not in str(without)


def test_softmax_is_float32_under_bfloat16_activations():
  arrays = sequence(jnp.bfloat16)
  prefix = prefix_of(5, 2)
  for p in (None, prefix):
    jaxpr = jax.make_jaxpr(lambda q, k, v, p=p: attend(q, k, v, masks.Causal(), p))(*arrays)
    exps = [e for e in flatten(jaxpr.jaxpr) if e.primitive.name == "exp"]
    assert exps and all(e.outvars[0].aval.dtype == np.float32 for e in exps)
    assert jaxpr.out_avals[0].dtype == jnp.bfloat16


def flatten(jaxpr):
  for eqn in jaxpr.eqns:
    yield eqn
    for value in eqn.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from flatten(inner)


@pytest.mark.parametrize("kernel", [attend, partial(splash.attend, interpret=True)])
def test_the_gradient_of_a_shared_prefix_is_a_sum_in_float32(kernel):
  """That of one prefix for all episodes is the sum of those of as many copies."""
  episodes = 64
  q, k, v = (
    jnp.asarray(random(seed, episodes, 1, 4, 2, 3), jnp.bfloat16) for seed in (0, 1, 2)
  )
  weights = jnp.asarray(random(3, *q.shape), jnp.bfloat16)
  prefix = prefix_of(5, dtype=jnp.float32)

  @jax.jit
  def gradients(key, value):
    length = jnp.broadcast_to(prefix.length, len(key))
    loss = lambda key, value: (
      kernel(q, k, v, masks.Causal(), Prefix(key, value, length)) * weights
    ).astype(jnp.float32).sum()  # fmt: skip
    return jax.grad(loss, (0, 1))(key, value)

  copies = [jnp.repeat(z, episodes, 0) for z in (prefix.key, prefix.value)]
  for shared, each in zip(gradients(prefix.key, prefix.value), gradients(*copies), strict=True):
    assert shared.dtype == each.dtype == jnp.float32
    np.testing.assert_allclose(shared[0], each.sum(0), rtol=1e-5, atol=1e-5)
