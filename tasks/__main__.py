"""`hyperjax tasks`: lists the tasks and mixtures that modules register, or those of a data folder.

    hyperjax tasks                                      the embedded tasks
    hyperjax tasks t5.data.tasks --match glue           those of a module, by part of their name
    hyperjax tasks --fewshot FOLDER --examples 2        a folder of JSON files, with examples
    hyperjax tasks --data DIR                           what `hyperjax data` has built, with counts
"""

import argparse
import importlib
import itertools
import sys
from collections.abc import Sequence

import rich.console
import rich.table

from hyperjax.data.manifest import Manifest
from hyperjax.tasks.fewshot import Folder


def main(argv: Sequence[str] | None = None) -> int:
  """Prints one table."""
  parser = argparse.ArgumentParser(
    prog="hyperjax tasks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("modules", nargs="*", help="modules that register tasks with seqio")
  parser.add_argument("--fewshot", help="a folder of JSON or JSONL files, one task a file")
  parser.add_argument("--data", help="a folder that `hyperjax data` has built")
  parser.add_argument("--match", default="", help="only names that contain this")
  parser.add_argument("--examples", type=int, default=0, help="show so many examples of each task")
  arguments = parser.parse_args(argv)
  console = rich.console.Console(soft_wrap=True)
  if arguments.data:
    console.print(_built(Manifest.load(arguments.data), arguments.match))
    return 0
  modules = arguments.modules
  if not modules and not arguments.fewshot:
    modules = ["hyperjax.tasks.lexical"]
  sources = [Folder(arguments.fewshot)] if arguments.fewshot else []
  console.print(_registered(modules, sources, arguments.match, arguments.examples))
  return 0


def _built(manifest: Manifest, match: str) -> rich.table.Table:
  table = rich.table.Table("task", "split", "share", "examples", "tokens")
  for task in manifest.tasks:
    if match in task:
      for split in manifest.splits(task):
        entry = manifest.split(task, split)
        share = f"{manifest.rate(task):.4f}"
        table.add_row(task, split, share, str(entry["examples"]), str(entry["tokens"]))
  return table


def _registered(
  modules: Sequence[str], sources: Sequence[Folder], match: str, num_examples: int
) -> rich.table.Table:
  import seqio  # only here: it takes seconds, and a data folder is listed without it

  from hyperjax.data import build

  registries = (("task", seqio.TaskRegistry), ("mixture", seqio.MixtureRegistry))
  for module in modules:
    imported = importlib.import_module(module)
    if hasattr(imported, "register"):
      imported.register()
  for source in sources:
    source.register()
  table = rich.table.Table("name", "kind", "splits", "examples or tasks")
  for kind, registry in registries:
    for name in sorted(registry.names()):
      if match not in name:
        continue
      provider = registry.get(name)
      if kind == "mixture":
        splits = ", ".join(sorted(provider.splits))
        table.add_row(name, kind, splits, f"{len(provider.tasks)} tasks")
        continue
      table.add_row(name, kind, ", ".join(provider.splits), _count(provider))
      rows = build.texts(provider, next(iter(provider.splits))) if num_examples else ()
      for row in itertools.islice(rows, num_examples):
        table.add_row("", "", "", f"{row.get('inputs', '')!r} -> {row['targets']!r}")
  return table


def _count(task) -> str:
  """The number of examples, where the source declares it: nothing is read or downloaded here."""
  declared = getattr(task.source, "_num_input_examples", None) or {}
  return ", ".join(f"{split} {count}" for split, count in declared.items()) or "-"


if __name__ == "__main__":
  sys.exit(main())
