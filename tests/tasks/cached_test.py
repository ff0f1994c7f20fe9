"""cached: what seqio_cache_tasks has written is read, and not the tasks' sources."""

import json

import pytest
import seqio
import tensorflow as tf

from hyperjax.data import build as build_lib
from hyperjax.data.manifest import DataConfig
from hyperjax.tasks import cached
from tests.data.fakes import PROMPT, Bytes


def add(name, *preprocessors):
  def gone(split, shuffle_files, seed=None):
    raise AssertionError("the source was read")

  feature = seqio.Feature(seqio.ByteVocabulary())
  if name not in seqio.TaskRegistry.names():
    seqio.TaskRegistry.add(
      name, seqio.FunctionDataSource(gone, splits=["train"]), preprocessors=list(preprocessors),
      output_features={"inputs": feature, "targets": feature},
    )  # fmt: skip


def write(folder, rows):
  """Writes what seqio_cache_tasks writes, which needs Beam."""
  folder.mkdir(parents=True)
  with tf.io.TFRecordWriter(str(folder / "train.tfrecord-00000-of-00001")) as writer:
    for row in rows:
      ids = {name: Bytes().encode_batch([text])[0] for name, text in row.items()}
      writer.write(seqio.dict_to_tfexample(
        {**ids, **{f"{name}_pretokenized": text for name, text in row.items()}}
      ).SerializeToString())  # fmt: skip
  features = {}
  for name in ("inputs", "targets"):
    features[name] = {"shape": [None], "dtype": "int32"}
    features[f"{name}_pretokenized"] = {"shape": [], "dtype": "string"}
  info = {"num_shards": 1, "features": features, "seqio_version": "0.0.20"}
  (folder / "info.train.json").write_text(json.dumps(info))
  (folder / "stats.train.json").write_text(json.dumps({"examples": len(rows)}))
  (folder / "COMPLETED").write_text("")


STEPS = (seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder(),
         seqio.preprocessors.append_eos)  # fmt: skip


def test_the_cache_is_read(tmp_path):
  add("cached:one", *STEPS)
  write(tmp_path / "cached" / "one", [{"inputs": f"in {i}", "targets": f"out {i}"} for i in (1, 2)])
  source = cached.Tasks(str(tmp_path), ["cached:one"])
  config = DataConfig("cached:one", "bytes", prompt=PROMPT, sources=[source])
  assert DataConfig.from_json(config.to_json()) == config
  manifest = build_lib.build(config, tmp_path / "out", vocabulary=Bytes())
  store = manifest.store("cached:one", "train")
  assert [Bytes().decode(store.input(i)) for i in range(2)] == ["in 1=", "in 2="]
  assert manifest.split("cached:one", "train")["source"] == source.fingerprints()["cached:one"]


def test_another_cache_of_a_task_is_not_read_by_mistake(tmp_path):
  add("cached_three", *STEPS)
  rows = [{"inputs": "in", "targets": "out"}]
  for name in ("first", "second"):
    write(tmp_path / name / "cached_three", rows)
  cached.Tasks(str(tmp_path / "first"), ["cached_three"]).register()
  with pytest.raises(ValueError, match="'cached_three': seqio reads it from another.*first"):
    cached.Tasks(str(tmp_path / "second"), ["cached_three"]).register()


def test_what_cannot_be_cached_is_refused(tmp_path):
  add("cached_two", *STEPS[::2])
  with pytest.raises(ValueError, match="'cached_two' has no CacheDatasetPlaceholder"):
    cached.Tasks(str(tmp_path), ["cached_two"]).register()
  with pytest.raises(ValueError, match="no task 'cached_to' is registered. Did you mean 'cac"):
    cached.Tasks(str(tmp_path), ["cached_to"]).register()
  with pytest.raises(FileNotFoundError, match="cached_two holds no finished cache"):
    cached.Tasks(str(tmp_path), ["cached_two"]).fingerprints()
  with pytest.raises(ValueError, match="tasks must be a list"):
    cached.Tasks(str(tmp_path), "cached_two")
