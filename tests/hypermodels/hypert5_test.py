"""HyperT5 for both model families: what its phi is, what it depends on, what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hyperjax.core import masks
from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import Support
from hyperjax.hypermodels.heads import EmitLowRank, EmitPrefix, HeadsConfig
from hyperjax.hypermodels.hypert5 import HyperT5Config
from hyperjax.models import families
from hyperjax.training import step
from tests.hypermodels import tiny_t5
from tests.models import tiny

EMITS = {"prefix": EmitPrefix(3), "lora": EmitLowRank(2, 5.0)}
MODELS = {"t5": tiny_t5.t5, "llama": tiny.llama}
BATCHES = {"t5": tiny_t5.batch, "llama": tiny.batch}
# Smaller than the T5 that it serves, in every way.
BODY = dataclasses.replace(
  tiny_t5.CONFIG, d_model=12, num_encoder_layers=2, num_decoder_layers=1, head_dim=4, d_mlp=16
)


def config(emit="prefix", **changes):
  emit = EMITS[emit] if emit in list(EMITS) else emit
  given = dict(architecture=BODY, source="random", emit=emit, heads=HeadsConfig(width=8))
  return HyperT5Config(**(given | changes))


@functools.cache
def fresh(model, emit):
  """A hypermodel at its initial values; threefry would be compiled for every array."""
  with jax.default_prng_impl("rbg"):
    return config(emit).build(MODELS[model](), tiny.encode, nnx.Rngs(0))


@functools.cache
def build(model, emit, dtype=jnp.float32):
  """A hypermodel whose zero kernels are drawn too, in this type."""
  abstract = nnx.eval_shape(
    lambda d: config(emit).build(d, tiny.encode, nnx.Rngs(0)), MODELS[model]()
  )
  graph, params = nnx.split(abstract)
  rng = np.random.default_rng(1)

  def draw(path, leaf):
    norm = "norm" in jax.tree_util.keystr(path)
    return jnp.asarray(norm + 0.3 * rng.standard_normal(leaf.shape), dtype)

  return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, params))


@jax.jit
def produce(producer, model, support):
  return producer(model, support)


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


@pytest.mark.parametrize("emit", EMITS)
@pytest.mark.parametrize("model", MODELS)
def test_its_phi_is_what_the_spec_describes(model, emit):
  downstream = MODELS[model]()
  phi = produce(build(model, emit), downstream, tiny.support(4, 2, 3))
  phi_lib.check(phi, EMITS[emit].spec(downstream))
  assert phi_lib.rows(phi) == 3


def test_it_is_its_formula(x64):
  """Row by row: encoder over the real support, decoder over all slots, heads."""
  downstream = tiny_t5.t5(jnp.float64)
  hyper, support = build("t5", "prefix", jnp.float64), tiny.support(5, 2)
  ours = produce(hyper, downstream, support)
  size = hyper.slots.shape[0]
  assert size == 3

  @functools.partial(jax.jit, static_argnums=1)
  def alone(hyper, length, tokens):
    body = hyper.body
    text = masks.Whole(jnp.asarray([[length]]))
    encoded, _ = body.encode(body.embed_tokens(tokens[None, None]), text)
    every = masks.Whole(jnp.asarray([[size]]))
    return hyper.heads(body.decode(hyper.slots[...][None, None], encoded, (every, text))[:, 0])

  for b, length in enumerate((5, 2)):
    one = alone(hyper, length, support.tokens[b, :length])
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(one), strict=True):
      np.testing.assert_allclose(mine[:, b], theirs[:, 0], atol=1e-9)


def test_the_decoder_has_no_causal_mask(x64):
  """The first slot's rows depend on the last slot's embedding."""
  downstream, support = tiny_t5.t5(jnp.float64), tiny.support(4)
  hyper = build("t5", "prefix", jnp.float64)
  graph, params = nnx.split(hyper)
  moved = params["slots"][...].at[-1].add(1.0)
  params["slots"] = params["slots"].replace(moved)
  base, other = (
    phi_lib.sites(produce(h, downstream, support))[tiny_t5.PREFIXES[1]].key
    for h in (hyper, nnx.merge(graph, params))
  )
  assert (np.abs(base - other).max((0, 1, 3, 4)) > 1e-6).all()


@pytest.mark.parametrize("emit", EMITS)
def test_padding_does_not_matter_and_a_batch_is_a_loop(x64, emit):
  downstream, hyper = tiny_t5.t5(jnp.float64), build("t5", emit, jnp.float64)
  support = tiny.support(4, 4, 2)
  together = produce(hyper, downstream, support)
  padded = Support(jnp.concatenate([support.tokens, tiny.tokens(9, 3, 3)], 1), support.length)
  same = produce(hyper, downstream, padded)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), together, same)
  for b in range(3):
    one = produce(hyper, downstream, tiny.row(support, b))
    jax.tree.map(
      lambda a, o, b=b: np.testing.assert_allclose(a[:, b], o[:, 0], atol=1e-9), together, one
    )
  first, second = (jax.tree.map(lambda x, b=b: x[:, b], together) for b in (0, 1))
  for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
    assert a.dtype == jnp.int32 or np.abs(a - b).max() > 1e-6


@pytest.mark.parametrize("model", MODELS)
def test_lora_starts_exactly_at_the_zero_shot_model(model):
  downstream, batch = MODELS[model](), BATCHES[model](4, 2)
  hyper = fresh(model, "lora")
  run = jax.jit(lambda model, query, phi: model(query, phi))
  phi = produce(hyper, downstream, batch.support)
  assert all(np.abs(node.a).max() > 0.1 for node in phi_lib.sites(phi).values())
  np.testing.assert_array_equal(
    run(downstream, batch.query, phi), run(downstream, batch.query, None)
  )
  moved = produce(build(model, "lora"), downstream, batch.support)
  assert np.abs(run(downstream, batch.query, moved) - run(downstream, batch.query, None)).max() > (
    1e-4
  )


def test_the_whole_body_is_trained_in_float32_and_the_downstream_only_on_demand():
  downstream = tiny_t5.t5(jnp.bfloat16)
  plain, plus = config(), config(train_downstream=True)
  assert plain.train == ("producer",) and plus.train == ("producer", "downstream")
  hyper = fresh("t5", "prefix")
  number = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  for given, more in ((plain, 0), (plus, number(nnx.state(downstream)))):
    parts = step.split(step.System(hyper, downstream), given.train)
    assert number(parts.trained) == number(nnx.state(hyper)) + more
  assert {x.dtype for x in jax.tree.leaves(nnx.state(hyper))} == {jnp.dtype("float32")}
  phi = produce(hyper, downstream, tiny.support(4))
  assert phi_lib.sites(phi)[tiny_t5.PREFIXES[0]].key.dtype == jnp.bfloat16


def test_the_body_is_the_checkpoint(tmp_path):
  """And nothing is read where only shapes are wanted."""
  params = families.random(BODY, seed=3).params
  families.save(tmp_path / "body", BODY, params)
  given = config(source=str(tmp_path / "body"))
  model = tiny_t5.t5()
  with jax.default_prng_impl("rbg"):
    hyper = given.build(model, tiny.encode, nnx.Rngs(0), given.load(model, None))
  body = nnx.to_pure_dict(nnx.state(hyper.body))
  jax.tree.map(np.testing.assert_array_equal, body, {k: params[k] for k in params if k != "head"})
  assert np.abs(fresh("t5", "prefix").body.embed[...] - params["embed"]).max() > 0.1
  missing = config(source=str(tmp_path / "missing"))
  with pytest.raises(FileNotFoundError, match="missing"):
    missing.load(model, None)
  with pytest.raises(ValueError, match="missing': build takes what load gives"):
    missing.build(model, tiny.encode, nnx.Rngs(0))
  shapes_only = families.abstract(tiny_t5.CONFIG)
  abstract = nnx.eval_shape(
    lambda downstream, body: missing.build(downstream, lambda text: [0], nnx.Rngs(0), body),
    shapes_only, missing.load(shapes_only, None),
  )  # fmt: skip
  shapes = lambda m: jax.tree.map(lambda x: (x.shape, x.dtype), nnx.to_pure_dict(nnx.state(m)))
  assert shapes(abstract) == shapes(hyper)


def test_slots_start_like_embeddings():
  with jax.default_prng_impl("rbg"):
    hyper = config(EmitPrefix(500)).build(tiny_t5.t5(), tiny.encode, nnx.Rngs(0))
  assert hyper.slots.shape == (500, 12)
  assert hyper.slots[...].std() == pytest.approx(float(hyper.body.embed[...].std()), rel=0.05)


def refused(**changes):
  config(**changes).build(tiny_t5.t5(), tiny.encode, nnx.Rngs(0))


@pytest.mark.parametrize("changes, message", [
  (dict(source=""), "source must name the checkpoint .* or 'random' for new weights; it is ''"),
  (dict(emit="lorra"), "emit must be an EmitPrefix or an EmitLowRank, not 'lorra'"),
  (dict(architecture=tiny.CONFIG), r"must be a T5Config, not LlamaConfig\(.*BODY_SOURCE"),
  (dict(emit=EmitLowRank(13)), r"LoRA rank 13 is not in 1\.\.12"),
  (dict(emit=EmitLowRank(2, sites=["decoder.self.w"])), "unknown site 'decoder.self.w'; the near"),
  (dict(architecture=dataclasses.replace(BODY, vocab_size=60)),
   "body has 60 tokens, the downstream model's vocabulary 61"),
])  # fmt: skip
def test_what_cannot_be_is_one_clear_error(changes, message):
  with pytest.raises(ValueError, match=message) as error:
    refused(**changes)
  assert "\n" not in str(error.value)


def test_a_t5_checkpoint_does_not_know_a_llamas_tokens():
  with pytest.raises(ValueError, match="another vocabulary than the downstream Llama's"):
    config(source="t5-large").build(tiny.llama(), tiny.encode, nnx.Rngs(0))


def test_the_source_must_be_given():
  with pytest.raises(TypeError, match="source"):
    HyperT5Config(architecture=BODY, emit=EmitPrefix())
