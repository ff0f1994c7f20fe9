"""One scan over the layers for both passes is two scans, in loss and in every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hyperjax.hypermodels import loops
from hyperjax.hypermodels.gisting import Gisting, GistingConfig
from hyperjax.hypermodels.hyperllama import FullHyperLlamaConfig, HyperLlama, HyperLlamaConfig
from hyperjax.training import step
from tests.core.attention.rows import interpreted
from tests.models import tiny

SINK = (5, 9)


def system(kind, sink, loop, remat, dtype=jnp.float64, attention="auto"):
  """A system whose update acts; everything trained is of `dtype`."""
  model = tiny.llama(dtype, remat=remat, attention=attention)
  spec = model.phi_spec(rank=2, alpha=4.0, sites=tiny.SITES)
  gist = jnp.asarray(np.random.default_rng(7).standard_normal((3, 32)), dtype)
  hyper = HyperLlama(gist, spec, sink, rngs=nnx.Rngs(0), loop=loop)
  update = jax.tree.leaves(tiny.random_phi(spec, 1, dtype=dtype))
  for name, leaf in zip(sorted(hyper.update.leaves), update, strict=True):
    hyper.update.leaves[name].set_value(leaf)
  return step.System(hyper if kind == "hyperllama" else Gisting(hyper), model)


def loss_and_gradients(distillation, *given):
  """Of everything, the frozen weights too: each is used in both passes."""
  parts = step.split(system(*given), ("producer", "downstream"))
  objective = step.Objective(distillation)
  batch = tiny.batch(5, 2, 4)

  @jax.jit
  @jax.value_and_grad
  def run(trained):
    return objective(nnx.merge(parts.graph, trained, parts.frozen), batch)[0]

  return run(parts.trained)


@pytest.mark.parametrize(
  "kind, sink, remat, distillation",
  [
    ("hyperllama", SINK, "none", 0.0),
    ("hyperllama", (), "dots", 0.5),
    ("gisting", SINK, "full", 0.0),
  ],
)
def test_one_scan_is_two_scans(kind, sink, remat, distillation):
  """Ragged supports, two queries of each, grouped heads."""
  with jax.enable_x64(True):
    given = [distillation, kind, sink]
    one = loss_and_gradients(*given, "one_scan", remat)
    two = loss_and_gradients(*given, "two_scans", "none")
  assert one[0].dtype == jnp.float64 and one[0] > 1
  np.testing.assert_allclose(one[0], two[0], rtol=1e-9)
  for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(two[1]), strict=True):
    assert np.abs(b).max() > 1e-3
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_splash_attention_goes_through_as_the_einsum(monkeypatch):
  """The reading of ragged supports, queries behind the gist, both recomputed in the way back. In
  float32 either's gradients are 3e-5 from those in float64."""
  interpreted(monkeypatch)
  ours, theirs = (
    loss_and_gradients(0.0, "gisting", (), "one_scan", "full", jnp.float32, attention)
    for attention in ("splash", "einsum")
  )
  np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
  for a, b in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(theirs[1]), strict=True):
    assert np.linalg.norm(a - b) < 1e-4 * np.linalg.norm(b)


def test_the_layers_are_scanned_once():
  """As many loops over the layers as the loop's name says, and one more for a sink of its own."""
  batch = tiny.batch(5, 2)

  def scans(loop):
    jaxpr = jax.make_jaxpr(system("hyperllama", SINK, loop, "none", jnp.float32))(batch)
    return sum(eqn.primitive.name == "scan" for eqn in jaxpr.eqns)

  assert scans("one_scan") == 1 and scans("two_scans") == 3


def test_half_precision_goes_through_as_in_two_scans():
  batch = tiny.batch(5, 2)
  one, two = (
    jax.jit(lambda s: s(batch))(system("gisting", SINK, loop, "none", jnp.bfloat16))
    for loop in ("one_scan", "two_scans")
  )
  assert one.dtype == two.dtype == jnp.float32
  np.testing.assert_allclose(one, two, atol=0.05)


def test_the_configuration_picks_the_loop():
  batch = tiny.batch(4, 2)
  build = lambda config: config.build(tiny.llama(), tiny.encode, nnx.Rngs(0))
  for loop, function in loops.LOOPS.items():
    config = HyperLlamaConfig(rank=2, loop=loop)
    assert loops.of(build(config)) is loops.of(build(GistingConfig(config))) is function
  full = step.System(build(FullHyperLlamaConfig()), tiny.llama())
  assert loops.of(full.producer) is loops.two_scans
  assert jax.eval_shape(full, batch).shape == (2, 2, 3, 61)


def test_an_unknown_loop_is_named_with_the_known():
  with pytest.raises(ValueError, match=r"HyperLlamaConfig.loop must be one of \['one_scan', 'two"):
    HyperLlamaConfig(loop="three")
