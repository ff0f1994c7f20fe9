"""Exact properties of Llama under phi; its logits are compared with transformers in parity_test."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hyperjax.core import masks
from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import DecoderQuery
from hyperjax.core.positions import Llama3Scaling
from hyperjax.models.llama import LlamaConfig
from tests.models import tiny


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def assert_same(a, b, tolerance=1e-9):
  np.testing.assert_allclose(a, b, atol=tolerance, rtol=0)


def test_an_update_whose_b_is_zero_changes_no_bit():
  model, query = tiny.llama(), tiny.query(2, 2, 5)
  phi = phi_lib.init(model.phi_spec(rank=4, alpha=8.0, sites=tiny.SITES), jax.random.key(0))
  plain, adapted = (np.asarray(tiny.logits(model, query, p)) for p in (None, phi))
  np.testing.assert_array_equal(plain, adapted)
  assert plain.std() > 0.1


@pytest.mark.parametrize("site", tiny.SITES)
@pytest.mark.parametrize("rows", [1, 3])
def test_low_rank_phi_equals_merged_weights(x64, site, rows):
  model, query = tiny.llama(jnp.float64), tiny.query(3, 2, 5)
  phi = tiny.random_phi(
    model.phi_spec(rank=3, alpha=6.0, sites=[site]), rows, dtype=jnp.float64
  )
  ours = tiny.logits(model, query, phi)
  plain = tiny.logits(model, query)
  for b in range(3):
    expected = tiny.logits(tiny.merged(model, phi, b % rows), tiny.row(query, b))
    assert_same(ours[b], expected[0])
    assert np.abs(ours[b] - plain[b]).max() > 1e-3


def whole_phi(model, rows, lengths, dtype):
  spec = model.phi_spec(tiny.ALL, prefix_length=4, rank=3, alpha=6.0)
  return tiny.random_phi(spec, rows, dtype=dtype, lengths=lengths)


def test_a_phi_per_episode_equals_a_loop_over_episodes(x64):
  model, query = tiny.llama(jnp.float64), tiny.query(3, 2, 5)
  phi = whole_phi(model, 3, (4, 2, 1), jnp.float64)
  ours = tiny.logits(model, query, phi)
  for b in range(3):
    own = jax.tree.map(lambda x, b=b: x[:, b : b + 1], phi)
    assert_same(ours[b], tiny.logits(model, tiny.row(query, b), own)[0])


def test_one_phi_for_all_equals_its_copies(x64):
  model, query = tiny.llama(jnp.float64), tiny.query(3, 2, 5)
  phi = whole_phi(model, 1, (3,), jnp.float64)
  copies = jax.tree.map(lambda x: jnp.repeat(x, 3, 1), phi)
  assert_same(tiny.logits(model, query, phi), tiny.logits(model, query, copies))


def test_rows_of_other_lengths_and_ranks_share_a_batch(x64):
  model, query = tiny.llama(jnp.float64), tiny.query(2, 2, 5)
  specs = [
    model.phi_spec([tiny.PREFIX, *tiny.ATTENTION], prefix_length=p, rank=r, alpha=alpha)
    for p, r, alpha in ((5, 1, 3.0), (2, 4, 1.0))
  ]
  phis = [tiny.random_phi(s, 1, seed=i, dtype=jnp.float64) for i, s in enumerate(specs)]
  together = phi_lib.stack_rows(phis)
  assert phi_lib.rows(together) == 2
  ours = tiny.logits(model, query, together)
  for b, phi in enumerate(phis):
    assert_same(ours[b], tiny.logits(model, tiny.row(query, b), phi)[0])


def test_what_pads_a_query_does_not_matter(x64):
  model = tiny.llama(jnp.float64)
  phi = whole_phi(model, 1, (3,), jnp.float64)
  short = tiny.query(2, 2, 4)
  padding = tiny.tokens(9, 2, 2, 3)
  padded = DecoderQuery(
    jnp.concatenate([short.tokens, padding], 2), short.length, short.target_index
  )
  assert_same(tiny.logits(model, padded, phi), tiny.logits(model, short, phi))


def test_logits_stand_at_the_target_index_only():
  model, query = tiny.llama(), tiny.query(2, 2, 5)
  index = jnp.asarray([[[0, 4], [3, 1]], [[2, 2], [4, 0]]], jnp.int32)
  some = tiny.logits(model, dataclasses.replace(query, target_index=index))
  every = tiny.logits(model, query)
  np.testing.assert_allclose(some, jnp.take_along_axis(every, index[..., None], 2), atol=1e-5)
  dots = [s.shape for s in output_shapes(model, query, index) if s.shape[-1:] == (61,)]
  assert dots and all(s == (2, 2, 2, 61) for s in dots), dots


def output_shapes(model, query, index):
  query = dataclasses.replace(query, target_index=index)
  return [
    v.aval for e in jax.make_jaxpr(lambda m: m(query))(model).eqns for v in e.outvars
  ]


def test_no_token_depends_on_a_later_one():
  model = tiny.llama()
  phi = whole_phi(model, 1, (3,), jnp.float32)
  x, at = model.embed_tokens(tiny.tokens(0, 1, 1, 6)), 3 + jnp.arange(6)[None, None]

  @jax.jit
  def influence(model, x):
    read = lambda x: model.hidden(x, at, masks.Causal(), phi)[0][0, 0].sum(-1)
    return jnp.abs(jax.jacrev(read)(x)[:, 0, 0]).sum(-1)

  matrix = np.asarray(influence(model, x))
  np.testing.assert_array_equal(matrix > 0, np.tri(6, dtype=bool))


def test_the_start_of_a_query_is_the_length_of_its_prefix():
  model = tiny.llama()
  phi = whole_phi(model, 3, (4, 2, 1), jnp.float32)
  assert model.start(phi)[:, 0, 0].tolist() == [4, 2, 1]
  assert model.start(None).tolist() == [[[0]]]
  lora = tiny.random_phi(model.phi_spec(rank=1, alpha=1.0, sites=tiny.SITES), 2)
  assert model.start(lora).tolist() == [[[0]]]


def test_collecting_some_keys_equals_picking_them_later():
  model, index = tiny.llama(), jnp.asarray([[4, 1], [0, 3]], jnp.int32)
  x = model.embed_tokens(tiny.tokens(0, 2, 5))
  at = jnp.arange(5)[None]
  every, some = model.read(x, at), model.read(x, at, None, index)
  for have, want in zip(some, every, strict=True):
    assert have.shape == (3, 2, 2, 2, 8)
    for b in range(2):
      np.testing.assert_array_equal(have[:, b], want[:, b, index[b]])


def test_recomputation_changes_no_gradient():
  x, at = tiny.llama().embed_tokens(tiny.tokens(0, 1, 1, 5)), jnp.arange(5)[None, None]
  models = [tiny.llama(remat=remat) for remat in ("none", "dots", "full")]

  @jax.jit
  def gradients(models, x):
    loss = lambda x, model: (model.hidden(x, at, masks.Causal())[0] ** 3).sum()
    return [jax.grad(loss)(x, model) for model in models]

  plain, *others = gradients(models, x)
  assert jnp.abs(plain).max() > 0.1
  for other in others:
    np.testing.assert_allclose(other, plain, rtol=1e-4, atol=1e-4)


def program_size(model, phi=None):
  query = tiny.query(1, 2, 5)
  return tiny.equations(jax.make_jaxpr(lambda m, p: m(query, p))(model, phi).jaxpr)


def test_the_program_does_not_grow_with_the_layers():
  sizes = [program_size(tiny.llama(num_layers=n)) for n in (2, 6)]
  assert sizes[0] == sizes[1] > 50


def test_only_adapted_sites_add_operations():
  model = tiny.llama()
  lora = lambda *sites: tiny.random_phi(model.phi_spec(rank=2, alpha=2.0, sites=sites), 1)
  plain = program_size(model)
  # q and o: sites that read the same share what makes their input flat.
  one, two = (program_size(model, lora(*s)) for s in (tiny.SITES[:1], tiny.SITES[:4:3]))
  assert two - one == one - plain > 0
  assert program_size(model, {}) == plain


def test_memory_does_not_grow_by_the_queries_times_phi():
  """Queries of an episode share its prefix: no copy for each of them, in no layer."""
  model = tiny.llama(num_layers=6, head_dim=64, num_heads=2, num_kv_heads=2)
  spec = model.phi_spec([tiny.PREFIX], prefix_length=256)
  phi = tiny.random_phi(spec, 2)
  phi_bytes = 2 * phi_lib.size(spec) * 4

  def temporary(queries):
    query = tiny.query(2, queries, 2)
    loss = lambda phi, model: (model(query, phi) ** 2).mean()
    grad = jax.grad(loss, allow_int=True)
    compiled = jax.jit(grad).lower(phi, model).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  few, many = temporary(2), temporary(8)
  print(f"phi {phi_bytes}, M=2 {few}, M=8 {many}")
  assert many - few < 0.1 * (8 - 2) * phi_bytes


CHANGES = {
  "vocab_size": 67,
  "d_model": 40,
  "num_layers": 2,
  "num_heads": 8,
  "num_kv_heads": 4,
  "head_dim": 16,
  "d_mlp": 56,
  "rope_theta": 500.0,
  "norm_epsilon": 0.1,
  "tie_embeddings": True,
  "rope_scaling": Llama3Scaling(8.0, 1.0, 4.0, 16),
}


def test_every_field_of_the_config_changes_the_model():
  assert CHANGES.keys() == {f.name for f in dataclasses.fields(LlamaConfig)}
  shapes = lambda m: jax.tree.map(lambda x: x.shape, nnx.to_pure_dict(nnx.state(m)))
  base, query = tiny.llama(), tiny.query(1, 1, 8)
  for field, value in CHANGES.items():
    changed = tiny.llama(**{field: value})
    if field in ("rope_theta", "norm_epsilon", "rope_scaling"):
      assert shapes(changed) == shapes(base)
      difference = tiny.logits(changed, query) - tiny.logits(base, query)
      assert np.abs(difference).max() > 1e-3, field
    else:
      assert shapes(changed) != shapes(base), field


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(d_model=0), ["LlamaConfig.d_model", "positive integer", "0"]),
    (dict(num_layers=2.5), ["LlamaConfig.num_layers", "positive integer", "2.5"]),
    (dict(d_mlp=True), ["LlamaConfig.d_mlp", "positive integer", "True"]),
    (dict(num_heads=3), ["num_heads 3", "multiple of num_kv_heads 2"]),
    (dict(head_dim=7), ["head_dim 7", "odd"]),
  ],
)
def test_a_config_that_cannot_be_names_its_field(changes, words):
  # Straight to the check: the annotations that run in the tests would refuse the type before it.
  fields = dataclasses.asdict(tiny.CONFIG) | changes
  config = object.__new__(LlamaConfig)
  for name, value in fields.items():
    object.__setattr__(config, name, value)
  with pytest.raises(ValueError) as error:
    config.__post_init__()
  assert all(w in str(error.value) for w in words), error.value


def test_an_unknown_kind_of_recomputation_names_the_known():
  with pytest.raises(ValueError, match=r"remat must be one of \['dots', 'full', 'none'\], not 'x'"):
    tiny.llama(remat="x")


def test_the_spec_follows_the_model():
  spec = tiny.llama().phi_spec(tiny.ALL, prefix_length=4, rank=3, alpha=6.0)
  sites = phi_lib.sites(spec)
  assert set(sites) == {"decoder.self.prefix", *tiny.SITES}
  assert sites["decoder.self.prefix"].key.shape == (3, 1, 4, 2, 8)
  ends = {s: (n.a.shape[2], n.b.shape[3]) for s, n in sites.items() if s in tiny.SITES}
  assert ends == {
    "decoder.self.q": (32, 32), "decoder.self.k": (32, 16), "decoder.self.v": (32, 16),
    "decoder.self.o": (32, 32), "decoder.mlp.gate": (32, 48), "decoder.mlp.up": (32, 48),
    "decoder.mlp.down": (48, 32),
  }
  assert sites["decoder.self.q"].scale == 2.0
  assert tiny.llama().phi_spec([]) == {}


def test_an_unknown_site_names_the_nearest():
  with pytest.raises(ValueError) as error:
    tiny.llama().phi_spec(rank=2, alpha=2.0, sites=["decoder.self.query"])
  assert "'decoder.self.query'" in str(error.value)
  assert "the nearest is 'decoder.self." in str(error.value)
  with pytest.raises(ValueError, match="'mlp.upp'; the nearest is 'decoder.mlp.up'"):
    tiny.llama().phi_spec(rank=2, alpha=2.0, sites=["mlp.upp"])


@pytest.mark.parametrize("rank", [0, 17])
def test_a_rank_that_does_not_fit_names_both_dimensions(rank):
  with pytest.raises(ValueError, match=rf"rank {rank} is not in 1..16, .* 32 x 16 projection"):
    tiny.llama().phi_spec(rank=rank, alpha=2.0, sites=["decoder.self.v"])
