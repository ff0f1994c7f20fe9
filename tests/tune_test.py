"""What is tuned on and what is asked; runs of the command are in `baselines_test`."""

import json

from hyperjax.data.manifest import Manifest
from hyperjax.hypermodels.tuned import FullConfig
from hyperjax.tune import Bench, Method, TuneConfig
from tests.data.fakes import numbered, write_examples, write_folder


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
