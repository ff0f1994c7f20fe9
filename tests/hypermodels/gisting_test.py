"""One masked pass over [support, gist, queries] = two passes with tied weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import Support
from hyperjax.hypermodels.gisting import one_pass
from hyperjax.hypermodels.hyperllama import behind_sink, gist_prefix
from tests.core.attention.rows import interpreted
from tests.models import tiny

LENGTHS = (6, 1, 3)


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def two_passes(llama, support, query, gist, update=None):
  prefix = behind_sink(llama, (), *gist_prefix(llama, support, gist, update))
  return llama(query, phi_lib.merge(prefix, update))


def parts(lora: bool):
  llama = tiny.llama(jnp.float64)
  gist = jnp.asarray(np.random.default_rng(7).standard_normal((4, 32)))
  spec = llama.phi_spec(rank=2, alpha=3.0, sites=tiny.SITES)
  update = tiny.random_phi(spec, 1, dtype=jnp.float64) if lora else None
  return llama, tiny.support(*LENGTHS), tiny.query(3, 2, 5), gist, update


@pytest.mark.parametrize("lora", [False, True])
def test_one_pass_equals_two(x64, lora):
  """Logits, and gradients with respect to the gist embeddings and the tied update."""
  llama, support, query, gist, update = parts(lora)
  weights = jnp.asarray(np.random.default_rng(8).standard_normal((3, 2, 5, 61)))

  def run(form):
    def total(gist, update):
      logits = form(llama, support, query, gist, update)
      return (logits * weights).sum(), logits

    arguments = (0, 1) if lora else 0
    return jax.jit(jax.value_and_grad(total, arguments, has_aux=True))(gist, update)

  ((_, one), one_grads), ((_, two), two_grads) = run(one_pass), run(two_passes)
  np.testing.assert_allclose(one, two, atol=1e-9, rtol=0)
  for a, b in zip(jax.tree.leaves(one_grads), jax.tree.leaves(two_grads), strict=True):
    assert np.abs(b).max() > 1e-2
    np.testing.assert_allclose(a, b, atol=1e-9, rtol=1e-9)


def test_one_pass_under_splash_attention_is_that_under_the_einsum(monkeypatch):
  interpreted(monkeypatch)
  support, query = tiny.support(*LENGTHS), tiny.query(3, 2, 5)
  gist = jnp.asarray(np.random.default_rng(7).standard_normal((4, 32)), jnp.float32)

  def run(attention):
    llama = tiny.llama(attention=attention)
    total = lambda gist: (one_pass(llama, support, query, gist) ** 2).mean()
    return jax.jit(jax.value_and_grad(total))(gist)

  (ours, grads), (theirs, wanted) = run("splash"), run("einsum")
  np.testing.assert_allclose(ours, theirs, rtol=1e-6)
  np.testing.assert_allclose(grads, wanted, rtol=1e-4, atol=1e-6)


def test_the_support_reaches_the_queries_only_through_the_gist(x64):
  """Two layers carry it; one layer of gist keys has not read it yet and must carry nothing."""
  llama, support, query, gist, _ = parts(False)
  form = jax.jit(one_pass)
  base = form(llama, support, query, gist)
  other = Support(tiny.tokens(11, 3, 6), support.length)
  moved = np.abs(form(llama, other, query, gist) - base).max((1, 2, 3))
  assert (moved > 1e-4).all()
  shallow = tiny.llama(jnp.float64, num_layers=1)
  one_layer = [form(shallow, s, query, gist) for s in (support, other)]
  np.testing.assert_array_equal(*one_layer)


def test_queries_of_an_episode_do_not_see_one_another(x64):
  llama, support, query, gist, update = parts(True)
  form = jax.jit(one_pass)
  both = form(llama, support, query, gist, update)
  for m in range(2):
    alone = jax.tree.map(lambda x, m=m: x[:, m : m + 1], query)
    np.testing.assert_allclose(
      form(llama, support, alone, gist, update)[:, 0], both[:, m], atol=1e-9
    )
