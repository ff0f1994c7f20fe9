"""The same gin files on one device, on meshes of eight devices, and in two and four processes."""

import shutil

import numpy as np
import pytest

from hyperjax.training import metrics_writer
from tests import several
from tests import tiny as tiny_lib
from tests.several import Layout
from tests.training.meshes_test import INVOLUNTARY

tiny = tiny_lib.fixture

LAYOUTS = {
  "one": Layout(1, 1, (1, 1, 1)),
  "data": Layout(1, 8, (8, 1, 1)),
  "fsdp": Layout(1, 8, (1, 8, 1)),
  "all": Layout(1, 8, (2, 2, 2)),
  "two": Layout(2, 1, (1, 2, 1)),
  "four": Layout(4, 1, (1, 2, 2)),
}
STEPS, HALF = 20, 10
MACROS = {"TRAIN_STEPS": STEPS, "BATCH_SIZE": 8, "MAX_BUCKETS": 1, "CHECKPOINT_PERIOD": HALF}


def losses(folder) -> list[float]:
  return [line["loss"] for line in metrics_writer.read(folder / "metrics.jsonl")]


def trained(starter, folders, **macros) -> None:
  """Trains on every layout, all at once; checks how they end and what they say."""
  started = {
    name: starter.start(folders[name], layout, **MACROS, **macros)
    for name, layout in LAYOUTS.items()
  }
  for name, run in started.items():
    assert set(starter.statuses(run)) == {0}, f"{name}: {run.text()}"
    assert INVOLUNTARY not in run.text(), name


@pytest.fixture(scope="module")
def starter(tiny, tmp_path_factory):
  with several.starting(tiny, tmp_path_factory.mktemp("logs")) as starter:
    yield starter


@pytest.fixture(scope="module")
def wide(starter, tmp_path_factory):
  """The folders of runs in float64."""
  base = tmp_path_factory.mktemp("float64")
  folders = {name: base / name for name in LAYOUTS}
  trained(starter, folders, DTYPE="float64")
  return folders


def test_in_float64_the_losses_are_the_same(wide):
  one = losses(wide["one"])
  assert len(one) == STEPS and one[-1] < one[0] - 1
  for name, folder in wide.items():
    np.testing.assert_allclose(losses(folder), one, atol=1e-9, rtol=0, err_msg=name)


def test_a_checkpoint_moves_between_all_of_them(wide, starter, tmp_path):
  """Each goes on from what the one before it in a circle has saved half way."""
  folders, names = {name: tmp_path / name for name in LAYOUTS}, [*LAYOUTS]
  for before, name in zip([names[-1], *names], names, strict=False):
    saved = f"checkpoints/{HALF}"
    shutil.copytree(wide[before] / saved, folders[name] / saved)
  trained(starter, folders, DTYPE="float64")
  for name, folder in folders.items():
    np.testing.assert_allclose(
      losses(folder), losses(wide["one"])[HALF:], atol=1e-9, rtol=0, err_msg=name
    )


def test_in_float32_the_first_losses_are_the_same(starter, tmp_path, record_property, capsys):
  folders = {name: tmp_path / name for name in LAYOUTS}
  trained(starter, folders)
  found = np.array([losses(folder) for folder in folders.values()])
  np.testing.assert_allclose(found[:, :3], found[:1, :3].repeat(len(found), 0), atol=1e-5, rtol=0)
  drift = np.abs(found - found[0]).max(1)
  report = ", ".join(f"{name} {most:.1e}" for name, most in zip(folders, drift, strict=True))
  record_property("drift", report)
  with capsys.disabled():
    print(f"\nfloat32, the largest difference from one device's loss in {STEPS} steps: {report}")
