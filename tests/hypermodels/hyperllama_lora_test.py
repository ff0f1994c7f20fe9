"""HyperLlama-LoRA: its updates come from the gist tokens' states."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from hyperjax.core import masks
from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import Support
from hyperjax.core.sharding import MeshConfig
from hyperjax.hypermodels.heads import EmitLowRank, HeadsConfig
from hyperjax.hypermodels.hyperllama_lora import HyperLlamaLoRAConfig
from hyperjax.training import step
from tests.models import tiny

CONFIG = HyperLlamaLoRAConfig(EmitLowRank(3, 6.0), HeadsConfig(width=8), rank=2)
SITES = ("decoder.self.q", "decoder.self.v")


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def fresh(**changes):
  with jax.default_prng_impl("rbg"):
    return dataclasses.replace(CONFIG, **changes).build(tiny.llama(), tiny.encode, nnx.Rngs(0))


@functools.cache
def active(dtype=jnp.float32):
  """A hypermodel all of whose parameters are drawn: B and the tuned update act."""
  graph, params = nnx.split(fresh())
  rng = np.random.default_rng(1)
  draw = lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), dtype)
  return nnx.merge(graph, jax.tree.map(draw, params))


@jax.jit
def produce(producer, model, support):
  return producer(model, support)


def test_its_phi_is_what_the_spec_describes():
  phi = produce(active(), tiny.llama(), tiny.support(4, 2, 3))
  phi_lib.check(phi, tiny.llama().phi_spec(SITES, rank=3, alpha=6.0))
  assert phi_lib.rows(phi) == 3


def test_it_is_the_heads_of_the_gist_states_of_a_plain_pass(x64):
  """Row by row without padding, positions counted from the support's start."""
  model, support, hyper = tiny.llama(jnp.float64), tiny.support(5, 2), active(jnp.float64)
  ours = produce(hyper, model, support)

  @jax.jit
  def alone(hyper, model, tokens):
    x = jnp.concatenate([model.embed_tokens(tokens), hyper.gist[...]])
    at = jnp.arange(len(x))[None, None]
    states, _ = model.hidden(x[None, None], at, masks.Causal(), hyper.update())
    return hyper.heads(states[:, 0, len(tokens) :])

  for b, length in enumerate((5, 2)):
    one = alone(hyper, model, support.tokens[b, :length])
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(one), strict=True):
      np.testing.assert_allclose(mine[:, b], theirs[:, 0], atol=1e-9)


def test_padding_does_not_matter_and_a_batch_is_a_loop(x64):
  model, hyper = tiny.llama(jnp.float64), active(jnp.float64)
  support = tiny.support(4, 4, 2)
  together = produce(hyper, model, support)
  padded = Support(jnp.concatenate([support.tokens, tiny.tokens(9, 3, 3)], 1), support.length)
  same = produce(hyper, model, padded)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), together, same)
  for b in range(3):
    one = produce(hyper, model, tiny.row(support, b))
    jax.tree.map(
      lambda a, o, b=b: np.testing.assert_allclose(a[:, b], o[:, 0], atol=1e-9), together, one
    )
  for leaf in jax.tree.leaves(together):
    assert np.abs(leaf[:, 0] - leaf[:, 1]).max() > 1e-6


def test_it_starts_exactly_at_the_zero_shot_model():
  model, batch, hyper = tiny.llama(), tiny.batch(4, 2), fresh()
  phi = produce(hyper, model, batch.support)
  assert all(np.abs(node.a).max() > 0.05 for node in phi_lib.sites(phi).values())
  np.testing.assert_array_equal(
    tiny.logits(model, batch.query, phi), tiny.logits(model, batch.query)
  )
  moved = produce(active(), model, batch.support)
  difference = tiny.logits(model, batch.query, moved) - tiny.logits(model, batch.query)
  assert np.abs(difference).max() > 1e-3


