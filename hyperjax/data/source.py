"""What registers tasks (`Source`), and how a configuration says which it was, as JSON values."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, Protocol

# Fields of a source that say where its files lie, not what they are: a data folder may be moved.
_LOCATION_FIELDS = ("path",)


class Source(Protocol):
  """A frozen dataclass that registers tasks with seqio; importable without seqio.

  Its fields are JSON values, and sources that it wraps. One whose tasks are versions of fewer
  things also has `cluster(task: str) -> str`, see `cluster`.
  """

  def register(self) -> None:
    """Registers the tasks and mixtures (imports seqio here, not at import)."""

  def available(self) -> bool:
    """Whether the files are on this machine."""

  def fingerprints(self) -> Mapping[str, str]:
    """Returns {task name: hash of the files that it is made of}."""


def cluster(source: Any, task: str) -> str:
  """Returns what a source's task is one of several versions of; the task itself where it is none.

  Versions of one thing are no independent tasks: an evaluation resamples them together.
  """
  return source.cluster(task) if hasattr(source, "cluster") else task


def to_json(source: Any) -> dict[str, Any]:
  """Returns a source as its class and its fields; so are the sources that it wraps."""
  fields = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
  return {
    "class": f"{type(source).__module__}:{type(source).__qualname__}",
    "fields": {
      name: to_json(value) if dataclasses.is_dataclass(value) else value
      for name, value in fields.items()
    },
  }


def from_json(values: Mapping[str, Any]) -> Any:
  """Returns the source that `to_json` wrote."""
  module, _, name = values["class"].partition(":")
  fields = {
    field: from_json(value) if _is_source(value) else value
    for field, value in values["fields"].items()
  }
  return getattr(importlib.import_module(module), name)(**fields)


def forget_locations(values: dict[str, Any]) -> None:
  """Takes what says where files lie out of what `to_json` wrote."""
  for name in _LOCATION_FIELDS:
    values["fields"].pop(name, None)
  for value in filter(_is_source, values["fields"].values()):
    forget_locations(value)


def _is_source(value: Any) -> bool:
  return isinstance(value, Mapping) and value.keys() == {"class", "fields"}
