"""hyperjax report: finished evaluations side by side, as tables, pictures and one page."""

import argparse
import json
import math
import pathlib
import reprlib
import sys
from collections.abc import Sequence
from typing import Any

from hyperjax import storage
from hyperjax.evaluation import page, plots, report, tables

EPILOG = """\
DIR is the folder of a report that `hyperjax evaluate` wrote (EVAL_OUTPUT_DIR). The run has the
folder's name in the tables; NAME=DIR gives it another.

Written are index.html (everything, in one file that needs nothing else), table.md, table.csv (a row
per run and method), tasks.csv (a row per run, method, task and figure), runs.png and families.png.

Examples:
  hyperjax report runs/quickstart --out runs/compared

  # two evaluations whose folders have the same name
  hyperjax report small=runs/small/evaluation large=runs/large/evaluation --out runs/compared
"""

_NUMBER = (int, float)
_RECOVERED = dict.fromkeys(tables.BOUNDS, (int, float, type(None)))
_BOUNDS = {**_RECOVERED, "mean": _NUMBER}
_GROUPS = {"*": {"*": {"*": _NUMBER}}}
# What the tables and the page read of a results.json; "*" is any key.
SHAPE = {
  "methods": {"*": {"exact_match": _BOUNDS, "*": _BOUNDS}},
  "recovery": {"exact_match": _RECOVERED},
  "recoveries": {"*": {"*": _RECOVERED}},
  "families": _GROUPS,
  "tasks": _GROUPS,
  "hypermodel": str,
  "command": str,
  "config": str,
  "versions": {"*": str},
  "seeds": list,
  "num_queries": int,
}


def parser() -> argparse.ArgumentParser:
  """The command's arguments."""
  p = argparse.ArgumentParser(
    prog="hyperjax report",
    description="Put finished evaluations side by side: tables, pictures and one HTML page.",
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  p.add_argument("evaluations", nargs="+", metavar="[NAME=]DIR", help="an evaluation's folder")
  p.add_argument(
    "--out", required=True, type=storage.local, metavar="FOLDER", help="where to write"
  )  # fmt: skip
  return p


def main(argv: Sequence[str] | None = None) -> int:
  """Writes one comparison; returns the exit status."""
  args = parser().parse_args(argv)
  try:
    if args.out.exists() and not args.out.is_dir():
      raise FileExistsError(f"--out {args.out} is a file; name a folder")
    # All is made before anything is written, and the page comes last.
    for name, content in files(read(args.evaluations)).items():
      storage.write_whole(args.out / name, content)
  except (OSError, ValueError) as e:
    print(f"hyperjax report: {e}", file=sys.stderr)
    return 1
  print(args.out / "index.html")
  return 0


def files(runs: tables.Runs) -> dict[str, bytes]:
  """Returns {file: content} of a comparison."""
  methods, published = tables.comparison(runs), tables.published(runs)
  groups = [tables.per_group(runs, name) for name in ("families", "tasks")]
  drawn = {
    "runs.png": plots.runs({run: tables.scores(results) for run, results in runs.items()}),
    "families.png": plots.families(
      {run: tables.grouped(results, "families") for run, results in runs.items()}
    ),
  }
  titles = dict(zip(("Score by method", "Score by family"), drawn.values(), strict=True))
  parts = [
    "# Evaluations\n", tables.markdown(methods), *(f"![{name}]({name})\n" for name in drawn),
    *([tables.markdown(published)] if published.rows else []),
  ]  # fmt: skip
  texts = {
    "table.md": "\n".join(parts),
    "table.csv": tables.methods_csv(runs),
    "tasks.csv": tables.tasks_csv(runs),
    "index.html": page.html_page(runs, [methods, published, *groups], titles),
  }
  return drawn | {name: content.encode() for name, content in texts.items()}


def read(given: Sequence[str]) -> dict[str, dict[str, Any]]:
  """Returns {name: results} of folders, each given as DIR or NAME=DIR.

  Raises:
    FileNotFoundError: a folder holds no results.json.
    ValueError: two have the same name, or a results.json is not what `hyperjax evaluate` writes.
  """
  folders: dict[str, pathlib.Path] = {}
  for argument in given:
    name, equals, path = argument.partition("=")
    # A separator in front of the sign: it belongs to the path.
    named = equals and name and "/" not in name
    folder = pathlib.Path(path if named else argument)
    name = name if named else folder.resolve().name
    if name in folders:
      raise ValueError(
        f"{folders[name]} and {folder} are both called '{name}'; call one otherwise: "
        f"other={folder}"
      )
    folders[name] = folder
  return {name: _load(folder) for name, folder in folders.items()}


def _load(folder: pathlib.Path) -> dict[str, Any]:
  file = folder / "results.json"
  if not file.is_file():
    raise FileNotFoundError(
      f"{file} does not exist; name the folder of a finished evaluation (EVAL_OUTPUT_DIR), or give "
      "the command hyperjax evaluate again: it goes on where it was stopped"
    )
  try:
    results = json.loads(file.read_bytes())
    check(results, SHAPE, "results")
    check(results.get("metrics", {}), {"*": str}, "results.metrics")
    check(results.get("main_figure", ""), str, "results.main_figure")
    report.headline(results)  # it needs some methods, and a note where recovery is undefined
  except (KeyError, ValueError) as e:
    problem = f"lacks {e}" if isinstance(e, KeyError) else str(e)
    raise ValueError(
      f"{file} is no results.json of hyperjax evaluate: {problem}; give that command again"
    ) from None
  return results


def check(value: Any, shape: Any, where: str) -> None:
  """Compares a value with a shape: types that it may have, or {key: shape of what is under it}.

  Raises:
    KeyError: a key is missing.
    ValueError: a value has another type, or is no finite number.
  """
  if not isinstance(shape, dict):
    if not isinstance(value, shape) or (isinstance(value, float) and not math.isfinite(value)):
      raise ValueError(f"{where} is {reprlib.repr(value)}")
    return
  check(value, dict, where)
  for key, inner in shape.items():
    if key != "*" and key not in value:
      raise KeyError(f"{where}.{key}")
    for name in value if key == "*" else [key]:
      check(value[name], inner, f"{where}.{name}")


if __name__ == "__main__":
  sys.exit(main())
