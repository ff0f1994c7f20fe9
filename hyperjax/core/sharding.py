"""From the logical axes of arrays to a mesh: one table of rules, collisions refused."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. Phi's own feature axes have names of their own: they may stand beside
# an axis of the model in one array without both landing on the same mesh axis.
RULES: Mapping[str, str | tuple[str, ...] | None] = {
  "batch": ("data", "fsdp"),
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
  "phi_embed": None,
  "phi_heads": "tensor",
  "phi_out": None,
  "head_out": "fsdp",
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """The shape of the device mesh.

  Attributes:
    data: data parallelism; -1 takes all devices that the other axes leave.
    fsdp: parameters and batch sharded together.
    tensor: heads, MLP and vocabulary sharded.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1

  def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over the given devices (all, where None).

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    data = len(devices) // (self.fsdp * self.tensor) if self.data == -1 else self.data
    shape = (data, self.fsdp, self.tensor)
    if math.prod(shape) != len(devices):
      raise ValueError(
        f"a mesh of data {data} x fsdp {self.fsdp} x tensor {self.tensor} does not fit "
        f"{len(devices)} devices"
      )
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def partition(axes: Sequence[str], rules: Mapping[str, Any] = RULES) -> PartitionSpec:
  """The PartitionSpec of an array with these logical axes.

  Raises:
    ValueError: an axis has no rule, or two axes of the array claim the same mesh axis.
  """
  claimed: dict[str, str] = {}
  out = []
  for axis in axes:
    if axis not in rules:
      raise ValueError(
        f"logical axis {axis!r} of {tuple(axes)} has no rule; known: {sorted(rules)}"
      )
    target = rules[axis]
    for name in (target,) if isinstance(target, str) else target or ():
      if name in claimed:
        raise ValueError(
          f"axes {claimed[name]!r} and {axis!r} of {tuple(axes)} both claim the mesh axis {name!r}"
        )
      claimed[name] = axis
    out.append(target)
  return PartitionSpec(*out)


def shardings(axes: Any, mesh: Mesh, rules: Mapping[str, Any] = RULES) -> Any:
  """A tree of NamedSharding from a tree of tuples of logical axes."""
  return jax.tree.map(
    lambda names: NamedSharding(mesh, partition(names, rules)),
    axes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def place(tree: Any, axes: Any, mesh: Mesh) -> Any:
  """Puts arrays on the mesh by their logical axes."""
  return jax.device_put(tree, shardings(axes, mesh))


def place_batch(batch: Any, mesh: Mesh) -> Any:
  """Puts a batch on the mesh, its leading axis over the batch rule."""
  sharding = NamedSharding(mesh, partition(("batch",)))
  return jax.tree.map(lambda x: jax.device_put(x, sharding), batch)
