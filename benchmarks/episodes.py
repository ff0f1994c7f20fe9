"""Batches of episodes, beside a PyTorch data loader that tokenises each batch.

    python -m benchmarks.episodes

Made-up tasks of one kind are built into a store first. hyperjax reads its batches from it in the
thread that asks for them, as training's own thread does; PyTorch's side draws the same kind of
episodes as texts, which its collator tokenises and pads, as Mu et al.'s does (arXiv 2304.08467).
Tokens are the real ones of supports and queries. The floor is a copy of their ids in memory.
"""

import argparse
import functools
import pathlib
import sys
import tempfile

from benchmarks import beside


def parser() -> argparse.ArgumentParser:
  p = beside.parser(__doc__)
  p.add_argument("--examples", type=beside.count, default=20_000, help="default: 20000")
  p.add_argument("--vocabulary", default="smollm2-135m-instruct", help="as for hyperjax train")
  p.add_argument("--batch_size", type=beside.count, default=32, help="episodes (default: 32)")
  p.add_argument("--batches", type=beside.count, default=20, help="of a turn (default: 20)")
  p.add_argument("--num_shots", type=beside.count, default=10, help="default: 10")
  p.add_argument("--num_queries", type=beside.count, default=8, help="default: 8")
  return p


def contestants(args: argparse.Namespace, folder: pathlib.Path) -> list[beside.Contestant]:
  """Both sides, with the same examples; builds hyperjax's store in the folder."""
  # Late: PyTorch's processes import this module too, and building imports TensorFlow.
  from benchmarks import build_store
  from hyperjax.data import build, vocabularies
  from hyperjax.data.manifest import DataConfig

  made_up = build_store.MadeUp(args.examples, documents=False)
  config = DataConfig(build_store.NAME, args.vocabulary, sources=[made_up])
  build.build(config, folder / "data")
  tokenizer = folder / "tokenizer"
  tokenizer.mkdir()
  vocabularies.load(args.vocabulary).save(tokenizer)
  prompt = config.prompt
  examples = [
    (prompt.render_input(row["inputs"]), prompt.render_target(row["targets"]))
    for row in build_store.make(args.examples, documents=False)
  ]
  names = ("batch_size", "batches", "num_shots", "num_queries")
  common = {name: getattr(args, name) for name in names}
  own = {
    "hyperjax": ("hyperjax_side", {"folder": str(folder / "data")}),
    "pytorch": ("torch_baselines", {"examples": examples, "tokenizer": str(tokenizer)}),
  }
  bytes_per_token = 4
  return [
    beside.Contestant(side, f"benchmarks.{own[side][0]}:episodes", {**own[side][1], **common},
                      bytes_per_token)
    for side in beside.SIDES if side in args.sides
  ]  # fmt: skip


def main() -> int:
  with tempfile.TemporaryDirectory() as folder:
    return beside.main(
      "episodes", parser(), functools.partial(contestants, folder=pathlib.Path(folder))
    )


if __name__ == "__main__":
  sys.exit(main())
