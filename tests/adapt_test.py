"""The command on a run with a tiny random model; its adapter serves without the hypermodel."""

import hashlib
import json
import os
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hyperjax import adapt, adapters, predict, runs, sources, systems
from hyperjax.core.batch import Support
from hyperjax.data import prompts, rows, vocabularies
from hyperjax.hypermodels.gisting import GistingConfig
from hyperjax.hypermodels.hyperllama import GistConfig, HyperLlamaConfig
from hyperjax.hypermodels.tuned import NoPhi
from hyperjax.models import families
from hyperjax.models.llama import LlamaConfig
from tests import bucket as bucket_lib

bucket = bucket_lib.fixture

CONFIG = LlamaConfig(
  vocab_size=49152, d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, d_mlp=24,
  rope_theta=1000.0, norm_epsilon=1e-5, tie_embeddings=True,
)
PROMPT = prompts.FORMATS["qa"]
EXAMPLES = [("wolf", "wolves"), ("child", "children"), ("ox", "oxen"), ("mouse", "mice")]
HYPER = HyperLlamaConfig(gist=GistConfig(num_gist=3), rank=2, alpha=4.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """(model configuration, downstream, fingerprint, vocabulary) of a model folder."""
  folder = tmp_path_factory.mktemp("base") / "model"
  vocabulary = vocabularies.load(sources.EMBEDDED)
  params = families.random(CONFIG, seed=1).params
  families.save(folder, CONFIG, params, tokenizer=vocabulary)
  model = runs.ModelConfig(CONFIG, str(folder), dtype="float32")
  return model, *model.load(), vocabularies.load(folder)


@pytest.fixture
def run_of(base, monkeypatch, tmp_path):
  """Makes `runs.load` return a run with a given producer."""
  model, downstream, fingerprint, vocabulary = base
  encode = systems.encoder(vocabulary)

  def install(config=HYPER, inline=False, trained=("producer",), longest=None):
    producer = NoPhi() if config is None else config.build(downstream, encode, nnx.Rngs(3))
    run = runs.Run(
      tmp_path / "run", model, downstream, producer, 7, vocabulary, PROMPT, fingerprint, "",
      inline, trained, longest,
      {"hypermodel": type(config).__name__, "step": 7, "data": "abc"},
    )  # fmt: skip
    monkeypatch.setattr(runs, "load", lambda folder, **_: run)
    return run

  return install


@pytest.fixture
def examples(tmp_path):
  path = tmp_path / "ex.jsonl"
  lines = [json.dumps({"input": i, "output": o}) for i, o in EXAMPLES]
  path.write_text("\n".join(lines) + "\n")
  return path


def support_of(vocabulary, examples):
  ids = [vocabulary.bos_id] if vocabulary.adds_bos else []
  for pair in examples:
    ids += PROMPT.encode_inputs(vocabulary, [pair[0]])[0]
    ids += PROMPT.encode_targets(vocabulary, [pair[1]])[0]
  return ids


def main(capsys, *arguments):
  status = adapt.main([str(a) for a in arguments])
  captured = capsys.readouterr()
  return status, captured.out, captured.err


@pytest.mark.parametrize("config", [HYPER, GistingConfig(HYPER)], ids=["hyperllama", "gisting"])
def test_the_adapter_is_the_producers_phi(base, run_of, examples, tmp_path, capsys, config):
  model, downstream, fingerprint, vocabulary = base
  run = run_of(config)
  status, out, err = main(capsys, "--examples", examples, "--out", tmp_path / "a")
  assert status == 0, err
  ids = support_of(vocabulary, EXAMPLES)
  support = Support(jnp.array([ids], jnp.int32), jnp.array([len(ids)], jnp.int32))
  expected = run.producer(downstream, support)
  made_for = adapters.Base(model.source, CONFIG, fingerprint, vocabulary.fingerprint)
  adapter = adapters.load(tmp_path / "a", made_for)
  assert jax.tree.structure(adapter.phi) == jax.tree.structure(expected)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), adapter.phi, expected)
  assert adapter.prompt == PROMPT.to_json()
  assert adapter.provenance["examples"] == 4 and adapter.provenance["step"] == 7
  assert adapter.provenance["command"].startswith("hyperjax adapt --examples ")
  assert f"read   4 examples, {len(ids)} tokens" in out
  assert f"hyperjax predict --adapter {tmp_path / 'a'} --input" in out
  assert ("PEFT loads it" in out) == (config is HYPER)


def test_predict_needs_no_run(base, run_of, examples, tmp_path, capsys, monkeypatch):
  run_of()
  assert main(capsys, "--examples", examples, "--out", tmp_path / "a")[0] == 0

  def gone(*_, **__):
    raise AssertionError("predict opened the run")

  monkeypatch.setattr(runs, "load", gone)
  status = predict.main(
    ["--adapter", str(tmp_path / "a"), "--input", "goose", "--max_new_tokens", "3"]
  )
  assert status == 0 and len(capsys.readouterr().out.splitlines()) == 1


