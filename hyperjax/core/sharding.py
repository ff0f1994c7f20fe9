"""From the logical axes of arrays to a mesh: one table of rules, collisions refused."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. Phi's own feature axes have names of their own: they may stand beside
# an axis of the model in one array without both landing on the same mesh axis.
Rules = Mapping[str | None, str | tuple[str, ...] | None]
RULES: Rules = {
  None: None,
  "batch": ("data", "fsdp"),
  "rows": "data",  # a batch whose features lie on fsdp
  "queries": None,
  "length": None,
  "layers": None,
  "embed": "fsdp",
  "vocab": "tensor",
  "heads": "tensor",
  "kv_heads": "tensor",
  "head_dim": None,
  "mlp": "tensor",
  "norm": None,
  "buckets": None,
  "prefix": None,
  "rank": None,
  "gist": None,
  "shared": None,  # in the place of a batch
  "phi_embed": None,
  "phi_heads": "tensor",
  "phi_out": None,
  "head_out": "fsdp",
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """The shape of the device mesh; an axis of -1 takes all devices that the others leave.

  Attributes:
    data: data parallelism: each part of the devices has all parameters.
    fsdp: parameters and batch sharded together; a layer's weights are gathered as it is computed.
    tensor: heads, MLP and vocabulary sharded.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1

  def __post_init__(self):
    sizes = dataclasses.asdict(self)
    wrong = [name for name, size in sizes.items() if size < 1 and size != -1]
    if wrong or [*sizes.values()].count(-1) > 1:
      raise ValueError(f"MeshConfig's axes must be positive, one of them may be -1: {sizes}")

  def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over the given devices (all, where None; of a process alone the first ones, where
    every size is named and fewer are asked for).

    Raises:
      ValueError: the sizes do not multiply to the number of devices; or the TPU chips asked for are
        no block of their torus.
    """
    if devices is None:
      whole = -1 in dataclasses.astuple(self) or jax.process_count() > 1
      devices = jax.devices()[: None if whole else self._named]
    devices = list(devices)
    return _over(devices, self._shape(len(devices)), "gin: MESH_DATA, MESH_FSDP, MESH_TENSOR")

  def planned(self) -> Mesh | AbstractMesh:
    """What a dry run checks, which may be of a run on another machine: the mesh that `build` makes;
    where the sizes that are named need more devices than there are, the smallest that has them.

    Raises:
      ValueError: as `build`.
    """
    if self._named <= len(jax.devices()):
      return self.build()
    return AbstractMesh(self._shape(self._named), MESH_AXES, (AxisType.Auto,) * 3)

  @property
  def _named(self) -> int:
    """The fewest devices that there can be."""
    return math.prod(size for size in dataclasses.astuple(self) if size != -1)

  def _shape(self, devices: int) -> tuple[int, ...]:
    """The sizes on so many devices."""
    left = devices // self._named
    shape = tuple(left if size == -1 else size for size in dataclasses.astuple(self))
    if math.prod(shape) != devices:
      raise ValueError(
        f"a mesh of data {shape[0]} x fsdp {shape[1]} x tensor {shape[2]} does not fit {devices} "
        "devices (gin: MESH_DATA, MESH_FSDP, MESH_TENSOR)"
      )
    return shape


def _over(devices: Sequence[Any], shape: Sequence[int], setting: str) -> Mesh:
  """A mesh of devices, all of which it takes; `setting` is where their number is set."""
  # Torus axes are split where no whole ones fit, as tensor 4 on v6e 8x8: jax.make_mesh refuses.
  try:
    ordered = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  except AssertionError as error:  # how JAX says that the chips' coordinates have a hole
    raise ValueError(
      f"the first {len(devices)} chips are no block of their torus: use all of them, or a power of "
      f"two ({setting})"
    ) from error
  return Mesh(ordered, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def sharing(devices: int) -> Mesh:
  """So many devices that share a model's heads, MLP and vocabulary: for the commands without gin
  files, which may have one episode only.

  Raises:
    ValueError: there are not so many, or these TPU chips are no block of their torus.
  """
  here = jax.devices()
  if not 1 <= devices <= len(here):
    raise ValueError(f"--devices must be in 1..{len(here)}, this machine's devices, not {devices}")
  return _over(here[:devices], (1, 1, devices), "--devices")


def partition(axes: Sequence[str | None], rules: Rules = RULES) -> PartitionSpec:
  """The PartitionSpec of an array with these logical axes.

  Raises:
    ValueError: an axis has no rule, or two axes of the array claim the same mesh axis.
  """
  claimed: dict[str, str] = {}
  out = []
  for axis in axes:
    if axis not in rules:
      raise ValueError(
        f"logical axis {axis!r} of {tuple(axes)} has no rule; known: {sorted(filter(None, rules))}"
      )
    target = rules[axis]
    for name in _names(target):
      if name in claimed:
        raise ValueError(
          f"axes {claimed[name]!r} and {axis!r} of {tuple(axes)} both claim the mesh axis {name!r}"
        )
      claimed[name] = axis
    out.append(target)
  return PartitionSpec(*out)


def _names(target: str | tuple[str, ...] | None) -> tuple[str, ...]:
  return (target,) if isinstance(target, str) else target or ()


def fitted(
  spec: PartitionSpec, shape: Sequence[int], sizes: Mapping[str, int]
) -> PartitionSpec:
  """The spec without the mesh axes that do not divide their axis of the array: what cannot be cut
  evenly is whole on each device (8 key and value heads on a tensor axis of 16).

  Args:
    spec: of an array.
    shape: of the array.
    sizes: of the mesh's axes.
  """
  out: list = []
  for target, size in zip(spec, shape, strict=True):
    kept: list[str] = []
    for name in _names(target):
      if size % math.prod(sizes[n] for n in (*kept, name)) == 0:
        kept.append(name)
    out.append(tuple(kept) if len(kept) > 1 else (kept or [None])[0])
  return PartitionSpec(*out)


def shardings(tree: Any, axes: Any, mesh: Mesh | AbstractMesh) -> Any:
  """A tree of NamedSharding for a tree of arrays (or their shapes) and one of logical axes."""
  return jax.tree.map(
    lambda x, names: NamedSharding(mesh, fitted(partition(names), x.shape, mesh.shape)), tree, axes
  )


def axes_of(node: Any) -> Any:
  """The logical axes of every array of a module or of a part of its state, as a plain dict.

  Weights in few bits are two arrays with the same axes: what a scale has one of is whole anyway.
  """
  state = nnx.state(node) if isinstance(node, nnx.Module) else node

  def of(variable):
    axes = variable.get_metadata()["axes"]
    return jax.tree.map(lambda _: axes, variable.get_value())

  return nnx.to_pure_dict(
    jax.tree.map(of, state, is_leaf=lambda v: isinstance(v, nnx.Variable))
  )


def place(tree: Any, axes: Any, mesh: Mesh) -> Any:
  """Puts arrays on the mesh by their logical axes."""
  return jax.device_put(tree, shardings(tree, axes, mesh))


# ---- Batches -------------------------------------------------------------------------------------


def episode_parts(mesh: Mesh | AbstractMesh) -> int:
  """How many parts the episodes of a batch are shared out in."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(size: int, mesh: Mesh | AbstractMesh) -> None:
  """Refuses a number of episodes that the mesh cannot share out evenly."""
  parts = episode_parts(mesh)
  if size % parts:
    raise ValueError(
      f"{size} episodes cannot be shared out evenly over data {mesh.shape['data']} x fsdp "
      f"{mesh.shape['fsdp']}: BATCH_SIZE (each part of it, where it is accumulated) must be a "
      f"multiple of {parts}; or name fewer devices, as MESH_DATA=1"
    )


