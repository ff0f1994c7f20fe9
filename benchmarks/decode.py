"""Answers under phi beside answers in context, in hyperjax and in PyTorch.

    python -m benchmarks.decode
    python -m benchmarks.decode --support 2000 --at_once 4 --rounds 3

One support, and queries that are answered greedily, all to the same length, with random weights:

  phi      the support becomes phi, under which all queries are answered
  cached   the support is read once and its keys and values are kept for all queries
  anew     every query is answered behind the whole support, read anew

Reading the support counts in all three. PyTorch's side is transformers' generate(); its phi are the
gist tokens' keys and values, as PEFT hands a prefix to it. Tokens are those of the answers.
`kept_mib` in the JSON is what has to be kept of the support for further queries.
"""

import argparse
import sys

from benchmarks import beside, work

METHODS = ("phi", "cached", "anew")


def parser() -> argparse.ArgumentParser:
  p = beside.parser(__doc__)
  beside.add_model(p)
  p.add_argument("--support", type=beside.count, default=144,
                 help="tokens of the examples (default: 144, about ten short ones)")  # fmt: skip
  p.add_argument("--queries", type=beside.count, default=32, help="default: 32")
  p.add_argument("--query", type=beside.count, default=16, help="tokens of each (default: 16)")
  p.add_argument("--new_tokens", type=beside.count, default=8, help="of each answer (default: 8)")
  p.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
  p.add_argument("--at_once", type=beside.count, default=32,
                 help="queries in a batch of `anew` (default: 32)")  # fmt: skip
  return p


def contestants(args: argparse.Namespace) -> list[beside.Contestant]:
  """Every method of every side in every dtype."""
  from benchmarks import hyperjax_side  # late: PyTorch's processes import this module too

  setting, makers = hyperjax_side.makers(args, "decode")
  shape = work.Shape(1, args.support, args.queries, args.query)
  # An answer's last token is produced and not read.
  text = args.query + args.new_tokens - 1
  answers = lambda before: work.reads(text, before, args.new_tokens) * args.queries
  passes = {
    "phi": work.reads(args.support + setting.num_gist) + answers(setting.num_gist),
    "cached": work.reads(args.support) + answers(args.support),
    "anew": work.reads(args.support) * args.queries + answers(args.support),
  }
  tokens = args.queries * args.new_tokens
  return [
    maker.contestant(
      passes[method].flops(setting.architecture) / tokens, method, shape=shape, method=method,
      new_tokens=args.new_tokens, at_once=args.at_once,
    )
    for method in args.methods for maker in makers
  ]  # fmt: skip


def main() -> int:
  return beside.main("decode", parser(), contestants)


if __name__ == "__main__":
  sys.exit(main())
