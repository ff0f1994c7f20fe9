"""A run in a bucket: stores come from it; checkpoints, metrics and configuration go to it."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax import runs, storage, train
from hyperjax.training import metrics_writer
from hyperjax.training.checkpoints import Checkpoints
from hyperjax.training.metrics_writer import MetricsWriter
from tests import bucket as bucket_lib
from tests import several
from tests import tiny as tiny_lib
from tests.end_to_end_test import ENDLESS
from tests.several import Layout

tiny = tiny_lib.fixture
bucket = bucket_lib.fixture
RUN = "gs://mine/run"


def fill(bucket, folder, name: str) -> None:
  """Copies a local folder into the bucket, as `gcloud storage rsync` does."""
  for file in folder.rglob("*"):
    if file.is_file():
      bucket.put(f"{name}/{file.relative_to(folder)}", file.read_bytes())


@pytest.mark.pods
def test_a_run_in_a_bucket_is_the_run_on_a_disk(tiny, bucket, tmp_path, capsys):
  fill(bucket, tiny.data, "stores")
  places = {"DATA_DIR": "gs://mine/stores", "runs.DataFolder.copies": tmp_path / "copies"}
  assert tiny.train(RUN, TRAIN_STEPS=4, **places) == 0
  assert {name.split("/")[1] for name in bucket.names("run/") if "events" not in name} == {
    "checkpoints", "config.gin", "config-operative.gin", "metrics.jsonl"
  }  # fmt: skip
  # Of the stores, those of the training split; of the held-out tasks, which are not watched, none.
  stores = {name.removesuffix("/meta.json") for name in bucket.read if name.endswith("/meta.json")}
  entries = runs.Manifest.load(tiny.data / "train").values["tasks"].values()
  assert stores == {f"stores/train/{entry['splits']['train']['store']}" for entry in entries}

  # A checkpoint that was not finished is none, and the run goes on as if it had not been begun.
  fill(bucket, tiny.run / "checkpoints" / "40", "run/checkpoints/7")
  del bucket.objects["run/checkpoints/7/commit_success.txt"]
  reads = len(bucket.read)
  assert tiny.train(RUN, CHECKPOINT_PERIOD=20, **places) == 0
  assert f"resuming {RUN} at step 4 of 40" in capsys.readouterr().out
  assert not any(name.endswith(".bin") for name in bucket.read[reads:] if "stores" in name)
  kept = {name.split("/")[2] for name in bucket.names("run/checkpoints/")}
  assert kept - {"descriptor"} == {"20", "40"}
  lines = metrics_writer.read(f"{RUN}/metrics.jsonl")
  alone = metrics_writer.read(tiny.run / "metrics.jsonl")
  losses = lambda lines: [(line["step"], line["loss"]) for line in lines if "loss" in line]
  assert losses(lines) == losses(alone)

  # It can be read where it lies, repeated from its own configuration, and copied as it is.
  assert runs.load(RUN).trained_hash == runs.load(tiny.run).trained_hash
  assert train.main([f"--gin_file={RUN}/config.gin"]) == 0
  storage.copy_folder(RUN, tmp_path / "fetched")
  tiny_lib.assert_same(tmp_path / "fetched", tiny.run)


TWO, ALONE = Layout(2, 1, (1, 2, 1)), Layout(1, 2, (1, 2, 1))
MACROS = {"BATCH_SIZE": 4, "MAX_BUCKETS": 1, "CHECKPOINT_PERIOD": 4, "EVAL_PERIOD": 12,
          "DTYPE": "float64"}  # fmt: skip


def figures(folder, name: str) -> list[tuple[int, float]]:
  """(step, value) of a run's metric."""
  lines = metrics_writer.read(f"{folder}/metrics.jsonl")
  return [(line["step"], line[name]) for line in lines if name in line]


def count(bucket, name: str) -> int:
  """How often objects whose names begin so were written."""
  return sum(written.startswith(f"run/{name}") for written in bucket.written)


