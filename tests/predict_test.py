"""The command answers from a model folder and adapters alone; compared with decoding by hand."""

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from hyperjax import adapters, predict, sources
from hyperjax.core import phi as phi_lib
from hyperjax.data import prompts, vocabularies
from hyperjax.models import families
from hyperjax.models.generate import generate
from hyperjax.models.llama import Llama, LlamaConfig

CONFIG = LlamaConfig(
  vocab_size=49152, d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, d_mlp=24,
  rope_theta=1000.0, norm_epsilon=1e-5, tie_embeddings=True,
)
INPUTS = ["mouse", "three hundred and five", "a", "The quick brown fox jumps over a dog. " * 2]


@pytest.fixture(scope="module")
def vocabulary():
  return vocabularies.load(sources.EMBEDDED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, vocabulary):
  path = tmp_path_factory.mktemp("base") / "model"
  params = families.random(CONFIG, seed=1).params
  families.save(path, CONFIG, params, tokenizer=vocabulary, max_positions=128)
  return path


@pytest.fixture(scope="module")
def model(folder):
  params = families.load(folder).params
  graph = nnx.graphdef(nnx.eval_shape(lambda: Llama(CONFIG, rngs=nnx.Rngs(0))))
  return nnx.merge(graph, params)


def random_phi(model, seed, **spec):
  phi = phi_lib.init(model.phi_spec(**spec), jax.random.key(seed))
  noise = iter(jax.random.split(jax.random.key(seed + 50), 20))
  return jax.tree.map(
    lambda z: z + jax.random.normal(next(noise), z.shape)
    if jnp.issubdtype(z.dtype, jnp.floating) else z,
    phi,
  )


PHIS = {
  "short": dict(sites=["decoder.self.prefix"], prefix_length=2),
  "long": dict(sites=["decoder.self.prefix"], prefix_length=5),
  "lora": dict(rank=2, alpha=4.0, sites=("decoder.self.q", "decoder.mlp.up")),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, folder, model):
  """Folders of three adapters, and their phis."""
  root = tmp_path_factory.mktemp("adapters")
  base = adapters.Base(
    str(folder), CONFIG, families.fingerprint(folder), vocabularies.load(folder).fingerprint
  )
  out = {}
  for seed, (name, spec) in enumerate(PHIS.items()):
    phi = random_phi(model, seed, **spec)
    prompt = prompts.FORMATS["newline" if name == "lora" else "qa"]
    adapters.save(root / name, adapters.Adapter(phi, base, prompt.to_json()))
    out[name] = str(root / name), phi, prompt
  return out


def by_hand(model, vocabulary, phi, prompt, text, new):
  ids = prompt.encode_inputs(vocabulary, [text])[0]
  ids = [vocabulary.bos_id, *ids] if vocabulary.adds_bos else ids
  terminator = prompt.terminator_ids(vocabulary)
  produced, count = generate(
    model, phi, jnp.array([[ids]], jnp.int32), jnp.array([[len(ids)]]), max_new_tokens=new,
    terminator=terminator,
  )
  kept = produced[0, 0, : int(count[0, 0])].tolist()
  text = vocabulary.decode(kept)
  return text.removesuffix(prompt.terminator).split("<|im_end|>")[0].strip()


def run(capsys, *arguments):
  status = predict.main([str(a) for a in arguments])
  captured = capsys.readouterr()
  return status, captured.out, captured.err


def test_one_adapter_answers_each_input(model, vocabulary, made, capsys):
  path, phi, prompt = made["long"]
  inputs = [x for text in INPUTS for x in ("--input", text)]
  status, out, err = run(capsys, "--adapter", path, *inputs, "--max_new_tokens", 5)
  assert status == 0, err
  expected = [by_hand(model, vocabulary, phi, prompt, text, 5) for text in INPUTS]
  assert out.splitlines() == [text.replace("\n", "\\n") for text in expected]
  assert len(set(expected)) > 1


def test_the_documented_peft_code_answers_alike(
  model, vocabulary, folder, made, tmp_path, monkeypatch, capsys
):
  """docs/adapters.md's snippet, word for word, in a folder that holds what it names."""
  path, phi, prompt = made["long"]
  (tmp_path / "smollm2").symlink_to(folder)
  (tmp_path / "past_tense").symlink_to(path)
  monkeypatch.chdir(tmp_path)
  text = (pathlib.Path(__file__).parent.parent / "docs" / "adapters.md").read_text()
  exec(text.split("```python\n")[1].split("```")[0], {})
  ids = prompt.encode_inputs(vocabulary, ["carry"])[0]
  produced, count = generate(
    model, phi, jnp.array([[ids]], jnp.int32), jnp.array([[len(ids)]]), max_new_tokens=8,
    terminator=(vocabulary.eos_id,),
  )
  assert int(count[0, 0]) == 8
  assert capsys.readouterr().out.rstrip("\n") == vocabulary.decode(ids + produced[0, 0].tolist())


