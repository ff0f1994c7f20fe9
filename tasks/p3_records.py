"""One split of one folder of P3, which is in the form in which seqio caches tasks.

Layout: `hyperjax/data/seqio_cache.py`, with folders such as `super_glue_rte_must_be_true`. Texts
are in `inputs_pretokenized` and `targets_pretokenized`; the other inputs and targets are T5's token
ids, which are not read. In a folder whose name ends in `_score_eval` a record is one answer choice;
`idx` has the numbers of its example and of the choice. Source:
https://huggingface.co/datasets/bigscience/P3 at revision 248047a (the newest ones hold Parquet).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hyperjax.data import rows, seqio_cache
from hyperjax.data.seqio_cache import CachedSplit

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


@dataclasses.dataclass(frozen=True)
class Split(CachedSplit):
  """One split of one folder: "train", "validation" or "test" of a template."""

  @property
  def has_options(self) -> bool:
    """Whether its examples have options. Those of a training split are never asked."""
    return self._scored or (self.name != "train" and "answer_choices" in self.features)

  @property
  def num_examples(self) -> int | None:
    """How many examples it has; None: a record is a choice, and choices are not counted."""
    return None if self._scored else self.num_records

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
      if options and not values["answer_choices"]:
        raise ValueError(f"{where}: it has no options.")
      yield row(where, *(values[name] for name in _TEXTS), values.get("answer_choices", []))

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
      options = [values["targets_pretokenized"] for values in ordered]
      yield row(where, first["inputs_pretokenized"], correct[0], options)

  def _read(self, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, {feature: its value or values}) of every record."""
    features = self.features
    for name in names:
      dtype, shape = _FEATURES[name]
      expected, found = {"dtype": dtype, "shape": shape}, features.get(name, "missing")
      if found != expected:
        raise ValueError(f"{self.info}: feature {name!r} is {found}; {expected} is needed.")
    for where, record in self.records():
      example = seqio_cache.features_of(record, where)
      yield where, {name: _value(example, name, where) for name in names}

  @property
  def _scored(self) -> bool:
    return self.folder.name.endswith(SCORE_EVAL)


def row(where: str, inputs: str, target: str, options: list[str]) -> dict[str, Any]:
  """Returns an example; `where` opens the error's sentence where something is wrong with it."""
  if not target:
    raise ValueError(f"{where}: the target is empty.")
  if not all(options):
    raise ValueError(f"{where}: an option is empty.")
  duplicates = sorted({option for option in options if options.count(option) > 1})
  if duplicates:
    raise ValueError(f"{where}: option {duplicates[0]!r} occurs twice.")
  if options and target not in options:
    raise ValueError(
      f"{where}: the target {target!r} is none of its options {options}. Mend it, or leave the "
      "template out with exclude."
    )
  return {"inputs": inputs, "targets": target, "options": options}


def _value(features: Mapping[str, Any], name: str, where: str) -> Any:
  """A feature of a tf.train.Example: a list, or its one value where its shape is []."""
  dtype, shape = _FEATURES[name]
  kind = _LISTS.get(dtype, "int64_list")
  if name not in features or features[name].WhichOneof("kind") != kind:
    raise ValueError(f"{where}: it has no feature {name!r} of {dtype}.")
  values = list(getattr(features[name], kind).value)
  if dtype == "string":
    if max(map(len, values), default=0) > rows.MAX_LINE:
      raise ValueError(f"{where}: {name} has more than {rows.MAX_LINE:,} bytes.")
    # T5's tokenizer drops the white space that templates leave at the ends; others keep it.
    values = [text.strip() for text in seqio_cache.decoded(values, name, where)]
  if shape:
    return values
  if len(values) != 1:
    raise ValueError(f"{where}: {name} has {len(values)} values, not 1.")
  return values[0]
