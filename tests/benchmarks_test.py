"""The benchmarks: `hyperjax train` accepts every training run of theirs; one runs as a whole."""

import importlib
import itertools
import json
import math
import os
import pathlib
import sys
import threading

import pytest

from benchmarks import tiny_t5
from hyperjax import convert, evaluate, launch, runs, train
from hyperjax.data import building, manifest
from hyperjax.tasks import rules
from tests import tiny as tiny_lib


def load(name: str):
  """A module of benchmarks/."""
  return importlib.import_module(f"benchmarks.{name}")


FUNCTIONS = {
  "hyperjax.train": "train", "hyperjax.evaluate": "evaluate", "hyperjax.tune": "tune",
}


@pytest.mark.parametrize("name, more, count", [
  ("ablations", ["--seeds", "0", "1"], 2 * 8),
  ("smollm2_table", ["--text_dir", "texts"], 8),
])  # fmt: skip
def test_every_command_of_a_benchmark_is_accepted(name, more, count, tmp_path, monkeypatch, capsys):
  """Training runs by a dry run each, reports by the arguments that their gin files give."""
  monkeypatch.chdir(tmp_path)
  benchmark, calls = load(name), []
  monkeypatch.setattr(benchmark.commands, "run", lambda *call: calls.append(call))
  monkeypatch.setattr("sys.argv", [name, "--fewshot_dir", "tasks", "--out", "out", *more])
  if name == "smollm2_table":
    monkeypatch.setattr(benchmark, "_table", lambda out: "")
  assert benchmark.main() == 0
  trained = [arguments for module, arguments in calls if module == "hyperjax.train"]
  assert len(trained) == count
  for arguments in trained:
    assert train.main([*arguments, "--dry_run"]) == 0, arguments
  rest = [call for call in calls if call[0] != "hyperjax.train"]
  assert rest
  for module, arguments in rest:
    files = [a.removeprefix("--gin_file=") for a in arguments if a.startswith("--gin_file=")]
    bindings = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
    assert launch.arguments(files, module, FUNCTIONS[module], bindings=bindings)


@pytest.mark.parametrize("share", ["0", "1", "0.004", "-1"])
def test_stages_without_steps_are_refused_before_anything_is_trained(
  share, tmp_path, monkeypatch, capsys
):
  benchmark, out = load("smollm2_table"), tmp_path / "out"
  monkeypatch.setattr(benchmark.commands, "run", lambda *call: pytest.fail("it began"))
  arguments = ["--fewshot_dir", "tasks", "--text_dir", "texts", "--out", str(out)]
  monkeypatch.setattr("sys.argv", ["table", *arguments, f"--caclm_share={share}"])
  with pytest.raises(SystemExit):
    benchmark.main()
  assert f"--caclm_share {float(share)} of --steps 200 is " in capsys.readouterr().err
  assert not out.exists()


def planned(tmp_path, *more: str) -> list:
  arguments = ["--text_dir", "texts", "--out", str(tmp_path / "out"), *more]
  downstream, hypermodels = tiny_t5.plan(tiny_t5.parser().parse_args(arguments))
  return [*downstream, *itertools.chain.from_iterable(hypermodels)]


def trainings(cells) -> list:
  return [cell for cell in cells if cell.module == "hyperjax.train"]


