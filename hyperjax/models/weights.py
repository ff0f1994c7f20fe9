"""Weights of any model family: which tensor of a file is which of our arrays, models read one array
at a time, fingerprints, and Hugging Face folders written whole or not at all.
"""

import dataclasses
import functools
import hashlib
import json
import math
import operator
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from hyperjax.core.phi import insert
from hyperjax.core.quantised import is_quantised, quantise
from hyperjax.models.tensor_files import INDEX, Part, Tensors

_ORIGIN = "hyperjax_origin.json"
_END = 64 * 1024


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model as loaded.

  Attributes:
    config: its architecture.
    params: nested dict of arrays, as nnx.to_pure_dict(nnx.state(model)).
    fingerprint: hex digest that names the model; adapters carry it.
    source: what was asked for.
    exact: whether every number is the source's own, none rounded to a narrower type.
  """

  config: Any
  params: dict[str, Any]
  fingerprint: str
  source: str
  exact: bool = True


@dataclasses.dataclass(frozen=True)
class Entry:
  """One kind of tensor: where it stands in our tree and in each file format.

  Attributes:
    path: its place in the parameter tree, dotted ('decoder.self.q').
    names: format ('hf', 'gguf') -> name in the file; '{}' stands for the layer.
    num_inputs: how many leading axes of our kernel are inputs, which files hold as a matrix
      [outputs, inputs]; 0 where our array is the file's.
    rotated: whether llama.cpp reorders the rows of each head for its interleaved RoPE (GGUF).
    rows: whether our array is a table of embeddings [V, D].
    aliases: other names under which a file may hold the same tensor, in place of the name or
      beside it.
  """

  path: str
  names: Mapping[str, str]
  num_inputs: int = 0
  rotated: bool = False
  rows: bool = False
  aliases: tuple[str, ...] = ()

  @property
  def summed(self) -> tuple[int, ...]:
    """The axes of our array that products with it sum over, kernels being stacked; () for what is
    no matrix: it is never in few bits."""
    return (1,) if self.rows else tuple(range(1, 1 + self.num_inputs))

  def file_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The file's shape of our (one layer's) array of `shape`."""
    if not self.num_inputs:
      return shape
    return math.prod(shape[self.num_inputs :]), math.prod(shape[: self.num_inputs])

  def ours(self, x: np.ndarray, shape: tuple[int, ...], fmt: str) -> np.ndarray:
    """The file's tensor as our (one layer's) array, or of both the same `part`."""
    if fmt == "gguf" and self.rotated:
      pairs = x.reshape(-1, shape[-1] // 2, 2, x.shape[1])
      x = pairs.swapaxes(1, 2).reshape(x.shape)
    return x.T.reshape(shape) if self.num_inputs else x

  def file_part(self, shape: tuple[int, ...], index: Part) -> Part:
    """Where the file holds a part of our (one layer's) array of `shape`; () where it is all."""
    if all(s.indices(n) == (0, n, 1) for s, n in zip(index, shape, strict=True)):
      return ()
    if not self.num_inputs:
      return index
    split = self.num_inputs
    return _flat(shape[split:], index[split:]), _flat(shape[:split], index[:split])

  def theirs(self, x: np.ndarray) -> np.ndarray:
    """Our (one layer's) array as Hugging Face's tensor."""
    if not self.num_inputs:
      return x
    return np.ascontiguousarray(x.reshape(math.prod(x.shape[: self.num_inputs]), -1).T)


@dataclasses.dataclass(frozen=True)
class Family:
  """What differs between the files of model families; `families` does the rest for all of them.

  Attributes:
    name: `model_type` in config.json, `general.architecture` in GGUF.
    config: the class of its configurations.
    model: the class of its models.
    table: configuration -> which of our arrays is which tensor.
    from_hf: (config.json, where it lies) -> configuration, and the longest text that the model was
      trained for in tokens (None where it has no limit).
    to_hf: (configuration, longest text or None) -> config.json.
    from_gguf: file -> as `from_hf`; None where GGUF files of this family are not read.
    unused: names of tensors that files may hold although no model reads them.
  """

  name: str
  config: type
  model: type[nnx.Module]
  table: Callable[[Any], list[Entry]]
  from_hf: Callable[[Mapping[str, Any], pathlib.Path], tuple[Any, int | None]]
  to_hf: Callable[[Any, int | None], dict[str, Any]]
  from_gguf: Callable[[pathlib.Path], tuple[Any, int | None]] | None = None
  unused: re.Pattern[str] = re.compile(r"(?!)")


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
  """The leaves of a nested dict with their dotted paths."""
  for name, value in tree.items():
    where = f"{path}.{name}" if path else name
    if isinstance(value, Mapping):
      yield from leaves(value, where)
    else:
      yield where, value


def _parts(name: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
  """The file's names of an array, and the shape of ours under each (one layer where stacked)."""
  if "{}" not in name:
    return [(name, shape)]
  return [(name.format(layer), shape[1:]) for layer in range(shape[0])]


def _present(entry: Entry, tensors: Tensors) -> list[str]:
  """The names under which a file holds an array; the proper one where it has none of them."""
  name = entry.names[tensors.format]
  return [n for n in (name, *entry.aliases) if n in tensors.shapes] or [name]


def check_tensors(
  tensors: Tensors,
  table: Sequence[Entry],
  abstract: Mapping[str, Any],
  where: pathlib.Path,
  unused: re.Pattern[str],
) -> None:
  """Refuses a file that is not exactly what `abstract` (a tree of shapes) needs.

  Raises:
    ValueError: names a missing tensor, an unused one, or one of another shape; or two tensors that
      ought to be one and differ.
  """
  shapes = {path: leaf.shape for path, leaf in leaves(abstract)}
  want = {}
  for entry in table:
    for present in _present(entry, tensors):
      for name, shape in _parts(present, shapes[entry.path]):
        want[name] = entry.file_shape(shape)
  missing = sorted(want.keys() - tensors.shapes.keys())
  if missing:
    raise ValueError(f"{where} lacks {_several(missing)}, which its configuration calls for")
  extra = sorted(n for n in tensors.shapes.keys() - want.keys() if not unused.fullmatch(n))
  if extra:
    raise ValueError(f"{where} holds {_several(extra)}, for which its configuration has no use")
  for name, shape in want.items():
    if tuple(tensors.shapes[name]) != shape:
      raise ValueError(
        f"{where}: tensor {name!r} has shape {tuple(tensors.shapes[name])}, its configuration says "
        f"{shape}"
      )
  for entry in table:
    first, *others = _present(entry, tensors)
    for other in others:
      if not np.array_equal(tensors.tensor(first), tensors.tensor(other)):
        raise ValueError(
          f"{where}: tensors {first!r} and {other!r} differ; its configuration says that they are "
          "one"
        )


def _several(names: Sequence[str]) -> str:
  more = f" and {len(names) - 3} more" if len(names) > 3 else ""
  return f"the tensor{'s' * (len(names) > 1)} {', '.join(map(repr, names[:3]))}{more}"


def _flat(shape: tuple[int, ...], index: Part) -> slice:
  """Where a cut along the first of several axes lies in these axes flattened.

  Raises:
    ValueError: another axis is cut: head sizes, for one, never are.
  """
  first, *others = index
  if any(s.indices(n) != (0, n, 1) for s, n in zip(others, shape[1:], strict=True)):
    raise ValueError(f"{index} of {shape} is cut along another axis than the first")
  start, stop, _ = first.indices(shape[0])
  inner = math.prod(shape[1:])
  return slice(start * inner, stop * inner)


def read(
  tensors: Tensors,
  table: Sequence[Entry],
  abstract: Mapping[str, Any],
  shardings: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], bool]:
  """Reads all arrays, one stacked array at a time, so that there is no second copy of the model.

  Args:
    tensors: the file or folder.
    table: which of our arrays is which tensor.
    abstract: our arrays' shapes and types; those in few bits are quantised as soon as they are
      read, so that one at a time is in full width.
    shardings: where each lies: this process reads only what its devices hold, one stacked array at
      a time. None for the default device.

  Returns:
    The arrays in the types that `abstract` has, and whether all have the file's own numbers: none
    is narrower or in few bits.
  """
  targets = dict(leaves(abstract))
  where = dict(leaves(shardings or {}))
  out: dict[str, Any] = {}
  exact = True
  for entry in table:
    leaf, name = targets[entry.path], _present(entry, tensors)[0]
    names = [part for part, _ in _parts(name, leaf.shape)]
    exact = exact and not is_quantised(leaf)
    exact = exact and all(np.can_cast(tensors.dtype(part), leaf.dtype) for part in names)
    # Devices that hold the same part share one copy of it here.
    fill = functools.cache(functools.partial(_host_part, tensors, entry, name, leaf))
    lying = where.get(entry.path)
    if shardings is None:
      array = jax.device_put(fill(tuple((0, n) for n in leaf.shape)), may_alias=False)
    else:
      array = jax.make_array_from_callback(
        leaf.shape, getattr(lying, "qvalue", lying),
        lambda part, f=fill, shape=leaf.shape: f(
          tuple(s.indices(n)[:2] for s, n in zip(part, shape, strict=True))
        ),
      )  # fmt: skip
    if is_quantised(leaf):
      array = _quantiser(leaf.qtype, entry.summed, lying)(array)
    insert(out, entry.path, jax.block_until_ready(array))
  return out, exact


@functools.cache
def _quantiser(qtype: str, summed: tuple[int, ...], lying: Any):
  """The program that quantises an array where it lies."""
  return jax.jit(functools.partial(quantise, qtype=qtype, summed=summed), out_shardings=lying)


def quantised(params: Mapping[str, Any], table: Sequence[Entry], qtype: str) -> dict[str, Any]:
  """A model's arrays with all matrices in few bits."""
  summed = {entry.path: entry.summed for entry in table}
  out: dict[str, Any] = {}
  for path, x in leaves(params):
    insert(out, path, quantise(x, qtype, summed[path]) if summed[path] else x)
  return out


def _host_part(
  tensors: Tensors, entry: Entry, name: str, leaf: Any, bounds: tuple[tuple[int, int], ...]
) -> np.ndarray:
  """A part of one of our arrays, from first to last of each axis, from the tensors that hold it."""
  host = np.empty([last - first for first, last in bounds], leaf.dtype)
  part, shape = tuple(slice(*b) for b in bounds), leaf.shape
  targets = [(name, host)]
  if "{}" in name:
    targets = list(zip(map(name.format, range(*bounds[0])), host, strict=True))
    part, shape = part[1:], shape[1:]
  for tensor, target in targets:
    found = tensors.tensor(tensor, entry.file_part(shape, part))
    target[...] = entry.ours(found, target.shape, tensors.format)
  return host


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


def note_origin(folder: pathlib.Path, tensors: Tensors, config: Any, original: str) -> None:
  """Records in an unfinished folder the fingerprint of the model that it is a copy of."""
  note = {"original": original, "copy": fingerprint(tensors, config)}
  (folder / _ORIGIN).write_text(json.dumps(note, indent=1))


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
    extra: adds further files (the tokenizer, the origin) to the unfinished folder.
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
    for index, (name, shape) in enumerate(_parts(entry.names["hf"], array.shape)):
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
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
