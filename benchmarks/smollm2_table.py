"""Every system and baseline on SmolLM2-135M and the held-out function-vectors tasks: one table, and
the figure of tuning from random, shared and generated starts.

    python benchmarks/smollm2_table.py --fewshot_dir fewshot_tasks --text_dir my_texts \\
      --out runs/smollm2_table

Multi-task systems all train for `--steps` optimizer steps of the same batches. HyperLlama with
CACLM first spends a part of them on windows of the text. Resumable: what is finished is kept; the
same command goes on where it was stopped.
"""

import argparse
import json
import pathlib
import sys

import commands

MODEL = "models/smollm2_135m.gin"
DATA = "data/function_vectors.gin"
# {row of the table: system file}
SYSTEMS = {
  "hyperllama": "hyperllama",
  "hyperllama_lora": "hyperllama_lora",
  "gisting": "gisting",
  "mtf_zero_shot": "lora",
  "mtf_few_shot": "few_shot_lora",
  "prefix_shared": "prefix_tuning",
}


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument("--fewshot_dir", required=True, help="the folder of the function-vectors tasks")
  p.add_argument("--text_dir", required=True, help="a folder of .txt files for CACLM")
  p.add_argument("--out", type=pathlib.Path, required=True, help="folder of runs and reports")
  p.add_argument("--steps", type=int, default=160, help="of each multi-task system")
  p.add_argument("--caclm_share", type=float, default=0.5, help="of the steps, for CACLM first")
  p.add_argument("--seed", type=int, default=0, help="of training")
  p.add_argument("--max_queries", type=int, default=40, help="per held-out task")
  p.add_argument("--tune_steps", type=int, default=50, help="on each single task")
  return p


def command(module: str, files: list[str], macros: dict) -> None:
  commands.run(module, commands.gin_arguments(files, macros))


def main() -> int:
  args = parser().parse_args()
  shared = {
    "FEWSHOT_DIR": args.fewshot_dir, "DATA_DIR": args.out / "data", "BATCH_SIZE": 3,
    "NUM_QUERIES": 6, "EPISODE_LIMIT": "(160, 24, 8)", "MAX_BUCKETS": 3, "RANDOM_SEED": args.seed,
  }  # fmt: skip
  runs = {}
  for name, system in SYSTEMS.items():
    runs[name] = str(args.out / name)
    command("hyperjax.train", [MODEL, f"systems/{system}.gin", DATA, "runs/mtf.gin"], {
      **shared, "MODEL_DIR": runs[name], "TRAIN_STEPS": args.steps,
    })  # fmt: skip
  first = int(args.steps * args.caclm_share)
  pretrained, runs["hyperllama_caclm"] = (
    str(args.out / name) for name in ("caclm", "hyperllama_caclm")
  )
  command("hyperjax.train", [
    MODEL, "systems/hyperllama.gin", "data/text.gin", "runs/hyperpretrain.gin"
  ], {
    "TEXT_DIR": args.text_dir, "DATA_DIR": args.out / "texts", "MODEL_DIR": pretrained,
    "TRAIN_STEPS": first, "BATCH_SIZE": 2, "RANDOM_SEED": args.seed,
  })  # fmt: skip
  command("hyperjax.train", [MODEL, "systems/hyperllama.gin", DATA, "runs/mtf.gin"], {
    **shared, "MODEL_DIR": runs["hyperllama_caclm"], "TRAIN_STEPS": args.steps - first,
    "INITIAL_CHECKPOINT_PATH": pretrained,
  })  # fmt: skip
  command("hyperjax.evaluate", ["runs/evaluate.gin"], {
    "EVAL_OUTPUT_DIR": args.out / "report", "RUNS": runs, "SEEDS": "(0,)",
    "MAX_QUERIES": args.max_queries,
  })  # fmt: skip
  tuning = {"RUN": runs["hyperllama"], "TUNE_STEPS": args.tune_steps,
            "MAX_QUERIES": args.max_queries}  # fmt: skip
  measure = tuple(sorted({0, *(args.tune_steps * i // 10 for i in (1, 2, 4, 7, 10))}))
  command("hyperjax.tune", ["runs/tune.gin"], {
    **tuning, "SHARED": runs["prefix_shared"], "TUNE_OUTPUT_DIR": args.out / "starts",
    "MEASURE": measure,
  })  # fmt: skip
  command("hyperjax.tune", ["runs/tune_baselines.gin"], {
    **tuning, "TUNE_OUTPUT_DIR": args.out / "tuned", "MEASURE": (0, args.tune_steps),
  })  # fmt: skip
  print(_table(args.out))
  return 0


def _table(out: pathlib.Path) -> str:
  """Exact match of every row, those tuned on single tasks last."""
  report = json.loads((out / "report" / "results.json").read_text())
  rows = {name: found["exact_match"] for name, found in report["methods"].items()}
  tuned = json.loads((out / "tuned" / "results.json").read_text())["methods"]
  rows |= {name: points[-1]["exact_match"] for name, points in tuned.items()}
  lines = ["| method | exact match | 95% interval over tasks |", "|---|---|---|"]
  for name, found in rows.items():
    lines.append(f"| {name} | {found['mean']:.3f} | {found['low']:.3f} to {found['high']:.3f} |")
  text = "\n".join(lines)
  (out / "table.md").write_text(text + "\n")
  return text


if __name__ == "__main__":
  sys.exit(main())
