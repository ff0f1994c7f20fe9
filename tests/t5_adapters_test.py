"""Adapters of a T5 against the real PEFT library, on a tiny random Hugging Face T5."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from hyperjax import adapters
from hyperjax.core import phi as phi_lib
from hyperjax.core.batch import EncoderDecoderQuery
from hyperjax.models import families
from hyperjax.models.generate import generate
from hyperjax.models.llama import LlamaConfig
from hyperjax.models.t5 import PREFIX_SITES, PROMPT_SITE, T5Config
from tests.models import tiny
from tests.trees import assert_equal

BASE = T5Config(
  vocab_size=64, d_model=48, num_encoder_layers=3, num_decoder_layers=3, num_heads=4, head_dim=8,
  d_mlp=80, activation="gated-gelu", tie_embeddings=False,
)
QV = [f"{a}.{x}" for a in ("encoder.self", "decoder.self", "decoder.cross") for x in "qv"]
RNG = np.random.default_rng(0)
TOKENS, TARGETS = (RNG.integers(3, 64, (2, n)).astype(np.int32) for n in (9, 7))
LENGTH = np.array([9, 5], np.int32)
NEW = 8
TOLERANCE = 1e-4


def hugging_face(c: T5Config = BASE):
  torch.manual_seed(0)
  model = transformers.T5ForConditionalGeneration(transformers.T5Config(
    vocab_size=c.vocab_size, d_model=c.d_model, num_layers=c.num_encoder_layers,
    num_decoder_layers=c.num_decoder_layers, num_heads=c.num_heads, d_kv=c.head_dim, d_ff=c.d_mlp,
    feed_forward_proj=c.activation, tie_word_embeddings=c.tie_embeddings,
    decoder_start_token_id=c.start_id,
  )).eval()
  model.lm_head.weight = torch.nn.Parameter(torch.empty(c.vocab_size, c.d_model))
  for name, parameter in model.named_parameters():
    if parameter.dim() > 1:
      torch.nn.init.normal_(parameter, std=1.0 if "bias" in name else 0.15)
  model.generation_config.eos_token_id = None
  return model


def loaded_base(folder, config=BASE):
  """(model, what adapters record of it) of a Hugging Face folder."""
  hugging_face(config).save_pretrained(folder)
  loaded = families.load(folder)
  assert loaded.config == config
  model = nnx.merge(nnx.graphdef(families.abstract(loaded.config)), loaded.params)
  return model, adapters.Base(loaded.source, loaded.config, loaded.fingerprint, "vocabulary")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  return loaded_base(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def model(made):
  return made[0]


@pytest.fixture(scope="module")
def base(made):
  return made[1]


def random_phi(model, seed, sites=QV, *, positions="none", **sizes):
  sizes = dict(prefix_length=4, rank=3, alpha=6.0) | sizes
  return tiny.random_phi(model.phi_spec(sites, positions=positions, **sizes), 1, seed=seed)


def logits(model, phi):
  query = EncoderDecoderQuery(*(jnp.asarray(x)[:, None] for x in (TOKENS, LENGTH, TARGETS)))
  return np.asarray(tiny.logits(model, query, phi))[:, 0]


def greedy(model, phi):
  ids, _ = generate(
    model, phi, jnp.asarray(TOKENS)[:, None], jnp.asarray(LENGTH)[:, None], max_new_tokens=NEW,
    terminator=(),
  )
  return np.asarray(ids)[:, 0]


def peft_results(path, config=BASE, decode=True):
  """(logits, greedy ids) of PEFT on the base with the adapter at `path`."""
  adapted = peft.PeftModel.from_pretrained(hugging_face(config), path).eval()
  mask = torch.tensor(np.arange(9) < LENGTH[:, None]).long()
  inputs = {"input_ids": torch.tensor(TOKENS, dtype=torch.long), "attention_mask": mask}
  before = np.pad(TARGETS[:, :-1], [(0, 0), (1, 0)], constant_values=config.start_id)
  with torch.no_grad():
    before = torch.tensor(before, dtype=torch.long)
    scores = adapted(**inputs, decoder_input_ids=before).logits.numpy()
    if not decode:
      return scores, None
    out = adapted.generate(**inputs, max_new_tokens=NEW, do_sample=False)
  return scores, out[:, 1:].numpy()


def assert_as_peft(model, phi, path):
  scores, ids = peft_results(path)
  ours = logits(model, phi)
  print(f"largest difference {np.abs(scores - ours).max():.2e}")
  np.testing.assert_allclose(ours, scores, rtol=0, atol=TOLERANCE)
  np.testing.assert_array_equal(greedy(model, phi), ids)
  assert np.abs(logits(model, None) - ours).max() > 100 * TOLERANCE, "the adapter has no effect"


# ---- What we export, PEFT computes -------------------------------------------------------------

EXPORTED = {
  "q and v everywhere": QV,
  "the decoder's only": ["decoder.self.q", "decoder.self.v"],
  "one of a name": ["decoder.cross.o"],
  "of the layers behind": ["encoder.mlp.gate", "decoder.mlp.up", "decoder.mlp.down"],
  "a soft prompt": [PROMPT_SITE],
}


@pytest.mark.parametrize("name", EXPORTED)
def test_peft_computes_what_we_do(model, base, tmp_path, name):
  phi = random_phi(model, 1, EXPORTED[name])
  adapters.save(tmp_path / "a", adapters.Adapter(phi, base, {"name": "eos"}))
  assert {p.name for p in (tmp_path / "a").iterdir()} == {
    "adapter_config.json", "adapter_model.safetensors", "hyperjax.json"
  }
  raw = json.loads((tmp_path / "a/adapter_config.json").read_text())
  assert raw["task_type"] == "SEQ_2_SEQ_LM"
  if EXPORTED[name] is QV:
    assert raw["target_modules"] == ["q", "v"]
  assert_as_peft(model, phi, tmp_path / "a")
  again = adapters.load(tmp_path / "a", base)
  assert_equal(again.phi, phi)
  assert again.verified and again.prompt == {"name": "eos"}
  meta = json.loads((tmp_path / "a/hyperjax.json").read_text())
  assert meta["model"]["family"] == "t5" and meta["model"]["config"]["d_model"] == 48


def test_the_tensors_have_the_names_that_peft_gives_them(model, base, tmp_path):
  adapters.save(tmp_path / "a", adapters.Adapter(random_phi(model, 1), base))
  ours = load_file(tmp_path / "a/adapter_model.safetensors")
  config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=3, target_modules=["q", "v"])
  peft.get_peft_model(hugging_face(), config).save_pretrained(tmp_path / "b")
  theirs = load_file(tmp_path / "b/adapter_model.safetensors")
  assert {n: x.shape for n, x in ours.items()} == {n: x.shape for n, x in theirs.items()}
  assert len(ours) == 36


def test_different_ranks_and_scales_of_sites_that_share_a_name(model, base, tmp_path):
  phi = phi_lib.merge(
    random_phi(model, 2, ["encoder.self.q", "encoder.self.v"], rank=2, alpha=3.0),
    random_phi(model, 3, ["decoder.self.q", "decoder.cross.q", "decoder.mlp.up"], rank=4),
  )
  adapters.save(tmp_path / "a", adapters.Adapter(phi, base))
  assert_as_peft(model, phi, tmp_path / "a")
  assert_equal(adapters.load(tmp_path / "a", base).phi, phi)


# ---- What PEFT made, we compute ----------------------------------------------------------------


def assert_imported(model, base, path):
  adapter = adapters.load(path, base)
  assert not adapter.verified and adapter.prompt is None
  assert_as_peft(model, adapter.phi, path)
  return adapter.phi


@pytest.mark.parametrize("options, sites", [
  (dict(target_modules=["q", "v"], r=4, lora_alpha=16), 6),
  (dict(target_modules=r"decoder\..*\.(EncDecAttention\.k|wo)", r=3, use_rslora=True), 2),
  (dict(target_modules=["SelfAttention.o", "wi_0"], r=2, alpha_pattern={"o": 7}), 4),
  (dict(target_modules="all-linear", r=2, lora_alpha=2,
        rank_pattern={r"encoder\.block\.\d+\.layer\.0\.SelfAttention\.q": 5}), 18),
])  # fmt: skip
def test_a_lora_that_peft_made_is_imported(model, base, tmp_path, options, sites):
  torch.manual_seed(1)
  made = peft.get_peft_model(hugging_face(), peft.LoraConfig(task_type="SEQ_2_SEQ_LM", **options))
  for name, parameter in made.named_parameters():
    if "lora_" in name:
      torch.nn.init.normal_(parameter, std=0.1)
  made.save_pretrained(tmp_path)
  assert len(phi_lib.sites(assert_imported(model, base, tmp_path))) == sites


def peft_prefix(folder, config=BASE, **options):
  """PEFT takes the heads' width for d_model's where it is not told."""
  torch.manual_seed(2)
  options = dict(num_virtual_tokens=4, token_dim=32) | options
  config_of = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", **options)
  made = peft.get_peft_model(hugging_face(config), config_of)
  torch.nn.init.normal_(made.prompt_encoder["default"].embedding.weight, std=0.7)
  made.save_pretrained(folder)
  return folder


@pytest.mark.parametrize("options", [{}, {"num_layers": 6}], ids=["its own", "a pair per layer"])
def test_a_prefix_that_peft_made_is_imported(model, base, tmp_path, options):
  phi = assert_imported(model, base, peft_prefix(tmp_path, **options))
  prefix = phi_lib.sites(phi)["decoder.self.prefix"]
  assert list(phi_lib.sites(phi)) == ["decoder.self.prefix"] and prefix.positions == "before"


@pytest.mark.parametrize("encoder, decoder", [(2, 2), (4, 4), (4, 3)])
def test_the_layers_of_a_prefix_are_those_that_peft_deals_out(encoder, decoder, tmp_path):
  """With an even number of layers, two of them share a prefix in PEFT."""
  config = dataclasses.replace(BASE, num_encoder_layers=encoder, num_decoder_layers=decoder)
  model, base = loaded_base(tmp_path / "m", config)
  phi = adapters.load(peft_prefix(tmp_path / "a", config), base).phi
  scores, _ = peft_results(tmp_path / "a", config, decode=False)
  np.testing.assert_allclose(logits(model, phi), scores, rtol=0, atol=TOLERANCE)
  key = phi_lib.sites(phi)["decoder.self.prefix"].key
  assert np.array_equal(key[0], key[encoder // 2]) == (encoder // 2 < decoder)


def peft_prompt(folder, **options):
  torch.manual_seed(3)
  config = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", **dict(num_virtual_tokens=5) | options)
  made = peft.get_peft_model(hugging_face(), config)
  torch.nn.init.normal_(made.prompt_encoder["default"].embedding.weight, std=0.7)
  made.save_pretrained(folder)
  return folder


@pytest.mark.parametrize("options", [
  {}, {"num_transformer_submodules": 1}, {"prompt_tuning_init": "SAMPLE_VOCAB"}
], ids=["its own", "the encoder's alone", "from the vocabulary"])  # fmt: skip
def test_a_soft_prompt_that_peft_made_is_imported(model, base, tmp_path, options):
  phi = assert_imported(model, base, peft_prompt(tmp_path, **options))
  assert list(phi_lib.sites(phi)) == [PROMPT_SITE] and phi[PROMPT_SITE].length.tolist() == [[5]]


def test_a_soft_prompt_that_does_not_fit_is_refused(base, tmp_path):
  path = peft_prompt(tmp_path) / "adapter_model.safetensors"
  rows = load_file(path)["prompt_embeddings"]
  save_file({"prompt_embeddings": rows[:7]}, path)
  with pytest.raises(ValueError, match=r"'prompt_embeddings' has shape \(7, 48\), not \(10, 48\)"):
    adapters.load(tmp_path, base)
  wide = dataclasses.replace(base, config=dataclasses.replace(base.config, d_model=56))
  with pytest.raises(ValueError, match="token_dim is 48; the model has 56"):
    adapters.load(tmp_path, wide)
  llama = LlamaConfig(64, 48, 3, 4, 2, 8, 80, 1e4, 1e-5, True)
  with pytest.raises(ValueError, match="'PROMPT_TUNING'; supported: LORA, PREFIX_TUNING"):
    adapters.load(tmp_path, adapters.Base("a-llama", llama, base.fingerprint, "vocabulary"))


# ---- What PEFT cannot hold ---------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["none", "before"])
@pytest.mark.parametrize("sites", [PREFIX_SITES, ["decoder.self.prefix"], [*PREFIX_SITES, *QV]])
def test_prefixes_have_our_own_file(model, base, tmp_path, sites, positions):
  phi = random_phi(model, 4, sites, positions=positions)
  adapters.save(tmp_path / "a", adapters.Adapter(phi, base))
  assert {p.name for p in (tmp_path / "a").iterdir()} == {"phi.safetensors", "hyperjax.json"}
  meta = json.loads((tmp_path / "a/hyperjax.json").read_text())
  assert meta["peft"] is False and meta["spec"]["decoder.self.prefix"] == {
    "kind": "prefix", "positions": positions,
    "shapes": {"key": [3, 4, 4, 8], "value": [3, 4, 4, 8]},
  }
  names = set(load_file(tmp_path / "a/phi.safetensors"))
  assert {"decoder.self.prefix.key", "decoder.self.prefix.value"} <= names
  assert_equal(adapters.load(tmp_path / "a", base).phi, phi)


def test_a_soft_prompt_beside_other_nodes_has_our_own_file(model, base, tmp_path):
  phi = random_phi(model, 4, [PROMPT_SITE, *QV])
  adapters.save(tmp_path / "a", adapters.Adapter(phi, base))
  meta = json.loads((tmp_path / "a/hyperjax.json").read_text())
  assert meta["peft"] is False and meta["spec"][PROMPT_SITE] == {
    "kind": "prompt", "shapes": {"value": [1, 4, 48]}
  }
  assert_equal(adapters.load(tmp_path / "a", base).phi, phi)


def test_a_ragged_prompt_loses_its_padding(model, base, tmp_path):
  whole = random_phi(model, 5, [PROMPT_SITE], prefix_length=6)
  ragged = {PROMPT_SITE: phi_lib.whole_prompt(whole[PROMPT_SITE].value, jnp.array([2]))}
  adapters.save(tmp_path / "a", adapters.Adapter(ragged, base))
  again = adapters.load(tmp_path / "a", base).phi
  np.testing.assert_array_equal(again[PROMPT_SITE].value, whole[PROMPT_SITE].value[:, :, :2])
  np.testing.assert_allclose(logits(model, again), logits(model, ragged), atol=TOLERANCE)


def test_a_ragged_prefix_loses_its_padding(model, base, tmp_path):
  phi = random_phi(model, 5, PREFIX_SITES, positions="before", prefix_length=6)
  ragged: dict = {}
  for (site, node), length in zip(phi_lib.sites(phi).items(), (4, 6, 2), strict=True):
    phi_lib.insert(ragged, site, phi_lib.whole_prefix(
      node.key, node.value, jnp.array([length]), node.positions
    ))
  adapters.save(tmp_path / "a", adapters.Adapter(ragged, base))
  again = adapters.load(tmp_path / "a", base).phi
  sizes = [node.key.shape[2] for node in phi_lib.sites(again).values()]
  assert sorted(sizes) == [2, 4, 6]
  np.testing.assert_allclose(logits(model, again), logits(model, ragged), atol=1e-5)


# ---- What is refused ---------------------------------------------------------------------------


def test_an_adapter_of_another_family_is_refused(model, base, tmp_path):
  adapters.save(tmp_path / "a", adapters.Adapter(random_phi(model, 6), base))
  llama = LlamaConfig(64, 48, 3, 4, 2, 8, 80, 1e4, 1e-5, True)
  other = adapters.Base("a-llama", llama, base.fingerprint, "vocabulary")
  with pytest.raises(ValueError, match="of the family 't5', not for 'a-llama' of the family 'llam"):
    adapters.load(tmp_path / "a", other)
  (tmp_path / "a/hyperjax.json").unlink()
  with pytest.raises(ValueError, match="target_modules names 'q'; the nearest supported module is"):
    adapters.load(tmp_path / "a", other)


def test_another_t5_is_refused(model, base, tmp_path):
  adapters.save(tmp_path / "a", adapters.Adapter(random_phi(model, 6), base))
  with pytest.raises(ValueError, match="fingerprint ffffffffffff"):
    adapters.load(tmp_path / "a", dataclasses.replace(base, fingerprint="f" * 64))
  (tmp_path / "a/hyperjax.json").unlink()
  deep = dataclasses.replace(base.config, num_decoder_layers=4)
  with pytest.raises(ValueError, match=r"lacks the tensor .*decoder.block.3.layer.0.*q.lora_A"):
    adapters.load(tmp_path / "a", dataclasses.replace(base, config=deep))
  wide = dataclasses.replace(base.config, d_model=56)
  with pytest.raises(ValueError, match="does not fit the model: .*self.[qv].a has shape"):
    adapters.load(tmp_path / "a", dataclasses.replace(base, config=wide))


@pytest.mark.parametrize("options, message", [
  (dict(num_transformer_submodules=1), "num_transformer_submodules is 1, .*; allowed: 2"),
  (dict(prefix_projection=True, encoder_hidden_size=8), "prefix_projection is True, which would"),
  (dict(num_layers=2), "num_layers is 2; PEFT gives a prefix to so many layers only, and .* has 3"),
  (dict(token_dim=48), "token_dim is 48; the model has 32"),
])
def test_a_prefix_that_would_be_another_is_refused(base, tmp_path, options, message):
  peft_prefix(tmp_path, **options)
  with pytest.raises(ValueError, match=message):
    adapters.load(tmp_path, base)


def test_a_misshapen_prefix_is_refused(base, tmp_path):
  path = peft_prefix(tmp_path) / "adapter_model.safetensors"
  tensors = load_file(path)
  save_file({"prompt_embeddings": tensors["prompt_embeddings"][:, :-32]}, path)
  with pytest.raises(ValueError, match=r"'prompt_embeddings' has shape \(4, 160\), not \(4, 192\)"):
    adapters.load(tmp_path, base)
  save_file(tensors | {"more": np.zeros(1, np.float32)}, path)
  with pytest.raises(ValueError, match="holds an unknown tensor 'more'"):
    adapters.load(tmp_path, base)


NAME = "base_model.model.encoder.block.1.layer.0.SelfAttention.q.lora_B.weight"


@pytest.mark.parametrize("change, message", [
  (lambda t: t.pop(NAME), f"lacks the tensor '{NAME}'"),
  (lambda t: t.update(extra=np.zeros(2, np.float32)), "holds an unknown tensor 'extra'"),
  (lambda t: t.update({NAME: np.zeros((32, 2), np.float32)}), "says rank 3"),
])
def test_wrong_tensors_are_refused(model, base, tmp_path, change, message):
  adapters.save(tmp_path / "a", adapters.Adapter(random_phi(model, 6), base))
  (tmp_path / "a/hyperjax.json").unlink()
  tensors = load_file(tmp_path / "a/adapter_model.safetensors")
  change(tensors)
  save_file(tensors, tmp_path / "a/adapter_model.safetensors")
  with pytest.raises(ValueError, match=message):
    adapters.load(tmp_path / "a", base)


def test_a_rank_above_the_dimension_is_refused(base, tmp_path):
  config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=33, target_modules=["q"])
  peft.get_peft_model(hugging_face(), config).save_pretrained(tmp_path)
  message = "does not fit the model: LoRA rank 33 is not in 1..32, .* a 48 x 32 projection"
  with pytest.raises(ValueError, match=message):
    adapters.load(tmp_path, base)


@pytest.mark.parametrize("changes, message", [
  ({"target_modules": ["wi"]}, "target_modules names 'wi'; the nearest supported module is 'wi_"),
  ({"target_modules": r"encoder\.block\.[01]\..*\.q"}, "in some layers only.* layer 2 is left out"),
  ({"target_modules": "(q"}, r"target_modules holds '\(q', no regular expression"),
  ({"rank_pattern": {"zz": 1}}, "rank_pattern names 'zz'; supported are whole modules"),
  ({"alpha_pattern": {"block.0.layer.0.SelfAttention.q": 1}}, "alpha_pattern names 'block.0"),
])
def test_modules_that_do_not_exist_or_in_some_layers_only(model, base, tmp_path, changes, message):
  adapters.save(tmp_path / "a", adapters.Adapter(random_phi(model, 6), base))
  (tmp_path / "a/hyperjax.json").unlink()
  file = tmp_path / "a/adapter_config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))
  with pytest.raises(ValueError, match=message):
    adapters.load(tmp_path / "a", base)