def local_rows(size: int, mesh: Mesh) -> list[int]:
  """Which rows of a batch of `size` episodes the devices of this process hold, in order."""
  held = _over_episodes(mesh).addressable_devices_indices_map((size,)).values()
  return sorted({row for (part,) in held for row in range(size)[part]})


def place_batch(batch: Any, mesh: Mesh) -> Any:
  """The batch of all processes from the rows of each, `local_rows`."""
  rows = jax.tree.map(np.asarray, batch)
  return jax.make_array_from_process_local_data(_over_episodes(mesh), rows)


def abstract_batch(batch: Any, mesh: Mesh) -> Any:
  """The shapes of a whole batch as `place_batch` would put it on the mesh."""
  return jax.tree.map(lambda x: _lying(x, _over_episodes(mesh)), batch)


def abstract(tree: Any, axes: Any, mesh: Mesh | AbstractMesh) -> Any:
  """The shapes of arrays as `place` would put them on the mesh."""
  return jax.tree.map(_lying, tree, shardings(tree, axes, mesh))


def _lying(x: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def _over_episodes(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, partition(("batch",)))


# ---- In compiled programs, by the mesh of `jax.set_mesh` -----------------------------------------

# A layer's weights as they are used: whole but for what tensor parallelism cuts.
_GATHERED = {axis: None if target == "fsdp" else target for axis, target in RULES.items()}


def constrain(x: jax.Array, axes: Sequence[str | None], rules: Rules = RULES) -> jax.Array:
  """Has an array of a program lie on the mesh by its logical axes; as it is without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, fitted(partition(axes, rules), x.shape, mesh.shape))


def by_episode(x: jax.Array) -> jax.Array:
  """Activations [B, ..., D]: each device has all of its episodes."""
  return constrain(x, ("batch", *[None] * (x.ndim - 1)))


def lookup(table: Any, rows: jax.Array) -> Any:
  """table[rows]: [V, D], [B, ...] -> [B, ..., D], each device with all of its episodes; the same of
  each table of a tree.

  Two moves, each of which XLA knows how to make: every device looks its part of D up for the
  episodes of all `fsdp`, then parts of D are exchanged for episodes.
  """
  axes = ("rows", *[None] * (rows.ndim - 1))
  rows = constrain(rows, axes)
  return jax.tree.map(lambda t: by_episode(constrain(t[rows], (*axes, "embed"))), table)


def spread(x: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
  """What all episodes share, broadcast to them and only then cast: its gradient, a sum over the
  episodes of all devices, is at least a float32 sum."""
  if x.shape == tuple(shape):
    return x.astype(dtype)
  wide = jnp.promote_types(x.dtype, jnp.float32)
  return jnp.broadcast_to(x.astype(wide), shape).astype(dtype)


def gather(x: Any, axes: Sequence[str]) -> Any:
  """Weights (or a tree of arrays with the same axes) as they are used: every use in a program
  shares this one gather over `fsdp`."""
  return jax.tree.map(lambda part: constrain(part, axes, _GATHERED), x)


def whole(x: jax.Array) -> jax.Array:
  """Small weights as they are used, and what all processes read: all of it on each device."""
  return constrain(x, [None] * x.ndim)


def gather_layer(params: nnx.State) -> nnx.State:
  """The same for all weights of one layer, a slice of a stack's."""
  return jax.tree.map(
    lambda v: v.replace(gather(v[...], v.get_metadata()["axes"][1:])),
    params,
    is_leaf=lambda v: isinstance(v, nnx.Variable),
  )
