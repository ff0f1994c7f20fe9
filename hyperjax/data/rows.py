"""JSON and JSONL files of rows whose fields are texts: what users write, for tasks and commands.

No line may have more than `MAX_LINE` bytes: such a file is a mistake, and no tokenizer takes it.
"""

import contextlib
import io
import json
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from hyperjax.data.manifest import did_you_mean

MAX_LINE = 100 * 10**6


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
  stream: io.BufferedIOBase | None = None,
) -> list[Row]:
  """Reads the rows of a JSONL file, or of a JSON list.

  Args:
    path: the file; *.json holds one list, every other file a JSON object per line.
    required: fields that every row has.
    optional: fields that it may have.
    ignored: fields that are allowed and not read.
    stream: what its bytes are read from, as `lines` has it.

  Raises:
    ValueError: names the file, the line and the field: not JSON, a missing, unknown or empty field,
      a value that is no text, or no rows at all.
  """
  rows = []
  for where, value in values(path, stream):
    check_names(value, where, required, (*optional, *ignored))
    fields = {n: text(value[n], f"{where}: {n}") for n in (*required, *optional) if n in value}
    for name, field in fields.items():
      if not field.strip():
        raise ValueError(f"{where}: {name} is empty")
    rows.append(Row(where, fields))
  return rows


def values(
  path: str | os.PathLike, stream: io.BufferedIOBase | None = None
) -> Iterator[tuple[str, Any]]:
  """Yields (place, JSON value) of every row, unchecked; arguments as `lines`. Of JSONL, whose files
  may be large, one row at a time is held.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: names the file and the line: as `lines` says, not JSON, not a list, or no rows at
      all.
  """
  path = pathlib.Path(path)
  if path.suffix == ".json":
    whole = document(path, stream)
    if not isinstance(whole, list):
      raise ValueError(f"{path} must hold a list of objects, not {type(whole).__name__}")
    found = ((f"{path}, row {number}", value) for number, value in enumerate(whole, 1))
  else:
    found = objects(path, stream)
  empty = True
  for row in found:
    empty = False
    yield row
  if empty:
    raise ValueError(f"{path} holds no rows")


def objects(
  path: str | os.PathLike, stream: io.BufferedIOBase | None = None
) -> Iterator[tuple[str, Any]]:
  """Yields (place, JSON value) of each line of JSONL that is not blank; errors as `values`."""
  for where, line in lines(path, stream):
    if line.strip():
      yield where, parse(line.strip(), where)


def document(path: str | os.PathLike, stream: io.BufferedIOBase | None = None) -> Any:
  """Reads a file that is one JSON value; arguments as `lines`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: names the file: as `lines` says, or not JSON.
  """
  return parse("".join(line for _, line in lines(path, stream)), str(path))


def lines(
  path: str | os.PathLike, stream: io.BufferedIOBase | None = None
) -> Iterator[tuple[str, str]]:
  """Yields (place, line) of a text file; a line ends in a line feed, the last one perhaps in none.
  The mark that some editors set before all text, Unicode's byte order mark, is no part of it.

  Args:
    path: the file, for errors too.
    stream: what its bytes are read from, and who opened it closes it; None: the file itself.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: names the file and the line: not UTF-8, longer than `MAX_LINE`, or not readable.
  """
  number = 0
  try:
    with open(path, "rb") if stream is None else contextlib.nullcontext(stream) as opened:
      while line := opened.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
          raise ValueError(f"{path}, line {number}: it has more than {MAX_LINE:,} bytes.")
        yield f"{path}, line {number}", line.decode("utf-8-sig" if number == 1 else "utf-8")
  except UnicodeDecodeError as e:
    raise ValueError(f"{path}, line {number}: not UTF-8: {e}") from e
  except FileNotFoundError as e:
    raise FileNotFoundError(f"{path} does not exist.") from e
  except (OSError, EOFError, zlib.error) as e:
    raise ValueError(f"{path}, line {number + 1}: it cannot be read: {e}") from e


def contents(path: str | os.PathLike) -> bytes:
  """The bytes of a file that may be a pipe, and so be read once.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it cannot be read.
  """
  try:
    return pathlib.Path(path).read_bytes()
  except FileNotFoundError as e:
    raise FileNotFoundError(f"{path} does not exist.") from e
  except OSError as e:
    raise ValueError(f"{path}: it cannot be read: {e}") from e


def check_names(
  value: Any, where: str, required: Sequence[str], optional: Sequence[str] = ()
) -> None:
  """Refuses a row that is no object, or has an unknown field, or lacks one."""
  allowed = (*required, *optional)
  if not isinstance(value, dict):
    raise ValueError(f"{where}: an object with {', '.join(required)} is expected, not {value!r}")
  for name in value:
    if name not in allowed:
      hint = did_you_mean(name, allowed)
      raise ValueError(f"{where}: unknown field {name!r}; allowed: {', '.join(allowed)}.{hint}")
  for name in required:
    if name not in value:
      raise ValueError(f"{where}: the field {name!r} is missing")


def text(value: Any, where: str) -> str:
  """Returns a value as text; `where` opens the error's sentence."""
  if isinstance(value, str):
    try:
      value.encode()  # JSON may write half a surrogate pair, which no file and no tokenizer takes
    except UnicodeEncodeError as e:
      raise ValueError(f"{where} is not Unicode text: {e}") from e
    return value
  if isinstance(value, int | float) and not isinstance(value, bool):
    return str(value)
  raise ValueError(f"{where} must be text or a number, not {value!r}")


def parse(text: str, where: str) -> Any:
  """Returns a JSON value; what is none is a ValueError that `where` opens."""
  try:
    return json.loads(text, parse_constant=_refuse)
  except json.JSONDecodeError as e:
    line = f"line {e.lineno}, " if "\n" in text else ""
    raise ValueError(f"{where}: not JSON: {e.msg} ({line}column {e.colno})") from e
  except (ValueError, RecursionError) as e:
    raise ValueError(f"{where}: not JSON: {e}") from e


def _refuse(constant: str) -> None:
  raise ValueError(f"{constant} is no JSON value")
