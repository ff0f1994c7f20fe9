"""The benchmarks beside PyTorch: whole commands on a tiny model; both sides do the same work."""

import dataclasses
import functools
import importlib
import importlib.util
import json
import operator
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx

from benchmarks import beside, hyperjax_side, torch_baselines, work
from hyperjax import adapters
from hyperjax.core import phi as phi_lib
from hyperjax.data import vocabularies
from hyperjax.data.prompts import PromptFormat
from hyperjax.hypermodels import gisting, hyperllama
from hyperjax.hypermodels.tuned import TunedPhi
from hyperjax.models import families
from hyperjax.models.llama import LlamaConfig
from hyperjax.training import step as step_lib

CONFIG = LlamaConfig(
  vocab_size=61, d_model=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, d_mlp=40,
  rope_theta=1e3, norm_epsilon=1e-5, tie_embeddings=True,
)  # fmt: skip
SHAPE = work.Shape(rows=2, support=9, queries=3, query=6, targets=2)


def measured(name, monkeypatch, capsys, *arguments: str) -> dict:
  """What a benchmark prints as JSON, both sides in this process."""
  monkeypatch.setattr(beside, "Worker", beside.Local)
  monkeypatch.setattr("sys.argv", [name, "--rounds", "2", *arguments])
  assert importlib.import_module(f"benchmarks.{name}").main() == 0
  *lines, last = capsys.readouterr().out.splitlines()
  found = json.loads(last)
  rows = found["contestants"]
  assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {row['name']}" for row in rows]
  assert found["benchmark"] == name and found["threads"] >= 1 and rows[0]["times_as_long"] == 1
  for row in rows:
    tokens = row["found"]["tokens"]
    assert len(row["seconds"]) == 2 and tokens > 0 and row["peak_mib"] > 100
    assert row["share"] == pytest.approx(
      row["tokens_per_second"] * row["floor_seconds"] / tokens, rel=0.01
    )
    speeds = [other["tokens_per_second"] for other in (rows[0], row)]
    assert row["times_as_long"] == pytest.approx(speeds[0] / speeds[1], rel=0.01)
  return found


TINY = ["--model", "llama_tiny", "--gin", "NUM_GIST=2", "--gin", "LORA_RANK=2"]


def test_training_steps_are_measured(monkeypatch, capsys):
  found = measured(
    "train_step", monkeypatch, capsys, *TINY, "--gin", "BATCH_SIZE=2", "--shape", "9,3,6,2",
    "--torch_parts", "4",
  )  # fmt: skip
  rows = found["contestants"]
  assert [row["name"] for row in rows] == [
    "hyperjax float32", "pytorch float32", "hyperjax bfloat16", "pytorch bfloat16"
  ]
  assert {row["found"]["tokens"] for row in rows} == {2 * 3 * 6}
  for row in rows:
    assert row["first_found"]["loss"] == pytest.approx(np.log(49152), rel=0.2)
  assert rows[1]["found"]["loss"] < rows[1]["first_found"]["loss"]
  # Of one episode: 9 + 2 + 3 * 6 places against 3 * (9 + 2 + 6), in 2 layers of 12288 weights; and
  # 66 + 3 * (6 * 3 + 21) pairs, a sink being in the prefix, against 3 * (66 + 6 * 2 + 21).
  more = 2 * (2 * (51 - 29) * 2 * 12288 + 3 * 2 * (297 - 183) * 2 * 64)
  costs = [row["cost_per_token"] * 3 * 6 for row in rows[:2]]
  assert costs[1] - costs[0] == pytest.approx(more, rel=0.02)


def test_adaptation_is_measured(monkeypatch, capsys):
  found = measured("adapt", monkeypatch, capsys, *TINY, "--gin", "SINK_TEXT=''", "--support", "9")
  ours, theirs = found["contestants"]
  assert ours["found"] == theirs["found"] == {
    "tokens": 9, "kept_mib": 2 * 2 * 2 * 2 * 16 * 4 / 2**20  # layers, both, G, K, H, bytes
  }


def test_answers_are_measured(monkeypatch, capsys):
  found = measured(
    "decode", monkeypatch, capsys, *TINY, "--gin", "SINK_TEXT=''", "--support", "10", "--queries",
    "3", "--query", "4", "--new_tokens", "3", "--at_once", "2",
  )  # fmt: skip
  rows = {row["name"]: row for row in found["contestants"]}
  assert list(rows) == [
    f"{side} float32 {method}" for method in ("phi", "cached", "anew")
    for side in ("hyperjax", "pytorch")
  ]  # fmt: skip
  assert {row["found"]["tokens"] for row in rows.values()} == {3 * 3}
  for side in ("hyperjax", "pytorch"):
    kept = [rows[f"{side} float32 {m}"]["found"]["kept_mib"] for m in ("phi", "cached", "anew")]
    assert kept[0] == pytest.approx(kept[1] * 2 / 10) and kept[2] == 0  # G/S


