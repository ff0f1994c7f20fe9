"""Weights on disk, for every model family: files read lazily tensor by tensor, tables that say
which tensor is which array, fingerprints, and Hugging Face folders written whole or not at all.
"""

import abc
import dataclasses
import hashlib
import json
import math
import operator
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import jax
import ml_dtypes
import numpy as np

from hyperjax import sources
from hyperjax.sources import EMBEDDED, resolve

__all__ = [
  "EMBEDDED", "resolve", "Entry", "Loaded", "open_tensors", "read", "write", "fingerprint",
  "identity", "note_origin",
]

_ORIGIN = "hyperjax_origin.json"
_END = 64 * 1024
_SAFETENSORS = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
_INDEX = "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model as loaded.

  Attributes:
    config: its architecture.
    params: nested dict of arrays, as nnx.to_pure_dict(nnx.state(model)).
    fingerprint: hex digest that names the model; adapters carry it.
    source: what was asked for.
  """

  config: Any
  params: dict[str, Any]
  fingerprint: str
  source: str


@dataclasses.dataclass(frozen=True)
class Entry:
  """One kind of tensor: where it stands in our tree and in each file format.

  Attributes:
    path: its place in the parameter tree, dotted ('decoder.self.q').
    names: format ('hf', 'gguf') -> name in the file; '{}' stands for the layer.
    num_inputs: how many leading axes of our kernel are inputs, which files hold as a matrix
      [outputs, inputs]; 0 where our array is the file's.
    rotated_heads: for GGUF, heads whose rows llama.cpp reorders for its interleaved RoPE; else 0.
  """

  path: str
  names: Mapping[str, str]
  num_inputs: int = 0
  rotated_heads: int = 0

  def file_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The file's shape of our (one layer's) array of `shape`."""
    if not self.num_inputs:
      return shape
    return math.prod(shape[self.num_inputs :]), math.prod(shape[: self.num_inputs])

  def ours(self, x: np.ndarray, shape: tuple[int, ...], fmt: str) -> np.ndarray:
    """The file's tensor as our (one layer's) array."""
    if fmt == "gguf" and self.rotated_heads:
      pairs = x.reshape(self.rotated_heads, -1, 2, x.shape[1])
      x = pairs.swapaxes(1, 2).reshape(x.shape)
    return x.T.reshape(shape) if self.num_inputs else x

  def theirs(self, x: np.ndarray) -> np.ndarray:
    """Our (one layer's) array as Hugging Face's tensor."""
    if not self.num_inputs:
      return x
    return np.ascontiguousarray(x.reshape(math.prod(x.shape[: self.num_inputs]), -1).T)


class Tensors(abc.ABC):
  """A file or folder of named tensors, read one at a time.

  Attributes:
    format: 'hf' or 'gguf'.
    shapes: name -> shape.
  """

  format: str
  shapes: Mapping[str, tuple[int, ...]]

  @abc.abstractmethod
  def tensor(self, name: str) -> np.ndarray:
    """One tensor, read now."""

  @abc.abstractmethod
  def extent(self, name: str) -> tuple[pathlib.Path, int, int]:
    """The file that holds a tensor, its first byte there and the one after its last."""


