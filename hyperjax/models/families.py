"""The one way to load and to save a model, whatever its family."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from hyperjax import sources
from hyperjax.core import quantised, sharding
from hyperjax.models import llama_weights, t5_weights, tensor_files, weights
from hyperjax.models.config_files import refuse
from hyperjax.models.llama import Llama, LlamaConfig
from hyperjax.models.t5 import T5, T5Config
from hyperjax.models.weights import Family, Loaded

Config = LlamaConfig | T5Config
Model = Llama | T5

RANDOM = "random"

FAMILIES = {family.name: family for family in (llama_weights.FAMILY, t5_weights.FAMILY)}


def of(config: Config) -> Family:
  """The family of a configuration."""
  return next(family for family in FAMILIES.values() if isinstance(config, family.config))


def abstract(config: Config, **given: Any) -> Model:
  """A model with shapes in place of arrays; `dtype`, `remat`, `attention`, `activations` as the
  models take, and `bits` of its matrices (None: those of `dtype`)."""
  return nnx.eval_shape(lambda: _new(config, nnx.Rngs(0), **given))


def _new(config: Config, rngs: nnx.Rngs, *, bits: int | None = None, **given: Any) -> Model:
  """A model at its initial values."""
  family = of(config)
  model = family.model(config, rngs=rngs, **given)
  if bits is None:
    return model
  table, qtype = family.table(config), quantised.TYPES[bits]
  return nnx.merge(nnx.graphdef(model), weights.quantised(_params(model), table, qtype))


def read_config(source: str | pathlib.Path) -> Config:
  """The architecture of a source, from its metadata alone.

  Raises:
    ValueError: a key that would change the numbers and is not handled: its name and value.
  """
  return _read(sources.resolve(source))[0]


def context_length(source: str | pathlib.Path) -> int | None:
  """The longest text that the source's model was trained for, in tokens; None without a limit, as
  for random weights."""
  return None if source == RANDOM else _read(sources.resolve(source))[1]


def _read(path: pathlib.Path) -> tuple[Config, int | None]:
  if not path.is_dir():
    known = [name for name, family in FAMILIES.items() if family.from_gguf is not None]
    name = sources.gguf_header(path).metadata.get("general.architecture")
    if name not in known:
      refuse(path, "general.architecture", name, " or ".join(map(repr, known)))
    return FAMILIES[name].from_gguf(path)
  file = path / "config.json"
  if not file.exists():
    raise FileNotFoundError(f"{path} has no config.json; a Hugging Face model folder has one")
  raw = sources.read_json(file)
  name = raw.pop("model_type", None)
  if name not in FAMILIES:
    refuse(file, "model_type", name, " or ".join(map(repr, FAMILIES)))
  return FAMILIES[name].from_hf(raw, file)


def load(
  source: str | pathlib.Path,
  *,
  dtype: Any = jnp.float32,
  bits: int | None = None,
  config: Config | None = None,
  seed: int = 0,
  mesh: Mesh | None = None,
) -> Loaded:
  """Loads a model, one stacked array at a time.

  Args:
    source: see `sources.resolve`; or RANDOM for random weights, which needs `config`.
    dtype: of all arrays but those that the model always keeps wider.
    bits: 8 or 4: of all matrices, whose scales have that dtype; None: none is in few bits. The
      fingerprint is the same.
    config: what the caller takes the model for; an error where the source differs.
    seed: of random weights.
    mesh: where the arrays lie, sharded by their logical axes; each process reads its part of them.
      The default device where None.

  Raises:
    FileNotFoundError: no such source.
    ValueError: missing or unused tensors, wrong shapes, a configuration that is not supported.
  """
  if source == RANDOM:
    if config is None:
      raise ValueError(f"model source {RANDOM!r} needs an explicit config (gin: MODEL)")
    return random(config, seed=seed, dtype=dtype, bits=bits, mesh=mesh)
  path = sources.resolve(source)
  found, _ = _read(path)
  _check_same(config or found, found, path)
  family, tensors = of(found), tensor_files.open_tensors(path)
  model = abstract(found, dtype=dtype, bits=bits)
  table, shapes = family.table(found), _params(model)
  weights.check_tensors(tensors, table, shapes, path, family.unused)
  params, exact = weights.read(tensors, table, shapes, _shardings(model, mesh))
  return Loaded(found, params, weights.identity(path, tensors, found), str(source), exact)


def _params(model: Model) -> dict[str, Any]:
  return nnx.to_pure_dict(nnx.state(model))


def _shardings(model: Model, mesh: Mesh | None) -> dict[str, Any] | None:
  """Where a model's arrays lie; None without a mesh."""
  return None if mesh is None else sharding.shardings(_params(model), sharding.axes_of(model), mesh)


