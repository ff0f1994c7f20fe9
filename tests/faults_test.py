"""Four real processes of one run: stopped together, one killed, started again; and full disks."""

import json
import os
import re
import shutil
import signal

import numpy as np
import pytest

from tests import several
from tests import tiny as tiny_lib
from tests.end_to_end_test import ENDLESS, log_of, steps_of
from tests.several import Layout
from tests.training.checkpoints_test import INDEX, flip, longest_file

tiny = tiny_lib.fixture
FOUR, ALONE = Layout(4, 1, (1, 2, 2)), Layout(1, 4, (1, 2, 2))
MACROS = {"BATCH_SIZE": 4, "MAX_BUCKETS": 1, "CHECKPOINT_PERIOD": 5, "DTYPE": "float64"}


def begun(run: several.Run) -> list[int]:
  """From which step each process trains: of those that do by now."""
  said = "".join(log.read_text() for log in run.logs if log.exists())
  return [int(step) for step in re.findall(r"training from step (\d+) ", said)]


def has_saved(folder) -> bool:
  """Whether a run has a whole checkpoint: of which step is a matter of timing."""
  return any(path.name.isdecimal() for path in (folder / "checkpoints").glob("*"))


@pytest.mark.pods
def test_four_processes_survive_a_kill_and_a_preemption(tiny, tmp_path):
  """In the end one process with four devices goes on; and nothing of all that is seen."""
  folder, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
  (tmp_path / "logs").mkdir()
  with several.starting(tiny, tmp_path / "logs") as starter:
    run = starter.start(folder, FOUR, TRAIN_STEPS=ENDLESS, **MACROS)
    starter.wait_until(lambda: has_saved(folder) and len(steps_of(folder)) > 5, run)
    os.kill(run.pids[-1], signal.SIGKILL)
    *others, killed = starter.statuses(run)
    assert killed == -signal.SIGKILL and None not in others and 0 not in others, run.text()

    run = starter.start(folder, FOUR, TRAIN_STEPS=ENDLESS, **MACROS)
    starter.wait_until(lambda: len(begun(run)) == 4, run)  # the lines are this run's from here on
    start = begun(run)[0]
    assert start >= 5 and begun(run) == [start] * 4
    starter.wait_until(lambda: len(steps_of(folder)) > start + 5, run)
    for pid in run.pids:
      os.kill(pid, signal.SIGTERM)
    assert starter.statuses(run) == [75] * 4, run.text()
    done = len(steps_of(folder))
    stopped = f"stopped by SIGTERM after step {done}; state is saved in {folder}"
    assert run.text().count(stopped) == 4

    last = done + 5
    ends = [
      starter.start(path, ALONE, TRAIN_STEPS=last, **MACROS) for path in (folder, undisturbed)
    ]
    assert [starter.statuses(run) for run in ends] == [[0], [0]], ends[0].text() + ends[1].text()
  assert f"resuming {folder} at step {done} of {last}" in ends[0].text()
  left, right = log_of(folder), log_of(undisturbed)
  assert [line["step"] for line in left] == list(range(1, last + 1))
  np.testing.assert_allclose([x["loss"] for x in left], [x["loss"] for x in right], atol=1e-9)
  # Of every parameter and moment; bit for bit, since sums over two devices have no order.
  left, right = (
    json.loads((path / "checkpoints" / str(last) / "about" / "metadata").read_text())["checksums"]
    for path in (folder, undisturbed)
  )
  assert left == right and len(left) > 20


def test_a_damaged_checkpoint_stops_the_run_until_it_is_told_to_go_back(tiny, tmp_path, capsys):
  folder = tmp_path / "run"
  shutil.copytree(tiny.run, folder)  # checkpoints of steps 39 and 40
  flip(folder / "checkpoints" / "40", INDEX)
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
  # An array of 16,384 bytes alone is too long: which arrays share a file is a matter of timing.
  folder, macros = tmp_path / "run", {"LORA_RANK": 32, "TRAIN_STEPS": 9}
  assert tiny.train(folder, **{**macros, "TRAIN_STEPS": 3}) == 0
  capsys.readouterr()
  with longest_file(12_000):  # configuration and metrics fit, the parameters do not
    message = tiny_lib.refused(capsys, tiny.train(folder, **macros), code=1)
  assert message.startswith(f"a checkpoint could not be written to {folder}/checkpoints (")
  assert "the newest whole one is of step 3" in message
  assert tiny.train(folder, **macros) == 0
  assert f"resuming {folder} at step 3 of 9" in capsys.readouterr().out
