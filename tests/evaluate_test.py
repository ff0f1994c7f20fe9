"""The command on a finished tiny run: its records, its report, stored answers, what it refuses."""

import collections
import dataclasses
import json
import math
import re
import shutil
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperjax import adapt, adapters, answers, evaluate, launch, predict, runs, train
from hyperjax.data import eval_sets, loader
from hyperjax.data.caclm import CaclmConfig
from hyperjax.evaluation import report
from hyperjax.models import families
from tests import tiny as tiny_lib
from tests.models import tiny as models_tiny

tiny = tiny_lib.fixture
SEEDS = (0, 1)
CONTROLS = ("other_task_support", "shuffled_outputs")


def arguments(out, by_method, *more: str, **macros) -> list[str]:
  given = {"EVAL_OUTPUT_DIR": out, "RUNS": {k: str(v) for k, v in by_method.items()},
           "NUM_SHOTS": 3, "NUM_QUERIES": 4, "MAX_QUERIES": 10, "SEEDS": SEEDS, "BATCH_SIZE": 4,
           "MAX_SHAPES": 1, **macros}  # fmt: skip
  bindings = [f"--gin.{name}={value}" for name, value in given.items()]
  return ["--gin_file=runs/evaluate.gin", *bindings, *more]


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
  """(folder of a report, {method: records}); the run is compared with itself as a second method."""
  out = tmp_path_factory.mktemp("evaluation") / "report"
  assert evaluate.main(arguments(out, {"hyperllama": tiny.run, "again": tiny.run})) == 0
  return out, report.read_records(out)


@pytest.fixture(scope="module")
def parts(tiny):
  """(the run, its held-out data folder's manifest)."""
  run = runs.load(tiny.run)
  data = launch.configured(tiny.run, "hyperjax.train", "train")["data"].held_out
  return run, data.open(run.vocabulary)


# ---- Records -------------------------------------------------------------------------------------


def test_all_methods_answer_the_same_queries(finished):
  _, records = finished
  assert list(records) == [
    "zero_shot", "in_context", "hyperllama", *CONTROLS, "again", "in_context_shuffled"
  ]
  key = lambda r: (r["task"], r["seed"], r["query_id"], r["input"], r["target"])
  asked = {method: sorted(map(key, found)) for method, found in records.items()}
  assert all(queries == asked["zero_shot"] for queries in asked.values())
  counted = collections.Counter((task, seed) for task, seed, *_ in asked["zero_shot"])
  assert counted == {(f"held_out.{t}", s): 10 for t in tiny_lib.HELD_OUT for s in SEEDS}
  assert len(set(asked["zero_shot"])) == len(asked["zero_shot"])


def test_records_say_what_was_asked_and_answered(finished):
  _, records = finished
  rows = {
    f"held_out.{name}|Q: {row['input']}\nA:": row
    for name in tiny_lib.HELD_OUT for row in tiny_lib.examples()[name]
  }  # fmt: skip
  for found in records.values():
    for record in found:
      row = rows[f"{record['task']}|{record['input']}"]
      assert record["target"] == row["output"]
      assert record["exact_match"] == int(record["prediction"] == row["output"])
      assert record["log_likelihood"] < 0 and record["tokens"] >= 2
      assert ("option_correct" in record) == ("options" in row)
  # What is compared is not all alike.
  assert 0 < sum(r["exact_match"] for r in records["hyperllama"]) < len(records["hyperllama"])


def test_the_same_run_under_two_names_answers_alike(finished):
  _, records = finished
  assert records["hyperllama"] == records["again"]


def test_methods_differ_where_they_should(finished):
  _, records = finished
  likelihood = {m: [r["log_likelihood"] for r in found] for m, found in records.items()}
  for method in ("zero_shot", "in_context", *CONTROLS):
    assert likelihood[method] != likelihood["hyperllama"], method
  by_seed = collections.defaultdict(list)
  for record in records["hyperllama"]:
    by_seed[record["seed"]].append(record["log_likelihood"])
  assert by_seed[0] != by_seed[1]
  zero = [r for r in records["zero_shot"] if r["seed"] == 0]
  again = [{**r, "seed": 0} for r in records["zero_shot"] if r["seed"] == 1]
  assert zero == again  # it reads no support


