"""A run in a bucket: stores come from it; checkpoints, metrics and configuration go to it."""

import pathlib
import shutil

import jax.numpy as jnp
import pytest

from hyperjax import runs, storage, train
from hyperjax.training import metrics_writer
from hyperjax.training.checkpoints import Checkpoints
from hyperjax.training.metrics_writer import MetricsWriter
from tests import bucket as bucket_lib
from tests import tiny as tiny_lib

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
