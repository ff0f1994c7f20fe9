"""Adapters: a phi in a folder, in PEFT's own format wherever PEFT can hold it.

    adapter_config.json        what PEFT loads: a prefix, a soft prompt, or low-rank updates
    adapter_model.safetensors
    phi.safetensors            instead of both, for a phi that PEFT cannot hold in one adapter: a
                               prefix and low-rank updates together, as gisting makes, and prefixes
                               of T5, of which PEFT knows the decoder's only
    hyperjax.json              what phi is, which model, vocabulary and prompt it is for, and where
                               it comes from

PEFT 0.21.2 computes the same logits and the same greedy answers with transformers 5.23.0. With
5.24.0 PEFT's generate() warns and answers as if there were no prefix.

A folder that PEFT wrote has no hyperjax.json; it loads too, checked by names and shapes alone.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax import sources
from hyperjax.core import phi as phi_lib
from hyperjax.core.phi import LowRank, Phi, Prefix, Prompt
from hyperjax.models import families, llama_peft, peft_files, t5_peft
from hyperjax.models.peft_format import Format

_PEFT = {"llama": llama_peft.FORMAT, "t5": t5_peft.FORMAT}
META, PHI_TENSORS = "hyperjax.json", "phi.safetensors"
# All that one consists of, of ours or PEFT's.
_FILES = {META, PHI_TENSORS, peft_files.CONFIG, peft_files.TENSORS, "README.md"}
_VERSION = 1
_KINDS = {"prefix": Prefix, "prompt": Prompt, "low_rank": LowRank}


@dataclasses.dataclass(frozen=True)
class Base:
  """The model that an adapter is for.

  Attributes:
    source: where it was loaded from: a name, path or Hugging Face id.
    config: its architecture.
    fingerprint: its weights' fingerprint.
    vocabulary_fingerprint: its tokenizer's.
  """

  source: str
  config: families.Config
  fingerprint: str
  vocabulary_fingerprint: str

  @property
  def family(self) -> str:
    """The name of the model's family."""
    return families.of(self.config).name

  @property
  def peft(self) -> Format:
    """How PEFT holds a phi for it."""
    return _PEFT[self.family]


@dataclasses.dataclass(frozen=True)
class Adapter:
  """One phi and what is needed to use it.

  Attributes:
    phi: of batch 1.
    base: the model it was made for; None where the folder does not say (PEFT's own).
    prompt: the prompt format as JSON; None where the folder does not say.
    provenance: where it comes from: command, data hash, hypermodel.
  """

  phi: Phi
  base: Base | None
  prompt: Mapping[str, Any] | None = None
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def verified(self) -> bool:
    """Whether the model's fingerprint was recorded, and so compared."""
    return self.base is not None


def phi_spec(config: families.Config, phi: Phi) -> Phi:
  """The model's spec for a phi of these sites, prefix length and ranks.

  Raises:
    ValueError: a site or rank that the model does not have.
  """
  model = families.abstract(config)
  spec: Phi = {}
  for site, node in phi_lib.sites(phi).items():
    if isinstance(node, LowRank):
      sizes = {"rank": node.a.shape[3], "alpha": node.scale * node.a.shape[3]}
    else:
      positions = getattr(node, "positions", "none")
      sizes = {"prefix_length": node.value.shape[2], "positions": positions}
    spec = phi_lib.merge(spec, model.phi_spec([site], **sizes))
  return spec


def save(folder: str | os.PathLike, adapter: Adapter, *, overwrite: bool = False) -> None:
  """Writes an adapter under a temporary name and renames it when it is whole.

  Args:
    folder: the new folder.
    adapter: with a base; its phi has batch 1, and a ragged prefix loses its padding.
    overwrite: replaces the adapter that stands there; nothing but an adapter is replaced.

  Raises:
    FileExistsError: the folder exists.
    ValueError: phi is not one that the base can have, or holds values that are not finite.
  """
  folder = pathlib.Path(folder).absolute()
  check_target(folder, overwrite=overwrite)
  phi = _one_row(adapter.phi)
  phi_lib.check(phi, phi_spec(adapter.base.config, phi))
  _check_finite(phi, folder)
  made = adapter.base.peft.write(phi, adapter.base.config, adapter.base.source)
  config, tensors = made or (None, _own_tensors(phi))
  file = PHI_TENSORS if config is None else peft_files.TENSORS
  folder.parent.mkdir(parents=True, exist_ok=True)
  unfinished = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
  try:
    unfinished.chmod(0o755)
    _write_tensors(unfinished / file, tensors)
    if config is not None:
      _write_json(unfinished / peft_files.CONFIG, config)
    _write_json(unfinished / META, {
      "version": _VERSION,
      "peft": config is not None,
      "spec": _describe(phi),
      "model": {
        "family": adapter.base.family,
        "source": adapter.base.source,
        "fingerprint": adapter.base.fingerprint,
        "config": dataclasses.asdict(adapter.base.config),
      },
      "vocabulary": {"fingerprint": adapter.base.vocabulary_fingerprint},
      "prompt": adapter.prompt,
      "provenance": dict(adapter.provenance),
      "sha256": _sha256(unfinished / file),
    })
    if folder.exists():
      _replace(folder, unfinished)
    else:
      os.rename(unfinished, folder)
  except BaseException:
    shutil.rmtree(unfinished, ignore_errors=True)
    raise


