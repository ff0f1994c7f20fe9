"""Heads: the phi that they make, its scale, what each row of it depends on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from hyperjax import sources
from hyperjax.core import masks, sharding, specs
from hyperjax.core import phi as phi_lib
from hyperjax.data import vocabularies
from hyperjax.hypermodels import heads
from hyperjax.hypermodels.heads import EmitLowRank, EmitPrefix, Heads, HeadsConfig
from hyperjax.models import families
from hyperjax.models.llama import Llama
from tests.hypermodels import tiny_t5
from tests.models import tiny

WIDTH = 64
MODELS = {"t5": tiny_t5.t5, "llama": tiny.llama}
EMITS = {"prefix": EmitPrefix(3), "lora": EmitLowRank(2, 5.0)}
VARIANTS = ("shared", "per_layer")
SLOTS = {"own": heads.slots_per_site, "common": heads.common_slots}


@functools.cache
def build(model, emit, variant, slots="own", width=12):
  emit, downstream = EMITS.get(emit, emit), MODELS[model]()
  spec = emit.spec(downstream)
  config = HeadsConfig(variant, width)
  return spec, Heads(config, spec, SLOTS[slots](spec), emit.scale, WIDTH, rngs=nnx.Rngs(0))


def states(module, batch=2, seed=0):
  shape = (batch, module.num_slots, WIDTH)
  return jnp.asarray(3 + 5 * np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@jax.jit
def made(module, x):
  return module(x)


def active(module):
  """The same heads whose zero kernels are drawn, so that every row depends on its slot."""
  graph, params = nnx.split(module)
  draw = lambda x: jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
  return nnx.merge(graph, jax.tree.map(lambda x: x + 0.3 * draw(x), params))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("emit", EMITS)
@pytest.mark.parametrize("model", MODELS)
def test_they_make_what_the_spec_describes(model, emit, variant):
  spec, module = build(model, emit, variant)
  phi = made(module, states(module))
  phi_lib.check(phi, spec)
  assert phi_lib.rows(phi) == 2
  assert jax.tree.structure(phi) == jax.tree.structure(jax.tree.map(lambda l: 0, spec,
                                                                    is_leaf=phi_lib.is_leaf))


def test_the_number_of_slots():
  """T5 has three prefix sites and six projections by default, Llama one and two."""
  assert build("t5", "prefix", "shared")[1].num_slots == 3
  assert build("t5", "lora", "shared")[1].num_slots == 6 * 2
  assert build("llama", "lora", "shared")[1].num_slots == 2 * 2
  assert build("t5", "lora", "shared", "common")[1].num_slots == 2
  spec = phi_lib.merge(build("t5", "prefix", "shared")[0], build("t5", "lora", "shared")[0])
  slots = heads.slots_per_site(spec)
  ranges = sorted({slots[site] for site in slots})
  assert ranges == [(0, 3), *((start, start + 2) for start in range(3, 15, 2))]
  assert all(slots[site] == (0, 3) for site in tiny_t5.PREFIXES)


def test_the_default_sites_are_the_papers():
  for model, prefixes, projections in (
    ("t5", tiny_t5.PREFIXES, tiny_t5.QUERY_VALUE),
    ("llama", [tiny.PREFIX], ["decoder.self.q", "decoder.self.v"]),
  ):
    downstream = MODELS[model]()
    assert set(phi_lib.sites(EmitPrefix(2).spec(downstream))) == set(prefixes)
    assert set(phi_lib.sites(EmitLowRank(2).spec(downstream))) == set(projections)
  chosen = EmitLowRank(2, 3.0, ["decoder.mlp.up"]).spec(tiny.llama())
  assert list(phi_lib.sites(chosen)) == ["decoder.mlp.up"]
  assert phi_lib.sites(chosen)["decoder.mlp.up"].scale == 1.5


@pytest.mark.parametrize("variant", VARIANTS)
def test_they_start_at_their_scale_whatever_the_bodys(variant):
  """In every layer; with as many outputs as make the root mean square a matter of no luck."""
  rms = lambda x: np.sqrt(np.square(x).mean(tuple(range(1, x.ndim))))

  def start(emit, place, size=1.0):
    spec = specs.make_spec(
      {"x": place}, ["x"], prefix_length=40, rank=getattr(emit, "rank", 0), alpha=1.0
    )
    slots = heads.slots_per_site(spec)
    module = Heads(HeadsConfig(variant, 400), spec, slots, emit.scale, WIDTH, rngs=nnx.Rngs(0))
    return phi_lib.init(spec, jax.random.key(0))["x"], made(module, size * states(module, 8))["x"]

  for size in (1.0, 1e3):
    emit = EmitPrefix(40, key_scale=3.0, value_scale=0.5)
    _, prefix = start(emit, specs.PrefixSite(3, 8, 50), size)
    np.testing.assert_allclose(rms(prefix.key), np.full(3, 3.0), rtol=0.15)
    np.testing.assert_allclose(rms(prefix.value), np.full(3, 0.5), rtol=0.15)
    drawn, update = start(EmitLowRank(16), specs.LowRankSite(3, 500, 30), size)
    np.testing.assert_allclose(rms(update.a), rms(drawn.a), rtol=0.15)
    np.testing.assert_array_equal(update.b, 0.0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("emit", EMITS)
def test_a_row_depends_on_its_slot_alone(emit, variant):
  spec, module = build("t5", emit, variant)
  module = active(module)
  slots = heads.slots_per_site(spec)
  x = states(module)
  base = phi_lib.sites(made(module, x))
  changed = 1
  moved = phi_lib.sites(made(module, x.at[0, changed].add(1.0)))
  seen = 0
  for site, node in base.items():
    start, end = slots[site]
    rows = {"key": 2, "value": 2} if emit == "prefix" else {"a": 3, "b": 2}
    for field, axis in rows.items():
      delta = np.abs(getattr(moved[site], field) - getattr(node, field))
      by_row = delta.max(tuple(i for i in range(delta.ndim) if i not in (0, 1, axis)))
      expected = np.zeros_like(by_row, bool)
      if start <= changed < end:
        expected[:, 0, changed - start] = True
        seen += 1
      np.testing.assert_array_equal(by_row > 1e-5, expected)
  assert seen == (6 if emit == "prefix" else 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layer_and_leaf_has_rows_of_its_own(variant):
  _, module = build("t5", "prefix", variant, "common")
  phi = made(active(module), states(module))
  rows = [np.asarray(x).reshape(x.shape[0], -1) for x in jax.tree.leaves(phi) if x.ndim == 5]
  flat = np.concatenate(rows)
  assert len(flat) == 2 * (3 + 2 + 2)
  distance = np.abs(flat[:, None] - flat[None]).max(-1)
  assert (distance[~np.eye(len(flat), dtype=bool)] > 1e-3).all()


def test_the_shared_heads_layers_differ_by_their_embedding_only():
  _, module = build("llama", "prefix", "shared")
  head = module.heads["decoder_self_prefix_key"]
  x = states(module)
  one = made(head, x)
  graph, params = nnx.split(head)
  params["layer"] = params["layer"].replace(params["layer"][...][::-1])
  np.testing.assert_allclose(made(nnx.merge(graph, params), x), one[::-1], atol=1e-5)
  for l in range(3):
    mean = (x + head.layer[...][l]) / 2**0.5
    h = jax.nn.gelu(mean @ head.up[...] / WIDTH**0.5 + head.up_bias[...])
    rows = h @ head.down[...] / (0.652 * 12**0.5) + head.down_bias[...]
    np.testing.assert_allclose(one[l], 2.0 * rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("emit", EMITS)
@pytest.mark.parametrize("width", [16, 1024])
def test_a_step_of_adam_moves_rows_by_a_part_of_their_scale(width, emit, variant):
  """B's too, which start at zero: sqrt(width) times the rate, not width times."""
  rate = 1e-3
  spec, module = build("llama", emit, variant, width=width)
  graph, params = nnx.split(module)
  x = states(module)
  make = lambda params: phi_lib.sites(nnx.merge(graph, params)(x))
  fields = {"prefix": ("key", "value"), "lora": ("a", "b")}[emit]
  rows = lambda phi: {
    (site, field): (getattr(phi[site], field), EMITS[emit].scale(field, getattr(node, field)))
    for site, node in phi_lib.sites(spec).items()
    for field in fields
  }
  push = lambda params: -sum(z.sum() / scale for z, scale in rows(make(params)).values())
  adam = optax.adam(rate)

  @jax.jit
  def moved(params):
    updates, _ = adam.update(jax.grad(push)(params), adam.init(params))
    after = rows(make(optax.apply_updates(params, updates)))
    return {
      name: jnp.abs(after[name][0] - before).mean() / (scale * rate * width**0.5)
      for name, (before, scale) in rows(make(params)).items()
    }

  for name, part in moved(params).items():
    assert 0.2 < part < 3.0, (width, name, part)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_has_axes_that_the_rules_know(variant):
  for emit in EMITS:
    _, module = build("t5", emit, variant)
    for variable in jax.tree.leaves(
      nnx.state(module), is_leaf=lambda v: isinstance(v, nnx.Variable)
    ):
      axes = variable.get_metadata()["axes"]
      assert len(axes) == variable[...].ndim and variable[...].dtype == jnp.float32
      assert len(sharding.partition(axes)) == len(axes)


