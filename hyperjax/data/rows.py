"""JSON and JSONL files of rows whose fields are texts: what `adapt` and `predict` read."""

import difflib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple


class Row(NamedTuple):
  """One row of a file.

  Attributes:
    where: file and line (JSONL) or number (JSON), for errors.
    fields: its texts; a number is taken as Python writes it.
  """

  where: str
  fields: dict[str, str]


def read(
  path: str | os.PathLike,
  required: Sequence[str],
  optional: Sequence[str] = (),
  ignored: Sequence[str] = (),
) -> list[Row]:
  """Reads the rows of a JSONL file, or of a JSON list.

  Args:
    path: the file; *.json holds one list, every other file a JSON object per line.
    required: fields that every row has.
    optional: fields that it may have.
    ignored: fields that are allowed and not read.

  Raises:
    ValueError: names the file, the line and the field: not JSON, a missing, unknown or empty field,
      a value that is no text, or no rows at all.
  """
  path = pathlib.Path(path)
  try:
    text = path.read_text(encoding="utf-8")
  except UnicodeDecodeError as e:
    raise ValueError(f"{path} is not a text file in UTF-8 ({e})") from e
  if path.suffix == ".json":
    values = _parse(text, str(path))
    if not isinstance(values, list):
      raise ValueError(f"{path} must hold a list of objects, not {type(values).__name__}")
    found = [(f"{path}, row {number}", value) for number, value in enumerate(values, 1)]
  else:
    lines = [(f"{path}, line {n}", line) for n, line in enumerate(text.split("\n"), 1)]
    found = [(where, _parse(line, where)) for where, line in lines if line.strip()]
  if not found:
    raise ValueError(f"{path} holds no rows")
  return [Row(where, _check(value, where, required, optional, ignored)) for where, value in found]


def _parse(text: str, where: str) -> Any:
  try:
    return json.loads(text)
  except ValueError as e:
    raise ValueError(f"{where}: not JSON ({e})") from e


def _check(value, where, required, optional, ignored) -> dict[str, str]:
  allowed = (*required, *optional, *ignored)
  if not isinstance(value, dict):
    raise ValueError(f"{where}: an object with {', '.join(required)} is expected, not {value!r}")
  for name in value:
    if name not in allowed:
      near = difflib.get_close_matches(name, allowed, 1)
      hint = f"; did you mean {near[0]!r}?" if near else ""
      raise ValueError(f"{where}: unknown field {name!r}; allowed: {', '.join(allowed)}{hint}")
  for name in required:
    if name not in value:
      raise ValueError(f"{where}: the field {name!r} is missing")
  texts = {n: _text(value[n], f"{where}: {n}") for n in (*required, *optional) if n in value}
  return texts


def _text(value: Any, where: str) -> str:
  if isinstance(value, int | float) and not isinstance(value, bool):
    value = str(value)
  if not isinstance(value, str):
    raise ValueError(f"{where} must be text, not {value!r}")
  if not value.strip():
    raise ValueError(f"{where} is empty")
  return value
