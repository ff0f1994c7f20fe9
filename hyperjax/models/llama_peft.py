"""PEFT's files for a Llama: which phi they can hold, and what in them would change the numbers."""

import difflib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from hyperjax.core import phi as phi_lib
from hyperjax.core.phi import LowRank, Phi
from hyperjax.models.llama import PREFIX_SITE, LlamaConfig

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, LORA = "PREFIX_TUNING", "LORA"
_PROMPT = "prompt_embeddings"

# Our site -> the module of each Hugging Face layer.
_MODULES = {
  "decoder.self.q": "self_attn.q_proj",
  "decoder.self.k": "self_attn.k_proj",
  "decoder.self.v": "self_attn.v_proj",
  "decoder.self.o": "self_attn.o_proj",
  "decoder.mlp.gate": "mlp.gate_proj",
  "decoder.mlp.up": "mlp.up_proj",
  "decoder.mlp.down": "mlp.down_proj",
}
_TENSOR = re.compile(r"base_model\.model\.(model\.layers\.(\d+)\.(.+))\.lora_([AB])\.weight")

# Keys of adapter_config.json that do not change the numbers of an inference pass.
_HARMLESS = frozenset("""
  auto_mapping base_model_name_or_path eva_config inference_mode lora_dropout megatron_core
  peft_type peft_version qalora_group_size revision runtime_config task_type
""".split())
# What each type reads; of every other key only these values, or an empty one, are supported.
_READ = {
  PREFIX: {"num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim",
           "encoder_hidden_size"},
  LORA: {"r", "lora_alpha", "target_modules", "use_rslora", "rank_pattern", "alpha_pattern"},
}  # fmt: skip
_FIXED = {
  PREFIX: {"num_transformer_submodules": (1,), "init_weights": (True,)},
  # Other initialisations of LoRA (PiSSA, OLoRA, ...) change the base weights when they load.
  LORA: {"bias": ("none",), "init_lora_weights": (True, "gaussian", "orthogonal", "eva")},
}
_EMPTY = (None, False, [], {}, "")


def config(phi: Phi, model: LlamaConfig, source: str) -> dict[str, Any] | None:
  """adapter_config.json for a phi; None where PEFT cannot hold it in one adapter.

  Args:
    phi: of batch 1, its prefix without padding.
    model: the base.
    source: recorded as base_model_name_or_path.
  """
  nodes = phi_lib.sites(phi)
  common = {
    "base_model_name_or_path": source, "inference_mode": True, "task_type": "CAUSAL_LM"
  }
  if nodes.keys() == {PREFIX_SITE}:
    width = model.num_kv_heads * model.head_dim
    return common | {
      "peft_type": PREFIX,
      "num_virtual_tokens": nodes[PREFIX_SITE].key.shape[2],
      "num_layers": model.num_layers,
      "num_attention_heads": model.num_kv_heads,
      "token_dim": width,
      "encoder_hidden_size": width,
      "num_transformer_submodules": 1,
      "prefix_projection": False,
    }
  if PREFIX_SITE in nodes:
    return None
  ranks = {_short(site): node.a.shape[3] for site, node in nodes.items()}
  alphas = {_short(site): node.scale * node.a.shape[3] for site, node in nodes.items()}
  rank, alpha = max(ranks.values()), max(alphas.values())
  return common | {
    "peft_type": LORA,
    "r": rank,
    "lora_alpha": alpha,
    "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
    "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
    "target_modules": sorted(ranks),
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": False,
    "use_rslora": False,
  }


def tensors(phi: Phi) -> dict[str, np.ndarray]:
  """adapter_model.safetensors for a phi that `config` accepted."""
  nodes = phi_lib.sites(phi)
  if PREFIX_SITE in nodes:
    node = nodes[PREFIX_SITE]
    # One row per virtual token: layer 0's key, layer 0's value, layer 1's key, ...
    pairs = np.stack([np.asarray(z[:, 0], np.float32) for z in (node.key, node.value)], 1)
    return {_PROMPT: pairs.transpose(2, 0, 1, 3, 4).reshape(pairs.shape[2], -1)}
  out = {}
  for site, node in nodes.items():
    for layer in range(node.a.shape[0]):
      name = f"base_model.model.model.layers.{layer}.{_MODULES[site]}"
      out[f"{name}.lora_A.weight"] = np.asarray(node.a[layer, 0], np.float32).T
      out[f"{name}.lora_B.weight"] = np.asarray(node.b[layer, 0], np.float32).T
  return out


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """The contents of adapter_config.json.

  Raises:
    FileNotFoundError: no such folder, or not an adapter.
    ValueError: not JSON.
  """
  path = folder / CONFIG
  if not folder.is_dir():
    raise FileNotFoundError(f"adapter {str(folder)!r}: no such folder")
  if not path.exists():
    raise FileNotFoundError(f"{folder} is no adapter: it has neither hyperjax.json nor {CONFIG}")
  try:
    raw = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as e:
    raise ValueError(f"{path} is damaged: {e}") from e
  if not isinstance(raw, dict):
    raise ValueError(f"{path} is damaged: it holds no JSON object")
  return raw


def phi(
  raw: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  model: LlamaConfig,
  folder: pathlib.Path,
) -> Phi:
  """The phi of PEFT's files.

  Args:
    raw: adapter_config.json.
    tensors: adapter_model.safetensors.
    model: the base.
    folder: named in errors.

  Raises:
    ValueError: a setting that would change the numbers, missing or unknown tensors, wrong shapes.
  """
  where = folder / CONFIG
  kind = raw.get("peft_type")
  if kind not in _READ:
    raise ValueError(f"{where}: peft_type is {kind!r}; supported: {', '.join(sorted(_READ))}")
  for key, value in raw.items():
    if key in _HARMLESS or key in _READ[kind] or value in _EMPTY:
      continue
    allowed = _FIXED[kind].get(key, ())
    if value not in allowed:
      options = " or ".join(repr(v) for v in allowed) or "leaving it out"
      raise ValueError(
        f"{where}: {key} is {value!r}, which would change the adapter's numbers and is not "
        f"supported; allowed: {options}"
      )
  make = _prefix if kind == PREFIX else _low_rank
  return make(raw, tensors, model, folder)


