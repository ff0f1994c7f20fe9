"""What is tuned on and what is asked; runs of the command are in `baselines_test`."""

import dataclasses

import jax
import pytest

from hyperjax import runs, tune
from hyperjax.core.sharding import MeshConfig
from hyperjax.data import layouts, loader
from hyperjax.data.manifest import Manifest
from hyperjax.data.tuning import Bench
from hyperjax.hypermodels.prompts import GistTokens, SoftPromptConfig
from hyperjax.hypermodels.tuned import FullConfig, TunedConfig
from hyperjax.training.optimizers import AdamW, Schedule
from hyperjax.tune import Method, Start, TuneConfig, Tuner
from tests import tiny as tiny_lib
from tests.data.fakes import Bytes, numbered, write_folder
from tests.models import tiny, tiny_t5

setting = tiny_lib.fixture

STARTED = Method(TunedConfig(["*.*.prefix"], prefix_length=2), AdamW(Schedule(0.1)), Start("run"))


@pytest.mark.parametrize("split", ["train", "support_0"])
def test_no_tuning_example_has_the_input_of_a_query_of_another_split(tmp_path, split):
  """The test split repeats examples that are tuned on, as real data sets do."""
  manifest = write_folder(tmp_path, {"t": {split: numbered(30), "test": numbered(6)}})
  methods = {"m": Method(FullConfig(), None, num_examples=24)}
  config = TuneConfig(batch_size=4, max_queries=6)
  bench = Bench.open(manifest, ["t"], methods, config, "decoder")
  asked = {query.input.tobytes() for e in bench.asked("t") for query in e.queries}
  sampler, ids = bench.examples("t", 0, 24)
  tuned_on = {sampler.query(index).input.tobytes() for index in ids}
  assert len(asked) == 6 and len(tuned_on) == 24 and not asked & tuned_on


@pytest.mark.parametrize("model", ["t5", "llama"])
def test_a_soft_prompt_is_tuned(tmp_path, model):
  write_folder(tmp_path, {"t": numbered(30)}, adds_bos=model == "llama")
  downstream = {"t5": tiny_t5.t5, "llama": tiny.llama}[model](vocab_size=Bytes.size)
  optimizer = AdamW(Schedule(0.1, decay="constant"))
  method = Method(SoftPromptConfig(GistTokens(3, "ab")), optimizer, num_examples=8)
  shared = TuneConfig(steps=4, measure=(0, 4), batch_size=4, num_shots=2, max_queries=4)
  layout = downstream.config.layout
  bench = Bench.open(Manifest.load(tmp_path), ["t"], {"m": method}, shared, layout)
  encode = lambda text: Bytes().encode_batch([text])[0]
  mesh = MeshConfig().build(jax.devices()[:1])
  curve = Tuner.build(method, downstream, encode, shared, None, mesh).curve(bench, "t", 0)
  assert [point["step"] for point in curve] == [0, 4]
  assert curve[1]["log_likelihood"] > curve[0]["log_likelihood"] + 0.1


def test_tuning_that_diverges_is_said(tmp_path):
  write_folder(tmp_path, {"t": numbered(30)})
  method = Method(FullConfig(), AdamW(Schedule(1e30, decay="constant")), num_examples=8)
  shared = TuneConfig(steps=3, measure=(0, 3), batch_size=4, num_shots=2, max_queries=4)
  downstream = tiny.llama(vocab_size=Bytes.size)
  bench = Bench.open(Manifest.load(tmp_path), ["t"], {"m": method}, shared, "decoder")
  mesh = MeshConfig().build(jax.devices()[:1])
  tuner = Tuner.build(method, downstream, lambda text: [], shared, None, mesh)
  with pytest.raises(FloatingPointError, match="t, seed 0: the log-likelihood is nan after step 3"):
    tuner.curve(bench, "t", 0)