def test_batches_of_episodes_are_measured(monkeypatch, capsys):
  found = measured(
    "episodes", monkeypatch, capsys, "--examples", "60", "--batch_size", "4", "--batches", "2",
    "--num_queries", "3",
  )  # fmt: skip
  ours, theirs = (row["found"]["tokens"] for row in found["contestants"])
  assert ours == pytest.approx(theirs, rel=0.1) and ours > 2 * 4 * 13 * 23


def test_the_collator_makes_the_tokens_that_a_store_holds(tmp_path):
  vocabulary, prompt = vocabularies.load("smollm2-135m-instruct"), PromptFormat()
  vocabulary.save(tmp_path)
  rows = [("wolf", "wolves"), ("a child", "children"), ("mouse", "mice")]
  texts = [(prompt.render_input(x), prompt.render_target(y)) for x, y in rows]
  collate = torch_baselines.Collator(transformers.AutoTokenizer.from_pretrained(tmp_path))
  batch = collate([("".join(i + t for i, t in texts), texts[:1]), (texts[0][0], texts[1:2])])
  inputs = prompt.encode_inputs(vocabulary, [x for x, _ in rows])
  targets = prompt.encode_targets(vocabulary, [y for _, y in rows])
  assert batch["support"][0].tolist() == [
    id for pair in zip(inputs, targets, strict=True) for piece in pair for id in piece
  ]
  size = len(inputs[1]) + len(targets[1]) - 1
  assert batch["query_mask"].sum(1)[1] == size
  assert batch["query"][1, :size].tolist() == inputs[1] + targets[1][:-1]
  assert batch["labels"][1, size - len(targets[1]) : size].tolist() == targets[1]
  assert batch["support_mask"].sum(1).tolist() == [
    sum(map(len, inputs + targets)), len(inputs[0])
  ]


# ---- Both sides with the same weights ------------------------------------------------------------


@pytest.fixture(scope="module")
def same(tmp_path_factory):
  """A HyperLlama without a sink and its model, and PyTorch's side with these weights."""
  folder = tmp_path_factory.mktemp("same")
  loaded = families.random(CONFIG, seed=3)
  families.save(folder / "model", CONFIG, loaded.params)
  downstream = nnx.merge(nnx.graphdef(families.abstract(CONFIG)), loaded.params)
  config = hyperllama.HyperLlamaConfig(
    gist=hyperllama.GistConfig(num_gist=3, init_text=""), rank=2, alpha=3.0
  )
  hyper = config.build(downstream, hyperjax_side.encode, nnx.Rngs(0))
  spec = downstream.phi_spec(config.sites, rank=config.rank, alpha=config.alpha)
  draw = np.random.default_rng(1)
  noise = lambda x: jnp.asarray(0.3 * draw.normal(size=x.shape), jnp.float32)
  start = jax.tree.map(noise, phi_lib.init(spec, jax.random.key(0)))
  hyper.update = TunedPhi.starting_from(start, spec)
  base = adapters.Base(str(folder / "model"), CONFIG, loaded.fingerprint, "none")
  adapters.save(folder / "lora", adapters.Adapter(hyper.update(), base))
  model = transformers.LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
  theirs = torch_baselines.Gisting(
    peft.PeftModel.from_pretrained(model, folder / "lora", is_trainable=True), num_gist=3
  )
  theirs.gist.data = torch.tensor(np.asarray(hyper.gist[...]))
  return step_lib.System(hyper, downstream), theirs


def test_the_masked_pass_has_the_loss_and_gradients_of_gisting(same):
  ours, theirs = same
  parts = step_lib.split(step_lib.System(gisting.Gisting(ours.producer), ours.downstream))
  batch = jax.tree.map(jnp.asarray, hyperjax_side.make_batch(SHAPE, CONFIG.vocab_size))

  @jax.jit
  @jax.value_and_grad
  def loss(trained):
    total, sums = step_lib.Objective()(nnx.merge(parts.graph, trained, parts.frozen), batch)
    return total / sums["tokens"]

  value, gradient = loss(parts.trained)
  support, query, targets = map(torch.tensor, work.draw(SHAPE, CONFIG.vocab_size))
  support = support.repeat_interleave(SHAPE.queries, 0).long()
  found = theirs.loss(support, query.flatten(0, 1).long(), targets.flatten(0, 1).long())
  found.backward()
  print(f"losses {value:.6f}, {found.item():.6f}")
  assert abs(value - found.item()) < 1e-4
  np.testing.assert_allclose(
    gradient["producer"]["hyper"]["gist"], theirs.gist.grad.numpy(), rtol=0, atol=1e-5
  )
  size = sum(float((g**2).sum()) for g in jax.tree.leaves(gradient)) ** 0.5
  grads = [p.grad for p in theirs.parameters() if p.requires_grad]
  assert size == pytest.approx(sum(float((g**2).sum()) for g in grads) ** 0.5, rel=1e-4)
  assert size > 0.01


