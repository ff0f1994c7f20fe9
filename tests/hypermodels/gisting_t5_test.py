"""T5's gisting: one masked pass over [support, gist, query] = two passes with tied weights."""

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
from hyperjax.hypermodels.gist_tokens import GistTokens
from hyperjax.hypermodels.gisting_t5 import (
  CROSS,
  ENCODER,
  CrossGist,
  EncoderGist,
  FullGistingT5Config,
  GistingT5Config,
  gist_phi,
  one_pass,
)
from hyperjax.training import step
from tests.hypermodels import tiny_t5
from tests.models import tiny

LENGTHS = (6, 1, 3)
ATTENTION = [
  f"{attention}.{name}"
  for attention in ("encoder.self", "decoder.self", "decoder.cross")
  for name in ("q", "k", "v", "o")
]
SITES = (*ATTENTION, "encoder.mlp.up", "encoder.mlp.down", "decoder.mlp.gate")
GIST = GistTokens(num_gist=3)
CONFIGS = {"lora": GistingT5Config(GIST, rank=2), "full": FullGistingT5Config(GIST)}


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def two_passes(t5, support, query, gist, update=None):
  return t5(query, phi_lib.merge(gist_phi(t5, support, gist, update), update))


def parts(lora: bool):
  t5 = tiny_t5.t5(jnp.float64)
  gist = jnp.asarray(np.random.default_rng(7).standard_normal((4, 16)))
  spec = t5.phi_spec(SITES, rank=2, alpha=3.0)
  update = tiny.random_phi(spec, 1, dtype=jnp.float64) if lora else None
  return t5, tiny.support(*LENGTHS), tiny_t5.query(3, 2, 7, 4), gist, update


def test_the_masks_are_those_of_the_paper():
  """The figure of the docstring, with one token of padding at the end."""
  start, length = jnp.asarray([[2]]), jnp.asarray([[6]])
  drawn = """
    1 1 0 0 0 0 0
    1 1 0 0 0 0 0
    1 1 1 1 0 0 0
    1 1 1 1 0 0 0
    0 0 1 1 1 1 0
    0 0 1 1 1 1 0"""
  expected = np.asarray(drawn.split(), int).reshape(6, 7)
  np.testing.assert_array_equal(EncoderGist(length, start, 2).dense(7, 7)[0, 0, :6], expected)
  np.testing.assert_array_equal(
    CrossGist(length, start).dense(2, 7)[0, 0], [[0, 0, 1, 1, 1, 1, 0]] * 2
  )


@pytest.mark.parametrize("lora", [False, True])
def test_one_pass_equals_two(x64, lora):
  """Logits, and gradients with respect to the gist embeddings and the tied update."""
  t5, support, query, gist, update = parts(lora)
  weights = jnp.asarray(np.random.default_rng(8).standard_normal((3, 2, 4, 61)))

  def run(form):
    def total(gist, update):
      logits = form(t5, support, query, gist, update)
      return (logits * weights).sum(), logits

    arguments = (0, 1) if lora else 0
    return jax.jit(jax.value_and_grad(total, arguments, has_aux=True))(gist, update)

  ((_, one), one_grads), ((_, two), two_grads) = run(one_pass), run(two_passes)
  np.testing.assert_allclose(one, two, atol=1e-9, rtol=0)
  for a, b in zip(jax.tree.leaves(one_grads), jax.tree.leaves(two_grads), strict=True):
    assert np.abs(b).max() > 1e-2
    np.testing.assert_allclose(a, b, atol=1e-9, rtol=1e-9)


@dataclasses.dataclass(frozen=True)
class Drawn(masks.Whole):
  """A mask drawn by hand; its length is not used."""

  table: np.ndarray

  def dense(self, T, S):
    assert self.table.shape == (T, S)
    return jnp.asarray(self.table)[None, None]


