"""What is tuned on and what is asked; runs of the command are in `baselines_test`."""

import json

import pytest

from hyperjax.data.manifest import Manifest
from hyperjax.hypermodels.prompts import GistTokens, SoftPromptConfig
from hyperjax.hypermodels.tuned import FullConfig
from hyperjax.training.optimizers import AdamW, Schedule
from hyperjax.tune import Bench, Method, TuneConfig, Tuner
from tests.data.fakes import Bytes, numbered, write_examples, write_folder
from tests.models import tiny, tiny_t5


def test_no_tuning_example_has_the_input_of_a_query_of_another_split(tmp_path):
  """The test split repeats examples of the training split, as real data sets do."""
  write_folder(tmp_path, {"t": numbered(30)})
  values = json.loads((tmp_path / "manifest.json").read_text())
  meta = write_examples(tmp_path / "stores" / "test", numbered(6))
  values["tasks"]["t"]["splits"]["test"] = {"store": "stores/test", "source": "", **meta}
  (tmp_path / "manifest.json").write_text(json.dumps(values))
  methods = {"m": Method(FullConfig(), None, num_examples=24)}
  config = TuneConfig(batch_size=4, max_queries=6)
  bench = Bench.open(Manifest.load(tmp_path), ["t"], methods, config, "decoder")
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
  curve = Tuner.build(method, downstream, encode, shared, None).curve(bench, "t", 0)
  assert [point["step"] for point in curve] == [0, 4]
  assert curve[1]["log_likelihood"] > curve[0]["log_likelihood"] + 0.1
