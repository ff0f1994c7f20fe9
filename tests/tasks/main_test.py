"""`hyperjax tasks` and `hyperjax data`, as typed."""

import json

import pytest

from hyperjax.data import __main__ as data_main
from hyperjax.data import vocabularies
from hyperjax.data.manifest import Manifest
from hyperjax.tasks import __main__ as tasks_main
from tests import tiny
from tests.data.fakes import Bytes, numbered, write_folder
from tests.tasks import ni_files, p3_files, promptsource_files
from tests.tasks.metaicl_files import write_checkout


@pytest.fixture
def folder(tmp_path):
  for name in ("counting", "naming"):
    rows = [{"input": row["input"], "output": row["output"]} for row in numbered(4, name)]
    (tmp_path / f"{name}.json").write_text(json.dumps(rows))
  return tmp_path


def test_a_folder_is_listed_with_examples(folder, capsys):
  arguments = ["--fewshot", str(folder), "--match", "fewshot.naming", "--examples", "1"]
  assert tasks_main.main(arguments) == 0
  shown = capsys.readouterr().out
  assert "fewshot.naming" in shown and "'naming0' -> 'out0'" in shown
  assert "fewshot.counting" not in shown


def test_a_built_folder_is_listed_with_counts(tmp_path, capsys):
  write_folder(tmp_path, {"first": numbered(7), "second": numbered(3)})
  assert tasks_main.main(["--data", str(tmp_path)]) == 0
  row = next(line for line in capsys.readouterr().out.splitlines() if "first" in line)
  assert "train" in row and "0.5000" in row and " 7 " in row


def test_the_parts_of_a_built_folder_are_named(tmp_path, capsys):
  write_folder(tmp_path / "data" / "train", {"first": numbered(7)})
  assert tasks_main.main(["--data", str(tmp_path / "data")]) == 2
  assert capsys.readouterr().err == (
    f"error: {tmp_path}/data is not a finished data folder: it has no manifest.json. Those in it "
    f"are {tmp_path}/data/train.\n"
  )


def p3(path):
  p3_files.template(path, "trec_trec1", 12, test=4)
  p3_files.held_out(path, "super_glue_copa_best_option")
  return ["data/p3.gin", "P3_DIR"]


def promptsource(path):
  promptsource_files.rte(path)
  promptsource_files.copa(path)
  return ["data/promptsource.gin", "PROMPTSOURCE_DIR", "PROMPTSOURCE_HELD_OUT=['super_glue_rte']"]


def natural_instructions(path):
  ni_files.write(path / "task001_asked.json", ni_files.task(103))
  ni_files.write(path / "task002_more.json", ni_files.task(9, Categories=["Word Analogy"]))
  held_out = "NI_HELD_OUT=['task001_asked']"
  return ["data/natural_instructions.gin", "NI_DIR", "NI_TRACK=None", held_out]


def metaicl(path):
  write_checkout(path)
  return ["data/metaicl.gin", "METAICL_DIR", "METAICL_SEEDS=(100, 13)"]


def symbol_tuning(path):
  write_checkout(path)
  few = (f"{part}/symbol_tuning.SymbolTuning.min_per_class=1" for part in ("train", "held_out"))
  return ["data/symbol_tuning.gin", "METAICL_DIR", *few]


def corpus(path):
  path.mkdir()
  (path / "a.jsonl").write_text('{"text": "a"}\n')
  (path / "a_validation.jsonl").write_text('{"text": "a"}\n')
  return ["data/c4.gin", "C4_DIR"]


@pytest.mark.parametrize("write, rows", [
  (p3, [
    ("t0_train", "mixture", "", "test, train", "of its 1 tasks"),
    ("t0_train.trec.trec1", "task", "1.0000", "train: 12, test: 4", "-"),
    ("p3_held_out.super_glue_copa.best_option", "task", "1.0000", "train: 12, validation",
     "rank_classification"),
  ]),
  (promptsource, [
    ("promptsource.super_glue_copa._why_C1_or_C2", "task", "1.0000", "train, validation",
     "rank_classification"),
    ("promptsource_held_out.super_glue_rte.does_it_follow_", "task", "1.0000",
     "train, validation", "rank_classification"),
  ]),
  (natural_instructions, [
    ("ni.Word_Analogy.task002_more", "task", "1.0000", "train: 9", "exact_match, rouge_l"),
    ("natural_instructions_test.Question_Answering.task001_asked", "task", "1.0000",
     "test: 100, train: 3", "rouge_l, exact_match"),
  ]),
  (metaicl, [
    ("metaicl_hr_to_lr.piqa", "task", "0.3333", "train", "accuracy"),
    ("metaicl_hr_to_lr_test.glue_rte", "task", "0.5000", "test, support_100, support_13",
     "macro_f1"),
  ]),
  (symbol_tuning, [
    ("symbol_tuning", "mixture", "", "train", "of its 16 tasks"),
    ("symbol_tuning.metaicl.glue_sst2.7", "task", "0.0625", "train: 12", "accuracy"),
    ("symbol_tuning_held_out.metaicl.glue_rte.0", "task", "0.2500", "test: 6",
     "accuracy"),
  ]),
  (corpus, [("c4", "task", "1.0000", "train, validation", "-")]),
])  # fmt: skip
@pytest.mark.usefixtures("empty_registry")
def test_the_tasks_of_a_data_file_are_listed(tmp_path, capsys, monkeypatch, write, rows):
  monkeypatch.setenv("COLUMNS", "200")
  file, folder, *more = write(tmp_path / "data")
  bindings = [f"{folder}={tmp_path / 'data'}", *more]
  arguments = [f"--gin_file={file}", *(f"--gin.{binding}" for binding in bindings)]
  assert tasks_main.main(arguments) == 0
  lines = capsys.readouterr().out.splitlines()
  shown = {tuple(cell.strip() for cell in line.strip("│").split("│")) for line in lines}
  assert set(rows) <= shown


def test_what_cannot_be_listed_is_said(tmp_path, capsys):
  status = tasks_main.main(["--gin_file=data/p3.gin", f"--gin.P3_DIR={tmp_path}"])
  assert "no template of 't0_train' there" in tiny.refused(capsys, status)
  assert "no task module 'no_module'" in tiny.refused(capsys, tasks_main.main(["no_module"]))
  assert tasks_main.main(["--gin_file=data/p3.gin"]) == 2
  assert capsys.readouterr().err.startswith("error: P3_DIR must be set, for example --gin.P3_DIR=")


def test_data_is_built_from_a_gin_file(folder, tmp_path, monkeypatch):
  monkeypatch.setattr(vocabularies, "load", lambda source: Bytes())
  (tmp_path / "data.gin").write_text(f"""
    from __gin__ import dynamic_registration
    from hyperjax.data import build
    from hyperjax.data import manifest
    from hyperjax.tasks import fewshot
    fewshot.Folder.path = {str(folder)!r}
    fewshot.Folder.name = 'by_gin'
    manifest.DataConfig.mixture_or_task_name = 'by_gin'
    manifest.DataConfig.vocabulary = 'bytes'
    manifest.DataConfig.sources = [@fewshot.Folder()]
    build.build_parts.parts = {{'mine': @manifest.DataConfig()}}
  """)
  arguments = [f"--gin_file={tmp_path / 'data.gin'}", "--out", str(tmp_path / "out")]
  assert data_main.main(arguments) == 0
  assert Manifest.load(tmp_path / "out" / "mine").tasks == ("by_gin.counting", "by_gin.naming")