def test_what_does_not_fit_is_dropped_from_the_far_end(base, run_of, examples, tmp_path, capsys):
  vocabulary = base[-1]
  run_of()
  room = len(support_of(vocabulary, EXAMPLES[2:]))
  status, out, _ = main(
    capsys, "--examples", examples, "--out", tmp_path / "a", "--max_tokens", room
  )
  assert status == 0 and "the first 2 of 4 examples were dropped" in out
  assert f"read   2 examples, {room} tokens" in out
  few = tmp_path / "few.json"
  few.write_text(json.dumps([{"input": i, "output": o} for i, o in EXAMPLES[2:]]))
  main(capsys, "--examples", few, "--out", tmp_path / "b")
  one, other = (
    adapters.read_tensors(tmp_path / name / "adapter_model.safetensors") for name in "ab"
  )
  np.testing.assert_allclose(one["prompt_embeddings"], other["prompt_embeddings"], atol=1e-5)


def test_examples_may_come_through_a_pipe(run_of, examples, tmp_path, capsys):
  run_of()
  content, pipe = examples.read_bytes(), tmp_path / "pipe.jsonl"
  os.mkfifo(pipe)
  writer = threading.Thread(target=pipe.write_bytes, args=(content,))
  writer.start()
  status, _, err = main(capsys, "--examples", pipe, "--out", tmp_path / "a")
  writer.join()
  assert status == 0, err
  about = json.loads((tmp_path / "a" / "hyperjax.json").read_text())
  assert about["provenance"]["examples_sha256"] == hashlib.sha256(content).hexdigest()


def test_more_tokens_than_in_training_are_remarked(base, run_of, examples, tmp_path, capsys):
  size = len(support_of(base[-1], EXAMPLES))
  given = ("--examples", examples, "--out", tmp_path / "a", "--overwrite")
  for longest in (None, size):
    run_of(longest=longest)
    assert main(capsys, *given)[::2] == (0, "")
  run_of(longest=size - 1)
  status, out, err = main(capsys, *given)
  assert status == 0 and f"read   4 examples, {size} tokens" in out
  assert err == (
    f"note: the examples have {size} tokens, and training had at most {size - 1}: --max_tokens "
    f"{size - 1} keeps to that\n"
  )
  status, out, err = main(capsys, *given, "--max_tokens", size - 1)
  assert status == 0 and "the first 1 of 4 examples were dropped" in out and not err


def test_the_support_is_made_of_pieces(base, examples):
  vocabulary = base[-1]
  read = rows.read(examples, ["input", "output"])
  episode = adapt.read_support(read, PROMPT, vocabulary)
  assert episode.support.tolist() == support_of(vocabulary, EXAMPLES)
  assert vocabulary.decode(episode.shots[0].tolist()) == "Q: wolf\nA: wolves\n"


def test_a_definition_stands_in_front_of_the_examples(base, run_of, examples, tmp_path, capsys):
  vocabulary = base[-1]
  read = rows.read(examples, ["input", "output"])
  plain = adapt.read_support(read, PROMPT, vocabulary)
  episode = adapt.read_support(read, PROMPT, vocabulary, "Write the plural.")
  words = PROMPT.encode_definitions(vocabulary, ["Write the plural."])[0]
  assert episode.head.tolist() == [*plain.head.tolist(), *words]
  run_of()
  given = ("--examples", examples, "--out", tmp_path / "a", "--definition", "Write the plural.")
  status, out, err = main(capsys, *given)
  assert status == 0, err
  assert f"read   4 examples, {len(episode.support)} tokens" in out
  status, _, err = main(capsys, *given, "--overwrite", "--max_tokens", len(words))
  assert status == 1
  assert f"--definition has {len(episode.head)} tokens, which leave none of --max_tokens" in err


def test_outputs_that_no_answer_can_be_are_said(run_of, tmp_path, capsys):
  run_of()
  file = tmp_path / "ex.jsonl"
  file.write_text("\n".join(json.dumps({"input": "a", "output": o}) for o in ("b", "b\nc")))
  status, _, err = main(capsys, "--examples", file, "--out", tmp_path / "a")
  assert status == 0
  assert err.startswith("note: No answer can be 1 of the targets")
  assert "1 of the examples" in err and "PROMPT='qa_eos'" in err


@pytest.mark.parametrize("lines, message", [
  (['{"input": "a", "output": "b"}', '{"input": "a"}'], "line 2: the field 'output' is missing"),
  (['{"input": "a", "outptu": "b"}'], "line 1: unknown field 'outptu'; .* Did you mean 'output'?"),
  (["", '{"input": "a", "output": " "}'], "line 2: output is empty"),
  (['{"input": "a", "output": null}'], "line 1: output must be text or a number, not None"),
  (["wolf: wolves"], "line 1: not JSON"),
  (["", ""], "holds no rows"),
])
def test_a_wrong_file_of_examples_is_named(capsys, tmp_path, lines, message):
  file = tmp_path / "ex.jsonl"
  file.write_text("\n".join(lines))
  status, _, err = main(capsys, "--examples", file, "--out", tmp_path / "a")
  assert status == 1 and err.startswith(f"hyperjax adapt: {file}") and err.count("\n") == 1
  assert re.search(message, err)