def _check_same(asked: Config, found: Config, path: pathlib.Path) -> None:
  if type(asked) is not type(found):
    names = of(found).name, of(asked).name
    raise ValueError(f"{path} holds a model of the family {names[0]!r}, not {names[1]!r}")
  for field in dataclasses.fields(found):
    want, have = getattr(asked, field.name), getattr(found, field.name)
    if want != have:
      raise ValueError(f"{path} has {field.name} {have!r}, the configured model {want!r}")


def random(
  config: Config,
  *,
  seed: int = 0,
  dtype: Any = jnp.float32,
  bits: int | None = None,
  mesh: Mesh | None = None,
) -> Loaded:
  """A model with random weights, for tests and benchmarks; the same on every mesh."""
  params = _draw(config, jnp.dtype(dtype), bits, mesh)(jax.random.key(seed))
  name = f"{RANDOM} {seed} {jnp.dtype(dtype).name} {json.dumps(dataclasses.asdict(config))}"
  return Loaded(config, params, hashlib.sha256(name.encode()).hexdigest(), RANDOM)


@functools.cache
def _draw(config: Config, dtype: Any, bits: int | None, mesh: Mesh | None):
  """The compiled program that draws a model, each array where it will lie."""
  draw = lambda key: _params(_new(config, nnx.Rngs(key), dtype=dtype, bits=bits))
  return jax.jit(draw, out_shardings=_shardings(abstract(config, dtype=dtype, bits=bits), mesh))


def fingerprint(source: str | pathlib.Path) -> str:
  """Names a model by the hash of its config and, per tensor, its name, shape, and first and last
  64 KiB in the source file: the same for a folder however it is sharded. A folder that was saved as
  a copy without loss bears the name of its original."""
  path = sources.resolve(source)
  return weights.identity(path, tensor_files.open_tensors(path), _read(path)[0])


def save(
  folder: str | os.PathLike,
  config: Config,
  params: Mapping[str, Any],
  *,
  tokenizer: Any = None,
  max_positions: int | None = None,
  original: str | None = None,
  max_shard_bytes: int = 2 * 10**9,
) -> None:
  """Writes a Hugging Face folder, whole or not at all.

  Args:
    folder: the new folder.
    config: the architecture.
    params: as `Loaded.params`; written in their own types.
    tokenizer: a vocabulary, whose files are written along.
    max_positions: the context length to record, where the family has one; its default where None.
    original: the fingerprint of the model whose numbers these are, without loss.
    max_shard_bytes: size at which the weights are split into several files.

  Raises:
    FileExistsError: the folder exists and is not empty.
  """
  family = of(config)
  raw = {
    **family.to_hf(config, max_positions),
    "model_type": family.name,
    "torch_dtype": str(params["embed"].dtype),
  }
  if tokenizer is not None:
    raw |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}

  def extra(unfinished: pathlib.Path) -> None:
    if tokenizer is not None:
      tokenizer.save(unfinished)
    if original is not None:
      weights.note_origin(unfinished, tensor_files.open_tensors(unfinished), config, original)

  weights.write(
    folder, family.table(config), params, raw, extra=extra, max_shard_bytes=max_shard_bytes
  )
