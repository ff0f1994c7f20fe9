"""Every array of every model, phi and hypermodel has logical axes that the table can place."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from hyperjax.core import phi as phi_lib
from hyperjax.core import sharding
from hyperjax.core.sharding import (
  MESH_AXES,
  RULES,
  MeshConfig,
  abstract,
  abstract_batch,
  check_batch,
  fitted,
  partition,
  place,
  place_batch,
  shardings,
)
from hyperjax.hypermodels.gisting import GistingConfig
from hyperjax.hypermodels.hyperllama import FullHyperLlamaConfig, HyperLlamaConfig
from hyperjax.hypermodels.tuned import NoPhi, TunedPhi
from hyperjax.training import step
from tests.models import tiny

SPEC = dict(sites=tiny.ALL, prefix_length=4, rank=2, alpha=2.0)
PRODUCERS = {
  "hyperllama": HyperLlamaConfig(sites=tiny.SITES, rank=2).build,
  "full": FullHyperLlamaConfig().build,
  "gisting": GistingConfig(HyperLlamaConfig(rank=2)).build,
  "tuned": lambda model, encode, rngs: TunedPhi(model.phi_spec(**SPEC), rngs=rngs),
  "none": lambda model, encode, rngs: NoPhi(),
}


@pytest.mark.parametrize("name", PRODUCERS)
@pytest.mark.parametrize("train", [("producer",), ("producer", "downstream")])
def test_every_array_of_a_system_can_be_placed(name, train):
  model = tiny.llama()
  system = step.System(PRODUCERS[name](model, tiny.encode, nnx.Rngs(0)), model)
  parts = step.split(system, train)
  for tree, axes in ((parts.trained, parts.axes), (parts.frozen, parts.frozen_axes)):
    arrays = jax.tree.leaves(tree)
    names = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    for array, axis_names in zip(arrays, names, strict=True):
      assert len(axis_names) == array.ndim
      assert len(partition(axis_names)) == array.ndim
  assert bool(jax.tree.leaves(parts.trained)) == (name != "none" or "downstream" in train)


def test_every_leaf_of_a_phi_can_be_placed():
  leaves = jax.tree.leaves(tiny.llama().phi_spec(**SPEC), is_leaf=phi_lib.is_leaf)
  assert len(leaves) == 3 + 2 * len(tiny.SITES)
  for leaf in leaves:
    assert len(leaf.axes) == len(leaf.shape)
    spec = partition(leaf.axes)
    assert spec[leaf.axes.index("batch")] == ("data", "fsdp")


def test_a_kernel_is_sharded_over_fsdp_and_tensor():
  assert partition(("layers", "embed", "heads", "head_dim")) == PartitionSpec(
    None, "fsdp", "tensor", None
  )


def test_the_table_names_axes_of_the_mesh_only():
  named = {a for r in RULES.values() for a in ((r,) if isinstance(r, str) else r or ())}
  assert named == set(MESH_AXES)


def test_an_unknown_axis_is_named_with_the_known():
  with pytest.raises(ValueError, match=r"'emebd' of \('vocab', 'emebd'\) has no rule; .*'embed'"):
    partition(("vocab", "emebd"))


def test_a_collision_names_both_axes_and_the_mesh_axis():
  message = r"axes 'heads' and 'mlp' of \('heads', 'mlp'\) both claim the mesh axis 'tensor'"
  with pytest.raises(ValueError, match=message):
    partition(("heads", "mlp"))
  with pytest.raises(ValueError, match="'batch' and 'embed' .* both claim the mesh axis 'fsdp'"):
    partition(("batch", "embed"))


@pytest.mark.parametrize(
  "shape, spec",
  [
    ((16, 12, 4), PartitionSpec(("data", "fsdp"), "tensor", None)),
    ((2, 12, 4), PartitionSpec("data", "tensor", None)),  # 8 devices do not divide 2 episodes
    ((4, 6, 4), PartitionSpec("data", None, None)),
    ((1, 9, 1), PartitionSpec(None, None, None)),
  ],
)
def test_what_cannot_be_cut_evenly_is_whole(shape, spec):
  sizes = {"data": 2, "fsdp": 4, "tensor": 4}
  assert fitted(PartitionSpec(("data", "fsdp"), "tensor", None), shape, sizes) == spec


def test_without_a_mesh_a_program_is_not_constrained():
  """Neither outside of a mesh nor on one of a single device; else everything is."""
  model, batch = tiny.llama(), tiny.batch(4, 2)
  constraints = lambda: str(jax.make_jaxpr(model)(batch.query)).count("sharding_constraint")
  assert constraints() == 0
  with jax.set_mesh(MeshConfig().build(jax.devices()[:1])):
    assert constraints() == 0
  with jax.sharding.use_abstract_mesh(AbstractMesh((1, 2, 1), MESH_AXES, (AxisType.Auto,) * 3)):
    # Of the embeddings, of all weights of a layer, behind it, and of the output layer.
    assert constraints() == 3 + 9 + 1 + 1


def test_phi_beside_the_models_own_axes_does_not_collide():
  assert partition(("phi_embed", "embed", "rank")) == PartitionSpec(None, "fsdp", None)


def test_a_mesh_that_does_not_fit_names_its_sizes():
  one = jax.devices()[:1]
  with pytest.raises(ValueError, match="data 3 x fsdp 1 x tensor 1 does not fit 1 devices"):
    MeshConfig(data=3).build(one)
  with pytest.raises(ValueError, match="fsdp 1 x tensor 2 does not fit 1 devices"):
    MeshConfig(tensor=2).build(one)


def test_the_data_axis_takes_what_the_others_leave():
  mesh = MeshConfig().build(jax.devices()[:1])
  assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}


def test_sizes_that_are_all_named_may_ask_for_fewer_devices(monkeypatch):
  """But not of several processes, each of which must have a part in the mesh."""
  three = jax.devices()[:1] * 3
  monkeypatch.setattr(jax, "devices", lambda: three)
  assert MeshConfig(data=1).build().size == 1
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match="data 1 x fsdp 1 x tensor 1 does not fit 3 devices"):
    MeshConfig(data=1).build()


def test_chips_that_are_no_block_of_their_torus_are_refused(monkeypatch):
  """Of a v5e host's 2 x 4 chips the first four are one, the first three are not."""
  chips = [
    types.SimpleNamespace(
      device_kind="TPU v5 lite", platform="tpu", coords=(i % 2, i // 2, 0), core_on_chip=0
    )
    for i in range(8)
  ]
  here, made = MeshConfig().build(), []
  monkeypatch.setattr(jax, "devices", lambda: chips)
  monkeypatch.setattr(sharding, "Mesh", lambda chips, *_, **__: made.append(chips.shape) or here)
  MeshConfig(1, 1, 4).build()
  assert made == [(1, 1, 4)]
  message = "first 3 chips are no block of their torus: use all of them, or a power of two "
  with pytest.raises(ValueError, match=rf"{message}\(gin: MESH_DATA, MESH_FSDP, MESH_TENSOR\)$"):
    MeshConfig(1, 1, 3).build()
  sharding.sharing(2)
  assert made[1:] == [(1, 1, 2)]
  with pytest.raises(ValueError, match=rf"{message}\(--devices\)$"):
    sharding.sharing(3)


@pytest.mark.parametrize("sizes, planned", [
  ((-1, 1, 1), (3, 1, 1)), ((1, 3, 1), (1, 3, 1)),  # as here
  ((2, 4, 2), (2, 4, 2)), ((-1, 16, 1), (1, 16, 1)), ((1, -1, 4), (1, 1, 4)),  # as elsewhere
])  # fmt: skip
def test_a_run_on_a_larger_machine_can_be_planned(sizes, planned, monkeypatch):
  three = jax.devices()[:1] * 3
  monkeypatch.setattr(jax, "devices", lambda: three)
  mesh = MeshConfig(*sizes).planned()
  assert tuple(mesh.shape.values()) == planned and tuple(mesh.shape) == MESH_AXES
  if mesh.size > 3:
    assert isinstance(mesh, AbstractMesh)
    with pytest.raises(ValueError, match="does not fit 3 devices"):
      MeshConfig(*sizes).build()


def test_what_does_not_fit_here_is_not_planned_either(monkeypatch):
  three = jax.devices()[:1] * 3
  monkeypatch.setattr(jax, "devices", lambda: three)
  for make in (MeshConfig(fsdp=2).build, MeshConfig(fsdp=2).planned):
    with pytest.raises(ValueError, match="data 1 x fsdp 2 x tensor 1 does not fit 3 devices"):
      make()


def test_any_one_axis_may_take_what_the_others_leave():
  one = jax.devices()[:1]
  for sizes in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)):
    assert dict(MeshConfig(*sizes).build(one).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
  for sizes in ((-1, -1, 1), (1, 0, 1), (1, 1, -2)):
    with pytest.raises(ValueError, match="must be positive, one of them may be -1: {'data'"):
      MeshConfig(*sizes)


def test_a_batch_that_cannot_be_shared_out_names_the_way_out():
  mesh = AbstractMesh((2, 4, 2), MESH_AXES)
  check_batch(16, mesh)
  with pytest.raises(ValueError, match="12 episodes .* data 2 x fsdp 4: .* a multiple of 8; .*=1"):
    check_batch(12, mesh)


def test_placing_changes_no_value():
  mesh = MeshConfig().build(jax.devices()[:1])
  tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": {"c": jnp.arange(4)}}
  axes = {"a": ("embed", "mlp"), "b": {"c": ("norm",)}}
  placed = place(tree, axes, mesh)
  jax.tree.map(np.testing.assert_array_equal, tree, placed)
  assert placed["a"].sharding == shardings(tree, axes, mesh)["a"]
  assert placed["a"].sharding.spec == PartitionSpec("fsdp", "tensor")
  assert_described(abstract(tree, axes, mesh), placed)


def assert_described(shapes, arrays) -> None:
  """The shapes are those of the arrays, dtypes and shardings included."""
  of = lambda tree: [(x.shape, x.dtype, x.sharding) for x in jax.tree.leaves(tree)]
  assert of(shapes) == of(arrays)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_gradient_of_what_is_spread_is_a_sum_in_float32(dtype):
  """It has 9 significant bits and more, of which bfloat16 would keep 8."""
  x = jnp.ones((1, 3), jnp.float32)
  out, back = jax.vjp(lambda x: sharding.spread(x, (257, 3), dtype), x)
  assert out.dtype == dtype and out.shape == (257, 3)
  np.testing.assert_array_equal(back(jnp.ones_like(out))[0], np.full((1, 3), 257.0))
  whole, back = jax.vjp(lambda x: sharding.spread(x, (1, 3), dtype), x)
  assert whole.dtype == dtype and whole.shape == x.shape


def test_a_batch_is_spread_over_its_episodes():
  mesh = MeshConfig().build(jax.devices()[:1])
  batch = tiny.batch(3, 2)
  placed = place_batch(batch, mesh)
  assert_described(abstract_batch(batch, mesh), placed)
  for before, after in zip(jax.tree.leaves(batch), jax.tree.leaves(placed), strict=True):
    np.testing.assert_array_equal(before, after)
    assert after.sharding.spec == PartitionSpec(("data", "fsdp"))
