"""Commands on eight virtual devices have the results of one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from hyperjax import adapt, adapters, evaluate, predict, train, tune
from hyperjax.evaluation import report
from hyperjax.training import metrics_writer
from tests import tiny as tiny_lib
from tests.baselines_test import gin_of

tiny = tiny_lib.fixture
COMMANDS = {
  "train": train, "evaluate": evaluate, "tune": tune, "adapt": adapt, "predict": predict
}  # fmt: skip
# Both kinds of parameters' axes, and episodes over two of them.
MESH = {"MESH_DATA": 2, "MESH_FSDP": 2, "MESH_TENSOR": 2}
# One process for all of them: importing takes longer than they do. It prints what each device holds
# of a kernel of every model that they load.
PROGRAM = """
import importlib, json, sys
import jax
from hyperjax import runs

load = runs.ModelConfig.load

def shown(self, mesh=None):
  model, fingerprint = load(self, mesh)
  kernel = jax.tree.leaves(model.decoder.self.q[...])[0]
  print("held", json.dumps([kernel.dtype.name, *kernel.sharding.shard_shape(kernel.shape)]))
  return model, fingerprint

runs.ModelConfig.load = shown
for name, arguments in json.loads(sys.argv[1]):
  status = importlib.import_module(f"hyperjax.{name}").main(arguments)
  assert status == 0, name
