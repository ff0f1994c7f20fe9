"""Attention: phi's touch point 2, and which of several kernels works on it.

    einsum    scores are written out: any mask, any bias, any machine
    blocks    the einsum of one block of queries after another, for CPUs
    splash    JAX's Pallas kernel for TPUs
    cudnn     cuDNN's flash attention for NVIDIA GPUs

The latter two never hold more than a few blocks of the scores. Each takes the same arguments.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hyperjax.core import masks
from hyperjax.core.attention import blocks, cudnn, einsum
from hyperjax.core.masks import Mask
from hyperjax.core.phi import Prefix
from hyperjax.core.positions import Bias


def _splash(*given: Any) -> Array:
  # Experimental in JAX: only who uses it depends on it.
  from hyperjax.core.attention import splash

  return splash.attend(*given)


KERNELS = {
  "einsum": einsum.attend, "blocks": blocks.attend, "splash": _splash, "cudnn": cudnn.attend,
}  # fmt: skip
CHOICES = ("auto", *KERNELS)
_OF_PLATFORM = {"cpu": "blocks", "tpu": "splash", "gpu": "cudnn"}

# Scores of one head and row of queries from which 'auto' takes a kernel. Compiled for v5e (libtpu
# 0.0.42.1), those of 256 x 384 stay in on-chip memory; 32 heads of 1152 x 1152 take 341 MB. For
# blocks see docs/attention.md.
_LARGE = {"einsum": 0, "blocks": 256 * 256, "splash": 512 * 512, "cudnn": 512 * 512}


def attend(
  q: Float[Array, "B M T N H"],
  k: Float[Array, "B M S K H"],
  v: Float[Array, "B M S K H"],
  mask: Mask,
  prefix: Prefix | None = None,
  scale: float = 1.0,
  bias: Bias | None = None,
  kernel: str = "auto",
) -> Float[Array, "B M T N H"]:
  """Attention over phi's prefix and the sequence itself, softmax in float32 (touch point 2).

  The queries of an episode share its prefix without a copy of it.

  Args:
    q: queries. k, v: the sequence's own keys and values, one of K heads serving N/K query heads.
    mask: what of the sequence each query sees.
    prefix: one layer of a Prefix, key and value [B|1, P, K, H], length [B|1].
    scale: factor on the scores.
    bias: added to the scores; None for a model without one.
    kernel: one of CHOICES; see `choose`.
  """
  name = choose(kernel, q, k, mask, prefix, bias)
  if name == "einsum":
    return einsum.attend(q, k, v, mask, prefix, scale, bias)
  return KERNELS[name](q, k, v, mask, prefix, scale)


def choose(
  asked: str, q: Array, k: Array, mask: Mask, prefix: Prefix | None, bias: Bias | None
) -> str:
  """Which of KERNELS works on an attention: what was asked for, or for 'auto' this machine's own
  where there are scores enough to save.

  The einsum stays where a kernel cannot be told who sees whom: with a bias on the scores (T5's
  self-attention), and, where the kernel is not blocks, under masks that are only drawn and texts
  behind a cache. And for single queries, the steps of decoding: kernels work on blocks of 128.
  """
  length, keys = q.shape[2], k.shape[2] + (0 if prefix is None else prefix.key.shape[1])
  if bias is not None or length == 1:
    return "einsum"
  kernel = _OF_PLATFORM.get(_platform(), "einsum") if asked == "auto" else asked
  if kernel != "blocks" and isinstance(mask, masks.Drawn | masks.Branches):
    return "einsum"
  if kernel == "cudnn" and not cudnn.can_be_told(mask, prefix):
    return "einsum"
  small = length * keys < _LARGE[kernel]
  if asked == "auto" and (small or _obstacle(kernel, q.dtype, q.shape[-1])):
    return "einsum"
  return kernel


def check_name(name: str) -> str:
  """The name, where CHOICES has it."""
  if name not in CHOICES:
    raise ValueError(f"attention must be one of {list(CHOICES)}, not {name!r} (gin: ATTENTION)")
  return name


def check(name: str, activations: Any, head_dim: int) -> None:
  """Refuses a kernel that cannot run on this machine.

  Raises:
    ValueError: says what the kernel needs, what there is, and the way out.
  """
  why = _obstacle(check_name(name), activations, head_dim)
  if why:
    raise ValueError(
      f"attention is {name!r}, which {why}: set ATTENTION to 'auto', which takes what runs here, "
      "or to 'einsum'"
    )


def _obstacle(kernel: str, activations: Any, head_dim: int) -> str | None:
  """Why a kernel cannot run on this machine; None where it can."""
  platform, dtype = _platform(), jnp.dtype(activations)
  if kernel == "splash" and platform != "tpu":
    return f"needs TPUs, and this machine has {platform.upper()}s"
  if kernel != "cudnn":
    return None
  if platform != "gpu":
    return f"needs NVIDIA GPUs, and this machine has {platform.upper()}s"
  capability = str(getattr(jax.devices()[0], "compute_capability", None))
  if not re.fullmatch(r"\d+\.\d+", capability) or float(capability) < 8:
    return f"needs NVIDIA GPUs of compute capability 8.0 or more, and this one's is {capability}"
  if dtype not in (jnp.bfloat16, jnp.float16):
    return f"takes activations of bfloat16 and float16 only, and they are {dtype} (gin: DTYPE)"
  if head_dim % 8 or head_dim > 128:
    return f"takes heads of multiples of 8 up to 128, and this model's are of {head_dim}"
  return None


def _platform() -> str:
  """'cpu', 'gpu' or 'tpu': of the mesh that a program is made for, else of this process."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform
