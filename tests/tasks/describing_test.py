"""What needs no seqio imports none: training describes sources, and asks whether they changed."""

import subprocess
import sys

import pytest

from tests.tasks import metaicl_files, ni_files, p3_files, promptsource_files

HEAVY = {"seqio", "tensorflow", "t5", "rouge_score", "sklearn"}


def words(folder):
  (folder / "words.json").write_text("[]")
  (folder / "words.txt").write_text("")


def clone(folder):
  ni_files.write(folder / "tasks" / "task001_numbers.json", ni_files.task())
  ni_files.write(folder / "splits" / "default" / "train_tasks.txt", "task001_numbers")
  ni_files.write(folder / "splits" / "default" / "excluded_tasks.txt", "")


@pytest.mark.parametrize("write, module, source", [
  (words, "fewshot", "fewshot.Folder(PATH)"),
  (words, "text", "text.Folder(PATH)"),
  (promptsource_files.rte, "promptsource", "promptsource.Templates(PATH)"),
  (lambda folder: p3_files.template(folder, "trec_trec1"), "p3", "p3.P3(PATH)"),
  (clone, "natural_instructions", "natural_instructions.TrainTasks(PATH)"),
  (metaicl_files.write_checkout, "metaicl", "metaicl.MetaICL(PATH)"),
  (words, "fewshot, symbol_tuning", "symbol_tuning.SymbolTuning(fewshot.Folder(PATH))"),
])
def test_a_source_is_described_without_seqio(tmp_path, write, module, source):
  write(tmp_path)
  assert_light(
    f"from hyperjax.tasks import {module}; PATH = {str(tmp_path)!r}; "
    f"assert {source}.fingerprints()"
  )


def test_built_data_is_read_without_seqio():
  assert_light("from hyperjax.data import caclm, loader, manifest")


def assert_light(code: str) -> None:
  code += f"; import sys; sys.exit(', '.join({HEAVY} & set(sys.modules)) or None)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
  assert done.returncode == 0, done.stderr
