"""A kernel on each device's own episodes and heads: XLA cuts an einsum by itself, not a kernel."""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hyperjax.core import sharding

_ROW, _FRONT = ("batch", None, None, "kv_heads", None), ("batch", None, "kv_heads", None)
# The logical axes of what kernels take, by its name.
AXES = {
  "q": ("batch", None, None, "heads", None),  # [B, M, T, N, H]
  "k": _ROW,  # [B, M, S, K, H]
  "v": _ROW,
  "length": ("batch", None),  # [B|1, M|1]
  "real": ("batch", None, None),  # [B|1, M|1, S]
  "front_k": _FRONT,  # [B|1, X, K, H]
  "front_v": _FRONT,
  "front_real": ("batch", None),  # [B|1, X]
}


def run(
  kernel: Callable[[Mapping[str, Array]], Array], arrays: Mapping[str, Array]
) -> Float[Array, "B M T N H"]:
  """kernel(arrays), arrays of AXES, with what each device holds of them.

  What the mesh does not divide is whole on each device. Where it divides the query heads but not
  the fewer heads of keys and values, these are repeated until it does.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return kernel(arrays)
  num_heads, tensor = arrays["q"].shape[3], mesh.shape["tensor"]

  def cut(name, x):
    if "kv_heads" in AXES[name] and num_heads % tensor == 0:
      heads = x.shape[-2]
      x = jnp.repeat(x, math.lcm(heads, tensor) // heads, x.ndim - 2)
    return x, sharding.fitted(sharding.partition(AXES[name]), x.shape, mesh.shape)

  parts = {name: cut(name, x) for name, x in arrays.items()}
  specs = {name: spec for name, (_, spec) in parts.items()}
  local = jax.shard_map(kernel, in_specs=(specs,), out_specs=specs["q"], check_vma=False)
  return local({name: x for name, (x, _) in parts.items()})