class Safetensors(Tensors):
  """The safetensors of a Hugging Face folder, one file or sharded."""

  format = "hf"

  def __init__(self, folder: pathlib.Path):
    self._entries: dict[str, tuple[pathlib.Path, int, int, np.dtype]] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    index = folder / _INDEX
    single = folder / "model.safetensors"
    if index.exists():
      listed = json.loads(index.read_text())["weight_map"]
      for shard in sorted(set(listed.values())):
        if not (folder / shard).exists():
          raise FileNotFoundError(f"{index} names the shard {shard!r}, which is not in {folder}")
        self._add(folder / shard)
      if listed.keys() != self.shapes.keys():
        odd = sorted(listed.keys() ^ self.shapes.keys())[0]
        raise ValueError(f"{index} and its shards disagree about the tensor {odd!r}")
    elif single.exists():
      self._add(single)
    else:
      raise FileNotFoundError(
        f"{folder} holds neither model.safetensors nor {_INDEX}; weights in other formats (such as "
        "pytorch_model.bin) are not read"
      )

  def _add(self, path: pathlib.Path) -> None:
    size = path.stat().st_size
    with open(path, "rb") as f:
      length = int.from_bytes(f.read(8), "little")
      if size < 8 + length:
        raise ValueError(f"{path} is cut short: its header ends at byte {8 + length} of {size}")
      header = json.loads(f.read(length))
    header.pop("__metadata__", None)
    for name, entry in header.items():
      if name in self.shapes:
        raise ValueError(f"{path} holds the tensor {name!r}, which another shard holds too")
      if entry["dtype"] not in _SAFETENSORS:
        raise ValueError(
          f"{path}: tensor {name!r} has dtype {entry['dtype']}; allowed: {sorted(_SAFETENSORS)}"
        )
      first, last = (8 + length + x for x in entry["data_offsets"])
      if last > size:
        raise ValueError(f"{path} is cut short: tensor {name!r} ends at byte {last} of {size}")
      self._entries[name] = path, first, last, _SAFETENSORS[entry["dtype"]]
      self.shapes[name] = tuple(entry["shape"])

  def tensor(self, name: str) -> np.ndarray:
    path, first, last, dtype = self._entries[name]
    flat = np.fromfile(path, dtype, (last - first) // dtype.itemsize, offset=first)
    return flat.reshape(self.shapes[name])

  def extent(self, name: str) -> tuple[pathlib.Path, int, int]:
    return self._entries[name][:3]


class Gguf(Tensors):
  """A GGUF file, dequantised to float32 tensor by tensor."""

  format = "gguf"

  def __init__(self, path: pathlib.Path):
    self.path = path
    self._table = sources.gguf_header(path).tensors
    self.shapes = {name: t.shape for name, t in self._table.items()}

  def tensor(self, name: str) -> np.ndarray:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    _, first, last = self.extent(name)
    raw = np.fromfile(self.path, np.uint8, last - first, offset=first)
    kind = GGMLQuantizationType(self._table[name].kind)
    shape = self.shapes[name]
    rows = raw.reshape(-1, len(raw) // math.prod(shape[:-1]))
    if kind == GGMLQuantizationType.F32:
      return rows.view(np.float32).reshape(shape)
    try:
      return dequantize(rows, kind).reshape(shape)
    except NotImplementedError as e:
      raise ValueError(f"{self.path}: tensor {name!r} is of the unknown kind {kind.name}") from e

  def extent(self, name: str) -> tuple[pathlib.Path, int, int]:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    t = self._table[name]
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(t.kind)]
    last = t.offset + math.prod(t.shape) // block * size
    if last > self.path.stat().st_size:
      raise ValueError(f"{self.path} is cut short: tensor {name!r} ends at byte {last}")
    return self.path, t.offset, last


def open_tensors(path: pathlib.Path) -> Tensors:
  """The tensors of a GGUF file or of a Hugging Face folder."""
  return Safetensors(path) if path.is_dir() else Gguf(path)


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
  """The leaves of a nested dict with their dotted paths."""
  for name, value in tree.items():
    where = f"{path}.{name}" if path else name
    if isinstance(value, Mapping):
      yield from leaves(value, where)
    else:
      yield where, value


def _names(entry: Entry, shape: tuple[int, ...], fmt: str) -> list[tuple[str, tuple[int, ...]]]:
  """The file's names of an array, and the shape of ours under each (one layer where stacked)."""
  name = entry.names[fmt]
  if "{}" not in name:
    return [(name, shape)]
  return [(name.format(layer), shape[1:]) for layer in range(shape[0])]


def check_tensors(
  tensors: Tensors,
  table: Sequence[Entry],
  abstract: Mapping[str, Any],
  where: pathlib.Path,
  ignored: Set[str] = frozenset(),
) -> None:
  """Refuses a file that is not exactly what `abstract` (a tree of shapes) needs.

  Raises:
    ValueError: names a missing tensor, an unused one, or one of another shape.
  """
  shapes = {path: leaf.shape for path, leaf in leaves(abstract)}
  want = {}
  for entry in table:
    for name, shape in _names(entry, shapes[entry.path], tensors.format):
      want[name] = entry.file_shape(shape)
  missing = sorted(want.keys() - tensors.shapes.keys())
  if missing:
    raise ValueError(f"{where} lacks {_several(missing)}, which its configuration calls for")
  unused = sorted(tensors.shapes.keys() - want.keys() - ignored)
  if unused:
    raise ValueError(f"{where} holds {_several(unused)}, for which its configuration has no use")
  for name, shape in want.items():
    if tuple(tensors.shapes[name]) != shape:
      raise ValueError(
        f"{where}: tensor {name!r} has shape {tuple(tensors.shapes[name])}, its configuration says "
        f"{shape}"
      )


def _several(names: Sequence[str]) -> str:
  more = f" and {len(names) - 3} more" if len(names) > 3 else ""
  return f"the tensor{'s' * (len(names) > 1)} {', '.join(map(repr, names[:3]))}{more}"


def read(
  tensors: Tensors, table: Sequence[Entry], abstract: Mapping[str, Any], dtype: Any
) -> dict[str, Any]:
  """Reads all arrays, one stacked array at a time, so that there is no second copy of the model."""
  dtype = np.dtype(dtype)
  shapes = {path: leaf.shape for path, leaf in leaves(abstract)}
  out: dict[str, Any] = {}
  for entry in table:
    shape = shapes[entry.path]
    names = _names(entry, shape, tensors.format)
    host = np.empty(shape, dtype)
    for index, (name, part) in enumerate(names):
      target = host if part == shape else host[index]
      target[...] = entry.ours(tensors.tensor(name), part, tensors.format)
    *parents, last = entry.path.split(".")
    node = out
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = jax.block_until_ready(jax.device_put(host, may_alias=False))
  return out


def fingerprint(tensors: Tensors, config: Any) -> str:
  """Hash of the config and, per tensor, name, shape, and first and last 64 KiB of its bytes."""
  digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
  for name in sorted(tensors.shapes):
    path, first, last = tensors.extent(name)
    digest.update(json.dumps([name, list(tensors.shapes[name])]).encode())
    with open(path, "rb") as f:
      for start in (first, max(first, last - _END)):
        f.seek(start)
        digest.update(f.read(min(_END, last - start)))
  return digest.hexdigest()


def identity(path: pathlib.Path, tensors: Tensors, config: Any) -> str:
  """The fingerprint that a model goes by: its own, or that of the original of which `note_origin`
  says that this folder is a copy without loss, as long as the folder has not changed since."""
  own = fingerprint(tensors, config)
  note = path / _ORIGIN
  if path.is_dir() and note.exists():
    try:
      copy, original = operator.itemgetter("copy", "original")(json.loads(note.read_text()))
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(f"{note} is damaged: delete it") from error
    if copy == own:
      return original
  return own


def note_origin(path: pathlib.Path, tensors: Tensors, config: Any, original: str) -> None:
  """Records in a folder the fingerprint of the model that it is a copy of."""
  temporary = path / f".{_ORIGIN}.partial"
  temporary.write_text(
    json.dumps({"original": original, "copy": fingerprint(tensors, config)}, indent=1)
  )
  temporary.rename(path / _ORIGIN)


def write(
  folder: str | os.PathLike,
  table: Sequence[Entry],
  params: Mapping[str, Any],
  config: Mapping[str, Any],
  *,
  extra: Callable[[pathlib.Path], None] | None = None,
  max_shard_bytes: int = 2 * 10**9,
) -> None:
  """Writes a Hugging Face folder under a temporary name and renames it when it is whole.

  Args:
    folder: the new folder.
    table: which array is which tensor.
    params: our arrays.
    config: the contents of config.json.
    extra: adds further files (the tokenizer) to the unfinished folder.
    max_shard_bytes: model.safetensors is split where it would grow larger.

  Raises:
    FileExistsError: the folder exists and is not empty.
  """
  folder = pathlib.Path(folder).absolute()
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise FileExistsError(f"{folder} exists and is not empty; name a new folder")
  folder.parent.mkdir(parents=True, exist_ok=True)
  unfinished = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
  try:
    unfinished.chmod(0o755)
    (unfinished / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    _write_tensors(unfinished, table, params, max_shard_bytes)
    if extra is not None:
      extra(unfinished)
    os.replace(unfinished, folder)
  except BaseException:
    shutil.rmtree(unfinished)
    raise


def _write_tensors(folder, table, params, max_shard_bytes) -> None:
  from safetensors.numpy import save_file

  arrays = dict(leaves(params))
  jobs = []
  for entry in table:
    array = arrays[entry.path]
    for index, (name, shape) in enumerate(_names(entry, array.shape, "hf")):
      size = math.prod(shape) * array.dtype.itemsize
      jobs.append((name, entry, array, None if shape == array.shape else index, size))
  shards: list[list] = [[]]
  for job in jobs:
    if shards[-1] and sum(j[-1] for j in shards[-1]) + job[-1] > max_shard_bytes:
      shards.append([])
    shards[-1].append(job)
  where = {}
  for number, shard in enumerate(shards, 1):
    many = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    file = many if len(shards) > 1 else "model.safetensors"
    chunk = {}
    for name, entry, array, index, _ in shard:
      chunk[name] = entry.theirs(np.asarray(array if index is None else array[index]))
      where[name] = file
    save_file(chunk, folder / file, metadata={"format": "pt"})
  if len(shards) > 1:
    total = {"total_size": sum(job[-1] for job in jobs)}
    index = {"metadata": total, "weight_map": dict(sorted(where.items()))}
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")
