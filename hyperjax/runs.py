"""What the commands share: a model from its source, data from its folder, and a whole run from its
own; what a run trains is in `systems`."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from hyperjax import adapters, launch, storage, systems
from hyperjax.core import attention, quantised
from hyperjax.data import building, vocabularies
from hyperjax.data import manifest as manifest_lib
from hyperjax.data.caclm import CaclmConfig
from hyperjax.data.manifest import DataConfig, Manifest
from hyperjax.data.prompts import PromptFormat
from hyperjax.data.vocabularies import Vocabulary
from hyperjax.models import families
from hyperjax.training import checksums
from hyperjax.training.checkpoints import Checkpoints, abstract

_DTYPES = ("auto", "float32", "bfloat16", "float64")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The frozen downstream model.

  Attributes:
    architecture: what the source must hold; an error where it differs.
    source: the embedded default's name, a folder, a GGUF file, a Hugging Face id, or 'random'.
    dtype: of the frozen weights and the activations; 'auto' is bfloat16 on accelerators, float32 on
      CPUs. Activations are at least float32 on CPUs: there bfloat16 is fast in products only.
      'float64' (with JAX_ENABLE_X64=1) is for comparing meshes; it holds for what is trained too.
    bits: 8 or 4, of all matrices of the frozen weights; None for those of `dtype`. Products are
      computed as without.
    remat: what the backward pass recomputes: 'none', 'dots', 'full'.
    attention: the kernel, one of `core.attention.CHOICES`; 'auto' takes what fits machine and mask.
  """

  architecture: families.Config
  source: str
  dtype: str = "auto"
  bits: int | None = None
  remat: str = "none"
  attention: str = "auto"

  def __post_init__(self):
    if self.dtype not in _DTYPES:
      raise ValueError(f"ModelConfig.dtype must be one of {_DTYPES}, not {self.dtype!r}")
    if self.bits not in (None, *quantised.TYPES):
      raise ValueError(
        f"ModelConfig.bits must be None, {' or '.join(map(str, quantised.TYPES))}, not "
        f"{self.bits!r} (gin: BASE_BITS)"
      )

  def compute_dtype(self, backend: str | None = None) -> Any:
    """The dtype that 'auto' stands for on a backend ('cpu', 'tpu'); this machine's where None."""
    if self.dtype == "float64" and not jax.config.jax_enable_x64:
      raise ValueError("DTYPE is 'float64', which JAX computes in with JAX_ENABLE_X64=1 only")
    if self.dtype != "auto":
      return jnp.dtype(self.dtype)
    backend = backend or jax.default_backend()
    return jnp.dtype(jnp.float32 if backend == "cpu" else jnp.bfloat16)

  def activations(self, backend: str | None = None) -> Any:
    """The dtype of activations on a backend; this machine's where None."""
    dtype, backend = self.compute_dtype(backend), backend or jax.default_backend()
    return jnp.promote_types(dtype, jnp.float32) if backend == "cpu" else dtype

  def stored_as(self, backend: str | None = None) -> str:
    """The names of the types that the frozen weights have on a backend; this machine's where
    None."""
    name = self.compute_dtype(backend).name
    return name if self.bits is None else f"{quantised.TYPES[self.bits]} and {name}"

  def dtypes(self) -> str:
    """What figures depend on besides weights and data, in words."""
    return f"{self.stored_as()} weights, {self.activations().name} activations"

  def abstract(self, backend: str | None = None) -> families.Model:
    """The model with shapes in place of arrays, as on a backend; reads nothing."""
    return families.abstract(
      self.architecture, dtype=self.compute_dtype(backend), bits=self.bits, remat=self.remat,
      attention=self.attention, activations=self.activations(backend),
    )  # fmt: skip

  def load(self, mesh: Mesh | None = None) -> tuple[families.Model, str]:
    """The model with its weights, sharded over a mesh where there is one, and its fingerprint.

    Raises:
      ValueError: this machine cannot run the attention kernel; what the source is refused for.
    """
    attention.check(self.attention, self.activations(), self.architecture.head_dim)
    loaded = families.load(
      self.source, dtype=self.compute_dtype(), bits=self.bits, config=self.architecture, mesh=mesh
    )
    return nnx.merge(nnx.graphdef(self.abstract()), loaded.params), loaded.fingerprint


def configured(folder: str | os.PathLike) -> dict[str, Any]:
  """The arguments that a training run was given, as they serve on this machine: a kernel that was
  asked for was asked for where it was trained.

  Raises:
    FileNotFoundError: the folder holds no run.
    ValueError: it holds one of another command.
  """
  given = launch.configured(folder, "hyperjax.train", "train")
  if "model" not in given:
    raise ValueError(
      f"{launch.config_of(folder)} configures no training: name a training run's MODEL_DIR"
    )
  return given | {"model": dataclasses.replace(given["model"], attention="auto")}


