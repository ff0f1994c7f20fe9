"""The baselines by command on the tiny setting: each trains, and one evaluation scores them all."""

import json
import pathlib
import re

import numpy as np
import pytest
from flax import nnx

from hyperjax import convert, evaluate, runs, tune
from hyperjax.data import vocabularies
from hyperjax.evaluation import report
from hyperjax.models import families, weights
from tests import tiny as tiny_lib

tiny = tiny_lib.fixture
HYPERLLAMA = ("NUM_GIST", "GIST_INIT_TEXT", "SINK_TEXT", "LORA_RANK")
# {name: (system file, its macros, run file)}
SYSTEMS = {
  "mtf_zero_shot": ("lora", ["LORA_RANK = 2"], "mtf"),
  "mtf_few_shot": ("few_shot_lora", ["LORA_RANK = 2"], "mtf"),
  "mtf_inline": ("lora", ["LORA_RANK = 2"], "mtf_few_shot"),
  "prefix": ("prefix_tuning", ["PREFIX_LENGTH = 2"], "mtf"),
  "full": ("full", [], "mtf"),
}


def gin_of(tiny, name: str, folder) -> str:
  """The tiny setting's gin file with another system in it."""
  system, macros, run = SYSTEMS[name]
  text = tiny.gin.read_text()
  lines = [line for line in text.splitlines() if line.split(" = ")[0] not in HYPERLLAMA]
  text = "\n".join([*lines, *macros]) + "\n"
  text = text.replace("systems/hyperllama.gin", f"systems/{system}.gin")
  file = folder / f"{name}.gin"
  file.write_text(text.replace("runs/mtf.gin", f"runs/{run}.gin"))
  return str(file)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
  """{name: folder of its run}."""
  base = tmp_path_factory.mktemp("baselines")
  folders = {}
  for name in SYSTEMS:
    folders[name] = str(base / name)
    arguments = [f"--gin_file={gin_of(tiny, name, base)}", f"--gin.MODEL_DIR={folders[name]}"]
    assert tiny_lib.train.main([*arguments, "--gin.TRAIN_STEPS=6"]) == 0
  return folders


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_baseline_trains(trained, name):
  lines = (pathlib.Path(trained[name]) / "metrics.jsonl").read_text().splitlines()
  losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
  assert len(losses) == 6 and np.isfinite(losses).all()
  before = runs.load(pathlib.Path(trained[name]))
  assert before.step == 6 and before.inline == (name == "mtf_inline")


def test_full_fine_tuning_changes_the_model_and_the_others_do_not(tiny, trained):
  embed = {name: np.asarray(runs.load(folder).downstream.embed[...])
           for name, folder in trained.items()}  # fmt: skip
  original = np.asarray(runs.load(tiny.run).downstream.embed[...])
  for name, found in embed.items():
    assert np.array_equal(found, original) == (name != "full"), name


def test_a_fully_trained_model_becomes_a_folder_of_its_own(tiny, trained, tmp_path, capsys):
  folder = tmp_path / "copy"
  assert convert.main(["--run", trained["full"], "--out", str(folder)]) == 0
  run, copy = runs.load(trained["full"]), families.load(folder)
  assert copy.config == run.config and copy.fingerprint in capsys.readouterr().out
  assert copy.fingerprint != families.fingerprint(tiny.model)
  written = dict(weights.leaves(copy.params))
  for path, value in weights.leaves(nnx.to_pure_dict(nnx.state(run.downstream))):
    np.testing.assert_array_equal(written[path], value, err_msg=str(path))
  assert vocabularies.load(folder).fingerprint == run.vocabulary.fingerprint
  assert families.context_length(folder) == families.context_length(tiny.model)


def test_a_run_that_left_its_model_alone_is_not_converted(tiny, trained, tmp_path, capsys):
  assert convert.main(["--run", trained["prefix"], "--out", str(tmp_path / "copy")]) == 1
  error = capsys.readouterr().err
  assert f"did not change its downstream model; convert that with --source {tiny.model}" in error
  assert not (tmp_path / "copy").exists()