def test_nothing_that_is_tuned_on_or_read_is_cut(tmp_path):
  """Lengths differ between tasks and between examples, also of those behind the first support."""
  rows = lambda n: [
    {"input": f"{i} " + "x" * (i * n % 40), "output": "y" * (1 + i * n % 17)} for i in range(60)
  ]
  manifest = write_folder(tmp_path, {"short": rows(1), "long": rows(7)})
  methods = {
    "more": Method(FullConfig(), None, num_examples=40),
    "generated": Method(FullConfig(), None, start=Start("run", supports=3), num_examples=12),
  }
  config = TuneConfig(steps=12, measure=(0,), batch_size=4, max_queries=6, num_shots=4)
  bench = Bench.open(manifest, ["short", "long"], methods, config, "decoder")
  layout = layouts.of("decoder", manifest.vocabulary)
  for task in ("short", "long"):
    for method in methods.values():
      for episode in bench.read(task, 0, method):
        shape = dataclasses.replace(bench.shapes[task], queries=len(episode.queries))
        counts = loader.to_batch([episode], shape, layout)[1]
        cut = counts.shots_dropped, counts.supports_cut, counts.inputs_cut, counts.targets_cut
        assert cut == (0, 0, 0, 0), task
    seen = sum(int((batch.weights.sum(-1) > 0).sum()) for batch in bench.steps(task, 0, 40))
    assert seen == 12 * 4


def test_a_dry_run_checks_the_devices_as_the_run_does(setting, tmp_path, capsys, monkeypatch):
  ask = lambda *more: tune.main([
    "--gin_file=runs/tune_baselines.gin", f"--gin.RUN={setting.run}",
    f"--gin.TUNE_OUTPUT_DIR={tmp_path / 'out'}", *more,
  ])  # fmt: skip
  assert ask("--dry_run") == 0
  out = capsys.readouterr().out
  here = jax.device_count()
  assert f"devices    data 1 x fsdp 1 x tensor 1: 1, where this machine has {here}\n" in out
  three = jax.devices()[:1] * 3
  monkeypatch.setattr(jax, "devices", lambda: three)
  for more in (["--dry_run"], []):
    message = tiny_lib.refused(capsys, ask("--gin.MESH_DATA=-1", "--gin.MESH_TENSOR=2", *more))
    assert message.startswith("a mesh of data 1 x fsdp 1 x tensor 2 does not fit 3 devices")
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("field, value", [("seeds", 3), ("measure", 50), ("tasks", "held_out")])
def test_what_is_no_list_is_refused(field, value):
  config = TuneConfig()
  object.__setattr__(config, field, value)  # past the tests' own check of types
  with pytest.raises(ValueError, match=f"^TuneConfig: {field} must be a list, not {value!r}"):
    config.__post_init__()


def test_a_run_without_held_out_tasks_is_refused(setting, monkeypatch):
  given = runs.configured(setting.run)
  data = dataclasses.replace(given["data"], held_out=None)
  monkeypatch.setattr(runs, "configured", lambda _: {**given, "data": data})
  with pytest.raises(ValueError, match="run was trained without held-out tasks: .*tune.tune.data"):
    tune.tune(output_dir="none", run="run", methods={}, config=TuneConfig())


@pytest.mark.parametrize("changes, message", [
  (dict(hypermodel=FullConfig()), "run: training changed its downstream model too, so its phi on"),
  (dict(inline=True), "run: its inputs hold the examples themselves; no phi takes their place"),
])
def test_a_start_whose_phi_alone_was_not_trained_is_refused(setting, monkeypatch, changes, message):
  given = runs.configured(setting.run)
  if changes.pop("inline", False):
    episodes = dataclasses.replace(given["data"].episodes, inline=True)
    changes = {"data": dataclasses.replace(given["data"], episodes=episodes)}
  monkeypatch.setattr(runs, "configured", lambda _: {**given, **changes})
  with pytest.raises(ValueError, match=message):
    tune.tune(output_dir="none", run="run", methods={"m": STARTED}, config=TuneConfig())


def test_only_a_phi_starts_from_a_run():
  method = dataclasses.replace(STARTED, producer=FullConfig())
  with pytest.raises(ValueError, match="'m' .* start from run: only .*TunedConfig can, not Full"):
    tune.check_start("m", method, None)


def test_a_start_that_reads_texts_in_another_form_is_refused(setting, tmp_path, monkeypatch):
  """Before anything of it is read."""
  given = runs.configured(setting.run)
  config = given["data"].config
  other = dataclasses.replace(config, prompt=dataclasses.replace(config.prompt, name="other"))
  changed = {**given, "data": dataclasses.replace(
    given["data"], data=dataclasses.replace(given["data"].data, config=other)
  )}  # fmt: skip
  monkeypatch.setattr(runs, "configured", lambda run: changed if run == "run" else given)
  monkeypatch.setattr(runs, "load", lambda *_, **__: pytest.fail("read"))
  with pytest.raises(ValueError, match="^run was trained with the prompt format 'other' and the"):
    tune.tune(
      output_dir=str(tmp_path / "out"), run=str(setting.run), methods={"m": STARTED},
      config=TuneConfig(max_queries=4),
    )  # fmt: skip