def held_out(given: Mapping[str, Any]) -> "DataFolder | None":
  """The held-out tasks of a run with these arguments; None where it has none to ask: running text
  is no task."""
  data = given["data"]
  return None if isinstance(data.episodes, CaclmConfig) else data.held_out


def longest_support(given: Mapping[str, Any]) -> int | None:
  """The most tokens of a support in a run with these arguments; None where it reads running text,
  which holds no examples."""
  episodes = given["data"].episodes
  return None if isinstance(episodes, CaclmConfig) else episodes.longest_support


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished (or interrupted) training run, ready to be used.

  Attributes:
    folder: its MODEL_DIR.
    model: which downstream model it trained for.
    downstream, producer: the modules, what was trained with the newest checkpoint's parameters.
    step: of that checkpoint.
    vocabulary, prompt: how text becomes tokens.
    model_fingerprint: of the frozen weights.
    trained_hash: of the checkpoint's parameters.
    inline: whether its queries held the support themselves.
    trained: the parts that training changed, as `systems.trained_parts`.
    longest_support: the most tokens of a support in training; None where it read running text.
    provenance: for adapters: run, step, hypermodel, data hash, the base's bits where they are few.
  """

  folder: os.PathLike
  model: ModelConfig
  downstream: families.Model
  producer: nnx.Module
  step: int
  vocabulary: Vocabulary
  prompt: PromptFormat
  model_fingerprint: str
  trained_hash: str
  inline: bool
  trained: tuple[str, ...]
  longest_support: int | None
  provenance: Mapping[str, Any]

  @property
  def config(self) -> families.Config:
    """The downstream model's architecture."""
    return self.model.architecture


def load(
  folder: str | os.PathLike,
  *,
  source: str | None = None,
  loaded: tuple[families.Model, str] | None = None,
  mesh: Mesh | None = None,
) -> Run:
  """Opens a training run by its own folder alone.

  Args:
    folder: the run's MODEL_DIR, with config.gin and checkpoints.
    source: where the downstream model lies, if not where it lay in training; its vocabulary too,
      where VOCABULARY named the model's.
    loaded: the downstream model and its fingerprint, where the caller has them already.
    mesh: what all arrays are sharded over; the default device where None.

  Raises:
    FileNotFoundError: the folder holds no run, or no complete checkpoint; the model or the
      vocabulary is not there.
    ValueError: the checkpoint does not fit the model.
  """
  folder = storage.folder(folder)
  given = configured(folder)
  model = given["model"]
  if source is not None:
    model = dataclasses.replace(model, source=source)
  downstream, fingerprint = loaded or model.load(mesh)
  data = given["data"]
  # Where the vocabulary is the model's own, it lies where the model lies now.
  own = data.config.vocabulary == given["model"].source
  vocabulary = vocabularies.load(model.source if own else data.config.vocabulary)
  producer, seed = given["hypermodel"], given["run"].seed
  if hasattr(producer, "without_source"):  # the checkpoint has all that the source gave
    producer = producer.without_source()
  encode = systems.encoder(vocabulary)
  parts = systems.build_parts(producer, downstream, encode, seed, mesh)
  # Initial values make room for those that are read.
  graph, shapes, frozen = parts.graph, abstract(parts.trained), parts.frozen
  del parts
  with contextlib.closing(Checkpoints(folder, fingerprint, read_only=True)) as checkpoints:
    restored = checkpoints.restore(shapes, None)
  system = nnx.merge(graph, restored.trained, frozen)
  name = type(producer).__name__.removesuffix("Config")
  provenance = {
    "hypermodel": name, "step": restored.step, "data": data.config.hash(),
    "mixture": data.config.title,
  }  # fmt: skip
  if model.bits is not None:
    provenance["base_bits"] = model.bits
  # The model that was given, where training left it as it was.
  trained = tuple(systems.trained_parts(producer))
  adapted = system.downstream if "downstream" in trained else downstream
  return Run(
    folder, model, adapted, system.producer, restored.step, vocabulary,
    data.config.prompt, fingerprint, digest(restored.trained), data.inline, trained,
    longest_support(given), provenance,
  )  # fmt: skip


def check(folder: str | os.PathLike, fingerprint: str, manifest: Manifest) -> None:
  """Refuses a run that does not go with a model and with data; reads no parameters.

  Args:
    folder: the run's MODEL_DIR.
    fingerprint: of the frozen model that is going to be used.
    manifest: the data that is going to be used.

  Raises:
    FileNotFoundError: there is no complete checkpoint.
    ValueError: it was trained on another frozen model, or reads texts in another form.
  """
  data = configured(folder)["data"].config
  vocabulary = vocabularies.load(data.vocabulary)
  check_reads(folder, data.prompt.to_json(), vocabulary.fingerprint, manifest)
  checkpoints = Checkpoints(storage.folder(folder), fingerprint, read_only=True)
  with contextlib.closing(checkpoints):
    checkpoints.check()