def test_one_evaluation_scores_all_baselines(tiny, trained, tmp_path):
  given = {"hyperllama": str(tiny.run), **trained}
  arguments = [
    "--gin_file=runs/evaluate.gin", f"--gin.EVAL_OUTPUT_DIR={tmp_path / 'report'}",
    f"--gin.RUNS={given}", "--gin.NUM_SHOTS=3", "--gin.NUM_QUERIES=4", "--gin.MAX_QUERIES=8",
    "--gin.SEEDS=(0, 1)", "--gin.BATCH_SIZE=4", "--gin.MAX_SHAPES=1",
  ]
  assert evaluate.main(arguments) == 0
  records = report.read_records(tmp_path / "report")
  key = lambda r: (r["task"], r["seed"], r["query_id"], r["target"])
  asked = {name: sorted(map(key, found)) for name, found in records.items()}
  assert all(found == asked["zero_shot"] for found in asked.values())
  by_seed = lambda name: [
    [r["log_likelihood"] for r in records[name] if r["seed"] == seed] for seed in (0, 1)
  ]
  for name in SYSTEMS:
    first, second = by_seed(name)
    assert first != by_seed("zero_shot")[0]
    # What reads the support answers otherwise under another one.
    assert (first != second) == (name in ("mtf_few_shot", "mtf_inline")), name
  assert by_seed("in_context")[0] != by_seed("mtf_few_shot")[0]


def tune_arguments(tiny, trained, out, **macros) -> list[str]:
  given = {
    "TUNE_OUTPUT_DIR": out, "RUN": tiny.run, "SHARED": trained["prefix"], "TUNE_STEPS": 4,
    "MEASURE": (0, 2, 4), "NUM_EXAMPLES": 6, "NUM_SHOTS": 3, "BATCH_SIZE": 4, "MAX_QUERIES": 8,
    "PREFIX_LENGTH": 2, **macros,
  }  # fmt: skip
  return ["--gin_file=runs/tune.gin", *(f"--gin.{name}={value}" for name, value in given.items())]


def test_tuning_starts_where_it_says_and_resumes(tiny, trained, tmp_path, monkeypatch):
  out = tmp_path / "tuned"
  assert tune.main(tune_arguments(tiny, trained, out)) == 0
  results = json.loads((out / "results.json").read_text())
  assert list(results["methods"]) == ["random", "shared", "generated"]
  assert set(results["tasks"]) == {"held_out.held_words", "held_out.held_choice"}
  first = {}
  for method, points in results["methods"].items():
    assert [point["step"] for point in points] == [0, 2, 4]
    likelihood = [point["log_likelihood"]["mean"] for point in points]
    assert likelihood[-1] > likelihood[0], method
    first[method] = likelihood[0]
  assert len(set(first.values())) == 3
  assert (out / "curves.png").stat().st_size > 10_000 and "curves.png" in (
    out / "report.md"
  ).read_text()
  # Stored cells are read back: nothing is tuned again.
  monkeypatch.setattr(tune.Tuner, "curve", lambda *_: pytest.fail("tuned again"))
  assert tune.main(tune_arguments(tiny, trained, out)) == 0
  assert json.loads((out / "results.json").read_text())["methods"] == results["methods"]


def test_the_mean_of_several_generated_phis_is_a_start(tiny, trained, tmp_path):
  arguments = tune_arguments(tiny, trained, tmp_path / "tuned")
  assert tune.main([*arguments, "--gin.generated/tune.Start.supports=2"]) == 0
  results = json.loads((tmp_path / "tuned" / "results.json").read_text())
  assert np.isfinite(results["methods"]["generated"][0]["log_likelihood"]["mean"])


@pytest.mark.parametrize("change, message", [
  ({"MEASURE": (0, 9)}, r"measure \(0, 9\) must name steps in 0..4"),
  ({"PREFIX_LENGTH": 3}, "method 'shared' .* cannot start .*key has shape .*PREFIX_LENGTH"),
  ({"NUM_EXAMPLES": 60}, "'train', of 40 different inputs, has no 60 to tune on beside the 8 q"),
  ({"generated/tune.Start.supports": 5}, "5 supports of 3 examples are more than the 6"),
])  # fmt: skip
def test_what_tuning_refuses(tiny, trained, tmp_path, capsys, change, message):
  status = tune.main(tune_arguments(tiny, trained, tmp_path / "t", **change))
  assert re.search(message, tiny_lib.refused(capsys, status))
  assert not (tmp_path / "t").exists()  # before anything is tuned
