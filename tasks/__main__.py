"""`hyperjax tasks`: lists tasks and mixtures: name, splits and their examples where known, metrics.

    hyperjax tasks                                      the embedded tasks
    hyperjax tasks t5.data.tasks --match glue           those of a module, by part of their name
    hyperjax tasks --fewshot FOLDER --examples 2        a folder of JSON files, with examples
    hyperjax tasks --gin_file=data/p3.gin --gin.P3_DIR=DIR    those of a data file, with shares
    hyperjax tasks --data DATA_DIR/train                what `hyperjax data` has built, with counts
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence

import rich.console
import rich.table

from hyperjax import launch
from hyperjax.data.manifest import DataConfig, Manifest
from hyperjax.launch import command_line
from hyperjax.tasks.fewshot import Folder


def main(argv: Sequence[str] | None = None) -> int:
  """Prints one table; an error in what it is given is one line, and status 2."""
  bindings, rest = command_line.gin_bindings(list(sys.argv[1:] if argv is None else argv))
  parser = argparse.ArgumentParser(
    prog="hyperjax tasks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("modules", nargs="*", help="modules that register tasks with seqio")
  parser.add_argument("--fewshot", help="a folder of JSON or JSONL files, one task a file")
  parser.add_argument("--gin_file", action="append", help="a data file of gin/data; repeatable")
  parser.add_argument("--data", help="what `hyperjax data` has built: DATA_DIR/train or /held_out")
  parser.add_argument("--match", default="", help="only names that contain this")
  parser.add_argument("--examples", type=int, default=0, help="show so many examples of each task")
  arguments = parser.parse_args(rest)
  try:
    table = _table(arguments, bindings)
  except (ValueError, FileNotFoundError) as error:
    if not command_line.raised_by_us(error, "hyperjax.tasks"):
      raise
    print(f"error: {command_line.describe(error)}", file=sys.stderr)
    return 2
  rich.console.Console(soft_wrap=True).print(table)
  return 0


def _table(arguments: argparse.Namespace, bindings: Sequence[str]) -> rich.table.Table:
  if arguments.data:
    return _built(Manifest.load(arguments.data), arguments.match)
  if arguments.gin_file:
    parts = launch.arguments(
      [*arguments.gin_file, "runs/tasks.gin"], "hyperjax.data.build", "build_parts",
      bindings=bindings,
    )["parts"]  # fmt: skip
    rows = _configured(parts, arguments.match, arguments.examples)
  else:
    modules = arguments.modules
    if not modules and not arguments.fewshot:
      modules = ["hyperjax.tasks.lexical"]
    sources = [Folder(arguments.fewshot)] if arguments.fewshot else []
    rows = _registered(modules, sources, arguments.match, arguments.examples)
  table = rich.table.Table("name", "kind", "share", "splits: examples", "metrics")
  for row in rows:
    table.add_row(*row)
  return table


def _built(manifest: Manifest, match: str) -> rich.table.Table:
  table = rich.table.Table("task", "split", "share", "examples", "tokens", "metrics")
  for task in manifest.tasks:
    if match in task:
      for split in manifest.splits(task):
        entry = manifest.split(task, split)
        share = f"{manifest.rate(task):.4f}"
        table.add_row(
          task, split, share, str(entry["examples"]), str(entry["tokens"]),
          ", ".join(manifest.metrics(task)),
        )  # fmt: skip
  return table


def _configured(
  parts: Mapping[str, DataConfig], match: str, num_examples: int
) -> Iterator[Sequence[str]]:
  """Yields the rows of each mixture that a data file has built."""
  import seqio  # only here: it takes seconds, and a data folder is listed without it

  from hyperjax.data import registering

  for config in parts.values():
    registering.register(config)
    name = registering.mixture(config)
    rates = registering.rates(name)
    if name in seqio.MixtureRegistry.names() and match in name:
      yield _mixture_row(seqio.MixtureRegistry.get(name))
    for task, share in rates.items():
      if match in task:
        yield from _task_rows(seqio.TaskRegistry.get(task), f"{share:.4f}", num_examples)


def _registered(
  modules: Sequence[str], sources: Sequence[Folder], match: str, num_examples: int
) -> Iterator[Sequence[str]]:
  """Yields the rows of everything that is registered."""
  import seqio

  from hyperjax.data import registering

  for module in modules:
    registering.load(module)
  for source in sources:
    source.register()
  for name in sorted(seqio.TaskRegistry.names()):
    if match in name:
      yield from _task_rows(seqio.TaskRegistry.get(name), "", num_examples)
  for name in sorted(seqio.MixtureRegistry.names()):
    if match in name:
      yield _mixture_row(seqio.MixtureRegistry.get(name))


def _mixture_row(mixture) -> Sequence[str]:
  splits = ", ".join(sorted(mixture.splits))
  return mixture.name, "mixture", "", splits, f"of its {len(mixture.tasks)} tasks"


def _task_rows(task, share: str, num_examples: int) -> Iterator[Sequence[str]]:
  from hyperjax.data import registering, task_rows

  counts = {split: _count(task, split) for split in task.splits}
  splits = ", ".join(s if count is None else f"{s}: {count:,}" for s, count in counts.items())
  yield task.name, "task", share, splits, ", ".join(registering.metrics(task.name)) or "-"
  rows = task_rows.texts(task, next(iter(task.splits))) if num_examples else ()
  for row in itertools.islice(rows, num_examples):
    yield "", "", "", f"{row.get('inputs', '')!r} -> {row['targets']!r}", ""


def _count(task, split: str) -> int | None:
  """The number of examples, where the source declares it: nothing is read or downloaded here."""
  import seqio

  from hyperjax.data import task_rows

  return None if isinstance(task.source, seqio.TfdsDataSource) else task_rows.number(task, split)


if __name__ == "__main__":
  sys.exit(main())
