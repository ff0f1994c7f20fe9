"""JAX's Pallas "splash" attention for TPUs: a few blocks of scores at a time, and none in which
nobody sees anything.

The kernel is told who sees whom in two ways. *By place*, when the program is made: the rows of an
episode (its M queries) stand side by side behind what all of them see (a prefix; in one masked
pass, the support's side), of which no row has a copy.

    keys       X in front | S of row 0 | S of row 1 | ...
    queries                 T of row 0 | T of row 1 | ...

*By number*, for each batch: queries and real keys have the segment id 0, other keys 1. Causal rows
with nothing in front have no such numbers: what pads them lies to the right of who looks.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as pallas
from jaxtyping import Array, Float

from hyperjax.core import masks, remat
from hyperjax.core.attention import devices
from hyperjax.core.phi import Prefix
from hyperjax.core.sharding import spread

# Queries or keys that are worked on together; all their scores must fit a core's memory.
BLOCKS = (512, 384, 256, 128)


def attend(
  q: Float[Array, "B M T N H"],
  k: Float[Array, "B M S K H"],
  v: Float[Array, "B M S K H"],
  mask: masks.Causal | masks.Whole | masks.Gist,
  prefix: Prefix | None = None,
  scale: float = 1.0,
  *,
  interpret: bool = False,
) -> Float[Array, "B M T N H"]:
  """As `attention.attend`, under masks that have a description.

  Args:
    interpret: for tests on other machines, where Pallas works the kernel off itself.
  """
  run = partial(_rows, interpret=interpret)
  q, front = q * scale, None
  if prefix is not None:
    real = jnp.arange(prefix.key.shape[1]) < prefix.length[:, None]
    front = prefix.key, prefix.value, real
  if not isinstance(mask, masks.Gist):
    return run(q, k, v, front, causal=mask.causal, real=mask.real(k.shape[2]))
  # Segment ids cannot say that the gist is seen by two that see nothing else of one another: the
  # support's side is worked off alone, then the queries behind it.
  heads, tails = zip(*map(mask.sides, (q, k, v)), strict=True)
  first = run(*heads, front, causal=True)
  support = heads[1][:, 0], heads[2][:, 0], mask.is_gist(mask.head)
  rest = run(*tails, _beside(front, support), causal=True)
  return jnp.concatenate([first, rest.reshape(*q.shape[:2], -1, *q.shape[3:])], 2)


# Keys and values [B|1, X, K, H], and which of them are real [B|1, X].
Front = tuple[Array, Array, Array]


def _beside(one: Front | None, other: Front) -> Front:
  """What stands in front, behind what stands there already."""
  if one is None:
    return other
  batch = len(other[0])
  wide = lambda z, like: spread(z, (batch, *z.shape[1:]), like.dtype)
  return tuple(jnp.concatenate([wide(a, b), b], 1) for a, b in zip(one, other, strict=True))


def _rows(q, k, v, front=None, *, causal, real=None, interpret) -> Float[Array, "B M T N H"]:
  """Rows of queries, each over its own keys and over what stands in front of all.

  Args:
    front: see Front.
    causal: query i sees its row's key j where j <= i; else all of its row.
    real: [B|1, M|1, S], which keys of the rows can be seen; None for all.
  """
  arrays = {"q": q, "k": k, "v": v}
  if front is not None:
    arrays |= zip(("front_k", "front_v", "front_real"), front, strict=True)
  if real is not None:
    arrays["real"] = real
  return devices.run(partial(_on_device, causal=causal, interpret=interpret), arrays)


def _on_device(
  arrays: Mapping[str, Array], *, causal: bool, interpret: bool
) -> Float[Array, "B M T N H"]:
  q = arrays["q"]
  batch, rows, length, num_heads, _ = q.shape
  own = arrays["k"].shape[2]
  flat = lambda z: z.reshape(batch, -1, *z.shape[3:])
  wide = lambda z, like: spread(z, (batch, *z.shape[1:]), like.dtype)
  keys, values, real, front = flat(arrays["k"]), flat(arrays["v"]), None, 0
  if "real" in arrays:
    real = jnp.broadcast_to(arrays["real"], (batch, rows, own)).reshape(batch, -1)
  if "front_k" in arrays:
    front = arrays["front_k"].shape[1]
    real = jnp.ones((batch, rows * own), bool) if real is None else real
    keys, values, real = (
      jnp.concatenate([wide(arrays[name], z), z], 1)
      for name, z in (("front_k", keys), ("front_v", values), ("front_real", real))
    )

  blocks = _block(rows * length), _block(keys.shape[1])
  q = _padded(flat(q), blocks[0]).swapaxes(1, 2)
  keys, values = (_padded(z, blocks[1]).swapaxes(1, 2) for z in (keys, values))
  shape = q.shape[2], keys.shape[2]
  if causal and rows == 1:
    mask = pallas.CausalMask(shape, front)
  else:
    mask = SideBySide(shape, front, rows, length, own, causal)
  kernel = pallas.make_splash_mha(
    pallas.MultiHeadMask([mask] * num_heads), block_sizes=_block_sizes(*blocks), head_shards=1,
    q_seq_shards=1, interpret=interpret, residual_checkpoint_name=remat.ATTENDED,
  )  # fmt: skip
  if real is None:
    out = jax.vmap(kernel)(q, keys, values)
  else:
    unreal = _padded(jnp.where(real, 0, 1).astype(jnp.int32), blocks[1])
    seeing = jnp.zeros(shape[0], jnp.int32)
    out = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, pallas.SegmentIds(seeing, ids)))(
      q, keys, values, unreal
    )
  return out[:, :, : rows * length].swapaxes(1, 2).reshape(arrays["q"].shape)


def _block_sizes(queries: int, keys: int) -> pallas.BlockSizes:
  return pallas.BlockSizes(
    block_q=queries, block_q_dkv=queries, block_q_dq=queries,
    block_kv=keys, block_kv_compute=keys, block_kv_dkv=keys, block_kv_dkv_compute=keys,
    block_kv_dq=keys,
  )  # fmt: skip


def _block(size: int) -> int:
  """The largest of BLOCKS that needs at most a tenth more of padding than the smallest."""
  up = lambda block: -(-size // block) * block
  return next(block for block in BLOCKS if up(block) <= 1.1 * up(BLOCKS[-1]))


def _padded(x: Array, block: int) -> Array:
  """[B, X, ...] with zeros behind X, to whole blocks."""
  return jnp.pad(x, [(0, -x.shape[1] % block if axis == 1 else 0) for axis in range(x.ndim)])


@dataclasses.dataclass(frozen=True)
class SideBySide(pallas.Mask):
  """Rows of queries by place: each sees its own keys, and what stands in front of all.

      front=1, rows=2, length=own=2, causal      front 0 0 1 1
                                             0       1 1 0 0 0
                                             0       1 1 1 0 0
                                             1       1 0 0 1 0
                                             1       1 0 0 1 1

  Attributes:
    padded: of queries and of keys, in whole blocks: queries that pad see what the last one sees,
      keys that pad are seen by nobody.
    front: keys in front.
    rows, length, own: how many rows, of how many queries, over how many own keys.
    causal: query i sees its row's key j where j <= i; else all of its row.
  """

  padded: tuple[int, int]
  front: int
  rows: int
  length: int
  own: int
  causal: bool

  def __post_init__(self):
    if max(self.length, self.own) > 1 << 16 or self.rows > 1 << 15:
      raise ValueError(f"{self.rows} rows of {self.own} keys do not fit into 15 and 16 bits")

  @property
  def shape(self) -> tuple[int, int]:
    return self.padded

  @property
  def q_sequence(self) -> np.ndarray:
    """What the kernel knows of each query: its row, and in 16 bits the last of its own keys."""
    place = np.minimum(np.arange(self.padded[0]), self.rows * self.length - 1)
    last = place % self.length if self.causal else self.own - 1
    return (place // self.length << 16 | last).astype(np.int32)

  def mask_function(self, query, key):
    """Who sees whom, from `q_sequence` and the keys' places, in NumPy as in the kernel."""
    at = key - (self.front + (query >> 16) * self.own)
    return (key < self.front) | ((at >= 0) & (at <= (query & 0xFFFF)))

  def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
    queries, keys = part
    return self.mask_function(
      self.q_sequence[queries][:, None], np.arange(self.padded[1])[keys][None]
    )
