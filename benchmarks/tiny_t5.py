"""HyperT5 in a controlled experiment without a pretrained T5, on 2 cores.

    python -m benchmarks.tiny_t5 --text_dir my_texts --out runs/tiny_t5 --jobs 2

A tiny byte-level T5 learns to read rules from examples (full attention over the support) and is
then frozen. HyperT5-Prefix and HyperT5-LoRA, whose bodies start as that T5, learn to put the same
rules into phi; all are scored on rules that none of them was trained on. HyperT5-Prefix trains
besides with a quarter, a half and three quarters of its steps spent on CACLM windows of the text
first, of the same total: `hyperpretraining.png` draws exact match against them.

Resumable: every run and every report is kept as it ends, an interrupted run goes on, and table.md
and the figure are drawn anew after each. Where the T5 does not learn to read rules there is nothing
to recover: the command then stops before the hypermodels. What came of it: docs/results.md.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import commands
from hyperjax import storage
from hyperjax.evaluation import tables
from hyperjax.tasks import rules
from hyperjax.training import metrics_writer

MODEL, RULES, TEXT = "models/t5_rules.gin", "data/rules.gin", "data/text.gin"
PREFIX, LORA = "hypert5_prefix", "hypert5_lora"
LORA_SITES = ["*.*.q", "*.*.k", "*.*.v", "*.*.o", "*.mlp.*"]
LEAST_IN_CONTEXT = 0.3  # exact match on held-out rules, where zero-shot is 0
QUARTERS = (1, 2, 3)  # of the steps, spent on hyperpretraining
# The controls.
COLUMNS = ("other_task_support", "shuffled_outputs")


@dataclasses.dataclass(frozen=True)
class Cell:
  """One command.

  Attributes:
    name: of its folder in --out.
    module: what is run.
    arguments: its command line.
    whole: whether the folder, once it is there, is a finished one.
  """

  name: str
  module: str
  arguments: tuple[str, ...]
  whole: bool = False


def parser() -> argparse.ArgumentParser:
  """The command's arguments."""
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument("--text_dir", required=True, help="a folder of .txt files for CACLM")
  p.add_argument("--out", type=pathlib.Path, required=True, help="folder of runs and reports")
  p.add_argument("--downstream_steps", type=int, default=5000, help="of the T5 (default: 5000)")
  p.add_argument("--steps", type=int, default=3000, help="of each hypermodel (default: 3000)")
  p.add_argument("--seed", type=int, default=0, help="of all training runs (default: 0)")
  p.add_argument("--max_queries", type=int, default=20, help="per held-out task (default: 20)")
  p.add_argument("--jobs", type=int, default=1, metavar="N",
                 help="hypermodels trained at once, each with a share of the cores and a log "
                      "(default: 1)")  # fmt: skip
  p.add_argument("--dry_run", action="store_true", help="check every training run, train nothing")
  return p