def check_names(
  path: pathlib.Path, tensors: Mapping[str, np.ndarray], want: Mapping[str, Sequence[int]]
) -> None:
  """Refuses tensors that are not exactly those wanted.

  Raises:
    ValueError: names the first that is missing, unknown or of another shape.
  """
  for name in sorted(want.keys() - tensors.keys()):
    raise ValueError(f"{path} lacks the tensor {name!r}")
  for name in sorted(tensors.keys() - want.keys()):
    near = difflib.get_close_matches(name, want, 1)
    hint = f"; the nearest known is {near[0]!r}" if near else ""
    raise ValueError(f"{path} holds an unknown tensor {name!r}{hint}")
  for name, shape in want.items():
    if tensors[name].shape != tuple(shape):
      raise ValueError(
        f"{path}: tensor {name!r} has shape {tensors[name].shape}, not {tuple(shape)}"
      )


def _prefix(raw, tensors, model: LlamaConfig, folder: pathlib.Path) -> Phi:
  width = model.num_kv_heads * model.head_dim
  expected = {
    "num_layers": model.num_layers, "num_attention_heads": model.num_kv_heads, "token_dim": width
  }
  for key, value in expected.items():
    if raw.get(key) is not None and raw[key] != value:
      raise ValueError(f"{folder / CONFIG}: {key} is {raw[key]!r}; the model has {value}")
  number = _positive(raw, "num_virtual_tokens", folder)
  shape = (number, 2 * model.num_layers * width)
  check_names(folder / TENSORS, tensors, {_PROMPT: shape})
  split = tensors[_PROMPT].reshape(
    number, model.num_layers, 2, model.num_kv_heads, model.head_dim
  )
  key, value = (jnp.asarray(split[:, :, i].swapaxes(0, 1)[:, None]) for i in (0, 1))
  out: dict = {}
  phi_lib.insert(out, PREFIX_SITE, phi_lib.whole_prefix(key, value))
  return out


def _low_rank(raw, tensors, model: LlamaConfig, folder: pathlib.Path) -> Phi:
  path = folder / TENSORS
  sites = _target_sites(raw, model, folder)
  out: dict = {}
  for site in sites:
    name = _short(site)
    rank = _pattern(raw, "rank_pattern", name, _positive(raw, "r", folder))
    alpha = _pattern(raw, "alpha_pattern", name, _number(raw, "lora_alpha", folder))
    layers = {
      side: [
        f"base_model.model.model.layers.{i}.{_MODULES[site]}.lora_{side}.weight"
        for i in range(model.num_layers)
      ]
      for side in "AB"
    }
    for tensor in (*layers["A"], *layers["B"]):
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
  known = {
    f"base_model.model.model.layers.{i}.{_MODULES[site]}.lora_{side}.weight": None
    for site in sites for i in range(model.num_layers) for side in "AB"
  }
  check_names(path, tensors, {name: tensors[name].shape for name in known})
  return out


def _target_sites(raw, model: LlamaConfig, folder: pathlib.Path) -> list[str]:
  """The sites that target_modules names, all layers of each."""
  where, targets = folder / CONFIG, raw.get("target_modules")
  allowed = sorted(map(_short, _MODULES))
  if not targets:
    raise ValueError(f"{where} lacks target_modules")
  names = [targets] if isinstance(targets, str) else list(targets)

  def hit(name: str, module: str) -> bool:
    if isinstance(targets, str):
      return targets == "all-linear" or re.fullmatch(targets, module) is not None
    return module == name or module.endswith(f".{name}")

  found = []
  for site, module in _MODULES.items():
    full = [f"model.layers.{i}.{module}" for i in range(model.num_layers)]
    hits = [any(hit(name, f) for name in names) for f in full]
    if any(hits) and not all(hits):
      raise ValueError(
        f"{where}: target_modules adapts {module} in some layers only, which is not supported: "
        f"layer {hits.index(False)} is left out"
      )
    if all(hits):
      found.append(site)
  for key in ("rank_pattern", "alpha_pattern"):
    for name in raw.get(key) or ():
      if name not in allowed:
        raise ValueError(f"{where}: {key} names {name!r}; supported are whole modules: {allowed}")
  for name in names:
    if not any(hit(name, f"model.layers.0.{module}") for module in _MODULES.values()):
      near = difflib.get_close_matches(name, allowed, 1, 0.0)[0]
      raise ValueError(
        f"{where}: target_modules names {name!r}; the nearest supported module is {near!r} of "
        f"{allowed}"
      )
  return found


def _pattern(raw, key: str, name: str, default: int | float) -> int | float:
  return (raw.get(key) or {}).get(name, default)


def _positive(raw, key: str, folder: pathlib.Path) -> int:
  value = raw.get(key)
  if isinstance(value, bool) or not isinstance(value, int) or value < 1:
    raise ValueError(f"{folder / CONFIG}: {key} must be a positive integer, not {value!r}")
  return value


def _number(raw, key: str, folder: pathlib.Path) -> int | float:
  value = raw.get(key)
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise ValueError(f"{folder / CONFIG}: {key} must be a number, not {value!r}")
  return value


def _short(site: str) -> str:
  return _MODULES[site].rpartition(".")[2]
