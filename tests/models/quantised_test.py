"""Models whose matrices are in few bits: how they are loaded, where they lie, what they compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from hyperjax.core import quantised, sharding
from hyperjax.models import families, weights
from tests.models import tiny, tiny_t5

# The one's output layer is its embeddings, the other's is not.
MODELS = {"llama": tiny.llama(tie_embeddings=True), "t5": tiny_t5.t5()}
PLAIN = {"norm", "bias"}


def params_of(model) -> dict[str, np.ndarray]:
  return dict(weights.leaves(nnx.to_pure_dict(nnx.state(model))))


def is_matrix(path: str) -> bool:
  return not any(name in path for name in PLAIN)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Both models in their files."""
  made = {name: tmp_path_factory.mktemp("models") / name for name in MODELS}
  for name, model in MODELS.items():
    families.save(made[name], model.config, nnx.to_pure_dict(nnx.state(model)))
  return made


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", MODELS)
def test_all_matrices_and_nothing_else_are_in_few_bits(folders, name, bits):
  """Each has the bytes of its bits, and its own numbers at most half a scale away."""
  plain, few = (families.load(folders[name], bits=b) for b in (None, bits))
  assert (plain.exact, few.exact) == (True, False) and few.fingerprint == plain.fingerprint
  before, after = (dict(weights.leaves(loaded.params)) for loaded in (plain, few))
  assert before.keys() == after.keys()
  for path, x in after.items():
    assert quantised.is_quantised(x) == is_matrix(path), path
    if not is_matrix(path):
      np.testing.assert_array_equal(x, before[path])
      continue
    assert x.shape == before[path].shape and x.qtype == f"int{bits}"
    away = jnp.abs(quantised.plain(x, jnp.float32) - before[path])
    step = quantised.plain(_ones(x), jnp.float32)
    assert (away <= 0.5001 * step).all(), path


def _ones(x):
  """The same scales under ones: each weight's own scale."""
  return jax.tree.unflatten(jax.tree.structure(x), [jnp.ones_like(x.qvalue), x.scale])


def test_no_more_than_one_matrix_is_in_full_width_while_loading(folders, monkeypatch):
  before, read = {id(x) for x in jax.live_arrays()}, weights._host_part
  counts = []

  def watched(*given):
    alive = [x for x in jax.live_arrays() if id(x) not in before]
    counts.append([x.shape for x in alive if x.dtype == jnp.float32 and x.size > 1500])
    return read(*given)

  monkeypatch.setattr(weights, "_host_part", watched)
  kept = families.load(folders["llama"], bits=8)
  assert len(counts) == 11 and not any(counts)
  before, counts[:] = {id(x) for x in jax.live_arrays()}, []
  kept = kept, families.load(folders["llama"])
  assert any(counts)  # without bits they stay


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", MODELS)
def test_it_computes_what_the_dequantised_model_computes(name, bits):
  model = MODELS[name]
  table = families.of(model.config).table(model.config)
  graph, params = nnx.graphdef(model), nnx.to_pure_dict(nnx.state(model))
  few = weights.quantised(params, table, quantised.TYPES[bits])
  wide = jax.tree.map(
    lambda x: quantised.plain(x, jnp.float32), few, is_leaf=quantised.is_quantised
  )
  query = tiny.query(2, 2, 5) if name == "llama" else tiny_t5.query(2, 2, 5)
  ours, same, full = (tiny.logits(nnx.merge(graph, p), query) for p in (few, wide, params))
  np.testing.assert_allclose(ours, same, atol=1e-5, rtol=1e-5)
  assert 1e-4 < np.abs(ours - full).max()


def test_random_weights_are_those_without_bits_rounded():
  few, plain = (families.random(tiny.CONFIG, bits=bits).params for bits in (8, None))
  up = few["decoder"]["mlp"]["up"]
  away = quantised.plain(up, jnp.float32) - plain["decoder"]["mlp"]["up"]
  assert (jnp.abs(away) <= 0.5001 * up.scale).all()


def test_shapes_without_arrays_are_those_of_the_arrays(folders):
  loaded = families.load(folders["llama"], bits=4, dtype=jnp.bfloat16)
  abstract = families.abstract(loaded.config, bits=4, dtype=jnp.bfloat16)
  ours = nnx.to_pure_dict(nnx.state(abstract))
  assert jax.tree.structure(ours) == jax.tree.structure(loaded.params)
  described = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
  assert described(ours) == described(loaded.params)
  assert abstract.embed.dtype == jnp.bfloat16


def test_scales_lie_on_the_mesh_as_their_weights_do():
  """Except along what they have one of."""
  model = families.abstract(tiny.CONFIG, bits=8)
  sizes = {"data": 1, "fsdp": 4, "tensor": 2}
  spec = lambda x, axes: sharding.fitted(sharding.partition(axes), x.shape, sizes)
  params, axes = nnx.to_pure_dict(nnx.state(model)), sharding.axes_of(model)
  lying = jax.tree.map(spec, params, axes)
  q, o = lying["decoder"]["self"]["q"], lying["decoder"]["self"]["o"]
  assert q.qvalue == PartitionSpec(None, "fsdp", "tensor", None)
  assert q.scale == PartitionSpec(None, None, "tensor", None)
  assert o.qvalue == PartitionSpec(None, "tensor", None, "fsdp")
  assert o.scale == PartitionSpec(None, None, None, "fsdp")
  assert lying["embed"].scale == PartitionSpec(None, None)  # 2 do not divide 61 rows
