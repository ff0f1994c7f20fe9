"""Four real processes of one run: stopped together, one killed, started again; and full disks."""

import os
import shutil
import signal
import time

import pytest

from tests import several
from tests import tiny as tiny_lib
from tests.end_to_end_test import log_of, steps_of
from tests.several import Layout
from tests.training.checkpoints_test import flip, longest_file

tiny = tiny_lib.fixture
FOUR = Layout(4, 1, (1, 2, 2))
MACROS = {"TRAIN_STEPS": 150, "BATCH_SIZE": 4, "MAX_BUCKETS": 1, "CHECKPOINT_PERIOD": 20}


@pytest.fixture(scope="module")
def starter(tiny, tmp_path_factory):
  with several.starting(tiny, tmp_path_factory.mktemp("logs")) as starter:
    yield starter


@pytest.fixture(scope="module")
def undisturbed(starter, tmp_path_factory):
  """The folder of a run that nothing happens to."""
  folder = tmp_path_factory.mktemp("undisturbed")
  run = starter.start(folder, FOUR, **MACROS)
  assert starter.statuses(run) == [0] * 4, run.text()
  return folder


def wait_for_step(folder, step: int, starter, run) -> None:
  end = time.monotonic() + several.TIMEOUT
  while len(steps_of(folder)) < step:
    assert time.monotonic() < end and starter.statuses(run, 0) == [None] * 4, run.text()
    time.sleep(0.01)


def test_four_processes_survive_a_preemption_and_a_kill(undisturbed, starter, tmp_path):
  folder = tmp_path / "run"
  run = starter.start(folder, FOUR, **MACROS)
  wait_for_step(folder, 5, starter, run)
  for pid in run.pids:
    os.kill(pid, signal.SIGTERM)
  assert starter.statuses(run, 30) == [75] * 4, run.text()
  done = len(steps_of(folder))
  assert run.text().count(f"stopped by SIGTERM after step {done}; state is saved in {folder}") == 4
  assert (folder / "checkpoints" / str(done)).is_dir()

  run = starter.start(folder, FOUR, **MACROS)
  wait_for_step(folder, done + 30, starter, run)
  os.kill(run.pids[-1], signal.SIGKILL)
  *others, killed = starter.statuses(run, 60)
  assert killed == -signal.SIGKILL and None not in others and 0 not in others, run.text()

  run = starter.start(folder, FOUR, **MACROS)
  assert starter.statuses(run) == [0] * 4, run.text()
  assert f"resuming {folder} at step " in run.logs[0].read_text()
  tiny_lib.assert_same(folder, undisturbed)
  assert log_of(folder) == log_of(undisturbed)


def test_a_damaged_checkpoint_stops_the_run_until_it_is_told_to_go_back(tiny, tmp_path, capsys):
  folder = tmp_path / "run"
  shutil.copytree(tiny.run, folder)  # checkpoints of steps 39 and 40
  flip(folder / "checkpoints" / "40")
  before = (folder / "metrics.jsonl").read_text()
  message = tiny_lib.refused(capsys, tiny.train(folder))
  assert message.startswith(f"the checkpoint {folder}/checkpoints/40 is damaged or out of reach (")
  assert message.endswith("train on from there, give --gin.RESUME_STEP=39")
  assert (folder / "metrics.jsonl").read_text() == before
  assert tiny.train(folder, RESUME_STEP=39) == 0
  assert f"resuming {folder} at step 39 of 40" in capsys.readouterr().out
  tiny_lib.assert_same(folder, tiny.run)
  assert tiny.train(folder, RESUME_STEP=39) == 0
  assert f"{folder}: all 40 steps were done before" in capsys.readouterr().out


def test_a_full_disk_ends_the_run_with_a_message(tiny, tmp_path, capsys):
  folder = tmp_path / "run"
  assert tiny.train(folder, TRAIN_STEPS=3) == 0
  capsys.readouterr()
  with longest_file(12_000):  # configuration and metrics fit, the optimizer's state does not
    message = tiny_lib.refused(capsys, tiny.train(folder), code=1)
  assert message.startswith(f"a checkpoint could not be written to {folder}/checkpoints (")
  assert "the newest whole one is of step 3" in message
  assert tiny.train(folder) == 0
  tiny_lib.assert_same(folder, tiny.run)
