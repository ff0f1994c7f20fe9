"""The same gin files on one device, on meshes of eight devices, and in two and four processes.

Each process compiles for itself, which takes a slow core ten seconds. So the whole matrix is for
`make test-pods`, and the first test, which is run always, is a part of it.
"""

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
  """Trains in {layout: folder}, all at once; checks how they end and what they say."""
  started = {
    name: starter.start(folder, LAYOUTS[name], **MACROS, **macros)
    for name, folder in folders.items()
  }
  for name, run in started.items():
    assert set(starter.statuses(run)) == {0}, f"{name}: {run.text()}"
    assert INVOLUNTARY not in run.text(), name


def go_on(before, folder) -> None:
  """Makes a run's folder that has only what another has saved half way."""
  saved = f"checkpoints/{HALF}"
  shutil.copytree(before / saved, folder / saved)


def assert_same(folder, one, first: int = 0) -> None:
  np.testing.assert_allclose(
    losses(folder), losses(one)[first:], atol=1e-9, rtol=0, err_msg=folder.name
  )


@pytest.fixture(scope="module")
def starter(tiny, tmp_path_factory):
  with several.starting(tiny, tmp_path_factory.mktemp("logs")) as starter:
    yield starter


def test_eight_devices_are_as_one_and_two_processes_go_on(starter, tmp_path):
  folders = {name: tmp_path / name for name in ("one", "fsdp", "two")}
  trained(starter, {name: folders[name] for name in ("one", "fsdp")}, DTYPE="float64")
  one = losses(folders["one"])
  assert len(one) == STEPS and one[-1] < one[0] - 1
  assert_same(folders["fsdp"], folders["one"])
  go_on(folders["fsdp"], folders["two"])
  trained(starter, {"two": folders["two"]}, DTYPE="float64")
  assert_same(folders["two"], folders["one"], HALF)


@pytest.fixture(scope="module")
def wide(starter, tmp_path_factory):
  """The folders of runs in float64."""
  base = tmp_path_factory.mktemp("float64")
  folders = {name: base / name for name in LAYOUTS}
  trained(starter, folders, DTYPE="float64")
  return folders


@pytest.mark.pods
def test_in_float64_the_losses_are_the_same(wide):
  for folder in wide.values():
    assert_same(folder, wide["one"])


@pytest.mark.pods
def test_a_checkpoint_moves_between_all_of_them(wide, starter, tmp_path):
  """Each goes on from what the one before it in a circle has saved half way."""
  folders, names = {name: tmp_path / name for name in LAYOUTS}, [*LAYOUTS]
  for before, name in zip([names[-1], *names], names, strict=False):
    go_on(wide[before], folders[name])
  trained(starter, folders, DTYPE="float64")
  for folder in folders.values():
    assert_same(folder, wide["one"], HALF)


@pytest.mark.pods
def test_in_float32_the_first_losses_are_the_same(starter, tmp_path, capsys):
  folders = {name: tmp_path / name for name in LAYOUTS}
  trained(starter, folders)
  found = np.array([losses(folder) for folder in folders.values()])
  apart = np.abs(found - found[0])
  assert apart[:, :3].max() < 1e-5
  drift = ", ".join(f"{name} {most:.1e}" for name, most in zip(folders, apart.max(1), strict=True))
  with capsys.disabled():
    print(f"\nfloat32, the largest difference from one device's loss in {STEPS} steps: {drift}")
