"""A HyperLlama training step beside the same in PyTorch, and beside plain matrix products.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --shape 2000,8,20,8 --gin BATCH_SIZE=1 --torch_parts 8
    python -m benchmarks.train_step --sides hyperjax --dtypes bfloat16 float32

PyTorch's side is gisting as Mu et al. train it (arXiv 2304.08467): each query is one sequence
[support, gist tokens, query] in one masked pass, under a LoRA of PEFT's at the same sites; then the
gradient by backward, clipping and AdamW. The weights are random. Tokens are those of the queries.
The floor counts the products with the model's weights, which are frozen and so have no gradient,
and those of attention.
"""

import argparse
import sys

from benchmarks import beside, work


def sizes(text: str) -> list[int]:
  """The argument --shape."""
  numbers = [beside.count(part) for part in text.split(",")]
  if len(numbers) != 4:
    raise argparse.ArgumentTypeError(f"must be four numbers, not {len(numbers)}")
  return numbers


def parser() -> argparse.ArgumentParser:
  p = beside.parser(__doc__)
  beside.add_model(p, dtypes=beside.DTYPES)
  p.add_argument("--shape", type=sizes, default="144,8,20,8",
                 help="support, queries, query, target tokens (default: 144,8,20,8)")  # fmt: skip
  p.add_argument("--system", choices=("hyperllama", "gisting"), default="hyperllama",
                 help="what hyperjax trains (default: hyperllama)")  # fmt: skip
  p.add_argument(
    "--torch_parts", type=beside.count, default=1,
    help="that PyTorch's sequences are worked off in, where all at once need too much memory "
    "(default: 1)",
  )  # fmt: skip
  return p


def contestants(args: argparse.Namespace) -> list[beside.Contestant]:
  """Every side in every dtype."""
  from benchmarks import hyperjax_side  # late: PyTorch's processes import this module too

  setting, makers = hyperjax_side.makers(args, "train", args.system)
  shape = work.Shape(setting.rows, *args.shape)
  read = work.reads(shape.support + setting.num_gist)
  asked = lambda before: work.reads(shape.query, before, shape.targets)
  # Of one episode: the masked pass reads the support once for every query.
  passes = {
    "hyperjax": read + asked(setting.prefix) * shape.queries,
    "pytorch": (read + asked(setting.num_gist)) * shape.queries,
  }
  own = {"hyperjax": {}, "pytorch": {"parts": args.torch_parts}}
  tokens = shape.queries * shape.query
  return [
    maker.contestant(
      passes[maker.side].flops(setting.architecture, backward=True) / tokens,
      shape=shape, **own[maker.side],
    )
    for maker in makers
  ]  # fmt: skip


def main() -> int:
  return beside.main("train_step", parser(), contestants)


if __name__ == "__main__":
  sys.exit(main())
