"""PEFT's two files of an adapter, read with every error named."""

import difflib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hyperjax import sources

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """The contents of adapter_config.json.

  Raises:
    FileNotFoundError: no such folder, or not an adapter.
    ValueError: not JSON.
  """
  path = folder / CONFIG
  if not folder.is_dir():
    raise FileNotFoundError(f"adapter {str(folder)!r}: no such folder")
  if not path.exists():
    raise FileNotFoundError(f"{folder} is no adapter: it has neither hyperjax.json nor {CONFIG}")
  raw = sources.read_json(path)
  if not isinstance(raw, dict):
    raise ValueError(f"{path} is damaged: it holds no JSON object")
  return raw


def check_names(
  path: pathlib.Path, tensors: Mapping[str, np.ndarray], want: Mapping[str, Sequence[int]]
) -> None:
  """Refuses tensors that are not exactly those wanted.

  Raises:
    ValueError: names the first that is missing, unknown or of another shape.
  """
  for name in sorted(want.keys() - tensors.keys()):
    raise ValueError(f"{path} lacks the tensor {name!r}")
  for name in sorted(tensors.keys() - want.keys()):
    near = difflib.get_close_matches(name, want, 1)
    hint = f"; the nearest known is {near[0]!r}" if near else ""
    raise ValueError(f"{path} holds an unknown tensor {name!r}{hint}")
  for name, shape in want.items():
    if tensors[name].shape != tuple(shape):
      raise ValueError(
        f"{path}: tensor {name!r} has shape {tensors[name].shape}, not {tuple(shape)}"
      )


def positive(raw: Mapping[str, Any], key: str, folder: pathlib.Path) -> int:
  """The value of a key of adapter_config.json that must be a positive integer."""
  value = raw.get(key)
  if isinstance(value, bool) or not isinstance(value, int) or value < 1:
    raise ValueError(f"{folder / CONFIG}: {key} must be a positive integer, not {value!r}")
  return value


def number(raw: Mapping[str, Any], key: str, folder: pathlib.Path) -> int | float:
  """The value of a key of adapter_config.json that must be a number."""
  value = raw.get(key)
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise ValueError(f"{folder / CONFIG}: {key} must be a number, not {value!r}")
  return value


def expect(raw: Mapping[str, Any], values: Mapping[str, int], folder: pathlib.Path) -> None:
  """Refuses keys that are given and say something else of the model than these values.

  Raises:
    ValueError: names the key, its value, and the model's.
  """
  for key, value in values.items():
    if raw.get(key) is not None and raw[key] != value:
      raise ValueError(f"{folder / CONFIG}: {key} is {raw[key]!r}; the model has {value}")
