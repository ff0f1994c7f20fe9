"""Real task files by the protocols of the papers' data sets: HyperLlama on SmolLM2-135M beside
zero-shot and in-context, on Super-NaturalInstructions' files and on symbols as labels.

    python -m benchmarks.protocols --fewshot_dir fewshot_tasks --ni_dir natural_instructions \\
      --out runs/protocols

Trains `examples/instructions.gin`, evaluates its held-out task files (MMLU subjects and COPA by
ranking their options, the others by ROUGE-L) and the held-out tasks of `data/symbols.gin` (options
ranked), and merges both reports into one page. Resumable: what is finished is kept; the same
command goes on where it was stopped.
"""

import argparse
import pathlib
import sys

from benchmarks import commands

# The front of the names of those that are scored by ranking their options.
RANKED = {
  "natural_instructions_test.Question_Answering": "rank_classification",
  "natural_instructions_test.Cause_Effect_Classification": "rank_classification",
}


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument("--fewshot_dir", required=True, help="the folder of the function-vectors tasks")
  p.add_argument("--ni_dir", required=True, help="a folder of S-NI's task files")
  p.add_argument("--out", type=pathlib.Path, required=True, help="folder of run and reports")
  p.add_argument("--steps", type=int, default=120, help="of training (default: 120)")
  p.add_argument("--max_queries", type=int, default=25, help="per held-out task (default: 25)")
  return p


def main() -> int:
  args = parser().parse_args()
  commands.check_same(args.out, {name: v for name, v in vars(args).items() if name != "out"})
  run = args.out / "hyperllama"
  commands.run("hyperjax.train", commands.gin_arguments(["examples/instructions.gin"], {
    "FEWSHOT_DIR": args.fewshot_dir, "NI_DIR": args.ni_dir, "MODEL_DIR": run,
    "DATA_DIR": args.out / "data", "TRAIN_STEPS": args.steps,
  }))  # fmt: skip
  asked = {"RUNS": {"hyperllama": str(run)}, "NUM_SHOTS": 5, "SEEDS": "(0,)",
           "MAX_QUERIES": args.max_queries}  # fmt: skip
  reports = {name: args.out / name for name in ("natural_instructions", "symbols")}
  commands.run("hyperjax.evaluate", commands.gin_arguments(["runs/evaluate.gin"], {
    **asked, "EVAL_OUTPUT_DIR": reports["natural_instructions"], "METRICS": RANKED,
  }))  # fmt: skip
  files = ["models/smollm2_135m.gin", "data/symbols.gin", "runs/evaluate_on.gin"]
  commands.run("hyperjax.evaluate", commands.gin_arguments(files, {
    **asked, "EVAL_OUTPUT_DIR": reports["symbols"], "FEWSHOT_DIR": args.fewshot_dir,
    "DATA_DIR": args.out / "symbols_data",
  }))  # fmt: skip
  folders = (f"{name}={folder}" for name, folder in reports.items())
  commands.run("hyperjax.report", (*folders, "--out", str(args.out / "page")))
  return 0


if __name__ == "__main__":
  sys.exit(main())
