"""Every system and baseline on SmolLM2-135M and the held-out function-vectors tasks: one table, and
the figure of tuning from random, shared and generated starts.

    python -m benchmarks.smollm2_table --fewshot_dir fewshot_tasks --text_dir my_texts \\
      --out runs/smollm2_table

Multi-task systems all train for `--steps` optimizer steps of the same batches. HyperLlama with
CACLM first spends a part of them on windows of the text. Resumable: what is finished is kept; the
same command goes on where it was stopped.
"""

import argparse
import json
import pathlib
import sys

from benchmarks import commands
from hyperjax import storage
from hyperjax.evaluation import tables

MODEL = "models/smollm2_135m.gin"
DATA = "data/function_vectors.gin"
# {row of the table: system file}
SYSTEMS = {
  "hyperllama": "hyperllama",
  "gisting": "gisting",
  "mtf_zero_shot": "lora",
  "mtf_few_shot": "few_shot_lora",
  "prefix_shared": "prefix_tuning",
  "hyperllama_lora": "hyperllama_lora",
}


# What is tuned on single tasks, besides the prefixes on few examples that `starts` tunes.
TUNED = {
  "prefix_more": "@prefix/more/tune.Method()",
  "lora_few": "@lora/tune.Method()",
  "lora_more": "@lora/more/tune.Method()",
  "full_few": "@full/tune.Method()",
  "full_more": "@full/more/tune.Method()",
}


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument("--fewshot_dir", required=True, help="the folder of the function-vectors tasks")
  p.add_argument("--text_dir", required=True, help="a folder of .txt files for CACLM")
  p.add_argument("--out", type=pathlib.Path, required=True, help="folder of runs and reports")
  p.add_argument("--steps", type=int, default=200, help="of each multi-task system")
  p.add_argument("--caclm_share", type=float, default=0.5, help="of the steps, for CACLM first")
  p.add_argument("--seed", type=int, default=0, help="of training")
  p.add_argument("--max_queries", type=int, default=40, help="per held-out task")
  p.add_argument("--tune_steps", type=int, default=50, help="on each single task")
  return p


def command(module: str, files: list[str], macros: dict) -> None:
  commands.run(module, commands.gin_arguments(files, macros))


def main() -> int:
  options = parser()
  args = options.parse_args()
  first = int(args.steps * args.caclm_share)
  if not 0 < first < args.steps:
    options.error(
      f"--caclm_share {args.caclm_share} of --steps {args.steps} is {first} steps for CACLM: both "
      "stages need some"
    )
  commands.check_same(args.out, {name: v for name, v in vars(args).items() if name != "out"})
  machine = {"DTYPE": "'bfloat16'", "REMAT": "'none'", "RANDOM_SEED": args.seed}
  shared = {
    **machine, "FEWSHOT_DIR": args.fewshot_dir, "DATA_DIR": args.out / "data", "BATCH_SIZE": 3,
    "NUM_QUERIES": 6, "EPISODE_LIMIT": "(160, 24, 8)", "MAX_BUCKETS": 3,
  }  # fmt: skip
  runs = {}
  for name, system in SYSTEMS.items():
    runs[name] = str(args.out / name)
    command("hyperjax.train", [MODEL, f"systems/{system}.gin", DATA, "runs/mtf.gin"], {
      **shared, "MODEL_DIR": runs[name], "TRAIN_STEPS": args.steps,
    })  # fmt: skip
  pretrained, runs["hyperllama_caclm"] = (
    str(args.out / name) for name in ("caclm", "hyperllama_caclm")
  )
  command("hyperjax.train", [
    MODEL, "systems/hyperllama.gin", "data/text.gin", "runs/hyperpretrain.gin"
  ], {
    **machine, "TEXT_DIR": args.text_dir, "DATA_DIR": args.out / "texts", "MODEL_DIR": pretrained,
    "TRAIN_STEPS": first, "BATCH_SIZE": 2,
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
    **tuning, "TUNE_OUTPUT_DIR": args.out / "tuned", "MEASURE": (args.tune_steps,),
    "tune.tune.methods": "{" + ", ".join(f"'{k}': {v}" for k, v in TUNED.items()) + "}",
  })  # fmt: skip
  print(_table(args.out))
  return 0


def _table(out: pathlib.Path) -> str:
  """Exact match of every row, those tuned on single tasks last."""
  report = json.loads((out / "report" / "results.json").read_text())
  rows = {name: found["exact_match"] for name, found in report["methods"].items()}
  starts, tuned = (
    json.loads((out / name / "results.json").read_text())["methods"] for name in ("starts", "tuned")
  )
  for name, points in {"prefix_few": starts["random"], **tuned}.items():
    rows[name] = points[-1]["exact_match"]
  lines = ["| method | exact match [95% interval over tasks] |", "|---|---|"]
  lines += [f"| {name} | {tables.text(found)} |" for name, found in rows.items()]
  text = "\n".join(lines)
  storage.write_whole(out / "table.md", text + "\n")
  return text


if __name__ == "__main__":
  sys.exit(main())
