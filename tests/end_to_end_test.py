"""Real processes: runs that are killed and go on, signals, and machines without TensorFlow."""

import contextlib
import dataclasses
import json
import random
import signal
import subprocess
import sys
import time

import pytest

from hyperjax import evaluate
from hyperjax.evaluation import report, text_metrics
from hyperjax.training import metrics_writer
from tests import ports
from tests import tiny as tiny_lib

tiny = tiny_lib.fixture
TIMEOUT = 120  # seconds, for a machine that is busy
ENDLESS = 10**5  # steps: no machine does them before the run is stopped


def steps_of(folder) -> list[dict]:
  """The lines of a run's training steps."""
  if not (folder / "metrics.jsonl").exists():
    return []
  return [line for line in metrics_writer.read(folder / "metrics.jsonl") if "loss" in line]


def wait_for(condition, process, *, pause: float = 0.002):
  """Returns the first true value of `condition()`; fails where the process ends before that."""
  end = time.monotonic() + TIMEOUT
  while not (found := condition()):
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < end, "nothing happened"
    if pause:
      time.sleep(pause)
  return found


def log_of(folder) -> list[dict]:
  """A run's training steps, without what the clock decides."""
  clock = ("time", "tokens_per_second", "minutes")
  return [{k: v for k, v in line.items() if k not in clock} for line in steps_of(folder)]


def being_written(folder) -> list:
  """Checkpoints that are not whole yet."""
  return list((folder / "checkpoints").glob("*orbax-checkpoint-tmp*"))


@contextlib.contextmanager
def training(tiny, folder, **macros):
  """A process that trains and knows no end; it is killed on the way out."""
  process = tiny.start(folder, TRAIN_STEPS=ENDLESS, **macros)
  try:
    # A resumed run writes the lines after its checkpoint again: wait until it has begun.
    wait_for(lambda: "training from" in process.stdout.readline(), process)
    yield process
  finally:
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_run_killed_at_random_moments_ends_as_if_it_was_not(tiny, tmp_path):
  folder, undisturbed, draw = tmp_path / "run", tmp_path / "undisturbed", random.Random(0)
  for _ in range(4):  # and once more, below
    before = len(steps_of(folder))
    with training(tiny, folder) as process:
      target = len(steps_of(folder)) + draw.randint(1, 4)
      wait_for(lambda target=target: len(steps_of(folder)) >= target, process)
      time.sleep(draw.uniform(0, 0.15))
      assert process.poll() is None
    # Of the checkpoints, one every 3 steps, the last may not have been whole.
    assert len(steps_of(folder)) >= max(1, before - 2 * 3)

  unfinished: list = []
  while not unfinished:  # the moment is short: the kill may come after it
    with training(tiny, folder) as process:
      wait_for(lambda process=process: being_written(folder), process, pause=0)
    unfinished = being_written(folder)

  last = len(steps_of(folder)) + 3
  assert [tiny.train(path, TRAIN_STEPS=last) for path in (folder, undisturbed)] == [0, 0]
  tiny_lib.assert_same(folder, undisturbed)
  assert [line["step"] for line in steps_of(folder)] == list(range(1, last + 1))
  assert log_of(folder) == log_of(undisturbed)
  assert not being_written(folder)


def test_a_signal_saves_and_the_same_command_goes_on(tiny, tmp_path, capsys):
  folder, undisturbed, number = tmp_path / "run", tmp_path / "undisturbed", signal.SIGTERM
  with training(tiny, folder, CHECKPOINT_PERIOD=10**6) as process:
    wait_for(lambda: len(steps_of(folder)) >= 3, process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=TIMEOUT)
  done = len(steps_of(folder))
  assert process.returncode == 75, out
  assert f"stopped by {number.name} after step {done}; state is saved in {folder}" in out
  assert "the same command goes on from there" in out and "Traceback" not in out
  assert done >= 3
  last = {"TRAIN_STEPS": done + 3, "CHECKPOINT_PERIOD": 10**6}
  assert [tiny.train(path, **last) for path in (folder, undisturbed)] == [0, 0]
  assert f"resuming {folder} at step {done} of {done + 3}" in capsys.readouterr().out
  tiny_lib.assert_same(folder, undisturbed)
  assert [line["step"] for line in steps_of(folder)] == list(range(1, done + 4))


def test_two_processes_are_one_run(tiny, tmp_path, capsys):
  folder, text = tmp_path / "run", tiny.gin.read_text().replace("LORA_RANK = 2\n", "")
  full = dataclasses.replace(tiny, gin=tmp_path / "full.gin")
  full.gin.write_text(text.replace("systems/hyperllama.gin", "systems/hyperllama_full.gin"))
  macros = {"CHECKPOINT_PERIOD": 10**6}
  flags = f"--coordinator_address=localhost:{ports.free()}", "--num_processes=2"
  both = [
    full.start(folder, *flags, f"--process_id={i}", TRAIN_STEPS=ENDLESS, **macros) for i in (0, 1)
  ]
  try:
    wait_for(lambda: len(steps_of(folder)) >= 3, both[0])
    both[1].send_signal(signal.SIGTERM)
    texts = [process.communicate(timeout=TIMEOUT)[0] for process in both]
  finally:
    for process in both:
      process.kill()
  assert [process.returncode for process in both] == [75, 75], texts
  done = len(steps_of(folder))
  for out in texts:
    assert f"stopped by SIGTERM after step {done}; state is saved in {folder}" in out
  # The batch is the same as in one process; before the first step so is the model.
  first, alone = steps_of(folder)[0], steps_of(tiny.run)[0]
  assert first["loss"] == pytest.approx(alone["loss"], rel=1e-5)
  assert first["tokens"] == alone["tokens"]
  # What two have saved, one goes on from.
  assert full.train(folder, TRAIN_STEPS=done + 1, **macros) == 0
  assert f"resuming {folder} at step {done} of {done + 1}" in capsys.readouterr().out
  assert [line["step"] for line in steps_of(folder)] == list(range(1, done + 2))


