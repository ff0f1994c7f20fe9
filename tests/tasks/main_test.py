"""`hyperjax tasks` and `hyperjax data`, as typed."""

import json

import pytest

from hyperjax.data import __main__ as data_main
from hyperjax.data import vocabularies
from hyperjax.data.manifest import Manifest
from hyperjax.tasks import __main__ as tasks_main
from tests.data.fakes import Bytes, numbered, write_folder


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
