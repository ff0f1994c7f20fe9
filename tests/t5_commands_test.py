"""adapt and predict for a T5: compared with decoding by hand, token for token as in training."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import nnx
from tokenizers import processors

from hyperjax import adapt, adapters, convert, predict, runs, sources, systems
from hyperjax.core.batch import Support
from hyperjax.data import layouts, loader, prompts, rows, vocabularies
from hyperjax.data.episodes import Query
from hyperjax.hypermodels.gisting_t5 import GistingT5Config, GistTokens
from hyperjax.hypermodels.heads import EmitLowRank, EmitPrefix, HeadsConfig
from hyperjax.hypermodels.hypert5 import HyperT5Config
from hyperjax.hypermodels.prompts import SoftPromptConfig
from hyperjax.models import families
from hyperjax.models.generate import generate
from hyperjax.models.t5 import PREFIX_SITES, T5Config
from tests.models import tiny

CONFIG = T5Config(
  vocab_size=49152, d_model=16, num_encoder_layers=2, num_decoder_layers=2, num_heads=2, head_dim=8,
  d_mlp=24, activation="gated-gelu", tie_embeddings=False, num_buckets=8, max_distance=12,
)
PROMPT = prompts.FORMATS["qa"]
EXAMPLES = [("wolf", "wolves"), ("child", "children"), ("ox", "oxen"), ("mouse", "mice")]
# The last is longer than any context that a config.json of T5 speaks of.
INPUTS = ["mouse", "three hundred and five", "a", "The quick brown fox jumps over a dog. " * 60]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A T5 whose tokenizer puts EOS behind every text, as T5's own does."""
  path = tmp_path_factory.mktemp("base") / "model"
  vocabulary = vocabularies.load(sources.EMBEDDED)
  params = families.random(CONFIG, seed=1).params
  # Kernels large enough for the answers to depend on the inputs.
  params = jax.tree.map(lambda x: 3 * x if x.ndim > 2 else x, params)
  families.save(path, CONFIG, params, tokenizer=vocabulary)
  file = path / "tokenizer.json"
  tokenizer = tokenizers.Tokenizer.from_file(str(file))
  eos = tokenizer.id_to_token(vocabulary.eos_id)
  tokenizer.post_processor = processors.TemplateProcessing(
    single=f"$A {eos}", special_tokens=[(eos, vocabulary.eos_id)]
  )
  tokenizer.save(str(file))
  return path


@pytest.fixture(scope="module")
def vocabulary(folder):
  vocabulary = vocabularies.load(folder)
  assert vocabulary.adds_eos and not vocabulary.adds_bos
  return vocabulary


@pytest.fixture(scope="module")
def model(folder):
  loaded = families.load(folder)
  return nnx.merge(nnx.graphdef(families.abstract(CONFIG)), loaded.params)


@pytest.fixture(scope="module")
def base(folder, vocabulary):
  return adapters.Base(str(folder), CONFIG, families.fingerprint(folder), vocabulary.fingerprint)


def random_phi(model, seed, sites, **sizes):
  sizes = dict(prefix_length=3, rank=2, alpha=4.0) | sizes
  return tiny.random_phi(model.phi_spec(sites, **sizes), 1, seed=seed)


PHIS = {
  "short": dict(sites=PREFIX_SITES, prefix_length=2),
  "long": dict(sites=PREFIX_SITES, prefix_length=5),
  "before": dict(sites=PREFIX_SITES, prefix_length=4, positions="before"),
  "lora": dict(sites=["*.*.q", "*.mlp.up"]),
  "prompt": dict(sites=["embed"], prefix_length=2),
  "long prompt": dict(sites=["embed"], prefix_length=4),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, model, base):
  """Folders of adapters, and their phis."""
  root = tmp_path_factory.mktemp("adapters")
  out = {}
  for seed, (name, spec) in enumerate(PHIS.items()):
    phi = random_phi(model, seed, **spec)
    adapters.save(root / name, adapters.Adapter(phi, base, PROMPT.to_json()))
    out[name] = str(root / name), phi
  return out


def by_hand(model, vocabulary, phi, text, new):
  ids = [*PROMPT.encode_inputs(vocabulary, [text])[0], vocabulary.eos_id]
  terminator = PROMPT.terminator_ids(vocabulary)
  produced, count = generate(
    model, phi, jnp.array([[ids]], jnp.int32), jnp.array([[len(ids)]]), max_new_tokens=new,
    terminator=terminator,
  )
  kept = produced[0, 0, : int(count[0, 0])].tolist()
  text = vocabulary.decode(kept)
  return text.removesuffix(PROMPT.terminator).split("<|im_end|>")[0].strip()


def run(capsys, *arguments, command=predict):
  status = command.main([str(a) for a in arguments])
  captured = capsys.readouterr()
  return status, captured.out, captured.err


