"""Splash attention compiled for TPUs that are not there; skipped where libtpu is not installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hyperjax.core import attention, masks, remat, sharding
from hyperjax.core.attention import devices
from hyperjax.core.phi import Prefix
from hyperjax.models import families
from hyperjax.models.llama import LlamaConfig
from hyperjax.training import topologies
from tests.training.topologies_test import with_libtpu

# One layer of Llama 2 7B; the vocabulary takes no part.
LAYER = LlamaConfig(
  vocab_size=128, d_model=4096, num_layers=1, num_heads=32, num_kv_heads=32, head_dim=128,
  d_mlp=11008, rope_theta=10000.0, norm_epsilon=1e-5, tie_embeddings=True,
)  # fmt: skip


@pytest.fixture
def v5e():
  """Four chips of 16 GB."""
  return topologies.load("v5e:2x2").devices


def compiled(function, arrays, axes, mesh):
  """Of shapes that lie on the mesh by their logical axes."""
  given = jax.tree.map(
    lambda x, lying: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lying),
    arrays, sharding.shardings(arrays, axes, mesh),
  )  # fmt: skip
  with jax.set_mesh(mesh):
    return jax.jit(function).lower(given).compile()


def layer(kernel, batch, length, device):
  """The gradient of one layer's output with respect to its input, supports of `length` tokens."""
  model = families.abstract(LAYER, dtype=jnp.bfloat16, remat="full", attention=kernel)
  graph, state = nnx.split(model)

  def loss(x, params):
    y, _ = nnx.merge(graph, params).hidden(x, jnp.arange(length)[None, None], masks.Causal())
    return (y.astype(jnp.float32) ** 2).sum()

  arrays = {
    "x": jax.ShapeDtypeStruct((batch, 1, length, 4096), jnp.bfloat16),
    "params": nnx.to_pure_dict(state),
  }
  axes = {"x": ("batch", None, None, None), "params": sharding.axes_of(state)}
  mesh = sharding.MeshConfig().build([device])
  return compiled(lambda given: jax.grad(loss)(given["x"], given["params"]), arrays, axes, mesh)


@with_libtpu
def test_supports_of_8192_compile_where_the_einsum_runs_out_of_memory(v5e):
  """Two of them on one chip. 'auto' knows from the mesh what the program is for."""
  program = layer("auto", 2, 8192, v5e[0])
  assert program.memory_analysis().temp_size_in_bytes < 3 * 2**30
  with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
    layer("einsum", 2, 8192, v5e[0])


@pytest.mark.parametrize("mask", [masks.Causal(), masks.Whole(jnp.asarray([[250] * 7 + [9]]))])
@with_libtpu
def test_queries_behind_a_prefix_compile_on_a_mesh(v5e, mask):
  """Ragged prefixes of two episodes, 8 queries of each, grouped heads of 64."""
  own, front = (2, 8, 250, 4, 64), (2, 17, 4, 64)
  shapes = {"q": (2, 8, 250, 12, 64), "k": own, "v": own, "front_k": front, "front_v": front}
  arrays = {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for name, shape in shapes.items()}
  arrays["length"] = jax.ShapeDtypeStruct((2,), np.int32)
  axes = {name: devices.AXES[name] for name in shapes} | {"length": ("batch",)}

  def loss(arrays):
    prefix = Prefix(arrays["front_k"], arrays["front_v"], arrays["length"])
    q, k, v = (arrays[name] for name in "qkv")
    out = attention.attend(q, k, v, mask, prefix, 0.125, kernel="splash")
    return (out.astype(jnp.float32) ** 2).sum()

  gradient = jax.grad(loss, allow_int=True)
  program = compiled(gradient, arrays, axes, sharding.MeshConfig(1, 2, 2).build(v5e))
  # Forward, and back for the queries and for the keys and values.
  assert program.as_text().count('custom_call_target="tpu_custom_call"') == 3


@pytest.mark.parametrize("name, calls", [("dots", 3), ("full", 4)])
@with_libtpu
def test_dots_runs_no_kernel_again(v5e, name, calls):
  """Forward, and back for the queries and for the keys and values; with 'full' forward twice."""

  def block(x, _):
    return attention.attend(x, x, x, masks.Causal(), kernel="splash"), None

  def loss(x):
    y, _ = jax.lax.scan(remat.REMAT[name](block), x, None, length=3)
    return (y.astype(jnp.float32) ** 2).sum()

  x = jax.ShapeDtypeStruct((2, 1, 256, 4, 64), jnp.bfloat16)
  mesh = sharding.MeshConfig(1, 2, 2).build(v5e)
  program = compiled(jax.grad(loss), x, devices.AXES["q"], mesh)
  assert program.as_text().count('custom_call_target="tpu_custom_call"') == calls