def plan(args: argparse.Namespace) -> tuple[list[Cell], list[list[Cell]]]:
  """The cells of the T5, and then those of each hypermodel, in the order in which they are run."""
  common = {"RANDOM_SEED": args.seed, "CHECKPOINT_PERIOD": 500, "REMAT": "'none'"}
  episodes = {
    **common, "DATA_DIR": args.out / "data", "NUM_SHOTS": 6, "MAX_BUCKETS": 2,
    "eval_sets.EvalConfig.max_queries": 4, "eval_sets.EvalConfig.num_queries": 4,
  }  # fmt: skip
  hyper = {"MODEL_SOURCE": args.out / "downstream" / "model", "BATCH_SIZE": 16}
  adafactor = {"OPTIMIZER": "@optimizers.Adafactor()", "LEARNING_RATE": 2e-2}
  systems = {
    PREFIX: {"PREFIX_LENGTH": 16, "KEY_SCALE": 1.0, "LEARNING_RATE": 1e-3},
    LORA: {"EMIT_RANK": 4, "EMIT_ALPHA": 16.0, "EMIT_SITES": LORA_SITES, **adafactor},
  }

  def train(name: str, files: Sequence[str], macros: Mapping[str, Any]) -> Cell:
    given = {"MODEL_DIR": args.out / name, **macros}
    return Cell(name, "hyperjax.train", commands.gin_arguments([MODEL, *files], given))

  def tune(name: str, system: str, steps: int, **more) -> list[Cell]:
    """A hypermodel's multi-task fine-tuning, and its report."""
    macros = {
      **episodes, **hyper, **systems[system], "TRAIN_STEPS": steps,
      "WARMUP_STEPS": warmup(steps), "NUM_QUERIES": 4,
      "SHUFFLED": 0.2, "EVAL_PERIOD": 500, **more,
    }  # fmt: skip
    report = {
      "EVAL_OUTPUT_DIR": args.out / f"{name}_report", "RUNS": {name: str(args.out / name)},
      "NUM_SHOTS": 6, "MAX_QUERIES": args.max_queries, "SEEDS": "(0,)", "BATCH_SIZE": 16,
      "evaluate.evaluate.hypermodel": name,
    }  # fmt: skip
    evaluation = commands.gin_arguments(["runs/evaluate.gin"], report)
    return [
      train(name, [f"systems/{system}.gin", RULES, "runs/mtf.gin"], macros),
      Cell(f"{name}_report", "hyperjax.evaluate", evaluation),
    ]

  downstream = [
    train("downstream", ["systems/full.gin", RULES, "runs/mtf_few_shot.gin"], {
      **episodes, **adafactor, "TRAIN_STEPS": args.downstream_steps, "BATCH_SIZE": 32,
      "NUM_QUERIES": 1, "WARMUP_STEPS": warmup(args.downstream_steps), "EVAL_PERIOD": 500,
    }),
    # Within the run that it comes from: who deletes that to train anew does not keep the old model.
    Cell("downstream/model", "hyperjax.convert", (
      "--run", str(args.out / "downstream"), "--out", str(args.out / "downstream" / "model")
    ), whole=True),
  ]  # fmt: skip
  hypermodels = [tune(PREFIX, PREFIX, args.steps), tune(LORA, LORA, args.steps)]
  for quarter in QUARTERS:
    first = args.steps * quarter // 4
    # Windows that give a step about as many tokens as episodes do.
    pretrained = train(
      f"caclm_{quarter}", [f"systems/{PREFIX}.gin", TEXT, "runs/hyperpretrain.gin"], {
        **common, **hyper, **systems[PREFIX], "TEXT_DIR": args.text_dir, "WINDOW": 128,
        "DATA_DIR": args.out / "texts", "TRAIN_STEPS": first, "WARMUP_STEPS": warmup(first),
      },
    )  # fmt: skip
    tuned = tune(
      after(quarter), PREFIX, args.steps - first,
      INITIAL_CHECKPOINT_PATH=args.out / f"caclm_{quarter}",
    )  # fmt: skip
    hypermodels.append([pretrained, *tuned])
  return downstream, hypermodels