def test_controls_read_other_supports(parts):
  run, manifest = parts
  config = eval_sets.EvalConfig(num_shots=3, num_queries=4, max_queries=10)

  def drawn(**control):
    groups = eval_sets.groups(manifest, config, 0, **control)
    return [e for group in groups for e in group.episodes]

  plain, other, shuffled = drawn(), drawn(other_support=True), drawn(shuffle_outputs=True)
  ids = lambda episodes: [[q.id for q in e.queries] for e in episodes]
  assert ids(plain) == ids(other) == ids(shuffled)
  for a, b, c in zip(plain, other, shuffled, strict=True):
    assert a.task == b.task == c.task
    text = run.vocabulary.decode(b.support.tolist())
    theirs = "pick" if a.task.endswith("held_words") else "word"
    assert theirs in text and theirs not in run.vocabulary.decode(a.support.tolist())
    assert a.support_ids == c.support_ids


def test_teacher_forcing_counts_as_many_matches_as_greedy_decoding(tiny, tmp_path, parts):
  """The figures that training watches are those of an evaluation of the same episodes."""
  run, _ = parts
  given = launch.configured(tiny.run, "hyperjax.train", "train")
  system = train.step_lib.System(run.producer, run.downstream)
  split = train.step_lib.split(system)
  watch = train.Watch.open(given["data"], run.vocabulary, split.graph, "decoder")
  watched = watch.measure(split.trained, split.frozen)
  config = dataclasses.replace(given["data"].evaluation, seeds=(0,))
  macros = dict(NUM_QUERIES=config.num_queries, MAX_QUERIES=config.max_queries, SEEDS="(0,)",
                BATCH_SIZE=config.batch_size, MAX_SHAPES=config.max_shapes)  # fmt: skip
  out = tmp_path / "report"
  assert evaluate.main(arguments(out, {"hyperllama": tiny.run}, **macros)) == 0
  records = report.read_records(out)["hyperllama"]
  mean = lambda name: float(np.mean([r[name] for r in records]))
  assert watched["held_out/exact_match"] == mean("exact_match") > 0
  assert watched["held_out/log_likelihood"] == pytest.approx(mean("log_likelihood"), abs=1e-3)
  written = [json.loads(x) for x in (tiny.run / "metrics.jsonl").read_text().splitlines()]
  last = [line for line in written if "held_out/exact_match" in line][-1]
  assert last["held_out/exact_match"] == watched["held_out/exact_match"]
  assert last["step"] == tiny_lib.STEPS


def test_options_are_ranked_as_one_by_one(finished, parts):
  """Each option of each query alone, in a batch of one episode that fits it."""
  _, records = finished
  run, manifest = parts
  config = eval_sets.EvalConfig(num_shots=3, num_queries=4, max_queries=10)
  expected = {}
  groups = eval_sets.groups(manifest, config, 1)
  episodes = [e for g in groups for e in g.episodes if e.task == "held_out.held_choice"]
  for episode in episodes[:2]:
    for query in episode.queries:
      scores = []
      for option in query.options:
        asked = dataclasses.replace(
          episode, queries=(dataclasses.replace(query, target=option),)
        )
        batch, counts = loader.to_batch([asked], loader.fit([asked]))
        assert counts.targets_cut == 0
        batch = jax.tree.map(jnp.asarray, batch)
        phi = run.producer(run.downstream, batch.support)
        logits = run.downstream(batch.query, phi)[0, 0]
        chosen = jnp.take_along_axis(logits, batch.targets[0, 0][:, None], -1)[:, 0]
        normaliser = jnp.log(jnp.exp(logits - logits.max(-1, keepdims=True)).sum(-1))
        each = chosen - logits.max(-1) - normaliser
        scores.append(float((each * batch.weights[0, 0]).sum()))
      best = max(range(len(scores)), key=scores.__getitem__)
      expected[query.id] = int(query.options[best].tolist() == query.target.tolist())
  found = {
    r["query_id"]: r["option_correct"] for r in records["hyperllama"]
    if r["task"] == "held_out.held_choice" and r["seed"] == 1
  }  # fmt: skip
  assert len(expected) == 8
  assert {name: found[name] for name in expected} == expected


