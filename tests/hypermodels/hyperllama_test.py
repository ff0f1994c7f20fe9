"""HyperLlama: what its prefix is, what it depends on, what each field of its configs does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from hyperjax.core import masks, positions
from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import Support
from hyperjax.core.sharding import MeshConfig
from hyperjax.hypermodels.gisting import Gisting, GistingConfig
from hyperjax.hypermodels.hyperllama import (
  FullHyperLlamaConfig,
  GistConfig,
  HyperLlama,
  HyperLlamaConfig,
  gist_prefix,
)
from hyperjax.hypermodels.in_context import InContext
from hyperjax.training import step
from tests.models import tiny

PREFIX = "decoder.self.prefix"
GIST = GistConfig(num_gist=3)


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def build(config, seed=0):
  return config.build(tiny.llama(), tiny.encode, nnx.Rngs(seed))


def prefix(producer, support, model=None):
  return phi_lib.sites(produce(producer, model or tiny.llama(), support))[PREFIX]


@jax.jit
def produce(producer, model, support):
  return producer(model, support)


def doubled(model, *, sink=(), seed=7):
  """A HyperLlama in float64 whose update acts."""
  spec = model.phi_spec(rank=2, alpha=4.0, sites=tiny.SITES)
  gist = jnp.asarray(np.random.default_rng(seed).standard_normal((3, 32)), jnp.float64)
  hyper = HyperLlama(gist, spec, sink, rngs=nnx.Rngs(0))
  update = tiny.random_phi(spec, 1, dtype=jnp.float64)
  for name, leaf in zip(sorted(hyper.update.leaves), jax.tree.leaves(update), strict=True):
    hyper.update.leaves[name].set_value(leaf)
  return hyper, gist, update


@pytest.mark.parametrize("sink", [(), (5, 9)])
def test_its_prefix_is_the_gist_positions_of_a_plain_pass(x64, sink):
  """Row by row without padding, positions counted from the support's start, then turned back."""
  model, support = tiny.llama(jnp.float64), tiny.support(5, 2)
  hyper, gist, update = doubled(model, sink=sink)
  ours = prefix(hyper, support, model)
  np.testing.assert_array_equal(ours.length, np.full((3, 2), 3 + len(sink)))
  for b, length in enumerate((5, 2)):
    x = jnp.concatenate([model.embed_tokens(support.tokens[b, :length]), gist])
    at = jnp.arange(length + 3)
    _, (key, value) = jax.jit(
      lambda x, at: model.hidden(x[None, None], at[None, None], masks.Causal(), update)
    )(x, at)
    back = jnp.full(3, len(sink) - length)
    turn = model.decoder.turn(back[None, None], key.dtype)
    key = positions.rotate(key[:, :, 0, length:], turn)[:, 0]
    np.testing.assert_allclose(ours.key[:, b, len(sink):], key, atol=1e-9)
    np.testing.assert_allclose(ours.value[:, b, len(sink):], value[:, 0, 0, length:], atol=1e-9)


def test_a_sink_is_the_frozen_models_own_reading_in_front(x64):
  model, support, sink = tiny.llama(jnp.float64), tiny.support(5, 2), (5, 9)
  hyper, _, _ = doubled(model, sink=sink)
  ours = prefix(hyper, support, model)
  tokens = jnp.asarray([sink], jnp.int32)
  alone = prefix(InContext(), Support(tokens, jnp.asarray([2])), model)
  for b in range(2):
    np.testing.assert_allclose(ours.key[:, b, :2], alone.key[:, 0], atol=1e-12)
    np.testing.assert_allclose(ours.value[:, b, :2], alone.value[:, 0], atol=1e-12)


