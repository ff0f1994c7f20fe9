"""Files of named tensors, read lazily one at a time: Hugging Face folders and GGUF files."""

import abc
import json
import math
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from hyperjax import sources

INDEX = "model.safetensors.index.json"
_SAFETENSORS = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}

# Slices of a tensor's axes, () for all of it.
Part = tuple[slice, ...]


class Tensors(abc.ABC):
  """A file or folder of named tensors, read one at a time.

  Attributes:
    format: 'hf' or 'gguf'.
    shapes: name -> shape.
  """

  format: str
  shapes: Mapping[str, tuple[int, ...]]

  @abc.abstractmethod
  def tensor(self, name: str, part: Part = ()) -> np.ndarray:
    """One tensor, or a part of it, read now."""

  @abc.abstractmethod
  def dtype(self, name: str) -> np.dtype:
    """The least wide type that holds all of a tensor's numbers as this class reads them."""

  @abc.abstractmethod
  def extent(self, name: str) -> tuple[pathlib.Path, int, int]:
    """The file that holds a tensor, its first byte there and the one after its last."""


class Safetensors(Tensors):
  """The safetensors of a Hugging Face folder, one file or sharded."""

  format = "hf"

  def __init__(self, folder: pathlib.Path):
    self._entries: dict[str, tuple[pathlib.Path, int, int, np.dtype]] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    index = folder / INDEX
    single = folder / "model.safetensors"
    if index.exists():
      listed = sources.read_json(index)["weight_map"]
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
        f"{folder} holds neither model.safetensors nor {INDEX}; weights in other formats (such as "
        "pytorch_model.bin) are not read: transformers' save_pretrained writes safetensors"
      )

  def _add(self, path: pathlib.Path) -> None:
    size = path.stat().st_size
    with open(path, "rb") as f:
      length = int.from_bytes(f.read(8), "little")
      if size < 8 + length:
        raise ValueError(f"{path} is cut short: its header ends at byte {8 + length} of {size}")
      try:
        header = json.loads(f.read(length))
      except ValueError as error:
        raise ValueError(f"{path} is damaged: its header is no JSON ({error})") from error
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
      shape, dtype = tuple(entry["shape"]), _SAFETENSORS[entry["dtype"]]
      if first < 8 + length or last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(
          f"{path} is damaged: tensor {name!r} has the shape {list(shape)} of {entry['dtype']} and "
          f"lies at {entry['data_offsets']}"
        )
      self._entries[name] = path, first, last, dtype
      self.shapes[name] = shape

  def tensor(self, name: str, part: Part = ()) -> np.ndarray:
    path, first, last, dtype = self._entries[name]
    shape = self.shapes[name]
    if part:  # only the pages that hold it are read
      return np.array(np.memmap(path, dtype, "r", first, shape)[part])
    flat = np.fromfile(path, dtype, (last - first) // dtype.itemsize, offset=first)
    return flat.reshape(shape)

  def dtype(self, name: str) -> np.dtype:
    return self._entries[name][3]

  def extent(self, name: str) -> tuple[pathlib.Path, int, int]:
    return self._entries[name][:3]


class Gguf(Tensors):
  """A GGUF file, dequantised to float32 tensor by tensor."""

  format = "gguf"

  def __init__(self, path: pathlib.Path):
    self.path = path
    self._table = sources.gguf_header(path).tensors
    self.shapes = {name: t.shape for name, t in self._table.items()}

  def tensor(self, name: str, part: Part = ()) -> np.ndarray:
    return self._whole(name)[part]

  def _whole(self, name: str) -> np.ndarray:
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

  def dtype(self, name: str) -> np.dtype:
    from gguf import GGMLQuantizationType as Kind

    exact = {Kind.BF16: ml_dtypes.bfloat16, Kind.F16: np.float16}
    return np.dtype(exact.get(Kind(self._table[name].kind), np.float32))

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