# ---- The report ----------------------------------------------------------------------------------


def test_results_have_the_promised_form(finished):
  out, records = finished
  results = json.loads((out / "results.json").read_text())
  assert {"methods", "recovery", "tasks", "command", "config", "versions"} <= set(results)
  assert set(results["methods"]) == set(records)
  for found in results["methods"].values():
    for figure in ("exact_match", "log_likelihood"):
      assert set(found[figure]) == {"mean", "low", "high"}
      assert found[figure]["low"] <= found[figure]["mean"] <= found[figure]["high"]
  assert {"mean", "low", "high"} <= set(results["recovery"]["exact_match"])
  assert sorted(results["tasks"]) == sorted(f"held_out.{name}" for name in tiny_lib.HELD_OUT)
  for method, found in records.items():
    for task in results["tasks"]:
      by_seed = [
        np.mean([r["exact_match"] for r in found if r["task"] == task and r["seed"] == seed])
        for seed in SEEDS
      ]
      mean = results["tasks"][task][method]["exact_match"]
      assert math.isclose(mean, np.mean(by_seed), abs_tol=1e-12)
  assert results["command"].startswith("hyperjax evaluate ")
  assert "EVAL_OUTPUT_DIR" in results["config"]
  assert {"jax", "flax", "hyperjax"} <= set(results["versions"])


def test_the_report_is_written(finished):
  out, _ = finished
  text = (out / "report.md").read_text()
  assert text.startswith("# Held-out tasks") and "held_choice" in text
  for image in ("methods.png", "tasks.png", "curve.png"):
    assert f"]({image})" in text
    assert (out / image).read_bytes().startswith(b"\x89PNG")
  assert (out / "config.gin").exists()


def test_curves_are_of_the_runs_that_have_metrics_and_of_their_whole_lines(tmp_path):
  metrics = {
    "whole": '{"step": 0, "held_out/exact_match": 0.25}\n',
    "cut": '{"step": 4, "minutes": 2.0, "held_out/exact_match": 0.5}\n{"step": 8, "minu',
    "unwatched": '{"step": 4, "minutes": 2.0, "loss": 0.5}\n',
    "without": None,
  }
  for name, text in metrics.items():
    (tmp_path / name).mkdir()
    if text is not None:
      (tmp_path / name / "metrics.jsonl").write_text(text)
  found = evaluate._curves({name: str(tmp_path / name) for name in metrics})
  assert found == {"whole": [(0.0, 0.25)], "cut": [(2.0, 0.5)]}


def test_stored_answers_are_read_back(tiny, finished, monkeypatch):
  out, _ = finished
  before = json.loads((out / "results.json").read_text())
  (out / "results.json").unlink()

  def score(*_):
    raise AssertionError("scored again")

  monkeypatch.setattr(answers.Scorer, "score", score)
  assert evaluate.main(arguments(out, {"hyperllama": tiny.run, "again": tiny.run})) == 0
  assert json.loads((out / "results.json").read_text())["methods"] == before["methods"]
  with pytest.raises(AssertionError, match="scored again"):  # another seed is not among them
    evaluate.main(arguments(out, {"hyperllama": tiny.run}, SEEDS="(5,)"))


