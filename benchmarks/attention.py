"""How long one attention over a causal text takes, as the einsum and in blocks, and what it needs.

    python -m benchmarks.attention --lengths 256,512,1024,2048
"""

import argparse
import json
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.beside import best
from hyperjax.core import attention, masks


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument("--lengths", default="256,512,1024,2048", help="tokens (default: %(default)s)")
  p.add_argument("--kernels", default="einsum,blocks", help="default: %(default)s")
  p.add_argument("--heads", type=int, default=9, help="of queries (default: 9, SmolLM2-135M's)")
  p.add_argument("--kv_heads", type=int, default=3, help="of keys and values (default: 3)")
  p.add_argument("--head_dim", type=int, default=64, help="default: 64")
  p.add_argument("--repeats", type=int, default=5, help="of which the fastest counts (default: 5)")
  return p


def program(kernel: str, backward: bool) -> Callable:
  """The sum of an attention's squares, or its gradient."""

  def loss(q, k, v):
    return (attention.attend(q, k, v, masks.Causal(), scale=0.125, kernel=kernel) ** 2).sum()

  return jax.grad(loss, (0, 1, 2)) if backward else loss


def main() -> int:
  args = parser().parse_args()
  draw = np.random.default_rng(0)
  for length in map(int, args.lengths.split(",")):
    shape = lambda heads, length=length: (1, 1, length, heads, args.head_dim)
    q, k, v = (
      jnp.asarray(draw.standard_normal(shape(heads)), jnp.float32)
      for heads in (args.heads, args.kv_heads, args.kv_heads)
    )
    for kernel in args.kernels.split(","):
      line = {"length": length, "kernel": kernel}
      for name, backward in (("forward", False), ("forward_and_back", True)):
        work = jax.jit(program(kernel, backward)).lower(q, k, v).compile()
        run = lambda work=work, given=(q, k, v): jax.block_until_ready(work(*given))
        line[f"{name}_ms"] = float(f"{1e3 * best(run, repeats=args.repeats):.4g}")
        line[f"{name}_mb"] = round(work.memory_analysis().temp_size_in_bytes / 1e6, 1)
      print(json.dumps(line), flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