def test_one_pass_is_an_unpadded_row_under_a_mask_drawn_by_hand(x64):
  t5, support, query, gist, update = parts(True)
  ours = jax.jit(one_pass)(t5, support, query, gist, update)
  unused = jnp.zeros((1, 1), jnp.int32)
  for b, m in ((0, 0), (1, 1), (2, 0)):
    s, q = LENGTHS[b], int(query.length[b, m])
    kinds = np.asarray([*"s" * s, *"g" * 4, *"q" * q])
    sees = {"s": "s", "g": "sg", "q": "gq"}
    table = np.asarray([[other in sees[kind] for other in kinds] for kind in kinds])
    cross = np.tile(kinds != "s", (4, 1))

    @jax.jit
    def alone(t5, update, before, text, table=table, cross=cross, s=s):
      x = t5.embed_tokens(text)
      x = jnp.concatenate([x[:s], gist, x[s:]])[None, None]
      encoded, _ = t5.encode(x, Drawn(unused, table), update)
      seen = masks.Causal(), Drawn(unused, cross)
      return t5.logits(t5.decode(t5.embed_tokens(before)[None, None], encoded, seen, update))

    text = jnp.concatenate([support.tokens[b, :s], query.tokens[b, m, :q]])
    before = jnp.concatenate([jnp.zeros(1, jnp.int32), query.targets[b, m, :-1]])
    np.testing.assert_allclose(alone(t5, update, before, text)[0, 0], ours[b, m], atol=1e-9)


def test_padding_does_not_matter_and_a_batch_is_a_loop(x64):
  t5, support, _, gist, update = parts(True)
  produce = jax.jit(gist_phi)
  together = produce(t5, support, gist, update)
  padded = Support(jnp.concatenate([support.tokens, tiny.tokens(9, 3, 3)], 1), support.length)
  same = produce(t5, padded, gist, update)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), together, same)
  for b in range(3):
    one = produce(t5, tiny.row(support, b), gist, update)
    jax.tree.map(
      lambda a, o, b=b: np.testing.assert_allclose(a[:, b], o[:, 0], atol=1e-9), together, one
    )


def test_the_support_reaches_the_queries_only_through_the_gist(x64):
  """Two layers carry it; one encoder layer of gist keys has not read it yet, but its outputs have:
  without the cross-attention's prefix nothing is left."""
  t5, support, query, gist, _ = parts(False)
  other = Support(tiny.tokens(11, 3, 6), support.length)
  form = jax.jit(one_pass)
  moved = np.abs(form(t5, other, query, gist) - form(t5, support, query, gist)).max((1, 2, 3))
  assert (moved > 1e-5).all()
  shallow = tiny_t5.t5(jnp.float64, num_encoder_layers=1)

  @jax.jit
  def behind(model, support):
    made = phi_lib.sites(gist_phi(model, support, gist))
    kept: dict = {}
    phi_lib.insert(kept, ENCODER, made[ENCODER])
    without = model(query, kept)
    phi_lib.insert(kept, CROSS, made[CROSS])
    return without, model(query, kept)

  (a, c), (b, d) = (behind(shallow, s) for s in (support, other))
  np.testing.assert_array_equal(a, b)
  assert np.abs(c - d).max() > 1e-5


@functools.cache
def fresh(name, changes=()):
  with jax.default_prng_impl("rbg"):
    config = dataclasses.replace(CONFIGS[name], **dict(changes))
    return config.build(tiny_t5.t5(), tiny.encode, nnx.Rngs(0))


@jax.jit
def produce(producer, model, support):
  return producer(model, support)


@pytest.mark.parametrize("name", CONFIGS)
def test_its_phi_is_what_the_specs_describe(name):
  """The update is tied, not generated: of one row."""
  t5, hyper = tiny_t5.t5(), fresh(name)
  phi = produce(hyper, t5, tiny.support(4, 2))
  spec = phi_lib.merge(
    t5.phi_spec([ENCODER], prefix_length=3, positions="before"),
    t5.phi_spec([CROSS], prefix_length=3, positions="none"),
  )
  if name == "lora":
    spec = phi_lib.merge(spec, t5.phi_spec(ATTENTION, rank=2, alpha=16.0))
    assert all(phi_lib.sites(phi)[site].a.shape[1] == 1 for site in ATTENTION)
  phi_lib.check(phi, spec)
  assert phi_lib.sites(phi)[ENCODER].key.shape[1] == 2