def test_a_killed_evaluation_goes_on_in_the_middle_of_a_method(
  tiny, finished, tmp_path, monkeypatch
):
  """Only what is missing is computed, and all is as if nothing had happened."""
  calls = []
  original = answers.Scorer.score

  def score(self, method, part, advance):
    calls.append((type(method.producer).__name__, part.batches))
    if len(calls) == 4:
      raise KeyboardInterrupt
    return original(self, method, part, advance)

  monkeypatch.setattr(answers, "_PART_BATCHES", 1)
  monkeypatch.setattr(answers.Scorer, "score", score)
  given = arguments(tmp_path, {"hyperllama": tiny.run}, SEEDS="(0,)")
  assert evaluate.main(given) == 130
  first, second = range(1), range(1, 2)
  every = lambda name: [(name, first), (name, second)]
  assert calls == every("NoPhi") + every("InContext")
  kept = sorted(p for p in (tmp_path / "answers").rglob("*") if p.is_file())
  names = [str(p.relative_to(tmp_path / "answers")) for p in kept]
  assert len(names) == 2
  assert re.fullmatch(r"in_context-0-\w{16}/\w{8}-0-1\.json", names[0])
  assert re.fullmatch(r"zero_shot-0-\w{16}\.json", names[1])
  calls[:] = [None] * 10
  assert evaluate.main(given) == 0
  assert calls[10:] == [("InContext", second), *every("HyperLlama") * 3, *every("InContext")]
  assert all(p.is_file() for p in (tmp_path / "answers").iterdir())
  found, whole = report.read_records(tmp_path), finished[1]
  for method, records in found.items():
    expected = [r for r in whole[method] if r["seed"] == 0]
    likelihood = lambda given: [r.pop("log_likelihood") for r in map(dict, given)]
    assert likelihood(records) == pytest.approx(likelihood(expected), rel=1e-5)
    rest = lambda given: [{k: v for k, v in r.items() if k != "log_likelihood"} for r in given]
    assert rest(records) == rest(expected), method


def test_what_one_run_trained_is_held_at_a_time(tiny, tmp_path, monkeypatch):
  """Its controls are asked with what it was asked with."""
  held, asked, load, collect = [], [], runs.load, answers.collect
  alive = lambda: sum(array() is not None for array in held)

  def loaded(*given, **more):
    assert not alive()
    run = load(*given, **more)
    held.append(weakref.ref(run.producer.gist[...]))
    return run

  def collected(folder, name, *rest):
    asked.append((name, len(held), alive()))
    return collect(folder, name, *rest)

  monkeypatch.setattr(runs, "load", loaded)
  monkeypatch.setattr(answers, "collect", collected)
  by_method = dict.fromkeys(("hyperllama", "second", "third"), tiny.run)
  assert evaluate.main(arguments(tmp_path, by_method, SEEDS="(0,)", MAX_QUERIES=4)) == 0
  assert asked == [
    ("zero_shot", 0, 0), ("in_context", 0, 0),
    *((name, 1, 1) for name in ("hyperllama", *CONTROLS)), ("second", 2, 1), ("third", 3, 1),
    ("in_context_shuffled", 3, 0),
  ]  # fmt: skip


def test_a_dry_run_scores_nothing(tiny, tmp_path, capsys):
  out = tmp_path / "report"
  assert evaluate.main(arguments(out, {"hyperllama": tiny.run}, "--dry_run")) == 0
  text = capsys.readouterr().out
  assert "zero_shot, in_context, hyperllama, 3 controls" in text and "held_out in" in text
  n = jax.device_count()
  assert f"devices    data {n} x fsdp 1 x tensor 1: {n}, where this machine has {n}\n" in text
  assert not out.exists()


def test_a_dry_run_counts_the_controls_of_a_run_without_tasks_of_its_own(
  tiny, tmp_path, capsys, monkeypatch
):
  """One on running text, on the tasks of a data file."""
  given = runs.configured(tiny.run)
  data = dataclasses.replace(given["data"], episodes=CaclmConfig())
  monkeypatch.setattr(runs, "configured", lambda _: {**given, "data": data})
  assert evaluate.main([*alone(tiny, tmp_path / "report", tiny.run), "--dry_run"]) == 0
  assert "methods    zero_shot, in_context, mine, 3 controls\n" in capsys.readouterr().out


