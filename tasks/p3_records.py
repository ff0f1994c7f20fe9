"""One split of one folder of P3: shards of TFRecords as seqio caches them, beside two JSON files.

    super_glue_rte_must_be_true/
      info.train.json     {"num_shards": 1, "features": {name: {"dtype", "shape"}, ...}, ...}
      stats.train.json    {"examples": 2490, ...}
      train.tfrecord-00000-of-00001

Texts are in `inputs_pretokenized` and `targets_pretokenized`; the other inputs and targets are T5's
token ids, which are not read. In a folder whose name ends in `_score_eval` a record is one answer
choice; `idx` has the numbers of its example and of the choice. Source:
https://huggingface.co/datasets/bigscience/P3 at revision 248047a (the newest ones hold Parquet).
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hyperjax.data.manifest import digest, file_digest, sample_digest

SCORE_EVAL = "_score_eval"
# {feature: its dtype and shape, as info.json has them}.
_FEATURES = {
  "inputs_pretokenized": ("string", []),
  "targets_pretokenized": ("string", []),
  "answer_choices": ("string", [None]),
  "idx": ("int32", [None]),
  "is_correct": ("bool", []),
  "weight": ("float32", []),
}
_TEXTS = ("inputs_pretokenized", "targets_pretokenized")
# Where a tf.train.Example keeps values of a dtype; all others are in `int64_list`.
_LISTS = {"string": "bytes_list", "float32": "float_list"}
_BATCH = 1024


@dataclasses.dataclass(frozen=True)
class Split:
  """One split of one folder.

  Attributes:
    folder: the folder of a template.
    name: "train", "validation" or "test".
  """

  folder: pathlib.Path
  name: str

  def exists(self) -> bool:
    return self._info.exists()

  @property
  def records(self) -> int:
    """How many records it has, by its statistics."""
    return _field(self._stats, "examples", int)

  @property
  def has_options(self) -> bool:
    """Whether its examples have options. Those of a training split are never asked."""
    if self._scored:
      return True
    return self.name != "train" and "answer_choices" in _field(self._info, "features", dict)

  def fingerprint(self) -> str:
    """Returns a hash of its files: whole where they are JSON, of a shard its size and its ends."""
    shards = [sample_digest(shard) for shard in self.shards()]
    return digest([self.name, file_digest(self._info), file_digest(self._stats), shards])

  def rows(self) -> Iterator[dict[str, Any]]:
    """Yields its examples: `inputs`, `targets` and `options`, without the white space around them.

    Raises:
      FileNotFoundError: a file or a shard is missing.
      ValueError: what is wrong, with file and record.
    """
    if self._scored:
      yield from self._ranked()
      return
    options = ("answer_choices",) if self.has_options else ()
    for where, values in self._read((*_TEXTS, *options)):
      yield _row(where, values, values["targets_pretokenized"], values.get("answer_choices", []))

  def _ranked(self) -> Iterator[dict[str, Any]]:
    """Yields examples that are spread over a record per choice, in the order of their numbers."""
    examples: dict[int, dict[int, tuple[str, dict[str, Any]]]] = {}
    for where, values in self._read((*_TEXTS, "idx", "is_correct", "weight")):
      if len(values["idx"]) != 2:
        raise ValueError(f"{where}: idx is {values['idx']}, not an example and a choice.")
      if values["weight"] != 1:
        raise ValueError(f"{where}: weight is {values['weight']}; every choice must weigh 1.")
      example, choice = values["idx"]
      choices = examples.setdefault(example, {})
      if choice in choices:
        raise ValueError(f"{where}: idx {values['idx']} occurs twice.")
      choices[choice] = where, values
    for example, choices in sorted(examples.items()):
      numbers = sorted(choices)
      where, first = choices[numbers[0]]
      where = f"{where}, example {example}"
      if numbers != list(range(len(numbers))):
        raise ValueError(f"{where}: its choices are {numbers}; some are missing.")
      ordered = [choices[number][1] for number in numbers]
      if any(values["inputs_pretokenized"] != first["inputs_pretokenized"] for values in ordered):
        raise ValueError(f"{where}: its choices have different inputs.")
      correct = [values["targets_pretokenized"] for values in ordered if values["is_correct"]]
      if len(correct) != 1:
        raise ValueError(f"{where}: {len(correct)} of {len(ordered)} choices are correct, not 1.")
      yield _row(where, first, correct[0], [values["targets_pretokenized"] for values in ordered])

  def _read(self, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, {feature: its value or values}) of every record."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    features = _field(self._info, "features", dict)
    for name in names:
      dtype, shape = _FEATURES[name]
      expected, found = {"dtype": dtype, "shape": shape}, features.get(name, "missing")
      if found != expected:
        raise ValueError(f"{self._info}: feature {name!r} is {found}; {expected} is needed.")
    total = 0
    for shard in self.shards():
      number = 0
      # In batches: tf.data hands over single records at a fiftieth of the speed.
      batches = tf.data.TFRecordDataset(str(shard)).batch(_BATCH).as_numpy_iterator()
      try:
        for number, record in enumerate((r for batch in batches for r in batch.tolist()), 1):
          where = f"{shard}, record {number}"
          example = tf.train.Example.FromString(record).features.feature
          yield where, {name: _value(example, name, where) for name in names}
      except DecodeError as e:
        raise ValueError(f"{where}: not a tf.train.Example.") from e
      except tf.errors.DataLossError as e:
        raise ValueError(f"{shard}, after record {number}: cut off or damaged.") from e
      total += number
    if total != self.records:
      raise ValueError(f"{self._stats}: {self.records} examples; the shards hold {total}.")

  def shards(self) -> list[pathlib.Path]:
    """Returns its TFRecord files; one that is missing is an error."""
    count = _field(self._info, "num_shards", int)
    shards = []
    for index in range(count):
      shards.append(self.folder / f"{self.name}.tfrecord-{index:05d}-of-{count:05d}")
      if not shards[-1].exists():
        raise FileNotFoundError(f"{shards[-1]}: shard {index + 1} of {count} is missing.")
    return shards

  @property
  def _info(self) -> pathlib.Path:
    return self.folder / f"info.{self.name}.json"

  @property
  def _stats(self) -> pathlib.Path:
    return self.folder / f"stats.{self.name}.json"

  @property
  def _scored(self) -> bool:
    return self.folder.name.endswith(SCORE_EVAL)


def _row(where: str, values: dict[str, Any], target: str, options: list[str]) -> dict[str, Any]:
  if not target:
    raise ValueError(f"{where}: the target is empty.")
  duplicates = sorted({option for option in options if options.count(option) > 1})
  if duplicates:
    raise ValueError(f"{where}: option {duplicates[0]!r} occurs twice.")
  if options and target not in options:
    raise ValueError(f"{where}: the target {target!r} is none of its options {options}.")
  return {"inputs": values["inputs_pretokenized"], "targets": target, "options": options}


def _value(features: Mapping[str, Any], name: str, where: str) -> Any:
  """A feature of a tf.train.Example: a list, or its one value where its shape is []."""
  dtype, shape = _FEATURES[name]
  kind = _LISTS.get(dtype, "int64_list")
  if name not in features or features[name].WhichOneof("kind") != kind:
    raise ValueError(f"{where}: it has no feature {name!r} of {dtype}.")
  values = list(getattr(features[name], kind).value)
  if dtype == "string":
    try:
      # T5's tokenizer drops the white space that templates leave at the ends; others keep it.
      values = [value.decode().strip() for value in values]
    except UnicodeDecodeError as e:
      raise ValueError(f"{where}: {name} is not text in UTF-8 ({e}).") from e
  if shape:
    return values
  if len(values) != 1:
    raise ValueError(f"{where}: {name} has {len(values)} values, not 1.")
  return values[0]


def _field(file: pathlib.Path, name: str, kind: type) -> Any:
  """A field of a JSON file."""
  if not file.exists():
    raise FileNotFoundError(f"{file} is missing.")
  try:
    values = json.loads(file.read_text(encoding="utf-8"))
  except ValueError as e:
    raise ValueError(f"{file}: not JSON: {e}") from e
  if not isinstance(values, dict) or not isinstance(values.get(name), kind):
    raise ValueError(f"{file}: it has no field {name!r} of {kind.__name__}.")
  return values[name]
