"""Examples to phi in one pass, beside the same pass in PyTorch.

    python -m benchmarks.adapt
    python -m benchmarks.adapt --support 2000

One support and the gist tokens behind it go through a Llama of random weights under a LoRA; the
gist tokens' keys and values are kept. Tokens are those of the support.
"""

import argparse
import sys

from benchmarks import beside, work


def parser() -> argparse.ArgumentParser:
  p = beside.parser(__doc__)
  beside.add_model(p)
  p.add_argument("--support", type=beside.count, default=144,
                 help="tokens of the examples (default: 144, about ten short ones)")  # fmt: skip
  return p


def contestants(args: argparse.Namespace) -> list[beside.Contestant]:
  """Every side in every dtype."""
  from benchmarks import hyperjax_side  # late: PyTorch's processes import this module too

  setting, makers = hyperjax_side.makers(args, "adapt")
  shape = work.Shape(rows=1, support=args.support, queries=1, query=1)
  flops = work.reads(args.support + setting.num_gist).flops(setting.architecture)
  return [maker.contestant(flops / args.support, shape=shape) for maker in makers]


def main() -> int:
  return beside.main("adapt", parser(), contestants)


if __name__ == "__main__":
  sys.exit(main())
