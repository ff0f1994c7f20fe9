"""The few calls with which sources register with seqio. Imports seqio: import it late."""

import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from hyperjax.tasks.lexical_task import LexicalTask

_TEXT = seqio.Feature(
  seqio.PassThroughVocabulary(size=0), add_eos=False, required=False, dtype=tf.string, rank=0
)
_TEXTS = seqio.Feature(
  seqio.PassThroughVocabulary(size=0), add_eos=False, required=False, dtype=tf.string, rank=1
)


def text_feature() -> seqio.Feature:
  """Returns seqio's description of a feature that is one text."""
  return _TEXT


def add_examples(
  name: str, path: str | os.PathLike, load: Callable[[os.PathLike], Sequence[Mapping[str, Any]]]
) -> None:
  """Registers a task over one file of `{"input", "output"[, "options"]}`, read by `load`."""

  def dataset(split, shuffle_files=False, seed=None):
    del split, shuffle_files, seed
    examples = load(path)
    return tf.data.Dataset.from_tensor_slices(
      {
        "inputs": [example["input"] for example in examples],
        "targets": [example["output"] for example in examples],
        "options": tf.ragged.constant(
          [example.get("options", []) for example in examples], dtype=tf.string, ragged_rank=1
        ),
      }
    )

  _add_task(name, path, dataset, {"inputs": _TEXT, "targets": _TEXT, "options": _TEXTS})


def add_documents(name: str, path: str | os.PathLike, load: Callable[[], Sequence[str]]) -> None:
  """Registers a language modelling task over one file's documents."""

  def dataset(split, shuffle_files=False, seed=None):
    del split, shuffle_files, seed
    return tf.data.Dataset.from_tensor_slices({"targets": list(load())})

  _add_task(name, path, dataset, {"targets": _TEXT})


def add_lexical(tasks: Mapping[str, LexicalTask]) -> None:
  """Registers tasks {name: task} that are generated on first use; those known already are kept."""
  features = {"inputs": _TEXT, "targets": _TEXT, "options": _TEXTS}
  for name, task in tasks.items():
    if name not in seqio.TaskRegistry.names():
      source = seqio.FunctionDataSource(functools.partial(_generated, task=task), ("train",))
      seqio.TaskRegistry.add(name, source, preprocessors=[], output_features=features)


def _generated(split: str, shuffle_files: bool, seed: int | None = None, *, task: LexicalTask):
  """What seqio's function source calls; the order is already a shuffled one."""
  del split, shuffle_files, seed

  def rows():
    for example in task.examples():
      options = example.get("options", [])
      yield {"inputs": example["input"], "targets": example["output"], "options": options}

  shapes = {"inputs": [], "targets": [], "options": [None]}
  return tf.data.Dataset.from_generator(
    rows, output_signature={name: tf.TensorSpec(shape, tf.string) for name, shape in shapes.items()}
  )


def add_mixture(name: str, rates: Mapping[str, float]) -> None:
  """Registers a mixture; a mixture of this name with other rates is replaced."""
  if name in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.remove(name)
  seqio.MixtureRegistry.add(name, list(rates.items()))


# {task: file}. A task may be registered twice over the same file, never over another.
_FILES: dict[str, pathlib.Path] = {}


def _add_task(name: str, path, dataset, features) -> None:
  path = pathlib.Path(path).resolve()
  if name in seqio.TaskRegistry.names():
    if _FILES.get(name) != path:
      raise ValueError(
        f"Task '{name}' is registered already, from {_FILES.get(name, 'elsewhere')}, not from "
        f"{path}: give the folder another name."
      )
    seqio.TaskRegistry.remove(name)
  source = seqio.FunctionDataSource(dataset, splits=("train",))
  seqio.TaskRegistry.add(name, source, preprocessors=[], output_features=features)
  _FILES[name] = path