def test_every_training_run_is_sound(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  for cell in trainings(planned(tmp_path)):
    assert train.main([*cell.arguments, "--dry_run"]) == 0, cell.name
    assert "not built yet" in capsys.readouterr().out
  assert not list(tmp_path.iterdir())


def test_all_hypermodels_train_for_the_same_steps(tmp_path):
  steps = {}
  for cell in trainings(planned(tmp_path, "--steps", "400")):
    given = dict(a.removeprefix("--gin.").split("=", 1) for a in cell.arguments)
    steps[cell.name] = int(given["TRAIN_STEPS"])
  totals = [
    steps[f"caclm_{quarter}"] + steps[tiny_t5.after(quarter)] for quarter in tiny_t5.QUARTERS
  ]
  assert totals == [400, 400, 400] and steps[tiny_t5.PREFIX] == steps[tiny_t5.LORA] == 400


def test_each_hypermodel_is_reported_as_it_ends(tmp_path):
  names = [cell.name for cell in planned(tmp_path)]
  assert len(set(names)) == len(names)
  for name in (tiny_t5.PREFIX, tiny_t5.LORA, *map(tiny_t5.after, tiny_t5.QUARTERS)):
    assert names[names.index(name) + 1] == f"{name}_report"


def test_work_at_once_has_cores_of_its_own_and_ends_at_the_first_failure(tmp_path):
  both, cores, begun = threading.Barrier(2, timeout=30), [], []

  def piece():
    both.wait()  # passes only where two are at work
    cores.append(os.sched_getaffinity(0))

  before = os.sched_getaffinity(0)
  tiny_t5.commands.at_once([piece] * 4, 2)
  assert len(cores) == 4 and os.sched_getaffinity(0) == before
  if len(before) > 1:
    assert all(share < before for share in cores)

  def fail():
    begun.append(1)
    both.wait()
    tiny_t5.commands.run("no_such_module", [], tmp_path / "logs" / "a.log")

  with pytest.raises(SystemExit):
    tiny_t5.commands.at_once([fail, fail, *[lambda: begun.append(2)] * 20], 2)
  assert "No module named no_such_module" in (tmp_path / "logs" / "a.log").read_text()
  assert begun == [1, 1]


@pytest.mark.parametrize("more", [[], ["--documents"]])
def test_building_and_reading_are_measured(more, monkeypatch, capsys):
  monkeypatch.setattr("sys.argv", [
    "build_store", "--examples", "50", "--vocabulary", "bytes", "--batches", "1", *more,
  ])  # fmt: skip
  assert load("build_store").main() == 0
  found = json.loads(capsys.readouterr().out)
  assert found["tokens"] > 50 * 30
  assert found["tokens_per_second"] > 0 and found["batch_tokens_per_second"] > 0


def test_attention_is_measured(monkeypatch, capsys):
  monkeypatch.setattr("sys.argv", ["attention", "--lengths", "16,300", "--repeats", "1"])
  assert load("attention").main() == 0
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [(line["length"], line["kernel"]) for line in lines] == [
    (16, "einsum"), (16, "blocks"), (300, "einsum"), (300, "blocks")
  ]  # fmt: skip
  assert lines[3]["forward_mb"] < lines[2]["forward_mb"] and lines[0]["forward_and_back_ms"] > 0


def test_ranking_options_is_measured(monkeypatch, capsys):
  """Two parts of batches: one full, one not; nothing compiles after the first of each shape."""
  files = ["models/llama_tiny.gin", "systems/hyperllama.gin", "data/lexical.gin", "runs/mtf.gin"]
  monkeypatch.setattr("sys.argv", [
    "rank_options", *(f"--gin_file={file}" for file in files), "--options", "200",
    "--batch_size", "2", "--num_queries", "6", "--large", "2",
  ])  # fmt: skip
  benchmark = load("rank_options")
  monkeypatch.setattr(benchmark.answers, "_PART_BATCHES", 6)
  monkeypatch.setattr(benchmark.continuations, "_PROGRAM_TOKENS", 0)
  assert benchmark.main() == 0
  found = json.loads(capsys.readouterr().out)
  assert 200 <= found["options"] < 220 and len(found["shapes"]) > 2
  assert 20 * 200 < found["tokens"] < 70 * 220
  assert found["ratio"] == pytest.approx(
    found["seconds"] / found["large_batch_seconds"], rel=0.05
  )


def figure(mean):
  return {"mean": mean, "low": None if mean is None else mean - 0.1,
          "high": None if mean is None else mean + 0.1}  # fmt: skip


def written(out, name: str, mean: float, recovery) -> None:
  methods = {
    "zero_shot": 0.1, "in_context_shuffled": 0.1, "in_context": 0.5, name: mean,
    "other_task_support": 0.1, "shuffled_outputs": 0.2,
  }  # fmt: skip
  folder = out / f"{name}_report"
  folder.mkdir(parents=True)
  (folder / "results.json").write_text(json.dumps({
    "methods": {method: {"exact_match": figure(value)} for method, value in methods.items()},
    "recovery": {"exact_match": figure(recovery)},
  }))  # fmt: skip


def test_table_and_figure_hold_what_there_is(tmp_path):
  written(tmp_path, tiny_t5.PREFIX, 0.3, 0.5)
  written(tmp_path, tiny_t5.after(2), 0.4, None)
  found = tiny_t5.results(tmp_path)
  lines = tiny_t5.table(found).splitlines()
  assert [line.split(" | ")[0] for line in lines[2:-2]] == [
    "| zero_shot", "| in_context_shuffled", "| in_context", f"| {tiny_t5.PREFIX}",
    f"| {tiny_t5.after(2)}",
  ]  # fmt: skip
  assert "0.300 [0.200, 0.400] | 0.500 [0.400, 0.600] | 0.100" in lines[5]
  assert "| undefined |" in lines[6]
  tiny_t5.draw(found, 400, tmp_path / "figure.png")
  assert (tmp_path / "figure.png").stat().st_size > 5_000


def test_a_t5_that_does_not_read_its_support_ends_it(tmp_path, monkeypatch, capsys):
  ran = []

  def finish(cell, args):
    ran.append(cell.name)
    out = args.out
    (out / "downstream").mkdir(parents=True)
    lines = [{"step": 0, "held_out/exact_match": 0.9}, {"step": 1, "held_out/exact_match": 0.29}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (out / "downstream" / "metrics.jsonl").write_text(text)

  monkeypatch.setattr(tiny_t5, "run", finish)
  monkeypatch.setattr("sys.argv", ["tiny_t5", "--text_dir", "t", "--out", str(tmp_path / "out")])
  assert tiny_t5.main() == 1
  assert ran == ["downstream"] and "nothing that a phi could recover" in capsys.readouterr().err


def test_the_help_teaches(capsys):
  with pytest.raises(SystemExit):
    tiny_t5.parser().parse_args(["--help"])
  assert "python -m benchmarks.tiny_t5 --text_dir my_texts --out" in capsys.readouterr().out


# Behind the experiment's own settings: a smaller model, fewer tasks, one static shape of each kind,
# an optimizer that compiles sooner.
EVALUATION = {"eval_sets.EvalConfig.include": list(rules.HELD_OUT_TASKS[:2]), "BATCH_SIZE": 2}
TRAINING = {
  "t5.T5Config.d_model": 16, "t5.T5Config.num_encoder_layers": 1, "t5.T5Config.head_dim": 8,
  "t5.T5Config.d_mlp": 16, "train/manifest.DataConfig.max_examples": 40,
  "held_out/manifest.DataConfig.max_examples": 40, "eval_sets.EvalConfig.max_shapes": 1,
  "eval_sets.EvalConfig.batch_size": 2, "OPTIMIZER": "@optimizers.AdamW()", **EVALUATION,
}  # fmt: skip
MTF = {**TRAINING, "MIXTURE_OR_TASK_NAME": rules.TRAIN_TASKS[0], "MAX_BUCKETS": 1}


@pytest.fixture
def built_here(monkeypatch, empty_registry):
  """Data is built in this process: starting another that imports TensorFlow takes longer."""
  from hyperjax.data import build

  original = building.ensure

  def ensure(config, out, **given):
    if not (pathlib.Path(out) / manifest.FILE).exists():
      build.build(config, out)
    return original(config, out, **given)

  monkeypatch.setattr(building, "ensure", ensure)


def smaller(module: str, arguments) -> list[str]:
  """A cell's command line with the settings above."""
  if module == "hyperjax.convert":
    return [*arguments]
  more = {**EVALUATION, "MAX_SHAPES": 1}
  if module == "hyperjax.train":
    more = MTF if f"--gin_file={tiny_t5.RULES}" in arguments else TRAINING
  if "--gin_file=runs/mtf.gin" in arguments:  # its report says the same later
    more = {**more, "EVAL_PERIOD": 0}
  return [*arguments, *tiny_t5.commands.gin_arguments([], more)]


def test_the_whole_experiment_runs_and_resumes(tmp_path, monkeypatch, capsys, built_here):
  """T5 from random weights to the figure, of one hypermodel, in steps too few to learn anything."""
  with tiny_lib.shared_programs(tmp_path):  # what resumes has the programs of what it goes on from
    _run_the_whole_experiment(tmp_path, monkeypatch)


def _run_the_whole_experiment(tmp_path, monkeypatch):
  texts = tmp_path / "texts"
  texts.mkdir()
  (texts / "a.txt").write_text("Nobody reads what is written here about nothing at all. " * 300)
  mains = {
    "hyperjax.train": train.main, "hyperjax.evaluate": evaluate.main,
    "hyperjax.convert": convert.main,
  }  # fmt: skip
  ran = []

  def run(module, arguments, log):
    ran.append(module)
    assert mains[module](smaller(module, arguments)) == 0

  monkeypatch.setattr(tiny_t5.commands, "run", run)
  monkeypatch.setattr(tiny_t5, "LEAST_IN_CONTEXT", 0.0)
  planned = tiny_t5.plan

  def shortened(args):
    downstream, hypermodels = planned(args)
    return downstream, [cells for cells in hypermodels if cells[0].name == "caclm_2"]

  monkeypatch.setattr(tiny_t5, "plan", shortened)
  out = tmp_path / "out"
  monkeypatch.setattr("sys.argv", [
    "tiny_t5", "--text_dir", str(texts), "--out", str(out), "--downstream_steps", "2", "--steps",
    "4", "--max_queries", "1",
  ])  # fmt: skip
  assert tiny_t5.main() == 0
  rows = (out / "table.md").read_text().splitlines()[5:-2]
  assert [row.split(" | ")[0] for row in rows] == [f"| {tiny_t5.after(2)}"]
  assert (out / "hyperpretraining.png").stat().st_size > 5_000
  for name, steps in (("downstream", 2), ("caclm_2", 2), (tiny_t5.after(2), 2)):
    lines = map(json.loads, (out / name / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == steps and all(map(math.isfinite, losses)), name
  # Given again, it trains and answers nothing.
  kept = [*out.glob("*/metrics.jsonl"), *out.glob("*/answers/*")]
  written = {file: file.read_bytes() for file in kept}  # with the times of all steps
  assert len(written) > 3 + 5 and ran.count("hyperjax.convert") == 1
  assert tiny_t5.main() == 0
  assert {file: file.read_bytes() for file in kept} == written
  assert ran.count("hyperjax.convert") == 1
  monkeypatch.setattr("sys.argv", [*sys.argv, "--seed", "1"])
  with pytest.raises(SystemExit, match="made with seed 0, not 1: name another --out"):
    tiny_t5.main()
  # A run opens without the model that its body started from.
  (out / "downstream" / "model").rename(out / "moved")
  assert runs.load(out / tiny_t5.after(2), source=str(out / "moved")).step == 2