@pytest.mark.parametrize("name", CONFIGS)
def test_it_learns_and_its_generated_leaves_depend_on_every_real_token(name):
  """Encoder layer 0 has not looked at the support yet: its gist keys are the embeddings' own."""
  t5, batch = tiny_t5.t5(), tiny_t5.batch(4, 2)
  parts = step.split(step.System(fresh(name), t5), CONFIGS[name].train)
  assert parts.trained.keys() == set(CONFIGS[name].train)
  optimizer = optax.adam(1e-2)
  trained = jax.tree.map(lambda x: jnp.array(np.asarray(x)), parts.trained)
  before = jax.tree.map(np.asarray, trained)
  state = step.init_optimizer(optimizer, trained, MeshConfig().build(jax.devices()[:1]))
  train = step.make_train_step(parts.graph, optimizer, step.Objective())
  losses = []
  for number in range(12):
    trained, state, metrics = train(trained, state, parts.frozen, batch)
    losses.append(float(metrics["loss"]))
    if number == 0:
      after = jax.tree.map(lambda x: jnp.array(np.asarray(x)), trained)
  assert losses[-1] < losses[0] - 0.1, losses
  last = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), trained, before)
  assert all(jax.tree.leaves(last))
  system = nnx.merge(parts.graph, after, parts.frozen)
  graph, params = nnx.split(system.downstream)
  support = tiny.support(4, 3)

  @jax.jit
  def influence(table):
    def leaves(table):
      reader = nnx.merge(graph, {**nnx.to_pure_dict(params), "embed": table})
      nodes = phi_lib.sites(system.producer(reader, support))
      pairs = [x for site in (ENCODER, CROSS) for x in (nodes[site].key, nodes[site].value)]
      return [jnp.sum(jnp.cos(7 * x[:, 0]), (1, 2, 3)) for x in pairs]

    return [jnp.abs(x).max(-1) for x in jax.jacrev(leaves)(table)]

  read = sorted(set(np.asarray(support.tokens[0, :4]).tolist()))
  others = sorted(set(range(61)) - set(read))
  for number, leaf in enumerate(influence(system.downstream.embed[...])):  # [L, V]
    assert (leaf[number < 2 :, read] > 0).all() and not leaf[:, others].any()
    assert number >= 2 or not leaf[0].any()


CHANGES = dict(gist=GistTokens(3, "ab"), rank=4, alpha=8.0, sites=("encoder.self.k",))


def test_every_field_changes_phi_or_its_parameters():
  assert CHANGES.keys() == {f.name for f in dataclasses.fields(GistingT5Config)}

  def observe(**changes):
    hyper = fresh("lora", tuple(changes.items()))
    leaves = [
      x + 0.3 * jnp.cos(jnp.arange(x.size)).reshape(x.shape)
      for x in jax.tree.leaves(nnx.state(hyper))
    ]
    graph, params = nnx.split(hyper)
    hyper = nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(params), leaves))
    nodes = phi_lib.sites(produce(hyper, tiny_t5.t5(), tiny.support(4)))
    return [x.shape for x in leaves], nodes[CROSS].key

  shapes, key = observe()
  for field, value in CHANGES.items():
    new_shapes, new = observe(**{field: value})
    assert shapes != new_shapes or not np.allclose(key, new, atol=1e-5), field


def test_an_unknown_site_names_the_nearest():
  with pytest.raises(ValueError, match="'encoder.self.w'; the nearest is 'encoder.self"):
    fresh("lora", (("sites", ("encoder.self.w",)),))


def test_a_text_without_a_token_is_an_error():
  """As a newline is in T5's vocabulary."""
  model, key = tiny_t5.t5(), jax.random.key(0)
  with pytest.raises(ValueError, match=r"init_text '\\n' has no token"):
    GistTokens(3, "\n").embeddings(model, lambda text: [], key)
  assert GistingT5Config().gist.embeddings(model, lambda text: [], key).shape == (16, 16)


def test_fewer_than_one_gist_token_is_an_error():
  with pytest.raises(ValueError, match="GistTokens.num_gist must be at least 1, not 0"):
    GistTokens(0)