@pytest.mark.parametrize("method", ["phi", "cached", "anew"])
def test_both_sides_give_the_same_answers(same, method):
  ours, theirs = same
  shape = dataclasses.replace(SHAPE, rows=1)
  tokens = work.draw(shape, CONFIG.vocab_size)
  ids, kept = hyperjax_side.answers(
    ours, hyperjax_side.make_batch(shape, CONFIG.vocab_size), method, new_tokens=5, at_once=2
  )
  found, their_kept = torch_baselines.answers(
    theirs, torch.tensor(tokens.support).long(), torch.tensor(tokens.query[0]).long(), method,
    new_tokens=5, at_once=2,
  )  # fmt: skip
  np.testing.assert_array_equal(ids, found.numpy())
  assert ids.shape == (3, 5) and len(np.unique(ids)) > 3 and kept == their_kept


def test_the_gist_mask_is_the_drawn_one():
  assert torch_baselines.gist_mask(2, 1, 2).int().tolist() == [
    [1, 0, 0, 0, 0],
    [1, 1, 0, 0, 0],
    [1, 1, 1, 0, 0],
    [0, 0, 1, 1, 0],
    [0, 0, 1, 1, 1],
  ]


# ---- Measuring -----------------------------------------------------------------------------------


def test_the_arithmetic_is_that_of_the_products():
  c = dataclasses.replace(
    CONFIG, d_model=4, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=2, d_mlp=8, vocab_size=10
  )
  # q 16, k 8, v 8, o 16, MLP 3 * 32 weights a block; scores and values 2 * 4 a pair.
  assert work.Pass(3, 6, 1).flops(c) == 2 * (3 * 144 + 6 * 8 + 40)
  assert work.Pass(3, 6, 1).flops(c, backward=True) == 2 * (2 * (3 * 144 + 40) + 3 * 6 * 8)
  assert work.reads(3) == work.Pass(3, 1 + 2 + 3, 0)
  assert work.reads(2, before=5, logits=1) * 2 + work.reads(1) == work.Pass(5, 2 * 13 + 1, 2)


def contestant(run) -> beside.Contestant:
  """One whose process imports nothing but what measures it."""
  side = {"run": run, "rate": functools.partial(float, 8), "facts": {"on": "paper"}}
  return beside.Contestant("quick", "benchmarks.beside:Side", side, cost=2.0)


def test_a_process_of_its_own_takes_its_turns():
  with beside.Worker(contestant(functools.partial(dict, tokens=4))) as worker:
    assert worker.facts == {"on": "paper"} and worker.first.found == {"tokens": 4}
    turn = worker.run()
    assert turn.found == {"tokens": 4} and turn.seconds < 1 and 5 < turn.peak_mib < 100
    assert worker.rate() == 8


def test_a_process_that_fails_or_is_ended_is_named():
  with pytest.raises(RuntimeError, match="quick: ZeroDivisionError"):
    beside.Worker(contestant(functools.partial(operator.truediv, 1, 0)))
  with pytest.raises(RuntimeError, match="quick: its process was ended .exit status 3."):
    beside.Worker(contestant(functools.partial(os._exit, 3)))


def test_the_peak_of_memory_is_that_of_the_turn():
  before = beside.timed(dict).peak_mib
  turn = beside.timed(lambda: {"tokens": len(b"x" * 2**28)})
  assert 250 < turn.peak_mib - before < 300
  assert beside.timed(dict).peak_mib < before + 50


def test_rows_hold_medians_and_floors(monkeypatch):
  turns = iter([2.0, 1.0, 4.0, 2.0, 8.0])
  monkeypatch.setattr(
    beside, "timed", lambda run: beside.Turn(next(turns), 10.0, {"tokens": 4})
  )
  monkeypatch.setattr(beside, "Worker", beside.Local)
  (row,) = beside.take_turns([contestant(dict)], rounds=3)
  assert row["first_seconds"] == 2 and row["seconds"] == [1, 4, 2] and row["median_seconds"] == 2
  assert row["tokens_per_second"] == 2 and row["floor_seconds"] == 4 * 2 / 8
  assert row["share"] == 0.5 and row["peak_mib"] == 10


def test_what_is_missing_is_named(monkeypatch, capsys):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda name: None if name in ("torch", "peft") else find(name)
  )
  monkeypatch.setattr("sys.argv", ["adapt"])
  with pytest.raises(SystemExit):
    importlib.import_module("benchmarks.adapt").main()
  message = capsys.readouterr().err
  assert "needs torch and peft: pip install -r requirements-test.txt" in message


@pytest.mark.parametrize("name, arguments, message", [
  ("train_step", ["--shape", "9,3,6"], "must be four numbers, not 3"),
  ("train_step", ["--rounds", "0"], "must be at least 1, not 0"),
  ("train_step", ["--shape", "9,3,2,6"], "6 target tokens do not fit a query of 2"),
  ("decode", ["--model", "lama"], "models/lama.gin"),
])  # fmt: skip
def test_what_is_asked_wrongly_is_named(name, arguments, message, monkeypatch, capsys):
  monkeypatch.setattr("sys.argv", [name, *arguments])
  with pytest.raises(SystemExit) as ended:  # argparse ends by itself
    sys.exit(importlib.import_module(f"benchmarks.{name}").main())
  assert ended.value.code in (1, 2)
  assert message in capsys.readouterr().err