def test_what_pads_a_support_does_not_matter(x64):
  model, short = tiny.llama(jnp.float64), tiny.support(4, 2)
  hyper, _, _ = doubled(model)
  padded = Support(jnp.concatenate([short.tokens, tiny.tokens(9, 2, 3)], 1), short.length)
  for a, b in zip(
    jax.tree.leaves(prefix(hyper, short, model)),
    jax.tree.leaves(prefix(hyper, padded, model)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=1e-9)


def test_a_batch_equals_a_loop_over_its_episodes(x64):
  model, support = tiny.llama(jnp.float64), tiny.support(4, 4, 2)
  hyper, _, _ = doubled(model)
  together = prefix(hyper, support, model)
  for b in range(3):
    one = prefix(hyper, tiny.row(support, b), model)
    np.testing.assert_allclose(together.key[:, b], one.key[:, 0], atol=1e-9)
    np.testing.assert_allclose(together.value[:, b], one.value[:, 0], atol=1e-9)


SYSTEMS = {
  "hyperllama": HyperLlamaConfig(dataclasses.replace(GIST, sink_text="a"), rank=2),
  "full": FullHyperLlamaConfig(GIST),
  "gisting": GistingConfig(HyperLlamaConfig(GIST, rank=2)),
}


def after_one_step(name):
  """The system behind one training step, and the trained parameters before and after it."""
  model = tiny.llama()
  system = step.System(build(SYSTEMS[name]), model)
  parts = step.split(system)
  before = jax.tree.map(np.asarray, parts.trained)
  optimizer = optax.adam(1e-2)
  state = step.init_optimizer(optimizer, parts.trained, MeshConfig().build(jax.devices()[:1]))
  train = step.make_train_step(parts.graph, optimizer, step.Objective())
  after, _, _ = train(parts.trained, state, parts.frozen, tiny.batch(4, 2))
  return nnx.merge(parts.graph, after, parts.frozen), before, after


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_generated_leaf_depends_on_the_support(name):
  """Layer 0 has not looked at the support yet: its gist keys are the embeddings' own."""
  system, before, after = after_one_step(name)
  if name != "full":  # B starts at zero, so A gets its first gradient from the second step
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, after, before))
    assert sum(moved) == 1 + 4 and len(moved) == 1 + 2 * 4
  support, producer, downstream = tiny.support(4, 3), system.producer, system.downstream
  full = name == "full"  # its own copy embeds the support
  graph, state = nnx.split(producer.body if full else downstream)
  params = nnx.to_pure_dict(state)

  @jax.jit
  def influence(table):
    def read(table):
      reader = nnx.merge(graph, {**params, "embed": table})
      if full:
        pair = gist_prefix(reader, support, producer.gist[...])
      else:
        node = phi_lib.sites(producer(reader, support))[PREFIX]
        pair = node.key, node.value
      return [leaf[:, 0, -3:].sum((2, 3)) for leaf in pair]

    return jax.jacrev(read)(table)

  read = set(np.asarray(support.tokens[0, :4]).tolist())
  others = set(range(61)) - read - set(tiny.encode("a"))
  for leaf in influence(params["embed"]):
    size = np.abs(leaf).max(-1)  # [L, G, V]
    assert (size[1:][..., sorted(read)] > 0).all()
    assert not size[0].any() and not size[..., sorted(others)].any()


def test_gistings_update_is_tied_not_generated():
  model = tiny.llama()
  producer = build(SYSTEMS["gisting"])
  first, second = (
    phi_lib.sites(produce(producer, model, tiny.support(4, seed=s))) for s in (1, 2)
  )
  assert set(first) == {PREFIX, *tiny.ATTENTION}
  assert np.abs(first[PREFIX].key - second[PREFIX].key).max() > 1e-3
  for site in tiny.ATTENTION:
    np.testing.assert_array_equal(first[site].a, second[site].a)
  assert isinstance(producer, Gisting)


def test_all_phis_are_what_the_spec_describes():
  model = tiny.llama()
  for name, config in SYSTEMS.items():
    length = 4 if name == "hyperllama" else 3
    sites = [tiny.PREFIX, *(tiny.ATTENTION if name == "gisting" else ())]
    phi = produce(build(config), model, tiny.support(4, 2))
    phi_lib.check(phi, model.phi_spec(sites, prefix_length=length, rank=2, alpha=16.0))


