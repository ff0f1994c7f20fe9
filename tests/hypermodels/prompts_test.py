"""Soft prompts, prefixes tuned by way of an MLP, and the configurations of tuned phis."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from hyperjax.core import masks
from hyperjax.core import phi as phi_lib
from hyperjax.core.sharding import MeshConfig
from hyperjax.hypermodels.gist_tokens import GistTokens
from hyperjax.hypermodels.heads import EmitPrefix, HeadsConfig
from hyperjax.hypermodels.in_context import InContext, TunedInContextConfig
from hyperjax.hypermodels.prompts import ReparameterisedConfig, SoftPromptConfig
from hyperjax.hypermodels.tuned import FullConfig, NoPhi, TunedConfig, TunedPhi
from hyperjax.models.t5 import PROMPT_SITE
from hyperjax.training import step
from tests.hypermodels import tiny_t5
from tests.models import tiny


def build(config, model):
  return config.build(model, tiny.encode, nnx.Rngs(3))


MODELS = {"llama": (tiny.llama, tiny.batch), "t5": (tiny_t5.t5, tiny_t5.batch)}


@pytest.mark.parametrize("name", MODELS)
def test_a_soft_prompt_starts_from_a_texts_embeddings(name):
  model = MODELS[name][0]()
  prompt = build(SoftPromptConfig(GistTokens(5, "ab", noise=0.0)), model).prompt[...]
  ids = jnp.asarray([tiny.encode("ab")[i % 2] for i in range(5)])
  np.testing.assert_array_equal(prompt, model.embed_tokens(ids))


def test_a_t5s_soft_prompt_is_a_phi_of_its_own_site():
  model = tiny_t5.t5()
  producer = build(SoftPromptConfig(GistTokens(4, "ab")), model)
  phi = producer(model, tiny.support(3, 2))
  spec = TunedConfig([PROMPT_SITE], prefix_length=4).spec(model)
  phi_lib.check(phi, spec)
  np.testing.assert_array_equal(phi[PROMPT_SITE].value[0, 0], producer.prompt[...])
  same = TunedPhi.starting_from(phi, spec)(model, None)  # as `tune` starts from a run
  jax.tree.map(np.testing.assert_array_equal, same, phi)


@pytest.mark.parametrize("name", MODELS)
def test_training_a_soft_prompt_changes_nothing_else(name):
  make, batch = MODELS[name]
  model = make()
  parts = step.split(step.System(build(SoftPromptConfig(GistTokens(4, "ab")), model), model))
  copy = lambda tree: jax.tree.map(lambda x: jnp.array(np.asarray(x)), tree)
  optimizer, trained, frozen = optax.adam(0.03), copy(parts.trained), copy(parts.frozen)
  state = step.init_optimizer(optimizer, trained, MeshConfig().build(jax.devices()[:1]))
  train = step.make_train_step(parts.graph, optimizer, step.Objective())
  losses = []
  for _ in range(10):
    trained, state, metrics = train(trained, state, frozen, batch(4, 2))
    losses.append(float(metrics["loss"]))
  assert losses[-1] < losses[0] - 0.1, losses
  assert list(trained) == ["producer"] and list(trained["producer"]) == ["prompt"]
  moved = np.abs(trained["producer"]["prompt"] - parts.trained["producer"]["prompt"])
  assert moved.min(1).max() > 0 and (moved.max(1) > 0.01).all()
  jax.tree.map(np.testing.assert_array_equal, frozen, parts.frozen)


def test_a_llamas_soft_prompt_is_embeddings_in_front_of_the_input():
  model, query = tiny.llama(), tiny.query(2, 3, 5)
  producer = build(SoftPromptConfig(GistTokens(4, "ab")), model)
  phi = producer(model, tiny.support(3, 2))
  phi_lib.check(phi, model.phi_spec([tiny.PREFIX], prefix_length=4))
  prompt = jnp.broadcast_to(producer.prompt[...], (2, 3, 4, 32))
  x = jnp.concatenate([prompt, model.embed_tokens(query.tokens)], 2)
  hidden, _ = model.hidden(x, jnp.arange(9)[None, None], masks.Causal())
  expected = model.logits(hidden[:, :, 4:])
  np.testing.assert_allclose(tiny.logits(model, query, phi), expected, atol=2e-5)


@pytest.mark.parametrize("model", [tiny.llama, tiny_t5.t5], ids=["llama", "t5"])
def test_a_prefix_behind_an_mlp_fits_and_each_slot_is_trained(model):
  model = model()
  config = ReparameterisedConfig(EmitPrefix(length=3), HeadsConfig(width=8), width=6)
  producer = build(config, model)
  phi = producer(model, tiny.support(3, 2))
  phi_lib.check(phi, config.emit.spec(model))
  assert phi_lib.rows(phi) == 1
  graph, params, rest = nnx.split(producer, nnx.Param, ...)

  def total(params):
    phi = nnx.merge(graph, params, rest)(model, tiny.support(3, 2))
    return sum((x**2).sum() for x in jax.tree.leaves(phi) if jnp.issubdtype(x.dtype, jnp.floating))

  gradient = jax.grad(total)(params)["slots"][...]
  assert gradient.shape == (3, 6) and (jnp.abs(gradient).max(1) > 1e-6).all()


def test_patterns_name_sites_of_either_family():
  lora = TunedConfig(["*.*.q", "*.*.prefix"], prefix_length=2, rank=1, alpha=1.0)
  assert set(phi_lib.sites(lora.spec(tiny.llama()))) == {"decoder.self.q", tiny.PREFIX}
  assert set(phi_lib.sites(lora.spec(tiny_t5.t5()))) == {
    f"{place}.{site}" for place in ("encoder.self", "decoder.self", "decoder.cross")
    for site in ("q", "prefix")
  }  # fmt: skip
  with pytest.raises(ValueError, match=r"unknown site '\*.cross.q'; the nearest is 'decoder"):
    TunedConfig(["*.cross.q"], rank=1, alpha=1.0).spec(tiny.llama())


def test_a_tuned_phi_can_start_from_another():
  model = tiny.llama()
  spec = TunedConfig([tiny.PREFIX, "*.self.q"], prefix_length=2, rank=1, alpha=1.0).spec(model)
  other = tiny.random_phi(spec, 1)
  started = TunedPhi.starting_from(other, spec)
  jax.tree.map(np.testing.assert_array_equal, started(), other)
  with pytest.raises(ValueError, match="the spec says"):
    TunedPhi.starting_from(tiny.random_phi(spec, 1), TunedConfig(
      [tiny.PREFIX, "*.self.q"], prefix_length=3, rank=1, alpha=1.0
    ).spec(model))


def test_few_shot_training_starts_at_in_context_reading():
  model, support, query = tiny.llama(), tiny.support(4, 2), tiny.query(2, 2, 5)
  lora = TunedConfig(tiny.ATTENTION, rank=2, alpha=2.0)
  producer = build(TunedInContextConfig(lora), model)
  ours = tiny.logits(model, query, producer(model, support))
  theirs = tiny.logits(model, query, InContext()(model, support))
  np.testing.assert_allclose(ours, theirs, atol=1e-5)
  for name in producer.update.leaves:
    producer.update.leaves[name][...] += 0.3
  moved = tiny.logits(model, query, producer(model, support))
  assert np.abs(moved - theirs).max() > 0.01


def test_full_fine_tuning_has_no_phi():
  assert isinstance(build(FullConfig(), tiny.llama()), NoPhi)
  assert FullConfig().train == ("downstream",)
