"""A mixture of mixtures: rates within and between them, and what is wrong with one."""

import json

import pytest

from hyperjax.data import build as build_lib
from hyperjax.data.manifest import DataConfig
from hyperjax.tasks import fewshot, mixture
from tests.data.fakes import PROMPT, Bytes


def folder(path, name: str, *tasks: str) -> fewshot.Folder:
  path.mkdir()
  for task in tasks:
    rows = [{"input": f"{task} {i}", "output": str(i)} for i in range(3)]
    (path / f"{task}.json").write_text(json.dumps(rows))
  return fewshot.Folder(str(path), name=name)


def test_parts_have_their_weights_and_keep_their_own_rates(tmp_path):
  sources = [
    folder(tmp_path / "a", "mixed_a", "one", "two"), folder(tmp_path / "b", "mixed_b", "three"),
    mixture.Mixture({"mixed_a": 1, "mixed_b": 3.0}, name="mixed"),
  ]  # fmt: skip
  config = DataConfig("mixed", "bytes", prompt=PROMPT, sources=sources)
  assert DataConfig.from_json(config.to_json()).hash() == config.hash()
  manifest = build_lib.build(config, tmp_path / "out", vocabulary=Bytes())
  rates = {task: manifest.rate(task) for task in manifest.tasks}
  want = {"mixed_a.one": 1 / 8, "mixed_a.two": 1 / 8, "mixed_b.three": 3 / 4}
  assert rates == pytest.approx(want)


@pytest.mark.parametrize("rates, message", [
  ({}, "rates names nothing"), ({"a": 0.0}, "the rate of 'a' is 0.0"),
  ({"a": float("nan")}, "the rate of 'a' is nan"),
])  # fmt: skip
def test_wrong_rates_are_named(rates, message):
  with pytest.raises(ValueError, match=message):
    mixture.Mixture(rates)


def test_a_part_that_nobody_registered_is_named(tmp_path):
  folder(tmp_path / "c", "mixed_c", "one").register()
  with pytest.raises(ValueError, match="'mixed_d' is registered; its source.*mean 'mixed_c'"):
    mixture.Mixture({"mixed_d": 1.0}).register()