def test_the_compute_dtype_is_that_of_the_states():
  _, module = build("t5", "prefix", "shared")
  phi = made(module, states(module).astype(jnp.bfloat16))
  prefix = phi_lib.sites(phi)[tiny_t5.PREFIXES[0]]
  assert prefix.key.dtype == prefix.value.dtype == jnp.bfloat16


@pytest.mark.parametrize("make, message", [
  (lambda: HeadsConfig("all"), r"variant must be one of \['shared', 'per_layer'\], not 'all'"),
  (lambda: HeadsConfig(width=0), "HeadsConfig.width must be at least 1, not 0"),
  (lambda: EmitPrefix(0), "EmitPrefix.length must be positive, not 0"),
  (lambda: EmitPrefix(key_scale=0.0), "EmitPrefix.key_scale must be positive, not 0.0"),
  (lambda: EmitLowRank(17).spec(tiny_t5.t5()), r"LoRA rank 17 is not in 1\.\.12"),
  (lambda: EmitLowRank(0).spec(tiny_t5.t5()), r"LoRA rank 0 is not in 1\.\.12"),
  (lambda: EmitLowRank(2, sites=[tiny.PREFIX]).spec(tiny.llama()),
   "EmitLowRank.sites: 'decoder.self.prefix' holds a Prefix"),
  (lambda: EmitPrefix(2, sites=["decoder.self.q"]).spec(tiny.llama()),
   "EmitPrefix.sites: 'decoder.self.q' holds a LowRank"),
  (lambda: EmitPrefix(2, sites=["embed"]).spec(tiny_t5.t5()),
   "EmitPrefix.sites: 'embed' holds a Prompt"),
  (lambda: EmitPrefix(2, sites=["decoder.prefix"]).spec(tiny.llama()),
   "unknown site 'decoder.prefix'; the nearest is 'decoder.self.prefix'"),
])  # fmt: skip
def test_what_cannot_be_is_one_clear_error(make, message):
  with pytest.raises(ValueError, match=message) as error:
    make()
  assert "\n" not in str(error.value)