@pytest.mark.pods
def test_two_processes_write_to_a_bucket_and_go_on_from_it(tiny, bucket, tmp_path):
  """Stopped by SIGTERM; each saves its part of a checkpoint, the first one writes all else."""
  undisturbed = tmp_path / "undisturbed"
  (tmp_path / "logs").mkdir()
  with several.starting(tiny, tmp_path / "logs") as starter:
    run = starter.start(RUN, TWO, bucket.environment, TRAIN_STEPS=ENDLESS, **MACROS)
    whole = "run/checkpoints/4/commit_success.txt"
    starter.wait_until(lambda: whole in bucket.written, run)
    for pid in run.pids:
      os.kill(pid, signal.SIGTERM)
    assert starter.statuses(run) == [75, 75], run.text()
    stopped = re.findall(r"by SIGTERM after step (\d+); state is saved in (.+):", run.text())
    done = int(stopped[0][0])
    assert stopped == [(str(done), RUN)] * 2
    assert [step for step, _ in figures(RUN, "loss")] == [*range(1, done + 1)]
    saves = -(-done // 4)
    assert count(bucket, "config.gin") == 1
    assert count(bucket, "metrics.jsonl") == count(bucket, "events") == saves + 1
    assert len(bucket.names("run/events")) == 1

    last = done + 13  # with an evaluation on the way
    alone = starter.start(undisturbed, ALONE, TRAIN_STEPS=last, **MACROS)
    run = starter.start(RUN, TWO, bucket.environment, TRAIN_STEPS=last, **MACROS)
    assert starter.statuses(run) == [0, 0], run.text()
    assert starter.statuses(alone) == [0], alone.text()
  assert run.text().count(f"resuming {RUN} at step {done} of {last}") == 2
  assert count(bucket, "config.gin") == 2 and len(bucket.names("run/events")) == 2
  every, watched = [*range(1, last + 1)], [0, *range(12, last, 12), last]
  for name, steps in (
    ("loss", every), ("held_out/exact_match", watched), ("held_out/log_likelihood", watched)
  ):  # fmt: skip
    left, right = figures(RUN, name), figures(undisturbed, name)
    np.testing.assert_allclose(left, right, atol=1e-9, err_msg=name)
    assert [step for step, _ in left] == steps
  about = f"checkpoints/{last}/about/metadata"
  left = json.loads(bucket.objects[f"run/{about}"][0])["checksums"]
  assert left == json.loads((undisturbed / about).read_text())["checksums"] and len(left) > 20


def test_compiled_programs_are_kept_in_a_bucket(bucket):
  """As docs/pods.md has it. One that comes from there counts as compiled, once."""
  program = (
    "import jax, numpy as np; from hyperjax import progress; f = jax.jit(lambda x: x * 5 - 3); "
    "x = np.arange(7.0); f(x); f(x + 1); print(progress.compilations())"
  )
  environment = {
    **os.environ, **bucket.environment, "PYTHONPATH": str(tiny_lib.ROOT), "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": "gs://mine/compiled",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }  # fmt: skip
  for hits in range(2):
    done = subprocess.run(
      [sys.executable, "-c", program], env=environment, check=True, text=True,
      stdout=subprocess.PIPE,
    )  # fmt: skip
    assert done.stdout == "1\n"
    assert len(bucket.written) == 1 and bucket.read == hits * bucket.names("compiled/")


def test_metrics_that_a_bucket_does_not_take_are_kept(bucket):
  writer = MetricsWriter(RUN)
  writer.write(1, {"loss": 2.0})
  bucket.full = True
  message = r"gs://mine/run/\S+ could not be written \(.*kept in /"
  with pytest.raises(OSError, match=message) as found:
    writer.close()
  kept = pathlib.Path(str(found.value).rpartition("kept in ")[2])
  assert metrics_writer.read(kept / "metrics.jsonl")[0]["loss"] == 2.0
  shutil.rmtree(kept)


def test_what_ends_a_run_is_not_hidden_by_its_metrics(bucket):
  bucket.full = True
  with pytest.raises(FloatingPointError), MetricsWriter(RUN):
    raise FloatingPointError


def test_a_bucket_that_takes_nothing_more(bucket):
  trained, state = {"gist": jnp.arange(4.0)}, {"count": jnp.ones([])}
  checkpoints = Checkpoints(RUN, "print")
  checkpoints.save(1, trained, state)
  checkpoints.wait()
  bucket.full = True
  message = r"could not be written to gs://mine/run/checkpoints .* whole one is of step 1: make"
  with pytest.raises(OSError, match=message):
    checkpoints.save(2, trained, state)
    checkpoints.wait()
  bucket.full = False
  reader = Checkpoints(RUN, "print", read_only=True)
  assert reader.latest() == 1
  assert reader.restore(trained, state).step == 1