def test_a_list_in_a_json_file_and_numbers(tmp_path):
  file = tmp_path / "ex.json"
  file.write_text('[{"input": 3, "output": 4.5, "options": ["4.5", "9"]}]')
  [row] = rows.read(file, ["input", "output"], ignored=["options"])
  assert row.fields == {"input": "3", "output": "4.5"}
  file.write_text('{"input": "a", "output": "b"}')
  with pytest.raises(ValueError, match="must hold a list of objects, not dict"):
    rows.read(file, ["input", "output"])


def test_what_is_there_is_not_overwritten_unasked(run_of, examples, tmp_path, capsys):
  run_of()
  out = tmp_path / "a"
  assert main(capsys, "--examples", examples, "--out", out)[0] == 0
  status, _, err = main(capsys, "--examples", examples, "--out", out)
  assert status == 1 and f"{out} exists" in err
  assert main(capsys, "--examples", examples, "--out", out, "--overwrite")[0] == 0


@pytest.mark.parametrize("arguments, message", [
  (["--max_tokens", "0"], "--max_tokens must be at least 1, not 0"),
  (["--examples", "/no/such.jsonl"], "/no/such.jsonl does not exist"),
  (["--checkpoint", "/no/such/run"], "/no/such/run"),
])
def test_a_wrong_argument_is_named(examples, tmp_path, capsys, arguments, message):
  status, _, err = main(capsys, "--examples", examples, "--out", tmp_path / "a", *arguments)
  assert status == 1 and message in err and err.count("\n") == 1


def test_devices_that_this_machine_does_not_have_are_refused(examples, tmp_path, capsys):
  here = jax.device_count()
  for asked in (0, here + 1):
    status, _, err = main(
      capsys, "--examples", examples, "--out", tmp_path / "a", "--devices", asked
    )
    allowed = f"--devices must be in 1..{here}, this machine's devices, not {asked}"
    assert status == 1 and allowed in err and err.count("\n") == 1


def test_a_run_may_lie_in_a_bucket(bucket, run_of, examples, tmp_path, capsys):
  given = ("--checkpoint", "gs://mine/run", "--examples", examples, "--out", tmp_path / "a")
  status, _, err = main(capsys, *given)
  assert status == 1
  assert err.startswith("hyperjax adapt: gs://mine/run is not the folder of a run: no config.gin")
  run_of()
  assert main(capsys, *given)[0] == 0
  about = json.loads((tmp_path / "a" / "hyperjax.json").read_text())
  assert about["provenance"]["checkpoint"] == "gs://mine/run"


def test_without_the_quickstart_its_command_is_named(examples, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  status, _, err = main(capsys, "--examples", examples, "--out", "a")
  assert status == 1 and err == (
    "hyperjax adapt: runs/quickstart/hyperllama is not the folder of a run: no config.gin in it: "
    "run make quickstart, or name a run with --checkpoint\n"
  )
  status, _, err = main(capsys, "--checkpoint", "mine", "--examples", examples, "--out", "a")
  assert status == 1 and "mine is not the folder of a run" in err and "quickstart" not in err


def test_another_file_that_is_missing_is_not_the_quickstarts(
  examples, tmp_path, capsys, monkeypatch
):
  def without_model(*_, **__):
    raise FileNotFoundError("model source 'there': no such file or folder")

  monkeypatch.setattr(runs, "load", without_model)
  status, _, err = main(capsys, "--examples", examples, "--out", tmp_path / "a")
  assert status == 1 and err == "hyperjax adapt: model source 'there': no such file or folder\n"


def test_a_method_without_phi_is_refused(run_of, examples, tmp_path, capsys):
  run_of(None)
  status, _, err = main(capsys, "--examples", examples, "--out", tmp_path / "a")
  assert status == 1 and "makes no phi to keep" in err and not (tmp_path / "a").exists()


@pytest.mark.parametrize("changes, message", [
  (dict(trained=("producer", "downstream")), "training changed its downstream model too"),
  (dict(inline=True), "its inputs hold the examples themselves"),
])
def test_a_run_that_needs_more_than_a_phi_is_refused(
  run_of, examples, tmp_path, capsys, changes, message
):
  run_of(**changes)
  status, _, err = main(capsys, "--examples", examples, "--out", tmp_path / "a")
  assert status == 1 and message in err and not (tmp_path / "a").exists()


def test_help_teaches_by_examples(capsys):
  with pytest.raises(SystemExit) as end:
    adapt.main(["--help"])
  assert end.value.code == 0
  assert capsys.readouterr().out.count("\n  hyperjax adapt --") >= 2