"""


Call = tuple[str, list[str]]


def on_eight(tiny, calls: list[Call]) -> list[list]:
  """Runs commands on eight devices; what each of these holds of every model: dtype and shape."""
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, json.dumps(calls)], cwd=tiny_lib.ROOT,
    env={**tiny.environment(), "XLA_FLAGS": flags}, check=True, text=True, stdout=subprocess.PIPE,
  )  # fmt: skip
  return [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("held ")]


def gin(file: str, given: dict) -> list[str]:
  return [f"--gin_file={file}", *(f"--gin.{name}={value}" for name, value in given.items())]


def evaluation(run, out, mesh: dict) -> Call:
  return "evaluate", gin("runs/evaluate.gin", {
    "EVAL_OUTPUT_DIR": out / "report", "RUNS": {"hyperllama": str(run)}, "NUM_SHOTS": 3,
    "NUM_QUERIES": 4, "MAX_QUERIES": 12, "SEEDS": "(0,)", "BATCH_SIZE": 4, "MAX_SHAPES": 1, **mesh,
  })  # fmt: skip


def calls(tiny, shared, out, mesh: dict, devices: int) -> list[Call]:
  """(command, arguments): what one device and eight are given."""
  return [
    evaluation(tiny.run, out, mesh),
    ("tune", gin("runs/tune.gin", {
      "TUNE_OUTPUT_DIR": out / "tuned", "RUN": tiny.run, "SHARED": shared, "TUNE_STEPS": 3,
      "MEASURE": (0, 3), "NUM_EXAMPLES": 6, "NUM_SHOTS": 3, "BATCH_SIZE": 4, "MAX_QUERIES": 8,
      "PREFIX_LENGTH": 2, "TASKS": ["held_out.held_choice"], **mesh,
    })),
    ("adapt", [
      "--checkpoint", str(tiny.run), "--examples", str(out.parent / "examples.json"), "--out",
      str(out / "adapter"), "--devices", str(devices),
    ]),
    ("predict", [
      "--adapter", str(out / "adapter"), "--inputs", str(out.parent / "inputs.json"), "--out",
      str(out / "predictions.jsonl"), "--max_new_tokens", "5", "--devices", str(devices),
    ]),
  ]  # fmt: skip


@pytest.fixture(scope="module")
def both(tiny, tmp_path_factory):
  """The folders of what one device and what eight have made, which hold parts of the weights."""
  base = tmp_path_factory.mktemp("devices")
  shared = base / "shared"
  arguments = [f"--gin_file={gin_of(tiny, 'prefix', base)}", f"--gin.MODEL_DIR={shared}"]
  assert tiny_lib.train.main([*arguments, "--gin.TRAIN_STEPS=4"]) == 0
  rows = tiny_lib.examples()["held_choice"]
  fields = lambda row, *names: {name: row[name] for name in names}
  (base / "examples.json").write_text(json.dumps([fields(r, "input", "output") for r in rows[:5]]))
  (base / "inputs.json").write_text(json.dumps([fields(row, "input") for row in rows[5:12]]))
  one, eight = base / "one", base / "eight"
  for folder in (one, eight):
    folder.mkdir()
  for name, given in calls(tiny, shared, one, {}, 1):
    assert COMMANDS[name].main(given) == 0, name
  # Of layers 2, model 32, heads 4 of 16: fsdp 2 x tensor 2, and tensor 2 alone.
  held = on_eight(tiny, calls(tiny, shared, eight, MESH, 2))
  assert held == [["float32", 2, 16, 2, 16]] * 2 + [["float32", 2, 32, 2, 16]] * 2
  return one, eight


def assert_same_records(folders) -> None:
  one, eight = (report.read_records(folder / "report") for folder in folders)
  assert one.keys() == eight.keys() and len(one) == 6
  apart = lambda records: ([r["log_likelihood"] for r in records],
                           [{**r, "log_likelihood": 0} for r in records])  # fmt: skip
  for method, records in one.items():
    (left, rest), (right, theirs) = apart(records), apart(eight[method])
    assert rest == theirs and len(rest) == 24, method
    np.testing.assert_allclose(left, right, rtol=1e-4, err_msg=method)
  assert len({r["prediction"] for records in one.values() for r in records}) > 3


@pytest.mark.pods
def test_an_evaluation_has_the_same_records(both):
  assert_same_records(both)


@pytest.mark.pods
def test_a_base_in_8_bits_is_trained_on_and_asked_with_the_same_results(tiny, tmp_path):
  given = {"BASE_BITS": 8, "TRAIN_STEPS": 3, "WARMUP_STEPS": 1, "BATCH_SIZE": 4, "MAX_BUCKETS": 1}
  one, eight = folders = tmp_path / "one", tmp_path / "eight"
  commands = lambda out, mesh: [
    ("train", tiny.arguments(out / "run", **given, **mesh)), evaluation(out / "run", out, mesh)
  ]
  for name, arguments in commands(one, {}):
    assert COMMANDS[name].main(arguments) == 0, name
  assert on_eight(tiny, commands(eight, MESH)) == [["int8", 2, 16, 2, 16]] * 2
  losses = [
    [line["loss"] for line in metrics_writer.read(folder / "run" / "metrics.jsonl")]
    for folder in folders
  ]
  assert len(losses[0]) == 3
  np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
  assert_same_records(folders)


@pytest.mark.pods
def test_tuning_has_the_same_curves(both):
  one, eight = (json.loads((f / "tuned" / "results.json").read_text())["methods"] for f in both)
  assert list(one) == list(eight) == ["random", "shared", "generated"]
  for method, points in one.items():
    values = lambda points: [
      (p["step"], p["exact_match"]["mean"], p["log_likelihood"]["mean"]) for p in points
    ]
    np.testing.assert_allclose(values(points), values(eight[method]), rtol=1e-3, err_msg=method)


@pytest.mark.pods
def test_an_adapter_and_its_predictions_are_the_same(both):
  one, eight = (adapters.read_tensors(f / "adapter" / "adapter_model.safetensors") for f in both)
  assert one.keys() == eight.keys()
  for name, value in one.items():
    np.testing.assert_allclose(value, eight[name], atol=1e-4, err_msg=name)
  one, eight = (
    [json.loads(line)["prediction"] for line in (f / "predictions.jsonl").read_text().splitlines()]
    for f in both
  )
  assert one == eight and len(one) == 7
