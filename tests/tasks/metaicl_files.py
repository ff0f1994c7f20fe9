"""Writes what a checkout of MetaICL holds once its scripts have made its data, in little."""

import json
import pathlib
from collections.abc import Mapping, Sequence

K = 16
TRAINING = {"piqa": "multi-choice", "glue-sst2": "classification", "unifiedqa:squad2": "free-form"}
TARGETS = {"glue-rte": "classification", "openbookqa": "multi-choice"}
OPTIONS = {"glue-sst2": ["negative", "positive"], "glue-rte": ["entailment", "not_entailment"]}


def write_json(path: pathlib.Path, value) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def write_rows(path: pathlib.Path, rows: Sequence[Mapping]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def examples(task: str, kind: str, count: int, prefix: str = "") -> list[dict]:
  rows = []
  for i in range(count):
    options = {"multi-choice": [f"{i}", "no"], "free-form": []}.get(kind, OPTIONS.get(task))
    answers = options or ["free"]
    output = answers[i % len(answers)]
    rows.append({"task": task, "input": f"{prefix}{i}", "output": output, "options": options})
  return rows


def write_checkout(root: pathlib.Path) -> pathlib.Path:
  """Writes one setting, its tasks' kinds, training files, and target files of two seeds."""
  setting = {"train": [*TRAINING], "test": [*TARGETS], "unseen_domain_test": ["openbookqa"]}
  write_json(root / "config" / "hr_to_lr.json", setting)
  setting = {"train": ["glue-sst2"], "test": ["glue-rte"]}
  write_json(root / "config" / "class_to_class.json", setting)
  for task, kind in (TRAINING | TARGETS).items():
    config = {"task_type": kind, "options": OPTIONS.get(task)}
    write_json(root / "config" / "tasks" / f"{task}.json", config)
  for task, kind in TRAINING.items():
    write_rows(root / "data" / task / f"{task}_16384_100_train.jsonl", examples(task, kind, 12))
  for task, kind in TARGETS.items():
    for seed in (100, 13):
      for split, count in (("train", K), ("dev", K), ("test", 6)):
        path = root / "data" / task / f"{task}_{K}_{seed}_{split}.jsonl"
        prefix = "test " if split == "test" else f"{seed} {split} "  # all seeds ask the same
        write_rows(path, examples(task, kind, count, prefix))
  return root