def test_it_learns_and_its_leaves_come_to_depend_on_every_real_token():
  model, batch = tiny.llama(), tiny.batch(4, 2)
  parts = step.split(step.System(fresh(), model), CONFIG.train)
  assert parts.trained.keys() == {"producer"}
  optimizer = optax.adam(1e-2)
  trained = jax.tree.map(lambda x: jnp.array(np.asarray(x)), parts.trained)
  state = step.init_optimizer(optimizer, trained, MeshConfig().build(jax.devices()[:1]))
  train = step.make_train_step(parts.graph, optimizer, step.Objective())
  losses = []
  for number in range(12):
    trained, state, metrics = train(trained, state, parts.frozen, batch)
    losses.append(float(metrics["loss"]))
    if number == 0:
      after = jax.tree.map(lambda x: jnp.array(np.asarray(x)), trained)
  assert losses[-1] < losses[0] - 0.1, losses
  producer = nnx.merge(parts.graph, after, parts.frozen).producer
  graph, params = nnx.split(model)
  support = tiny.support(4, 3)

  @jax.jit
  def influence(table):
    def leaves(table):
      reader = nnx.merge(graph, {**nnx.to_pure_dict(params), "embed": table})
      return [jnp.sum(jnp.cos(7 * x[:, 0]), (1, 2)) for x in jax.tree.leaves(
        producer(reader, support))]  # fmt: skip

    return [jnp.abs(x).max(-1) for x in jax.jacrev(leaves)(table)]

  read = sorted(set(np.asarray(support.tokens[0, :4]).tolist()))
  others = sorted(set(range(61)) - set(read))
  found = influence(model.embed[...])
  assert len(found) == 2 * len(SITES)
  for leaf in found:  # [L, V]
    assert (leaf[:, read] > 0).all() and not leaf[:, others].any()


def test_gist_token_r_gives_row_r():
  model, support, hyper = tiny.llama(), tiny.support(4), active()
  assert hyper.gist.shape == (3, 32)
  base = produce(hyper, model, support)
  graph, params = nnx.split(hyper)
  params["gist"] = params["gist"].replace(params["gist"][...].at[2].add(1.0))
  moved = phi_lib.sites(produce(nnx.merge(graph, params), model, support))
  for site, node in phi_lib.sites(base).items():
    assert (np.abs(moved[site].a - node.a).max((0, 1, 2)) > 1e-5).tolist() == [False, False, True]
    assert (np.abs(moved[site].b - node.b).max((0, 1, 3)) > 1e-5).tolist() == [False, False, True]


CHANGES = dict(
  emit=EmitLowRank(3, 3.0), heads=HeadsConfig("per_layer", 8), init_text="ab", noise=0.5, rank=4,
  alpha=8.0, sites=tiny.SITES[:1],
)  # fmt: skip


def test_every_field_changes_phi_or_its_parameters():
  assert CHANGES.keys() == {f.name for f in dataclasses.fields(HyperLlamaLoRAConfig)}

  def observe(**changes):
    hyper = fresh(**changes)
    for leaf in hyper.update.leaves.values():
      leaf[...] = jnp.cos(jnp.arange(leaf[...].size)).reshape(leaf.shape)
    shapes = [x.shape for x in jax.tree.leaves(nnx.state(hyper))]
    phi = produce(hyper, tiny.llama(), tiny.support(4))
    return shapes, phi, [node.scale for node in phi_lib.sites(phi).values()]

  shapes, phi, scales = observe()
  for field, value in CHANGES.items():
    new_shapes, new, new_scales = observe(**{field: value})
    same = shapes == new_shapes and scales == new_scales and all(
      np.allclose(a, b, atol=1e-5)
      for a, b in zip(jax.tree.leaves(phi), jax.tree.leaves(new), strict=True)
    )
    assert not same, field


@pytest.mark.parametrize("emit, message", [
  (EmitLowRank(17), r"LoRA rank 17 is not in 1\.\.16"),
  (EmitLowRank(0), r"LoRA rank 0 is not in 1\.\.32"),
  (EmitLowRank(2, sites=("decoder.self.w",)), "unknown site 'decoder.self.w'; the nearest is"),
])  # fmt: skip
def test_what_cannot_be_is_one_clear_error(emit, message):
  with pytest.raises(ValueError, match=message):
    fresh(emit=emit)
