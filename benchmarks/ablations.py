"""What carries HyperLlama towards in-context reading: one training run per variant and seed, then
one report of all of them on the held-out tasks, with curves over training.

    python -m benchmarks.ablations --fewshot_dir fewshot_tasks --out runs/ablations

Resumable: runs and answers that are finished are kept, an interrupted run goes on. Each variant
changes one thing of `base`, which is examples/fewshot_tasks.gin with small batches; `longer` has
four times its steps. The report's time grows with --max_queries and the number of runs.
"""

import argparse
import pathlib
import sys

from benchmarks import commands

EXAMPLE = "examples/fewshot_tasks.gin"
VARIANTS = {
  "base": {},
  "longer": {},
  "distillation": {"DISTILLATION": 1.0},
  "gist_8": {"NUM_GIST": 8},
  "gist_32": {"NUM_GIST": 32},
  "no_sink": {"SINK_TEXT": "''"},
  "init_newline": {"GIST_INIT_TEXT": r"'\n'"},
  "init_noise": {"GIST_INIT_TEXT": "''"},
}


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument("--fewshot_dir", required=True, help="the folder of the function-vectors tasks")
  p.add_argument("--out", type=pathlib.Path, required=True, help="folder of runs and report")
  p.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="training seeds")
  p.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
  p.add_argument("--steps", type=int, default=120, help="of all variants but `longer`")
  p.add_argument("--max_queries", type=int, default=100, help="queries per held-out task")
  return p


def main() -> int:
  args = parser().parse_args()
  runs = {}
  for seed in args.seeds:
    for variant in args.variants:
      name = f"{variant}_{seed}"
      runs[name] = str(args.out / name)
      macros = {
        "FEWSHOT_DIR": args.fewshot_dir, "DATA_DIR": args.out / "data", "MODEL_DIR": runs[name],
        "RANDOM_SEED": seed, "BATCH_SIZE": 2, "NUM_QUERIES": 5, "EVAL_PERIOD": args.steps // 2,
        "TRAIN_STEPS": args.steps * (4 if variant == "longer" else 1),
        "eval_sets.EvalConfig.max_queries": 16,
      }  # fmt: skip
      given = commands.gin_arguments([EXAMPLE], macros | VARIANTS[variant])
      commands.run("hyperjax.train", given)
  commands.run("hyperjax.evaluate", commands.gin_arguments(["runs/evaluate.gin"], {
    "EVAL_OUTPUT_DIR": args.out / "report", "RUNS": runs, "SEEDS": "(0,)",
    "MAX_QUERIES": args.max_queries,
    "evaluate.evaluate.hypermodel": f"{args.variants[0]}_{args.seeds[0]}",
  }))  # fmt: skip
  return 0


if __name__ == "__main__":
  sys.exit(main())