# As on a machine where they are not installed: neither found nor imported.
BLOCKED = """
import importlib.machinery, importlib.util, json, sys

find = importlib.machinery.PathFinder.find_spec
blocked = ('tensorflow', 'seqio', 't5', 'tensorflow_datasets', 'qwix')  # for BASE_BITS alone
importlib.machinery.PathFinder.find_spec = staticmethod(
  lambda name, *rest: None if name.split('.')[0] in blocked else find(name, *rest)
)
assert not any(map(importlib.util.find_spec, blocked))

from hyperjax import evaluate, train
trained, evaluated = map(json.loads, sys.argv[1:])
print('status', train.main(trained), evaluate.main(evaluated))
assert not {name.split('.')[0] for name in sys.modules}.intersection(blocked)
"""


def test_training_and_evaluation_need_no_tensorflow(tiny, tmp_path):
  folder, out = tmp_path / "run", tmp_path / "report"
  evaluated = [
    "--gin_file=runs/evaluate.gin", f"--gin.EVAL_OUTPUT_DIR={out}",
    f"--gin.RUNS={{'hyperllama': '{folder}'}}", "--gin.NUM_SHOTS=3", "--gin.NUM_QUERIES=8",
    "--gin.MAX_QUERIES=8", "--gin.SEEDS=(0,)",
  ]  # fmt: skip
  trained = tiny.arguments(folder, TRAIN_STEPS=3)
  done = subprocess.run(
    [sys.executable, "-c", BLOCKED, json.dumps(trained), json.dumps(evaluated)],
    env=tiny.environment(), capture_output=True, text=True, timeout=3 * TIMEOUT,
  )  # fmt: skip
  assert "status 0 0" in done.stdout, done.stdout + done.stderr
  assert (out / "results.json").exists()


# A user's file: all that there is of their task.
MY_SUMS = """
import seqio, tensorflow as tf
from hyperjax.evaluation import text_metrics

SUMS = {{"train": range(20), "test": range(20, 28)}}
TEXT = seqio.Feature(seqio.PassThroughVocabulary(size=0), add_eos=False, dtype=tf.string, rank=0)

def rows(split, shuffle_files, seed=None):
  return tf.data.Dataset.from_tensor_slices({{
    "inputs": [f"{{i}} + 1" for i in SUMS[split]], "targets": [f"{{i + 1}}" for i in SUMS[split]],
  }})

seqio.TaskRegistry.add(
  "my_sums", source=seqio.FunctionDataSource(rows, list(SUMS)), preprocessors=[],
  output_features={{"inputs": TEXT, "targets": TEXT}},
  metric_fns=[text_metrics.xlingual_rouge_l({tokenizer!r})],
)
"""


def test_a_users_module_trains_and_evaluates_by_one_gin_line(tiny, tmp_path, monkeypatch):
  """One TaskRegistry.add in a folder of theirs; scored over the pieces of a tokenizer's file."""
  tokenizer = str(tiny.model / "tokenizer.json")
  (tmp_path / "my_project").mkdir()
  (tmp_path / "my_project" / "sums.py").write_text(MY_SUMS.format(tokenizer=tokenizer))
  monkeypatch.setenv("PYTHONPATH", str(tiny_lib.ROOT))
  monkeypatch.chdir(tmp_path)  # where they call the command
  lines = tiny.gin.read_text().replace("data/fewshot.gin", "data/seqio.gin").splitlines()
  lines = [line for line in lines if not line.startswith("FEWSHOT_")]
  (tmp_path / "mine.gin").write_text("\n".join([*lines, "TASK_MODULES = ['my_project.sums']"]))
  folder, out = tmp_path / "run", tmp_path / "report"
  macros = {"MODEL_DIR": folder, "DATA_DIR": tmp_path / "data", "TRAIN_STEPS": 3, "MAX_BUCKETS": 1}
  bindings = [f"--gin.{name}={value}" for name, value in macros.items()]
  assert tiny_lib.train.main([f"--gin_file={tmp_path / 'mine.gin'}", *bindings]) == 0
  status = evaluate.main([
    "--gin_file=runs/evaluate.gin", f"--gin.EVAL_OUTPUT_DIR={out}",
    f"--gin.RUNS={{'hyperllama': '{folder}'}}", "--gin.NUM_SHOTS=3", "--gin.NUM_QUERIES=4",
    "--gin.SEEDS=(0,)", "--gin.BATCH_SIZE=2", "--gin.MAX_SHAPES=1",
  ])  # fmt: skip
  assert status == 0
  records = report.read_records(out)["hyperllama"]
  assert {record["target"] for record in records} == {f"{i + 1}" for i in range(20, 28)}
  results = json.loads((out / "results.json").read_text())
  assert results["metrics"] == {"my_sums": f"xlingual_rouge_l:{tokenizer}"}
  scores = [
    text_metrics.rouge_l_score(record["prediction"], [record["target"]], tokenizer)
    for record in records
  ]
  found = results["tasks"]["my_sums"]["hyperllama"]["score"]
  assert found == pytest.approx(sum(scores) / 8) and len(scores) == 8