def is_adapter(folder: str | os.PathLike) -> bool:
  """Whether a folder holds an adapter, ours or PEFT's."""
  return any((pathlib.Path(folder) / name).exists() for name in (META, peft_files.CONFIG))


def unverified(folder: str | os.PathLike) -> str:
  """What to tell the user of an adapter that is not `verified`."""
  return f"note: {folder} has no fingerprint of its model: unverified, checked by shapes alone"


def check_target(folder: str | os.PathLike, *, overwrite: bool) -> None:
  """Refuses a folder that `save` would not write to: for callers with work to do before.

  Raises:
    FileExistsError: it exists; or, with `overwrite`, is or holds something other than an adapter.
  """
  folder = pathlib.Path(folder)
  if not folder.exists() and not folder.is_symlink():
    return
  if not overwrite:
    raise FileExistsError(
      f"{folder} exists; name a new folder, or overwrite the adapter (--overwrite)"
    )
  if not is_adapter(folder):
    raise FileExistsError(f"{folder} exists and is not an adapter; it is not overwritten")
  if others := sorted({file.name for file in folder.iterdir()} - _FILES):
    raise FileExistsError(f"{folder} holds {others[0]!r} too, no part of an adapter: move it away")


def recorded_source(folder: str | os.PathLike) -> str | None:
  """The source of the model that an adapter was made for; None where the folder does not say."""
  folder = pathlib.Path(folder)
  if (folder / META).exists():
    return _meta(folder)["model"]["source"]
  return peft_files.read_config(folder).get("base_model_name_or_path") or None