def test_a_dry_run_checks_mesh_and_batch_as_the_run_does(tiny, tmp_path, capsys, monkeypatch):
  three = jax.devices()[:1] * 3
  monkeypatch.setattr(jax, "devices", lambda: three)
  ask = lambda *more, **macros: tiny_lib.refused(capsys, evaluate.main(
    arguments(tmp_path / "report", {"hyperllama": tiny.run}, *more, **macros)
  ))  # fmt: skip
  for more in (["--dry_run"], []):
    assert ask(*more, MESH_FSDP=2).startswith("a mesh of data 1 x fsdp 2 x tensor 1 does not fit 3")
    assert ask(*more).startswith("4 episodes cannot be shared out evenly over data 3 x fsdp 1: ")


def test_examples_beyond_the_models_context_are_remarked_on(tiny, tmp_path, capsys, monkeypatch):
  """The tiny model's config.json says 256; 30 examples have more tokens."""

  def collect(folder, name, method, seed, scorer, bar):
    scorer.parts(method, seed)
    raise KeyboardInterrupt

  monkeypatch.setattr(answers, "collect", collect)
  given = arguments(tmp_path, {"hyperllama": tiny.run}, NUM_SHOTS=30)
  assert evaluate.main(given) == 130
  [note] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
  assert "held_out.held_words" in note and "the model was trained for 256: " in note


# ---- Adapters ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
  """A random prefix under which the model answers every input otherwise."""
  folder = tmp_path_factory.mktemp("adapter") / "adapter"
  run = runs.load(tiny.run)
  base = adapters.Base(
    run.model.source, run.config, run.model_fingerprint, run.vocabulary.fingerprint
  )
  spec = run.downstream.phi_spec(["decoder.self.prefix"], prefix_length=3)
  phi = models_tiny.random_phi(spec, 1)
  adapters.save(folder, adapters.Adapter(phi, base, run.prompt.to_json()))
  return folder


def alone(tiny, out, folder) -> list[str]:
  """The command line for an adapter without a run, on the tasks of a data file."""
  files = ("models/llama_tiny.gin", "data/fewshot.gin", "runs/evaluate_on.gin")
  given = {
    "EVAL_OUTPUT_DIR": out, "RUNS": {"mine": str(folder)}, "MODEL_SOURCE": tiny.model,
    "VOCABULARY": "%MODEL_SOURCE", "FEWSHOT_DIR": tiny.tasks, "DATA_DIR": tiny.data,
    "FEWSHOT_HELD_OUT": tiny_lib.HELD_OUT, "evaluate.evaluate.hypermodel": "'mine'",
    "NUM_SHOTS": 3, "NUM_QUERIES": 4, "MAX_QUERIES": 10, "SEEDS": (0, 1), "BATCH_SIZE": 4,
    "MAX_SHAPES": 1, "MAX_NEW_TOKENS": 5,
  }  # fmt: skip
  bindings = [f"--gin.{name}={value}" for name, value in given.items()]
  return [*(f"--gin_file={file}" for file in files), *bindings]


def test_an_adapter_answers_as_predict_does(tiny, adapter, tmp_path, capsys):
  """Alone, with the model that it names; and what it answers does not depend on the seed."""
  assert evaluate.main(alone(tiny, tmp_path / "report", adapter)) == 0
  records = report.read_records(tmp_path / "report")
  assert list(records) == ["zero_shot", "in_context", "mine", "in_context_shuffled"]
  found = records["mine"]
  assert [r["prediction"] for r in found] != [r["prediction"] for r in records["zero_shot"]]
  of_seed = lambda seed: [{**r, "seed": 0} for r in found if r["seed"] == seed]
  assert of_seed(0) == of_seed(1) and len(of_seed(0)) == 20
  inputs = [r["input"].removeprefix("Q: ").removesuffix("\nA:") for r in of_seed(0)]
  asked = [argument for text in inputs for argument in ("--input", text)]
  args = predict.parser().parse_args(["--adapter", str(adapter), *asked, "--max_new_tokens", "5"])
  expected = [answer["prediction"] for answer in predict.predict(args)]
  assert [r["prediction"] for r in of_seed(0)] == expected and len(set(expected)) > 1
  results = json.loads((tmp_path / "report" / "results.json").read_text())
  assert results["hypermodel"] == "mine"


