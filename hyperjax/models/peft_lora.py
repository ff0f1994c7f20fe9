"""Low-rank updates in PEFT's format: names of modules and tensors, ranks and scales."""

import dataclasses
import difflib
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from hyperjax.core import phi as phi_lib
from hyperjax.core.phi import LowRank, Phi
from hyperjax.models.peft_files import CONFIG, TENSORS, check_names, number, positive

KIND = "LORA"


@dataclasses.dataclass(frozen=True)
class Module:
  """The modules of transformers that a site stands for, one in each layer.

  Attributes:
    template: their name; '{}' stands for the layer.
    layers: how many there are.
  """

  template: str
  layers: int

  @property
  def names(self) -> list[str]:
    return [self.template.format(layer) for layer in range(self.layers)]

  @property
  def short(self) -> str:
    """The last part of their name; other sites may share it."""
    return self.template.rpartition(".")[2]

  @property
  def pattern(self) -> str:
    """A regular expression for the names, and for no others."""
    return re.escape(self.template).replace(r"\{\}", r"\d+")


def _tensor(module: str, side: str) -> str:
  return f"base_model.model.{module}.lora_{side}.weight"


def config(nodes: Mapping[str, LowRank], modules: Mapping[str, Module]) -> dict[str, Any]:
  """The entries of adapter_config.json for low-rank updates of batch 1."""
  ranks = {site: node.a.shape[3] for site, node in nodes.items()}
  alphas = {site: node.scale * node.a.shape[3] for site, node in nodes.items()}
  shorts = {modules[site].short for site in nodes}
  if all(site in nodes for site, module in modules.items() if module.short in shorts):
    targets: Any = sorted(shorts)
  else:
    targets = "|".join(modules[site].pattern for site in nodes)

  def others(values: Mapping[str, Any], usual: Any) -> dict[str, Any]:
    """Those that are not the usual one, by module, or by pattern where sites of a name differ."""
    out = {}
    for site, value in values.items():
      short = modules[site].short
      alike = len({v for s, v in values.items() if modules[s].short == short}) == 1
      if value != usual:
        out[short if alike else modules[site].pattern] = value
    return out

  rank, alpha = max(ranks.values()), max(alphas.values())
  return {
    "peft_type": KIND,
    "r": rank,
    "lora_alpha": alpha,
    "rank_pattern": others(ranks, rank),
    "alpha_pattern": others(alphas, alpha),
    "target_modules": targets,
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": False,
    "use_rslora": False,
  }


def tensors(
  nodes: Mapping[str, LowRank], modules: Mapping[str, Module]
) -> dict[str, np.ndarray]:
  """adapter_model.safetensors for them."""
  return {
    _tensor(module, side): np.asarray(x[layer, 0], np.float32).T
    for site, node in nodes.items()
    for side, x in (("A", node.a), ("B", node.b))
    for layer, module in enumerate(modules[site].names)
  }


def read(
  raw: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  modules: Mapping[str, Module],
  folder: pathlib.Path,
) -> Phi:
  """The low-rank updates of PEFT's files, as `peft_format.Format.read`."""
  path = folder / TENSORS
  _check_patterns(raw, modules, folder)
  usual_rank, usual_alpha = positive(raw, "r", folder), number(raw, "lora_alpha", folder)
  out: dict = {}
  known: list[str] = []
  for site in _target_sites(raw, modules, folder):
    names = modules[site].names
    rank = _setting(raw, "rank_pattern", names[0], usual_rank)
    alpha = _setting(raw, "alpha_pattern", names[0], usual_alpha)
    layers = {side: [_tensor(name, side) for name in names] for side in "AB"}
    own = [*layers["A"], *layers["B"]]
    known += own
    for tensor in own:
      if tensor not in tensors:
        raise ValueError(f"{path} lacks the tensor {tensor!r}")
    a, b = ([tensors[n].T for n in layers[side]] for side in "AB")
    for tensor, found, axis in [(layers["A"], a, -1), (layers["B"], b, 0)]:
      for n, x in zip(tensor, found, strict=True):
        if x.ndim != 2 or x.shape != found[0].shape or x.shape[axis] != rank:
          raise ValueError(f"{path}: tensor {n!r} has shape {x.T.shape}; {CONFIG} says rank {rank}")
    scale = alpha / (rank**0.5 if raw.get("use_rslora") else rank)
    node = LowRank(jnp.asarray(np.stack(a)[:, None]), jnp.asarray(np.stack(b)[:, None]), scale)
    phi_lib.insert(out, site, node)
  check_names(path, tensors, {name: tensors[name].shape for name in known})
  return out


