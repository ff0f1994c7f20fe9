"""What `seqio_cache_tasks` writes: a task's TFRecords beside two JSON files for each split.

    info.train.json     {"num_shards": 1, "features": {name: {"dtype", "shape"}, ...}, ...}
    stats.train.json    {"examples": 2490, ...}
    train.tfrecord-00000-of-00001

`tasks/cached.py` reads such folders by way of seqio, `tasks/p3_records.py` by itself. TensorFlow is
imported by what reads records only.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hyperjax.data import rows
from hyperjax.data.manifest import digest, file_digest, sample_digest

_BATCH = 1024


@dataclasses.dataclass(frozen=True)
class CachedSplit:
  """One split of one folder.

  Attributes:
    folder: the folder of a task.
    name: such as "train".
  """

  folder: pathlib.Path
  name: str

  def exists(self) -> bool:
    return self.info.exists()

  @property
  def info(self) -> pathlib.Path:
    """The file that describes the records."""
    return self.folder / f"info.{self.name}.json"

  @property
  def stats(self) -> pathlib.Path:
    """The file that counts them."""
    return self.folder / f"stats.{self.name}.json"

  @property
  def features(self) -> dict[str, Any]:
    """{feature: its dtype and shape}."""
    return _field(self.info, "features", dict)

  @property
  def num_records(self) -> int:
    """How many records it has, by its statistics."""
    return _field(self.stats, "examples", int)

  def check(self) -> None:
    """Refuses it where its JSON files are not as they must be, or a shard is missing."""
    _ = self.features, self.num_records, self.shards()

  def shards(self) -> list[pathlib.Path]:
    """Returns its TFRecord files.

    Raises:
      FileNotFoundError: one is missing, or the file that says how many there are.
      ValueError: that file is not as it must be.
    """
    count = _field(self.info, "num_shards", int)
    shards = []
    for index in range(count):
      shards.append(self.folder / f"{self.name}.tfrecord-{index:05d}-of-{count:05d}")
      if not shards[-1].exists():
        raise FileNotFoundError(f"{shards[-1]}: shard {index + 1} of {count} is missing.")
    return shards

  def fingerprint(self) -> str:
    """Returns a hash of its files: whole where they are JSON, of a shard its size and its ends."""
    shards = [sample_digest(shard) for shard in self.shards()]
    return digest([self.name, file_digest(self.info), file_digest(self.stats), shards])

  def records(self) -> Iterator[tuple[str, bytes]]:
    """Yields (place, record).

    Raises:
      ValueError: as `records`, or there are not as many as the statistics say.
    """
    total = 0
    for shard in self.shards():
      for number, record in enumerate(records(shard), 1):
        total += 1
        yield f"{shard}, record {number}", record
    if total != self.num_records:
      raise ValueError(f"{self.stats}: {self.num_records} examples; the shards hold {total}.")

  def check_records(self) -> None:
    """Refuses records that are damaged, or lack a text, or hold one that is not UTF-8."""
    texts = {name: kind for name, kind in self.features.items() if kind.get("dtype") == "string"}
    for where, record in self.records():
      features = features_of(record, where)
      for name, kind in texts.items():
        values = features[name].bytes_list.value if name in features else []
        if not kind.get("shape") and len(values) != 1:
          raise ValueError(f"{where}: it has no text {name!r}.")
        decoded(values, name, where)


def records(path: str | os.PathLike) -> Iterator[bytes]:
  """Yields the records of a TFRecord file; one that is cut off or damaged is a ValueError."""
  import tensorflow as tf

  dataset = tf.data.TFRecordDataset(os.fspath(path))
  try:
    # In batches: tf.data hands over single records at a fiftieth of the speed.
    for batch in dataset.batch(_BATCH).as_numpy_iterator():
      yield from batch.tolist()
  except tf.errors.DataLossError as e:
    raise ValueError(f"{path}, after record {_readable(dataset)}: cut off or damaged.") from e


def features_of(record: bytes, where: str) -> Mapping[str, Any]:
  """Returns the features of a record, a tf.train.Example; `where` opens the error."""
  import tensorflow as tf
  from google.protobuf.message import DecodeError

  try:
    return tf.train.Example.FromString(record).features.feature
  except DecodeError as e:
    raise ValueError(f"{where}: not a tf.train.Example.") from e


def decoded(values: Iterable[bytes], name: str, where: str) -> list[str]:
  """Returns the texts of a feature; `where` opens the error."""
  try:
    return [value.decode() for value in values]
  except UnicodeDecodeError as e:
    raise ValueError(f"{where}: {name} is not text in UTF-8 ({e}).") from e


def _readable(dataset: Iterable) -> int:
  """Returns how many records can be read before one that cannot."""
  import tensorflow as tf

  count = 0
  with contextlib.suppress(tf.errors.DataLossError):  # where they end is what is asked
    for _ in dataset:
      count += 1
  return count


def _field(file: pathlib.Path, name: str, kind: type) -> Any:
  """A field of a JSON file."""
  values = rows.document(file)
  if not isinstance(values, dict) or not isinstance(values.get(name), kind):
    raise ValueError(f"{file}: it has no field {name!r} of {kind.__name__}.")
  return values[name]