def test_full_starts_as_the_untrained_hyperllama():
  """Both read the support with the frozen weights at first: the copy is equal, and is a copy."""
  model, support = tiny.llama(), tiny.support(4, 2)
  full, lora = build(SYSTEMS["full"]), build(HyperLlamaConfig(GIST, rank=2))
  np.testing.assert_array_equal(full.gist[...], lora.gist[...])
  a, b = prefix(full, support), prefix(lora, support)
  np.testing.assert_allclose(a.key, b.key, atol=1e-6)
  pointers = lambda m: {x.unsafe_buffer_pointer() for x in jax.tree.leaves(nnx.state(m))}
  assert not pointers(full.body) & pointers(model)
  half = FullHyperLlamaConfig(GIST).build(tiny.llama(jnp.bfloat16), tiny.encode, nnx.Rngs(0))
  assert {x.dtype for x in jax.tree.leaves(nnx.state(half.body))} == {jnp.dtype("float32")}


def test_full_trains_no_output_layer():
  """Its copy gives keys and values only."""
  model = tiny.llama(tie_embeddings=False)
  full = FullHyperLlamaConfig(GIST).build(model, tiny.encode, nnx.Rngs(0))
  phi = produce(full, model, tiny.support(4, 2))
  number = lambda m: sum(x.size for x in jax.tree.leaves(nnx.state(m)))
  assert number(full.body) == number(model) - model.head[...].size
  assert len(jax.tree.leaves(phi)) == 3


CHANGES = {
  GistConfig: dict(num_gist=4, init_text="ab", noise=0.5, sink_text="a"),
  HyperLlamaConfig: dict(
    gist=dataclasses.replace(GIST, noise=0.5), rank=4, alpha=8.0, sites=tiny.SITES[:1]
  ),
  FullHyperLlamaConfig: dict(gist=dataclasses.replace(GIST, noise=0.5)),
  GistingConfig: dict(hyper=HyperLlamaConfig(GIST, rank=3)),
}


def whole(kind, **changes):
  """A config of this kind with changes, as a HyperLlama's config where it is only its gist."""
  base = {HyperLlamaConfig: dict(gist=GIST, rank=2), FullHyperLlamaConfig: dict(gist=GIST)}
  if kind is GistConfig:
    return HyperLlamaConfig(dataclasses.replace(GIST, **changes), rank=2)
  if kind is GistingConfig:
    return GistingConfig(**({"hyper": HyperLlamaConfig(GIST, rank=2)} | changes))
  return kind(**(base[kind] | changes))


@pytest.mark.parametrize("kind", CHANGES)
def test_every_field_changes_phi_or_its_parameters(kind):
  assert CHANGES[kind].keys() == {f.name for f in dataclasses.fields(kind)} - {"loop"}

  def observe(**changes):
    producer = build(whole(kind, **changes))
    update = getattr(getattr(producer, "hyper", producer), "update", None)
    if update is not None:
      for leaf in update.leaves.values():
        leaf[...] = jnp.cos(jnp.arange(leaf[...].size)).reshape(leaf.shape)
    return prefix(producer, tiny.support(4, 2))

  base = observe()
  for field, value in CHANGES[kind].items():
    new = observe(**{field: value})
    same = new.key.shape == base.key.shape and np.allclose(new.key, base.key, atol=1e-5)
    assert not same, field


def test_gist_embeddings_start_from_the_text_repeated():
  table = np.asarray(tiny.llama().embed[...])
  make = lambda **c: np.asarray(
    GistConfig(num_gist=400, **c).embeddings(tiny.llama(), tiny.encode, jax.random.key(0))
  )
  ids = tiny.encode("abc")
  exact = make(init_text="abc", noise=0.0)
  np.testing.assert_array_equal(exact, table[[ids[i % 3] for i in range(400)]])
  noisy = make(init_text="abc", noise=0.3) - exact
  assert np.isclose(noisy.std(), 0.3 * table.std(), rtol=0.05)
  noise = make(init_text="")
  assert noise.dtype == np.float32 and np.isclose(noise.std(), table.std(), rtol=0.05)


def test_fewer_than_one_gist_token_is_an_error():
  with pytest.raises(ValueError, match="GistConfig.num_gist must be at least 1, not 0"):
    GistConfig(num_gist=0)


def test_an_unknown_site_in_the_config_names_the_nearest():
  with pytest.raises(ValueError, match="'decoder.self.w'; the nearest is 'decoder.self"):
    build(HyperLlamaConfig(GIST, rank=2, sites=("decoder.self.w",)))