def _target_sites(
  raw: Mapping[str, Any], modules: Mapping[str, Module], folder: pathlib.Path
) -> list[str]:
  """The sites that target_modules names, all layers of each."""
  where, targets = folder / CONFIG, raw.get("target_modules")
  if not targets:
    raise ValueError(f"{where} lacks target_modules")
  names = [targets] if isinstance(targets, str) else list(targets)

  def hit(name: str, module: str) -> bool:
    if isinstance(targets, str):
      return targets == "all-linear" or _matches(where, "target_modules", targets, module)
    return module == name or module.endswith(f".{name}")

  found = []
  for site, module in modules.items():
    hits = [any(hit(name, full) for name in names) for full in module.names]
    if any(hits) and not all(hits):
      raise ValueError(
        f"{where}: target_modules adapts {module.template} in some layers only, which is not "
        f"supported: layer {hits.index(False)} is left out"
      )
    if all(hits):
      found.append(site)
  for name in names:
    if not any(hit(name, module.names[0]) for module in modules.values()):
      allowed = _shorts(modules)
      near = difflib.get_close_matches(name, allowed, 1, 0.0)[0]
      raise ValueError(
        f"{where}: target_modules names {name!r}; the nearest supported module is {near!r} of "
        f"{allowed}"
      )
  return found


def _shorts(modules: Mapping[str, Module]) -> list[str]:
  return sorted({module.short for module in modules.values()})


def _check_patterns(
  raw: Mapping[str, Any], modules: Mapping[str, Module], folder: pathlib.Path
) -> None:
  """Refuses patterns of ranks and alphas that match no module, or some layers of one only, and
  values that are none."""
  where = folder / CONFIG
  for field, check in (("rank_pattern", positive), ("alpha_pattern", number)):
    patterns = raw.get(field) or {}
    if not isinstance(patterns, dict):
      raise ValueError(f"{where}: {field} must be an object {{module: value}}, not {patterns!r}")
    for key, value in patterns.items():
      entry = f"{field}[{key!r}]"
      check({entry: value}, entry, folder)
      hits = [
        [_matches(where, field, _as_peft(key), name) for name in module.names]
        for module in modules.values()
      ]
      if not any(map(any, hits)) or any(any(h) and not all(h) for h in hits):
        raise ValueError(
          f"{where}: {field} names {key!r}; supported are whole modules: {_shorts(modules)}"
        )


def _as_peft(key: str) -> str:
  """The expression that PEFT makes of a key of rank_pattern or alpha_pattern."""
  return rf"(.*\.)?({key})"


def _setting(raw: Mapping[str, Any], field: str, module: str, usual: Any) -> Any:
  """A module's rank or alpha: as in PEFT, the first pattern that matches decides."""
  for key, value in (raw.get(field) or {}).items():
    if re.fullmatch(_as_peft(key), module):
      return value
  return usual


def _matches(where: pathlib.Path, field: str, pattern: str, module: str) -> bool:
  try:
    return re.fullmatch(pattern, module) is not None
  except re.error as e:
    raise ValueError(f"{where}: {field} holds {pattern!r}, no regular expression ({e})") from e