def test_adapters_stand_beside_a_run(tiny, adapter, tmp_path, capsys):
  """One that the run made of examples; and PEFT's own folder, which says nothing of model and
  prompt: it is taken as it is, with a note."""
  examples, made, peft = tmp_path / "examples.json", tmp_path / "made", tmp_path / "peft"
  rows = tiny_lib.examples()["held_choice"][:5]
  examples.write_text(json.dumps([{k: row[k] for k in ("input", "output")} for row in rows]))
  assert adapt.main([
    "--checkpoint", str(tiny.run), "--examples", str(examples), "--out", str(made)
  ]) == 0  # fmt: skip
  shutil.copytree(adapter, peft)
  (peft / adapters.META).unlink()
  by_method = {"hyperllama": tiny.run, "made": made, "random": adapter, "peft": peft}
  out = tmp_path / "report"
  assert evaluate.main(arguments(out, by_method, SEEDS="(0,)", MAX_QUERIES=4)) == 0
  assert f"note: {peft} has no fingerprint of its model: unverified" in capsys.readouterr().err
  records = report.read_records(out)
  assert records["random"] == records["peft"] != records["made"] != records["hyperllama"]
  assert (out / "curve.png").exists()  # the run's


def changed(adapter, folder, **values):
  """A copy of an adapter whose hyperjax.json says something else."""
  shutil.copytree(adapter, folder)
  meta = json.loads((folder / adapters.META).read_text())
  (folder / adapters.META).write_text(json.dumps({**meta, **values}))
  return folder


def test_an_adapter_for_something_else_is_refused(tiny, adapter, tmp_path, capsys):
  meta = json.loads((adapter / adapters.META).read_text())
  cases = {
    "model": ({**meta["model"], "fingerprint": "0" * 64}, "was made for the model"),
    "prompt": ({**meta["prompt"], "name": "mine"}, "was trained with the prompt format 'mine'"),
    "vocabulary": ({"fingerprint": "0" * 64}, "was made with the vocabulary of"),
  }
  for field, (value, message) in cases.items():
    folder = changed(adapter, tmp_path / field, **{field: value})
    status = evaluate.main(
      arguments(tmp_path / "out", {"hyperllama": tiny.run, "other": folder}, SEEDS="(0,)")
    )
    found = tiny_lib.refused(capsys, status)
    assert found.startswith(f"{folder} {message}"), field


def test_an_adapter_alone_needs_a_data_file(tiny, adapter, tmp_path, capsys):
  status = evaluate.main(arguments(tmp_path / "out", {"hyperllama": adapter}))
  assert tiny_lib.refused(capsys, status) == (
    f"{adapter} names no held-out tasks, like all adapters and runs on running text: name a data "
    "file and runs/evaluate_on.gin, or another run as evaluate.evaluate.hypermodel"
  )
  assert evaluate.main([*alone(tiny, tmp_path / "out", adapter), "--dry_run"]) == 0
  assert "zero_shot, in_context, mine, 1 control" in capsys.readouterr().out


# ---- What is refused -----------------------------------------------------------------------------


def test_a_hypermodel_that_is_no_run_is_refused(tiny, tmp_path, capsys):
  status = evaluate.main(arguments(tmp_path / "out", {"mine": tiny.run}))
  message = tiny_lib.refused(capsys, status)
  assert message == (
    "hypermodel 'hyperllama' is none of the runs ['mine']: name its folder in RUNS, or set "
    "evaluate.evaluate.hypermodel"
  )