def warmup(steps: int) -> int:
  """The steps of a run's warm-up."""
  return min(200, steps // 10)


def after(quarter: int) -> str:
  """The name of the run that follows on so many quarters of hyperpretraining."""
  return f"{PREFIX}_after_caclm_{quarter}"


def in_context(out: pathlib.Path) -> float:
  """The T5's last exact match on held-out rules, reading the support in its own input."""
  lines = metrics_writer.read(out / "downstream" / "metrics.jsonl")
  found = [line for line in lines if "held_out/exact_match" in line]
  return found[-1]["held_out/exact_match"]


def results(out: pathlib.Path) -> dict[str, dict]:
  """{hypermodel: its report's figures}, of the reports that are there."""
  names = (PREFIX, LORA, *map(after, QUARTERS))
  files = {name: out / f"{name}_report" / "results.json" for name in names}
  return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def table(found: Mapping[str, dict]) -> str:
  """Exact match on held-out rules, with intervals over tasks, as Markdown."""
  first = next(iter(found.values()))["methods"]
  lines = ["| method | exact match | recovery | φ of another task | φ of shuffled outputs |",
           "|---|---|---|---|---|"]  # fmt: skip
  lines += [f"| {m} | {tables.text(first[m]['exact_match'])} | | | |"
            for m in ("zero_shot", "in_context_shuffled", "in_context")]  # fmt: skip
  for name, report in found.items():
    methods = report["methods"]
    cells = [
      methods[name]["exact_match"], report["recovery"]["exact_match"],
      *(methods[control]["exact_match"] for control in COLUMNS),
    ]  # fmt: skip
    lines.append(f"| {name} | {' | '.join(map(tables.text, cells))} |")
  guessing = rules.guessing(rules.HELD_OUT_TASKS)
  lines += ["", f"A reader of the outputs alone that guesses the places: {guessing:.3f}."]
  return "\n".join(lines)


def draw(found: Mapping[str, dict], steps: int, file: pathlib.Path) -> None:
  """Exact match against the steps of hyperpretraining, the total of all steps being the same."""
  names = {0: PREFIX, **{quarter: after(quarter) for quarter in QUARTERS}}
  points = {
    steps * quarter // 4: found[name]["methods"][name]["exact_match"]
    for quarter, name in names.items()
    if name in found
  }
  if not points:
    return
  figure = Figure(figsize=(7, 4.2))
  FigureCanvasAgg(figure)
  axes = figure.subplots()
  mean = [p["mean"] for p in points.values()]
  spread = [[p["mean"] - p["low"] for p in points.values()],
            [p["high"] - p["mean"] for p in points.values()]]  # fmt: skip
  axes.errorbar(list(points), mean, yerr=spread, marker="o", capsize=3, label="HyperT5-Prefix")
  methods = next(iter(found.values()))["methods"]
  for method, dashes in (("in_context", "--"), ("zero_shot", ":")):
    height = methods[method]["exact_match"]["mean"]
    axes.axhline(height, linestyle=dashes, color="#333333", label=method.replace("_", "-"))
  axes.set_xlabel(f"steps of hyperpretraining, of {steps} in all")
  axes.set_ylabel("exact match on held-out rules, 95% intervals over tasks")
  axes.set_ylim(bottom=0)
  axes.legend(frameon=False)
  figure.savefig(file, dpi=120, bbox_inches="tight", facecolor="white")


def run(cell: Cell, args: argparse.Namespace) -> None:
  """Runs a cell, if it is not done; stops at the first that fails."""
  if args.dry_run:
    # The other commands read what the training runs have written.
    if cell.module == "hyperjax.train":
      commands.run(cell.module, (*cell.arguments, "--dry_run"))
  elif not (cell.whole and (args.out / cell.name).exists()):
    log = args.out / "logs" / f"{cell.name}.log" if args.jobs > 1 else None
    commands.run(cell.module, cell.arguments, log)


_DRAWING = threading.Lock()


def run_hypermodel(cells: Sequence[Cell], args: argparse.Namespace) -> None:
  """Runs a hypermodel's cells, and then draws table and figure anew."""
  for cell in cells:
    run(cell, args)
  if not args.dry_run:
    with _DRAWING:
      found = results(args.out)
      storage.write_whole(args.out / "table.md", table(found) + "\n")
      draw(found, args.steps, args.out / "hyperpretraining.png")


def main() -> int:
  args = parser().parse_args()
  if not args.dry_run:
    kept = ("out", "dry_run", "jobs")
    given = {name: value for name, value in vars(args).items() if name not in kept}
    commands.check_same(args.out, {**given, "rules": f"version {rules.VERSION}"})
  downstream, hypermodels = plan(args)
  for cell in downstream:
    run(cell, args)
    if cell.name == "downstream" and not args.dry_run:
      reached = in_context(args.out)
      if reached < LEAST_IN_CONTEXT:
        print(
          f"the T5 reaches exact match {reached:.3f} in context on held-out rules, less than "
          f"{LEAST_IN_CONTEXT}: there is nothing that a phi could recover. Give it more "
          "--downstream_steps, in another --out",
          file=sys.stderr,
        )
        return 1
  commands.at_once([partial(run_hypermodel, cells, args) for cells in hypermodels], args.jobs)
  if not args.dry_run:
    print((args.out / "table.md").read_text())
  return 0


if __name__ == "__main__":
  sys.exit(main())