def load(folder: str | os.PathLike, base: Base) -> Adapter:
  """Loads an adapter for a model.

  Args:
    folder: written by `save` or by PEFT.
    base: the model that is going to use it.

  Returns:
    The adapter; its phi is float32. `verified` is False where the folder does not name a model.

  Raises:
    FileNotFoundError: no such folder, or a file is missing in it.
    ValueError: made for another model or vocabulary, damaged, missing or unknown tensors, wrong
      shapes, or PEFT settings that would change the numbers and are not supported.
  """
  folder = pathlib.Path(folder)
  if not (folder / META).exists():
    raw, tensors = peft_files.read_config(folder), read_tensors(folder / peft_files.TENSORS)
    phi = base.peft.read(raw, tensors, base.config, folder)
    _check(folder, phi, base.config)
    return Adapter(phi, None)
  meta = _meta(folder)
  _check_made_for(folder, meta, base)
  file = folder / (peft_files.TENSORS if meta["peft"] else PHI_TENSORS)
  tensors = read_tensors(file)
  if _sha256(file) != meta["sha256"]:
    raise ValueError(
      f"{file} is not the file that {META} beside it describes: it was changed or damaged. If PEFT "
      f"changed it on purpose, remove {META} to load it as PEFT's own"
    )
  if meta["peft"]:
    phi = base.peft.read(peft_files.read_config(folder), tensors, base.config, folder)
  else:
    phi = _own_phi(folder, meta["spec"], tensors)
  _check(folder, phi, base.config)
  recorded = dataclasses.replace(base, source=meta["model"]["source"])
  return Adapter(phi, recorded, meta["prompt"], meta["provenance"])


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of a safetensors file as float32.

  Raises:
    FileNotFoundError: no such file.
    ValueError: damaged, or a tensor that is not real-valued.
  """
  import safetensors
  from safetensors.flax import load_file

  if not path.exists():
    raise FileNotFoundError(f"{path} is missing: {path.parent} is not a whole adapter")
  try:
    tensors = load_file(path)
  except safetensors.SafetensorError as e:
    raise ValueError(f"{path} is damaged or not a safetensors file ({e})") from e
  for name, tensor in tensors.items():
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
      raise ValueError(f"{path}: tensor {name!r} is of type {tensor.dtype}, not real-valued")
  return {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}


def _check(folder: pathlib.Path, phi: Phi, config: families.Config) -> None:
  try:
    phi_lib.check(phi, phi_spec(config, phi))
  except ValueError as e:
    raise ValueError(f"{folder} does not fit the model: {e}") from e
  _check_finite(phi, folder)


def _check_made_for(folder: pathlib.Path, meta: Mapping[str, Any], base: Base) -> None:
  made_for = meta["model"]
  if made_for["family"] != base.family:
    raise ValueError(
      f"{folder} was made for the model {made_for['source']!r} of the family "
      f"{made_for['family']!r}, not for {base.source!r} of the family {base.family!r}"
    )
  if made_for["fingerprint"] != base.fingerprint:
    raise ValueError(
      f"{folder} was made for the model {made_for['source']!r} (fingerprint "
      f"{made_for['fingerprint'][:12]}), not for {base.source!r} (fingerprint "
      f"{base.fingerprint[:12]}); its numbers mean nothing to another model"
    )
  if meta["vocabulary"]["fingerprint"] != base.vocabulary_fingerprint:
    raise ValueError(
      f"{folder} was made with the vocabulary of {made_for['source']!r} (fingerprint "
      f"{meta['vocabulary']['fingerprint'][:12]}), not with the one in use (fingerprint "
      f"{base.vocabulary_fingerprint[:12]})"
    )


def _meta(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / META
  meta = sources.read_json(path)
  if meta.get("version") != _VERSION:
    raise ValueError(f"{path} has version {meta.get('version')!r}; this hyperjax reads {_VERSION}")
  fields = ("model", "peft", "prompt", "provenance", "sha256", "spec", "vocabulary")
  missing = [field for field in fields if field not in meta]
  if missing:
    raise ValueError(f"{path} lacks the field {missing[0]!r}")
  return meta


def _one_row(phi: Phi) -> Phi:
  """A phi of batch 1 without padding behind its prefix."""
  if phi_lib.rows(phi) != 1:
    raise ValueError(f"an adapter holds one phi, not a batch of {phi_lib.rows(phi)}")
  out: dict = {}
  for site, node in phi_lib.sites(phi).items():
    if not isinstance(node, LowRank):
      size = int(node.length[0, 0])
      if size < 1:
        raise ValueError(f"the prefix at {site!r} is empty")
      real = {field: getattr(node, field)[:, :, :size] for field in node.fields}
      node = dataclasses.replace(node, length=jnp.full_like(node.length, size), **real)
    phi_lib.insert(out, site, node)
  if not out:
    raise ValueError("phi is empty: there is nothing to save")
  return out


def _check_finite(phi: Phi, folder: pathlib.Path) -> None:
  for site, node in phi_lib.sites(phi).items():
    if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(node)):
      raise ValueError(f"{folder}: phi at {site!r} holds values that are not finite")


def _describe(phi: Phi) -> dict[str, Any]:
  """The sites, kinds and shapes (without the batch axis) of a phi, as JSON."""
  kinds = {cls: name for name, cls in _KINDS.items()}
  out = {}
  for site, node in phi_lib.sites(phi).items():
    shapes = {f: list(getattr(node, f)[:, 0].shape) for f in node.fields}
    out[site] = {"kind": kinds[type(node)], "shapes": shapes}
    if isinstance(node, LowRank):
      out[site]["scale"] = float(node.scale)
    elif isinstance(node, Prefix):
      out[site]["positions"] = node.positions
  return out


def _own_tensors(phi: Phi) -> dict[str, np.ndarray]:
  return {
    f"{site}.{field}": np.asarray(getattr(node, field)[:, 0], np.float32)
    for site, node in phi_lib.sites(phi).items()
    for field in node.fields
  }


def _own_phi(
  folder: pathlib.Path, spec: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> Phi:
  """The inverse of `_own_tensors`, against what hyperjax.json says."""
  want = {f"{site}.{f}": s for site, entry in spec.items() for f, s in entry["shapes"].items()}
  peft_files.check_names(folder / PHI_TENSORS, tensors, want)
  out: dict = {}
  for site, entry in spec.items():
    if entry["kind"] not in _KINDS:
      raise ValueError(f"{folder / META}: {site!r} is of the unknown kind {entry['kind']!r}")
    cls = _KINDS[entry["kind"]]
    arrays = [jnp.asarray(tensors[f"{site}.{field}"][:, None]) for field in cls.fields]
    if cls is Prefix:
      # Adapters of the first versions have no positions: Llama's carry them in their keys.
      node = phi_lib.whole_prefix(*arrays, positions=entry.get("positions", "none"))
    elif cls is Prompt:
      node = phi_lib.whole_prompt(*arrays)
    else:
      node = LowRank(*arrays, entry["scale"])
    phi_lib.insert(out, site, node)
  return out


def _write_tensors(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  from safetensors.numpy import save_file

  whole = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
  save_file(whole, path, metadata={"format": "pt"})


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(path: pathlib.Path) -> str:
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def _replace(folder: pathlib.Path, new: pathlib.Path) -> None:
  """Puts `new` in the place of `folder`; a failure leaves the old one there."""
  old = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
  os.rename(folder, old / "adapter")
  try:
    os.rename(new, folder)
  except BaseException:
    os.rename(old / "adapter", folder)
    old.rmdir()
    raise
  shutil.rmtree(old)