def test_rows_with_adapters_of_their_own_equal_one_by_one(
  model, vocabulary, made, capsys, tmp_path
):
  names = ["short", "long", "lora", "short", "long", "short"]
  texts = ["mouse", "house", "mouse", "louse", "a", "b"]
  file, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  lines = [{"input": t, "adapter": made[n][0]} for t, n in zip(texts, names, strict=True)]
  lines[0].pop("adapter")
  file.write_text("\n".join(map(json.dumps, lines)))
  status, out, err = run(
    capsys, "--adapter", made["short"][0], "--inputs", file, "--out", answers,
    "--max_new_tokens", 4,
  )
  assert status == 0, err
  assert "6 predictions" in out
  records = [json.loads(line) for line in answers.read_text().splitlines()]
  for record, text, name in zip(records, texts, names, strict=True):
    path, phi, prompt = made[name]
    assert record == {
      "input": text, "adapter": path,
      "prediction": by_hand(model, vocabulary, phi, prompt, text, 4),
    }
  assert {p.name for p in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_several_adapters_answer_every_input(made, capsys, tmp_path):
  file = tmp_path / "out.jsonl"
  status, _, err = run(
    capsys, "--adapter", made["short"][0], "--adapter", made["long"][0], "--input", "mouse",
    "--out", file, "--max_new_tokens", 3,
  )
  assert status == 0, err
  records = [json.loads(line) for line in file.read_text().splitlines()]
  assert [r["adapter"] for r in records] == [made["short"][0], made["long"][0]]


def test_sampling_depends_on_the_seed_and_not_on_the_batches(made, capsys):
  def sample(seed, batch_size):
    inputs = [x for text in INPUTS[:3] for x in ("--input", text)]
    _, out, err = run(
      capsys, "--adapter", made["short"][0], *inputs, "--max_new_tokens", 4, "--temperature", 1,
      "--seed", seed, "--batch_size", batch_size,
    )
    return out, err

  assert sample(0, 32) == sample(0, 1)
  assert sample(0, 32) != sample(1, 32)


def test_jobs_of_one_shape_share_a_batch():
  prefix = {"decoder": {"self": {"prefix": phi_lib.whole_prefix(*jnp.zeros((2, 1, 1, 1, 1, 1)))}}}

  def job(index, length, phi=prefix, terminator=(1,)):
    return predict.Job(index, [0] * length, phi, "a", terminator)

  lengths = [3, 16, 17, 31, 32, 33, 5]
  jobs = [job(i, n) for i, n in enumerate(lengths)] + [job(7, 3, terminator=(2,)), job(8, 3, {})]
  found = [([j.index for j in group], length) for group, length in predict.batches(jobs, 2)]
  assert found == [
    ([0, 1], 16), ([6], 16), ([2, 3], 32), ([4], 32), ([5], 64), ([7], 16), ([8], 16)
  ]


@pytest.mark.parametrize("lines, message", [
  (['{"input": "a"}', '{"inptu": "b"}'], "line 2: unknown field 'inptu'; allowed: input, adapter"),
  (['{"input": ""}'], "line 1: input is empty"),
  (['{"input": "a"'], "line 1: not JSON"),
  (['{"adapter": "x"}'], "line 1: the field 'input' is missing"),
  (['{"input": ["a"]}'], "line 1: input must be text or a number, not ['a']"),
  (["[1]"], "line 1: an object with input is expected, not [1]"),
  ([""], "holds no rows"),
  (['{"input": "a"}'], "line 1: no adapter; name it with --adapter or in the field adapter"),
])
def test_a_wrong_file_of_inputs_is_named(capsys, tmp_path, lines, message):
  file = tmp_path / "in.jsonl"
  file.write_text("\n".join(lines))
  status, _, err = run(capsys, "--inputs", file)
  assert status == 1 and str(file) in err and message in err and err.count("\n") == 1


@pytest.mark.parametrize("arguments, message", [
  (["--max_new_tokens", "0"], "--max_new_tokens must be at least 1, not 0"),
  (["--temperature", "-1"], "--temperature must be at least 0, not -1"),
  (["--out", "/no/such/folder/x.jsonl"], "there is no folder"),
  (["--out", "."], "--out . is a folder: name a file in it"),
  (["--input", " "], "is empty"),
  (["--max_new_tokens", "125"], "the model holds 128, of which the adapter's prefix takes 2"),
])
def test_a_wrong_argument_is_named(made, capsys, arguments, message):
  status, _, err = run(capsys, "--adapter", made["short"][0], "--input", "mouse", *arguments)
  assert status == 1 and message in err


def test_a_file_that_is_there_is_replaced_where_that_is_said(made, capsys, tmp_path):
  file = tmp_path / "in.jsonl"
  file.write_text('{"input": "mouse"}')
  given = ["--adapter", made["short"][0], "--inputs", file, "--out", file, "--max_new_tokens", 2]
  status, _, err = run(capsys, *given)
  assert status == 1 and file.read_text() == '{"input": "mouse"}'
  assert f"--out {file} exists; name a new file, or replace it (--overwrite)" in err
  status, _, err = run(capsys, *given, "--overwrite")
  assert status == 0, err
  assert set(json.loads(file.read_text())) == {"input", "prediction", "adapter"}


def test_a_folder_that_may_not_be_written_to_is_refused(made, capsys, tmp_path, monkeypatch):
  monkeypatch.setattr(predict, "read_requests", None)  # before the work
  monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
  status, _, err = run(
    capsys, "--adapter", made["short"][0], "--input", "mouse", "--out", tmp_path / "out.jsonl"
  )
  assert status == 1 and f"{tmp_path} may not be written to; name another folder" in err


def test_a_base_model_that_has_moved_is_asked_for(folder, made, capsys, tmp_path):
  adapter, there = shutil.copytree(made["short"][0], tmp_path / "adapter"), tmp_path / "gone"
  meta = (adapter / adapters.META).read_text()
  (adapter / adapters.META).write_text(meta.replace(json.dumps(str(folder)), f'"{there}"'))
  given = ["--adapter", adapter, "--input", "mouse", "--max_new_tokens", 2]
  status, _, err = run(capsys, *given)
  assert status == 1 and err.startswith(
    f"hyperjax predict: {adapter} is for the model {str(there)!r}, which is not there: say where "
    "it lies now with --model (model source"
  )
  status, _, err = run(capsys, *given, "--model", there)
  assert status == 1 and err.startswith("hyperjax predict: model source")
  assert run(capsys, *given, "--model", folder)[0] == 0


def test_another_model_is_refused(made, capsys, tmp_path, vocabulary):
  params = families.random(CONFIG, seed=2).params
  families.save(tmp_path / "other", CONFIG, params, tokenizer=vocabulary)
  status, _, err = run(
    capsys, "--adapter", made["short"][0], "--input", "mouse", "--model", tmp_path / "other"
  )
  assert status == 1 and "was made for the model" in err and str(tmp_path / "other") in err


def test_a_missing_adapter_is_named(capsys, tmp_path):
  status, _, err = run(capsys, "--adapter", tmp_path / "none", "--input", "mouse")
  assert status == 1 and str(tmp_path / "none") in err


def test_an_adapter_that_peft_wrote_needs_a_prompt(model, vocabulary, made, capsys, tmp_path):
  path, phi, _ = made["lora"]
  for name in ("adapter_config.json", "adapter_model.safetensors"):
    (tmp_path / name).write_bytes((pathlib.Path(path) / name).read_bytes())
  status, _, err = run(capsys, "--adapter", tmp_path, "--input", "mouse")
  assert status == 1 and "name it with --prompt" in err
  status, out, err = run(
    capsys, "--adapter", tmp_path, "--input", "mouse", "--prompt", "arrow", "--max_new_tokens", 4
  )
  assert status == 0 and "unverified" in err
  expected = by_hand(model, vocabulary, phi, prompts.FORMATS["arrow"], "mouse", 4)
  assert out == expected.replace("\n", "\\n") + "\n"


def test_adapters_of_several_models_are_not_answered_with_one(made, capsys, tmp_path):
  """A folder of PEFT's names its model, but has no fingerprint of it."""
  path = made["lora"][0]
  config = json.loads((pathlib.Path(path) / "adapter_config.json").read_text())
  config["base_model_name_or_path"] = "somebody/else"
  (tmp_path / "adapter_config.json").write_text(json.dumps(config))
  tensors = (pathlib.Path(path) / "adapter_model.safetensors").read_bytes()
  (tmp_path / "adapter_model.safetensors").write_bytes(tensors)
  inputs = tmp_path / "inputs.jsonl"
  rows = [{"input": "mouse", "adapter": str(folder)} for folder in (path, tmp_path)]
  inputs.write_text("".join(json.dumps(row) + "\n" for row in rows))
  status, _, err = run(capsys, "--inputs", inputs, "--prompt", "arrow")
  assert status == 1 and f"and {tmp_path} for 'somebody/else': answer them apart" in err


def test_help_teaches_by_examples(capsys):
  with pytest.raises(SystemExit) as end:
    predict.main(["--help"])
  assert end.value.code == 0
  assert capsys.readouterr().out.count("\n  hyperjax predict --adapter") >= 4