def test_rows_with_adapters_of_their_own_equal_one_by_one(
  model, vocabulary, made, capsys, tmp_path
):
  names = ["short", "long", "before", "lora", "short", "long", "before", "prompt", "long prompt"]
  texts = [*INPUTS, "house", "b", INPUTS[1], "house", "mouse"]
  file, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  lines = [{"input": t, "adapter": made[n][0]} for t, n in zip(texts, names, strict=True)]
  file.write_text("\n".join(map(json.dumps, lines)))
  status, _, err = run(capsys, "--inputs", file, "--out", answers, "--max_new_tokens", 4)
  assert status == 0, err
  records = [json.loads(line) for line in answers.read_text().splitlines()]
  expected = [
    by_hand(model, vocabulary, made[name][1], text, 4)
    for text, name in zip(texts, names, strict=True)
  ]
  assert [record["prediction"] for record in records] == expected
  assert len(set(expected)) > 4


def test_inputs_are_tokenised_as_in_training(model, vocabulary, made):
  """The ids of a batch's queries, as the loader lays them out."""
  path, phi = made["short"]
  requests = [predict.Request("here", text, path) for text in INPUTS[:3]]
  loaded = {path: (adapters.Adapter(phi, None), PROMPT)}
  tools = predict.Tools(model, vocabulary, None, 4, 0.0, 0, 8)
  jobs = predict.tokenise(requests, loaded, tools)
  asked = [rows.Row("here", {"input": text, "output": "x"}) for text in INPUTS[:3]]
  pieces = PROMPT.encode_inputs(vocabulary, INPUTS[:3])
  episode = adapt.read_support(asked, PROMPT, vocabulary)
  target = np.array(PROMPT.encode_targets(vocabulary, ["x"])[0], np.int32)
  queries = tuple(
    Query(id=i, input=np.array(ids, np.int32), target=target) for i, ids in enumerate(pieces)
  )
  episode = type(episode)(**{**vars(episode), "queries": queries})
  laid = layouts.of(CONFIG.layout, vars(vocabulary))
  batch, _ = loader.to_batch([episode], loader.fit([episode], laid), laid)
  tokens, length = batch.query.prompts()
  for column, job in enumerate(jobs):
    assert job.ids == tokens[0, column, : length[0, column]].tolist()
    assert job.ids[-1] == vocabulary.eos_id


GIST = GistTokens(num_gist=3, init_text="Q: word")
SYSTEMS = {
  "prefix": HyperT5Config(CONFIG, "random", EmitPrefix(3), HeadsConfig(width=8)),
  "lora": HyperT5Config(CONFIG, "random", EmitLowRank(2, 4.0), HeadsConfig(width=8)),
  "gisting": GistingT5Config(GIST, rank=2),
  "prompt": SoftPromptConfig(GIST),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_adapter_is_the_producers_phi_and_answers_alike(
  folder, model, base, vocabulary, tmp_path, capsys, monkeypatch, name
):
  producer = SYSTEMS[name].build(model, systems.encoder(vocabulary), nnx.Rngs(3))
  the_run = runs.Run(
    tmp_path / "run", runs.ModelConfig(CONFIG, str(folder), dtype="float32"), model, producer, 7,
    vocabulary, PROMPT, base.fingerprint, "", False, ("producer",), None,
    {"hypermodel": name, "step": 7},
  )  # fmt: skip
  monkeypatch.setattr(runs, "load", lambda folder, **_: the_run)
  examples = tmp_path / "ex.jsonl"
  examples.write_text("\n".join(json.dumps({"input": i, "output": o}) for i, o in EXAMPLES))
  status, out, err = run(
    capsys, "--examples", examples, "--out", tmp_path / "a", command=adapt
  )
  assert status == 0, err
  assert ("PEFT loads it" in out) == (name in ("lora", "prompt"))

  ids: list[int] = []
  for question, answer in EXAMPLES:
    ids += PROMPT.encode_inputs(vocabulary, [question])[0]
    ids += PROMPT.encode_targets(vocabulary, [answer])[0]
  ids.append(vocabulary.eos_id)
  assert f"read   4 examples, {len(ids)} tokens" in out
  support = Support(jnp.array([ids], jnp.int32), jnp.array([len(ids)], jnp.int32))
  expected = producer(model, support)
  phi = adapters.load(tmp_path / "a", base).phi
  assert jax.tree.structure(phi) == jax.tree.structure(expected)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), phi, expected)

  monkeypatch.setattr(runs, "load", None)
  status, out, err = run(
    capsys, "--adapter", tmp_path / "a", "--input", "goose", "--max_new_tokens", 4
  )
  assert status == 0, err
  assert out == by_hand(model, vocabulary, phi, "goose", 4).replace("\n", "\\n") + "\n"


def test_an_adapter_serves_a_copy_without_loss(folder, made, tmp_path, capsys):
  copy = tmp_path / "copy"
  assert convert.main(["--source", str(folder), "--out", str(copy)]) == 0
  capsys.readouterr()
  given = ("--adapter", made["long"][0], "--input", "mouse", "--max_new_tokens", 4)
  first, second = run(capsys, *given), run(capsys, *given, "--model", copy)
  assert first == second and first[0] == 0