def check_reads(
  folder: str | os.PathLike, prompt: Mapping[str, Any] | None, vocabulary: str, manifest: Manifest
) -> None:
  """Refuses a method that reads texts in another form than the data has.

  Args:
    folder: the run or adapter, for the error.
    prompt: its prompt format; None where it is not known.
    vocabulary: the fingerprint of its vocabulary.
    manifest: the data.

  Raises:
    ValueError: they differ.
  """
  own, built = prompt, manifest.prompt.to_json()
  if (own or built, vocabulary) != (built, manifest.vocabulary["fingerprint"]):
    raise ValueError(
      f"{folder} was trained with the prompt format {own['name']!r} and the vocabulary "
      f"{vocabulary[:12]}, {manifest.place} was built with {built['name']!r} and "
      f"{manifest.vocabulary['fingerprint'][:12]}: set PROMPT and VOCABULARY as the run has them, "
      "and another DATA_DIR"
    )


def check_makes_phi(folder: str | os.PathLike, trained: Sequence[str], inline: bool) -> None:
  """Refuses a run whose answers need more than its downstream model as it was and a phi.

  Args:
    folder: the run, for the error.
    trained, inline: as of a Run.

  Raises:
    ValueError: it is such a run.
  """
  if "downstream" in trained:
    raise ValueError(
      f"{folder}: training changed its downstream model too, so its phi on the model as it was "
      "would not be what was trained"
    )
  if inline:
    raise ValueError(f"{folder}: its inputs hold the examples themselves; no phi takes their place")


def remark(
  folder: str | os.PathLike, adapter: adapters.Adapter, model: ModelConfig
) -> str | None:
  """What to tell the user of an adapter that is going to be used on a model; None for nothing."""
  if not adapter.verified:
    return adapters.unverified(folder)
  return _other_bits(folder, adapter.provenance.get("base_bits"), model)


def remark_on_run(folder: str | os.PathLike, model: ModelConfig) -> str | None:
  """The same of a run, whose own base may have other bits than that of the run beside it.

  Raises:
    FileNotFoundError: the folder holds no run.
    ValueError: it is for another kind of model, or has trained weights that are in few bits here.
  """
  given, width = configured(folder), "name runs beside it whose base is in full width"
  systems.check_fits(
    given["hypermodel"], model.architecture, model.bits, f"leave {folder} out, or {width}"
  )
  return _other_bits(folder, given["model"].bits, model)


def remark_on_start(folder: str | os.PathLike, model: ModelConfig) -> str | None:
  """The same of a run whose phi another producer is to start from.

  Raises:
    FileNotFoundError, ValueError: as `remark_on_run` and `check_makes_phi`.
  """
  given = configured(folder)
  check_makes_phi(folder, systems.trained_parts(given["hypermodel"]), given["data"].inline)
  return remark_on_run(folder, model)


def _other_bits(folder: str | os.PathLike, made: int | None, model: ModelConfig) -> str | None:
  name = lambda bits: "full width" if bits is None else f"{bits} bits"
  return None if made == model.bits else (
    f"note: {folder} was made on the base in {name(made)}, which is used in {name(model.bits)} "
    "here: answers may differ a little"
  )


def digest(tree: Any) -> str:
  """A hash of a tree's arrays and their places; all that leaves the devices are checksums."""
  arrays = {
    f"{jax.tree_util.keystr(path)} {leaf.dtype}{leaf.shape}": leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  return hashlib.sha256(json.dumps(checksums.of(arrays)).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class DataFolder:
  """A data configuration and the folder that it is built into.

  Attributes:
    config: what is built.
    folder: the folder of a run's data; of the local disk, or of a bucket.
    name: the part of it that this configuration is built into.
    copies: where stores of a bucket are copied to, on the local disk.
  """

  config: DataConfig
  folder: str
  name: str
  copies: str = manifest_lib.COPIES

  @property
  def path(self) -> pathlib.PurePath:
    """Where the manifest lies.

    Raises:
      ValueError: the folder is an address of something else than a bucket.
    """
    copied = "copy it to one, such as with gcloud storage rsync --recursive (docs/pods.md)"
    storage.check_address(self.folder, "DATA_DIR", copied, bucket=True)
    return epath.Path(self.folder) / self.name

  def open(self, vocabulary: Vocabulary, *, build: bool = True) -> Manifest:
    """The manifest, built first where it is missing; several processes never build.

    Raises:
      ValueError: the folder was built for another vocabulary or configuration.
    """
    build = build and jax.process_count() == 1
    manifest = building.ensure(self.config, self.path, build=build, copies=self.copies)
    if manifest.vocabulary["fingerprint"] != vocabulary.fingerprint:
      raise ValueError(
        f"{self.path} was built with a vocabulary of {manifest.vocabulary['size']} tokens "
        f"({manifest.vocabulary['fingerprint'][:12]}), {self.config.vocabulary} has "
        f"{vocabulary.size} ({vocabulary.fingerprint[:12]}): build it again with "
        "hyperjax data, or name another DATA_DIR, or the vocabulary that it was built with"
      )
    return manifest
