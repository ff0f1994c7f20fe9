"""Writes what a folder of P3 holds, in little."""

import json
import pathlib

import tensorflow as tf

from hyperjax.tasks.p3_records import Split

TEXT, IDS = {"dtype": "string", "shape": []}, {"dtype": "int32", "shape": [None]}
PLAIN = {"inputs": IDS, "inputs_pretokenized": TEXT, "targets": IDS, "targets_pretokenized": TEXT}
CHOICES = {"answer_choices": {"dtype": "string", "shape": [None]}, **PLAIN}
SCORED = {
  "idx": IDS, "is_correct": {"dtype": "bool", "shape": []},
  "weight": {"dtype": "float32", "shape": []}, **PLAIN,
}  # fmt: skip
ANSWERS = ("yes", "no", "maybe")


def encoded(record: dict) -> bytes:
  """A tf.train.Example, as seqio writes it: int32 and bool are stored as int64."""
  features = {}
  for name, value in record.items():
    values = value if isinstance(value, list) else [value]
    if isinstance(values[0], str | bytes):
      values = [v.encode() if isinstance(v, str) else v for v in values]
      features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    elif isinstance(values[0], float):
      features[name] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
    else:
      features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=map(int, values)))
  return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write(folder: pathlib.Path, split: str, records: list, features: dict, shards=1) -> Split:
  """Writes one split, its records dealt out to the shards in turn."""
  folder.mkdir(parents=True, exist_ok=True)
  info = {"features": features, "num_shards": shards, "seqio_version": "0.0.6"}
  stats = {"examples": len(records), "inputs_tokens": 7, "inputs_max_tokens": 7}
  (folder / f"info.{split}.json").write_text(json.dumps(info, indent=2))
  (folder / f"stats.{split}.json").write_text(json.dumps(stats, indent=2))
  for shard in range(shards):
    path = folder / f"{split}.tfrecord-{shard:05d}-of-{shards:05d}"
    with tf.io.TFRecordWriter(str(path)) as writer:
      for record in records[shard::shards]:
        writer.write(record if isinstance(record, bytes) else encoded(record))
  return Split(folder, split)


def plain(number: int, **changes) -> dict:
  """One example: templates leave white space in front of the target."""
  return {
    "inputs": [number + 7], "inputs_pretokenized": f"Is {number} even?", "targets": [1],
    "targets_pretokenized": f"\n{ANSWERS[number % 2]}", **changes,
  }  # fmt: skip


def scored(number: int, choice: int, **changes) -> dict:
  """One answer choice of an example."""
  return {
    "idx": [number, choice], "inputs": [number + 7], "inputs_pretokenized": f"Is {number} even?",
    "is_correct": choice == number % 2, "targets": [1], "targets_pretokenized": ANSWERS[choice],
    "weight": 1.0, **changes,
  }  # fmt: skip


def template(path, name, train=12, options=False, validation=0, test=0) -> None:
  """Writes a template that is trained on."""
  choices = {"answer_choices": list(ANSWERS)} if options else {}
  for split, count in {"train": train, "validation": validation, "test": test}.items():
    if count:
      records = [plain(n, **choices) for n in range(count)]
      write(path / name, split, records, CHOICES if options else PLAIN)


def held_out(path, name, train=12, count=6) -> None:
  """Writes the two folders of a template that is tested on."""
  template(path, name, train, options=True, validation=count, test=count)
  records = [scored(100 + n, c) for n in range(count) for c in range(3)]
  write(path / f"{name}_score_eval", "validation", records, SCORED)
  write(path / f"{name}_score_eval", "test", records, SCORED)