def own_keys_and_values(model, tokens):
  """Root mean square of a model's own keys and values at each of its prefix sites."""
  rms = lambda z: float(np.sqrt(np.square(np.asarray(z, np.float32)).mean()))
  x = model.embed_tokens(tokens)[:, None]
  if isinstance(model, Llama):
    pairs = {tiny.PREFIX: jax.jit(lambda m, x: m.read(x[:, 0], jnp.arange(x.shape[2])[None]))(
      model, x
    )}
  else:
    whole = masks.Whole(jnp.full((1, 1), x.shape[2], jnp.int32))
    encoded, kv = jax.jit(lambda m, x: m.encode(x, whole))(model, x)
    pairs = {tiny_t5.PREFIXES[0]: kv, tiny_t5.PREFIXES[2]: jax.jit(type(model).memory)(
      model, encoded
    )}
  return {site: (rms(key), rms(value)) for site, (key, value) in pairs.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_their_parameters_are_sums_in_float32(variant):
  """They are no numbers of bfloat16 where the states are."""
  _, module = build("t5", "prefix", variant)
  graph, params = nnx.split(active(module))
  x = jnp.asarray(states(module, batch=9), jnp.bfloat16)

  @jax.jit
  @jax.grad
  def gradients(params):
    leaves = jax.tree.leaves(nnx.merge(graph, params)(x))
    real = [z for z in leaves if jnp.issubdtype(z.dtype, jnp.floating)]
    assert {z.dtype for z in real} == {jnp.dtype(jnp.bfloat16)}
    return sum(jnp.sin(z.astype(jnp.float32)).sum() for z in real)

  for path, found in jax.tree.leaves_with_path(gradients(params)):
    assert found.dtype == jnp.float32
    assert (found != found.astype(jnp.bfloat16)).mean() > 0.5, path


def test_the_default_scales_are_those_of_the_embedded_models_own_keys_and_values():
  loaded = families.load(sources.EMBEDDED)
  model = nnx.merge(nnx.graphdef(families.abstract(loaded.config)), loaded.params)
  text = (
    "Q: three hundred and five\nA: 305\n\nQ: Der Hund schläft, 1984 times.\nA: The dog sleeps.\n\n"
    "The quick brown fox jumps over the lazy dog while it rains in the mountains of Peru."
  )
  ids = jnp.asarray(vocabularies.load(sources.EMBEDDED).encode_batch([text]))
  key, value = own_keys_and_values(model, ids)[tiny.PREFIX]
  print(f"SmolLM2: keys {key:.2f}, values {value:.2f}")
  assert EmitPrefix().key_scale == pytest.approx(key, rel=0.1)
  assert EmitPrefix().value_scale == pytest.approx(value, rel=0.1)


def test_a_random_t5s_own_keys_and_values_are_of_unit_size():
  found = own_keys_and_values(tiny_t5.t5(), tiny.tokens(0, 4, 30))
  print(found)
  for pair in found.values():
    np.testing.assert_allclose(pair, 1.0, rtol=0.2)
