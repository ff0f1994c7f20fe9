"""Adapters against the real PEFT library, on a tiny random Hugging Face Llama with GQA."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from hyperjax import adapters
from hyperjax.core import masks
from hyperjax.core import phi as phi_lib
from hyperjax.models import families
from hyperjax.models.generate import generate
from hyperjax.models.llama import Llama
from tests.trees import assert_equal

SITES = (
  "decoder.self.q", "decoder.self.k", "decoder.self.v", "decoder.self.o",
  "decoder.mlp.gate", "decoder.mlp.up", "decoder.mlp.down",
)
TOKENS = np.random.default_rng(0).integers(3, 64, (2, 7)).astype(np.int32)
NEW = 8
TOLERANCE = 1e-4


def hugging_face_model():
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=96, intermediate_size=64, num_hidden_layers=3,
    num_attention_heads=8, num_key_value_heads=2, head_dim=16, max_position_embeddings=128,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, rope_theta=100.0,
  )
  model = transformers.LlamaForCausalLM(config).eval()
  for parameter in model.parameters():
    if parameter.dim() > 1:
      torch.nn.init.normal_(parameter, std=0.15)
  model.generation_config.eos_token_id = None
  return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("llama")
  hugging_face_model().save_pretrained(path)
  return path


@pytest.fixture(scope="module")
def loaded(folder):
  return families.load(folder)


@pytest.fixture(scope="module")
def model(loaded):
  graph = nnx.graphdef(nnx.eval_shape(lambda: Llama(loaded.config, rngs=nnx.Rngs(0))))
  return nnx.merge(graph, loaded.params)


@pytest.fixture(scope="module")
def base(loaded):
  return adapters.Base(loaded.source, loaded.config, loaded.fingerprint, "vocabulary")


def random_phi(model, seed, *, prefix_length=0, rank=0, alpha=6.0, sites=SITES):
  chosen = ["decoder.self.prefix"] * bool(prefix_length) + list(sites if rank else ())
  spec = model.phi_spec(chosen, prefix_length=prefix_length, rank=rank, alpha=alpha)
  phi = phi_lib.init(spec, jax.random.key(seed))
  noise = iter(jax.random.split(jax.random.key(seed + 100), len(jax.tree.leaves(phi))))
  return jax.tree.map(
    lambda z: z + 0.2 * jax.random.normal(next(noise), z.shape)
    if jnp.issubdtype(z.dtype, jnp.floating) else z,
    phi,
  )


@jax.jit
def logits(model, phi, tokens):
  tokens = tokens[:, None]
  at = model.start(phi) + jnp.arange(tokens.shape[2])
  x, _ = model.hidden(model.embed_tokens(tokens), at, masks.Causal(), phi)
  return model.logits(x)[:, 0]


def greedy(model, phi):
  length = jnp.full((len(TOKENS), 1), TOKENS.shape[1])
  ids, _ = generate(
    model, phi, jnp.asarray(TOKENS)[:, None], length, max_new_tokens=NEW, terminator=()
  )
  return np.asarray(ids)[:, 0]


def peft_results(path):
  """(logits, greedy ids) of PEFT on the base with the adapter at `path`."""
  adapted = peft.PeftModel.from_pretrained(hugging_face_model(), path).eval()
  ids = torch.tensor(TOKENS, dtype=torch.long)
  mask = torch.ones_like(ids)
  with torch.no_grad():
    scores = adapted(input_ids=ids, attention_mask=mask).logits.numpy()
    out = adapted.generate(
      input_ids=ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0
    )
  return scores, out[:, ids.shape[1]:].numpy()


EXPORTED = {
  "prefix": dict(prefix_length=5),
  "low rank": dict(rank=3),
  "low rank, two sites": dict(rank=2, alpha=1.0, sites=("decoder.self.q", "decoder.mlp.down")),
}


@pytest.mark.parametrize("kind", EXPORTED)
def test_peft_computes_what_we_do(model, base, tmp_path, kind):
  phi = random_phi(model, 1, **EXPORTED[kind])
  adapters.save(tmp_path / "a", adapters.Adapter(phi, base, {"name": "qa"}, {"command": "x"}))
  assert {p.name for p in (tmp_path / "a").iterdir()} == {
    "adapter_config.json", "adapter_model.safetensors", "hyperjax.json"
  }
  scores, ids = peft_results(tmp_path / "a")
  ours = np.asarray(logits(model, phi, TOKENS))
  print(f"{kind}: largest difference of logits {np.abs(scores - ours).max():.2e}")
  np.testing.assert_allclose(ours, scores, rtol=0, atol=TOLERANCE)
  np.testing.assert_array_equal(greedy(model, phi), ids)
  plain = np.asarray(logits(model, None, TOKENS))
  assert np.abs(plain - ours).max() > 100 * TOLERANCE, "the adapter has no effect"
  again = adapters.load(tmp_path / "a", base)
  assert_equal(again.phi, phi)
  assert again.verified and again.prompt == {"name": "qa"} and again.base.source == base.source


def test_different_ranks_and_scales_per_site(model, base, tmp_path):
  phi = phi_lib.merge(
    random_phi(model, 2, rank=2, alpha=3.0, sites=("decoder.self.q", "decoder.mlp.up")),
    random_phi(model, 3, rank=4, alpha=8.0, sites=("decoder.self.v",)),
  )
  adapters.save(tmp_path / "a", adapters.Adapter(phi, base))
  scores, ids = peft_results(tmp_path / "a")
  np.testing.assert_allclose(logits(model, phi, TOKENS), scores, rtol=0, atol=TOLERANCE)
  np.testing.assert_array_equal(greedy(model, phi), ids)
  assert_equal(adapters.load(tmp_path / "a", base).phi, phi)


@pytest.mark.parametrize("options", [
  dict(target_modules=["q_proj", "v_proj"], r=4, lora_alpha=16),
  dict(target_modules=r".*\.(k_proj|down_proj)", r=3, lora_alpha=5, use_rslora=True),
  dict(target_modules="all-linear", r=2, lora_alpha=2, rank_pattern={"o_proj": 5},
       alpha_pattern={"q_proj": 7}),
])  # fmt: skip
def test_a_lora_that_peft_made_is_imported(model, base, tmp_path, options):
  torch.manual_seed(1)
  made = peft.get_peft_model(
    hugging_face_model(), peft.LoraConfig(task_type="CAUSAL_LM", **options)
  )
  for name, parameter in made.named_parameters():
    if "lora_" in name:
      torch.nn.init.normal_(parameter, std=0.1)
  made.save_pretrained(tmp_path)
  adapter = adapters.load(tmp_path, base)
  assert not adapter.verified and adapter.prompt is None
  scores, ids = peft_results(tmp_path)
  np.testing.assert_allclose(logits(model, adapter.phi, TOKENS), scores, rtol=0, atol=TOLERANCE)
  np.testing.assert_array_equal(greedy(model, adapter.phi), ids)


def test_a_prefix_that_peft_made_is_imported(model, base, tmp_path):
  torch.manual_seed(2)
  config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
  made = peft.get_peft_model(hugging_face_model(), config)
  torch.nn.init.normal_(made.prompt_encoder["default"].embedding.weight, std=0.7)
  made.save_pretrained(tmp_path)
  adapter = adapters.load(tmp_path, base)
  scores, ids = peft_results(tmp_path)
  np.testing.assert_allclose(logits(model, adapter.phi, TOKENS), scores, rtol=0, atol=TOLERANCE)
  np.testing.assert_array_equal(greedy(model, adapter.phi), ids)


def test_a_ragged_prefix_loses_its_padding(model, base, tmp_path):
  phi = random_phi(model, 4, prefix_length=6)
  prefix = phi["decoder"]["self"]["prefix"]
  ragged = {"decoder": {"self": {
    "prefix": phi_lib.whole_prefix(prefix.key, prefix.value, jnp.array([4]))
  }}}
  adapters.save(tmp_path / "a", adapters.Adapter(ragged, base))
  again = adapters.load(tmp_path / "a", base).phi
  assert again["decoder"]["self"]["prefix"].key.shape[2] == 4
  np.testing.assert_allclose(
    logits(model, again, TOKENS), logits(model, ragged, TOKENS), atol=1e-5
  )
  scores, _ = peft_results(tmp_path / "a")
  np.testing.assert_allclose(logits(model, ragged, TOKENS), scores, rtol=0, atol=TOLERANCE)


def test_prefix_and_low_rank_together_have_our_own_file(model, base, tmp_path):
  phi = random_phi(model, 5, prefix_length=3, rank=2, sites=("decoder.self.q",))
  adapters.save(tmp_path / "a", adapters.Adapter(phi, base))
  assert {p.name for p in (tmp_path / "a").iterdir()} == {"phi.safetensors", "hyperjax.json"}
  meta = json.loads((tmp_path / "a/hyperjax.json").read_text())
  assert meta["peft"] is False
  assert meta["spec"]["decoder.self.q"] == {
    "kind": "low_rank", "shapes": {"a": [3, 96, 2], "b": [3, 2, 128]}, "scale": 3.0
  }
  assert_equal(adapters.load(tmp_path / "a", base).phi, phi)


def test_mixed_adapters_in_one_batch_equal_row_by_row(model, base, tmp_path):
  made = []
  for index, options in enumerate([
    dict(prefix_length=2, rank=1), dict(prefix_length=6, rank=3, alpha=1.0)
  ]):
    phi = random_phi(model, 10 + index, sites=SITES[:3], **options)
    adapters.save(tmp_path / str(index), adapters.Adapter(phi, base))
    made.append(adapters.load(tmp_path / str(index), base).phi)
  together = greedy(model, phi_lib.stack_rows(made))
  apart = [greedy(model, phi)[row] for row, phi in enumerate(made)]
  np.testing.assert_array_equal(together, apart)
  np.testing.assert_allclose(
    logits(model, phi_lib.stack_rows(made), TOKENS),
    [logits(model, phi, TOKENS)[row] for row, phi in enumerate(made)], rtol=0, atol=TOLERANCE,
  )


# ---- What is refused ---------------------------------------------------------------------------


@pytest.fixture
def saved(model, base, tmp_path):
  path = tmp_path / "adapter"
  phi = random_phi(model, 6, rank=2, sites=SITES[:2])
  adapters.save(path, adapters.Adapter(phi, base))
  return path


ABSENT = "absent"


def edit_json(path: pathlib.Path, **changes):
  values = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({name: x for name, x in values.items() if x != ABSENT}))


def imported(path):
  """The same adapter as PEFT would have written it."""
  (path / "hyperjax.json").unlink()
  return path


@pytest.mark.parametrize("changes, message", [
  ({"bias": "all"}, "bias is 'all', which would change the adapter's numbers .* allowed: 'none'"),
  ({"use_dora": True}, "use_dora is True, which would change"),
  ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\], which would change"),
  ({"layers_to_transform": [0]}, r"layers_to_transform is \[0\], which would change"),
  ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which would change"),
  ({"fan_in_fan_out": True}, "fan_in_fan_out is True, which would change"),
  ({"some_new_method": {"x": 1}}, "some_new_method is .*, which would change"),
  ({"rank_pattern": {"layers.0.self_attn.q_proj": 3}}, "rank_pattern names 'layers.0.self_attn"),
  ({"rank_pattern": {"q_proj": "2"}}, r"rank_pattern\['q_proj'\] must be a positive .*, not '2'"),
  ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\] must be a positive integer, not 0"),
  ({"alpha_pattern": {"k_proj": "16"}}, r"alpha_pattern\['k_proj'\] must be a number, not '16'"),
  ({"alpha_pattern": ["q_proj"]}, r"alpha_pattern must be an object .*, not \['q_proj'\]"),
  ({"peft_type": "IA3"}, "peft_type is 'IA3'; supported: LORA, PREFIX_TUNING"),
  ({"target_modules": ["q_prj", "k_proj"]}, "target_modules names 'q_prj'; .* is 'q_proj'"),
  ({"target_modules": ["q_proj"]}, "holds an unknown tensor .*k_proj.lora_A.weight'"),
  ({"target_modules": ["q_proj", "k_proj", "v_proj"]}, "lacks the tensor .*layers.0.*v_proj"),
  ({"target_modules": r".*\.0\.self_attn\.q_proj"}, "q_proj in some layers only.* layer 1 is left"),
  ({"target_modules": None}, "adapter_config.json lacks target_modules"),
  ({"r": 3}, r"has shape \(2, 96\); adapter_config.json says rank 3"),
  ({"r": None}, "r must be a positive integer, not None"),
  ({"lora_alpha": "x"}, "lora_alpha must be a number, not 'x'"),
])
def test_a_peft_setting_that_would_change_numbers_is_refused(saved, base, changes, message):
  edit_json(imported(saved) / "adapter_config.json", **changes)
  with pytest.raises(ValueError, match=message):
    adapters.load(saved, base)


def change_tensors(path, change):
  tensors = load_file(path / "adapter_model.safetensors")
  change(tensors)
  save_file(tensors, path / "adapter_model.safetensors")


NAME = "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize("change, message", [
  (lambda t: t.pop(NAME), f"lacks the tensor '{NAME}'"),
  (lambda t: t.update(extra=np.zeros(2, np.float32)), "holds an unknown tensor 'extra'"),
  (lambda t: t.update({NAME: np.zeros((2, 95), np.float32)}), r"has shape \(2, 95\)"),
  (lambda t: t.update({NAME: np.zeros((2, 96), np.int32)}), "of type int32, not real-valued"),
  (lambda t: t.update({NAME: np.full((2, 96), np.nan, np.float32)}), "values that are not finite"),
])
def test_wrong_tensors_are_refused(saved, base, change, message):
  change_tensors(imported(saved), change)
  with pytest.raises(ValueError, match=message):
    adapters.load(saved, base)


def test_an_adapter_of_a_model_of_another_width_is_refused(saved, base):
  wide = dataclasses.replace(base.config, d_model=112)
  with pytest.raises(ValueError, match="does not fit the model: .*'?decoder.self.q.a has shape"):
    adapters.load(imported(saved), dataclasses.replace(base, config=wide))


def test_another_model_is_named(saved, base):
  other = adapters.Base("other-llama", base.config, "f" * 64, base.vocabulary_fingerprint)
  with pytest.raises(ValueError) as error:
    adapters.load(saved, other)
  text = str(error.value)
  assert base.source in text and "other-llama" in text and "\n" not in text
  assert base.fingerprint[:12] in text and "f" * 12 in text


def test_another_vocabulary_is_named(saved, base):
  other = dataclasses.replace(base, vocabulary_fingerprint="e" * 64)
  with pytest.raises(ValueError, match="made with the vocabulary of .* not with the one in use"):
    adapters.load(saved, other)


def test_changed_or_damaged_files_are_refused(saved, base):
  path = saved / "adapter_model.safetensors"
  whole = path.read_bytes()
  change_tensors(saved, lambda t: t.update({NAME: t[NAME] + 1}))
  with pytest.raises(ValueError, match="is not the file that hyperjax.json beside it describes"):
    adapters.load(saved, base)
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match="is damaged or not a safetensors file"):
    adapters.load(saved, base)
  path.unlink()
  with pytest.raises(FileNotFoundError, match="adapter_model.safetensors is missing"):
    adapters.load(saved, base)


@pytest.mark.parametrize("changes, message", [
  ({"version": 9}, "has version 9; this hyperjax reads 1"),
  ({"spec": {"decoder.self.prefx": {"kind": "prefix", "shapes": {"key": [1], "value": [1]}}}},
   "lacks the tensor 'decoder.self.prefx.key'"),
  ({"sha256": ABSENT}, "hyperjax.json lacks the field 'sha256'"),
])
def test_a_damaged_description_is_refused(model, base, tmp_path, changes, message):
  phi = random_phi(model, 7, prefix_length=2, rank=1, sites=SITES[:1])
  adapters.save(tmp_path / "a", adapters.Adapter(phi, base))
  edit_json(tmp_path / "a/hyperjax.json", **changes)
  with pytest.raises(ValueError, match=message):
    adapters.load(tmp_path / "a", base)


def test_a_folder_that_is_no_adapter_is_refused(base, tmp_path):
  with pytest.raises(FileNotFoundError, match="no such folder"):
    adapters.load(tmp_path / "none", base)
  with pytest.raises(FileNotFoundError, match="is no adapter: it has neither"):
    adapters.load(tmp_path, base)


def test_only_an_adapter_is_overwritten(model, base, saved, tmp_path):
  new = adapters.Adapter(random_phi(model, 8, prefix_length=2), base)
  with pytest.raises(FileExistsError, match="exists; name a new folder"):
    adapters.save(saved, new)
  adapters.save(saved, new, overwrite=True)
  assert_equal(adapters.load(saved, base).phi, new.phi)
  (saved / "checkpoint-500").mkdir()
  with pytest.raises(FileExistsError, match="holds 'checkpoint-500' too, no part of an adapter"):
    adapters.save(saved, new, overwrite=True)
  assert (saved / "checkpoint-500").exists()
  precious = tmp_path / "precious"
  precious.mkdir()
  (precious / "thesis.txt").write_text("x")
  with pytest.raises(FileExistsError, match="is not an adapter; it is not overwritten"):
    adapters.save(precious, new, overwrite=True)
  assert (precious / "thesis.txt").exists()
  assert {p.name for p in tmp_path.iterdir()} == {"adapter", "precious"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_half_written_stays(model, base, saved, tmp_path, monkeypatch, overwrite):
  target = saved if overwrite else tmp_path / "new"
  before = adapters.load(saved, base).phi
  new = adapters.Adapter(random_phi(model, 9, prefix_length=2), base)

  def full(*_):
    raise OSError("No space left on device")

  monkeypatch.setattr(adapters, "_write_json", full)
  with pytest.raises(OSError, match="No space left"):
    adapters.save(target, new, overwrite=overwrite)
  assert {p.name for p in tmp_path.iterdir()} == {"adapter"}
  assert_equal(adapters.load(saved, base).phi, before)


ROWS = jnp.zeros((3, 1, 4, 2, 16))
EMPTY = {"decoder": {"self": {"prefix": phi_lib.whole_prefix(ROWS, ROWS, jnp.array([0]))}}}


@pytest.mark.parametrize("change, message", [
  (lambda phi: phi_lib.stack_rows([phi, phi]), "holds one phi, not a batch of 2"),
  (lambda phi: {}, "phi is empty"),
  (lambda phi: phi_lib.merge(phi, EMPTY), "the prefix at 'decoder.self.prefix' is empty"),
  (lambda phi: jax.tree.map(lambda z: z * jnp.nan, phi), "values that are not finite"),
  (lambda phi: {"decoder": {"self": {"qq": phi["decoder"]["self"]["q"]}}}, "nearest is"),
])
def test_a_phi_that_is_no_adapter_is_not_saved(model, base, tmp_path, change, message):
  phi = random_phi(model, 6, rank=2, sites=SITES[:2])
  with pytest.raises(ValueError, match=message):
    adapters.save(tmp_path / "a", adapters.Adapter(change(phi), base))
  assert not list(tmp_path.iterdir())


def test_a_copied_folder_is_the_same_adapter(saved, base, tmp_path):
  shutil.copytree(saved, tmp_path / "copy")
  assert_equal(adapters.load(tmp_path / "copy", base).phi, adapters.load(saved, base).phi)
  assert adapters.recorded_source(tmp_path / "copy") == base.source
