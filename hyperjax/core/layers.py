"""The layers that all downstream models share, and two of phi's touch points: `project` and `embed`
(the other is `attention.attend`).

Activations are [B, M, T, D]: B episodes, M queries of each (1 for a support), T tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from hyperjax.core import quantised, sharding
from hyperjax.core.phi import LowRank, Prompt
from hyperjax.core.quantised import Weights


def project(
  x: Float[Array, "B M T *inputs"], kernel: Weights, update: LowRank | None = None
) -> Float[Array, "B M T *outputs"]:
  """x W, plus scale (x A) B where phi has an update (touch point 1).

  Never W + scale A B: merged weights per episode cost several times the memory.

  Args:
    x: [B, M, T, *inputs].
    kernel: [*inputs, *outputs], in few bits or not.
    update: one layer of a LowRank, a [B|1, prod(inputs), R], b [B|1, R, prod(outputs)].
  """
  return project_all(x, [kernel], [update])[0]


def project_all(
  x: Float[Array, "B M T *inputs"],
  kernels: Sequence[Weights],
  updates: Sequence[LowRank | None],
) -> list[Float[Array, "B M T ..."]]:
  """`project` of the same x by several kernels, each with its update."""
  if any(update is not None for update in updates):
    # Made first, so that in the backward pass its gradient is added last. Of kernels sharded by
    # their outputs each gives a partial gradient of x; XLA adds these up and sends their sum once,
    # unless the updates' gradients, which are whole already, are added in between.
    flat = x.reshape(x.shape[0], x.shape[1] * x.shape[2], -1)
  out = []
  for kernel, update in zip(kernels, updates, strict=True):
    y = matmul(x, kernel, range(x.ndim - 3))
    if update is not None:
      delta = _times(_times(flat, update.a), update.b)
      y = y + (delta * update.scale).reshape(y.shape)
    out.append(y)
  return out


def matmul(
  x: Float[Array, "..."], w: Weights, axes: Sequence[int], dtype: Any = None
) -> Float[Array, "..."]:
  """x W: where one of both has half precision, products are of operands in it; else of x's dtype.

  Args:
    x: [*rows, *inputs].
    w: `inputs` and `outputs` axes. Where it is in few bits it has no gradient.
    axes: of w, those that are `inputs`, in this order.
    dtype: of the result [*rows, *outputs]; x's, where None.
  """
  narrow = min(x.dtype, w.dtype, key=lambda d: d.itemsize)
  axes, dtype = tuple(axes), jnp.dtype(dtype or x.dtype)
  if narrow.itemsize >= 4:
    if not quantised.is_quantised(w):
      return _contract(x, w.astype(x.dtype), axes, dtype)
    narrow = x.dtype
  return _narrow_matmul(x, w, axes, (narrow, dtype, x.dtype, w.dtype))


def _contract(x, w, axes, dtype):
  inner = tuple(range(x.ndim - len(axes), x.ndim))
  return jnp.tensordot(x, w, (inner, axes), preferred_element_type=dtype)


# JAX's own gradient would multiply a float32 cotangent by narrow operands. No machine has
# instructions for that, and CPUs have fast ones for narrow operands with a float32 result only.
# Of weights in few bits it would keep every layer's dequantised ones for the backward pass.
@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _narrow_matmul(x, w, axes, dtypes):
  return _narrow_forward(x, w, axes, dtypes)[0]


def _narrow_forward(x, w, axes, dtypes):
  narrow, dtype, *_ = dtypes
  x, w = x.astype(narrow), w if quantised.is_quantised(w) else w.astype(narrow)
  return _contract(x, quantised.plain(w, narrow), axes, dtype), (x, w)


def _narrow_backward(axes, dtypes, operands, cotangent):
  x, w = operands
  narrow, _, x_dtype, w_dtype = dtypes
  g = cotangent.astype(narrow)
  outputs = tuple(axis for axis in range(w.ndim) if axis not in axes)
  rows = tuple(range(x.ndim - len(axes)))
  dx = _contract(g, quantised.plain(w, narrow), outputs, x_dtype)
  if quantised.is_quantised(w):
    return dx, None
  dw = jnp.tensordot(x, g, (rows, rows), preferred_element_type=w_dtype)
  return dx, jnp.moveaxis(dw, range(len(axes)), axes)


_narrow_matmul.defvjp(_narrow_forward, _narrow_backward)


def _times(x: Float[Array, "B X i"], w: Float[Array, "#B i o"]) -> Float[Array, "B X o"]:
  if w.shape[0] > 1:
    return x @ w.astype(x.dtype)
  # One for all episodes is a parameter: devices sum its gradient in its own type.
  return matmul(x, sharding.whole(w[0]).astype(jnp.promote_types(w.dtype, x.dtype)), [0])


def embed(
  embed_tokens: Callable[[Array], Array],
  tokens: Int[Array, "B M T"],
  length: Int[Array, "B M"],
  prompt: Prompt | None = None,
) -> tuple[Float[Array, "B M _ D"], Int[Array, "B M"]]:
  """Embedded texts, right behind phi's prompt where it has one (touch point 3).

      prompt length=2 of P=3, text length=1 of T=2        p p t . .

  Args:
    embed_tokens: tokens [*batch] -> embeddings [*batch, D].
    tokens, length: the texts, and how much of each is real.
    prompt: P more rows for every text.

  Returns:
    The embeddings, and how many of each row are real.
  """
  if prompt is None:
    return embed_tokens(tokens), length
  value, before = prompt.value[0], prompt.length[0][:, None]
  size = tokens.shape[2]
  at = jnp.arange(value.shape[1] + size) - before[..., None]
  # Tokens move to their places, not embeddings: nothing is scattered in the backward pass.
  x = embed_tokens(jnp.take_along_axis(tokens, jnp.clip(at, 0, size - 1), 2))
  value = jnp.pad(value, [(0, 0), (0, size), (0, 0)])[:, None]
  value = sharding.spread(value, x.shape, x.dtype)
  return jnp.where(at[..., None] < 0, value, x), length + before


class RMSNorm(nnx.Module):
  """x / rms(x) * scale, computed in float32 (arXiv 1910.07467)."""

  def __init__(self, width: int, epsilon: float, *, dtype, lead: tuple[int, ...] = ()):
    axes = ("layers",) * len(lead) + ("norm",)
    self.scale = nnx.Param(jnp.ones((*lead, width), dtype), axes=axes)
    self.epsilon = epsilon

  def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.epsilon)
    return (wide * self.scale[...].astype(wide.dtype)).astype(x.dtype)


def written(
  cache: Sequence[Array], new: Sequence[Array], index: Int[Array, ""] | int, axis: int
) -> tuple[Array, ...]:
  """Arrays with others written into them, from `index` of an axis on."""
  write = jax.lax.dynamic_update_slice_in_dim
  return tuple(
    write(old, own.astype(old.dtype), index, axis) for old, own in zip(cache, new, strict=True)
  )