@pytest.mark.parametrize("name", ["zero_shot", "in_context", *CONTROLS, "in_context_shuffled"])
def test_a_run_called_like_a_method_of_every_evaluation_is_refused(tmp_path, capsys, name):
  """Before any folder is looked into: the report would show one under the name of the other."""
  status = evaluate.main(arguments(tmp_path / "out", {"hyperllama": "runs/a", name: "runs/b"}))
  assert tiny_lib.refused(capsys, status) == (
    f"RUNS calls runs/b {name!r}, as the evaluation calls a method of its own: give it another "
    "name than zero_shot, in_context, other_task_support, shuffled_outputs, in_context_shuffled"
  )


def test_a_report_into_the_folder_of_a_run_is_refused(tiny, capsys):
  """It would replace the run's config.gin, without which nothing can open it."""
  before = {path: path.stat().st_mtime_ns for path in tiny.run.rglob("*")}
  status = evaluate.main(arguments(tiny.run, {"hyperllama": tiny.run}))
  assert tiny_lib.refused(capsys, status) == (
    f"EVAL_OUTPUT_DIR is {tiny.run}, the folder of a run of hyperjax train (its config.gin says "
    f"so): name another folder, such as {tiny.run}/evaluate."
  )
  assert {path: path.stat().st_mtime_ns for path in tiny.run.rglob("*")} == before


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
  status = evaluate.main(arguments(tmp_path / "out", {"hyperllama": tmp_path / "none"}))
  message = tiny_lib.refused(capsys, status)
  assert message == f"{tmp_path / 'none'} is not the folder of a run: no config.gin in it."


def test_a_run_without_a_checkpoint_is_refused(tiny, tmp_path, capsys):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "config.gin").write_bytes((tiny.run / "config.gin").read_bytes())
  status = evaluate.main(arguments(tmp_path / "out", {"hyperllama": tmp_path / "run"}))
  message = tiny_lib.refused(capsys, status)
  assert message == f"{tmp_path / 'run' / 'checkpoints'} holds no complete checkpoint"
  assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.gin"]


def test_a_wrong_run_is_refused_before_another_is_asked(tiny, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(answers, "collect", None)
  monkeypatch.setattr(runs, "load", None)
  about = f"checkpoints/{tiny_lib.STEPS}/about/metadata"
  other = "was trained with the prompt format"
  cases = {
    "prompt": ("config.gin", "PROMPT = 'qa'", "PROMPT = 'short'", f"{other} 'short'"),
    "vocabulary": ("config.gin", f"VOCABULARY = '{tiny.model}'", "VOCABULARY = 'bytes'", other),
    "model": (about, families.fingerprint(tiny.model), "0" * 64,
              f"was trained on a frozen model with fingerprint {'0' * 64}"),
  }  # fmt: skip
  for name, (file, old, new, message) in cases.items():
    folder = shutil.copytree(tiny.run, tmp_path / name)
    text = (folder / file).read_text()
    assert text.count(old) == 1, name
    (folder / file).write_text(text.replace(old, new))
    given = arguments(tmp_path / "out", {"hyperllama": tiny.run, "wrong": folder})
    found = tiny_lib.refused(capsys, evaluate.main(given))
    assert str(folder) in found and message in found, name
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("macros, message", [
  (dict(NUM_QUERIES=0), "EvalConfig.num_queries must be at least 1, not 0"),
  (dict(SEEDS="()"), "EvalConfig.seeds is empty"),
  (dict(NUM_SHOTS=40), "has too few examples for num_shots=40"),
  (dict(NUM_SHOTS=None), "for num_shots=None: split 'train' has 40 examples, all of them in"),
  ({"eval_sets.EvalConfig.include": "['held_out.held_word']"},
   "Did you mean 'held_out.held_words'?"),
])
def test_a_wrong_value_is_named(tiny, tmp_path, capsys, macros, message):
  status = evaluate.main(arguments(tmp_path, {"hyperllama": tiny.run}, **macros))
  assert message in tiny_lib.refused(capsys, status)
