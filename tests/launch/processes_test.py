"""Flags of several processes, and two real ones: joined, stopped together, ended by a failure."""

import pathlib
import subprocess
import sys

import jax
import pytest

from hyperjax import launch
from hyperjax.launch import processes
from tests import ports

ROOT = pathlib.Path(launch.__file__).resolve().parents[2]
TIMEOUT = 120  # seconds, for a machine that is busy

COMMAND = """
import sys, time
from hyperjax import launch
from hyperjax.launch import processes

processes._HEARTBEAT = {heartbeat}

def go(folder: str, fails: int):
  import jax
  from hyperjax.progress import StopSignal
  launch.accept()
  if jax.process_index() == fails:
    raise ValueError("no luck")
  with StopSignal() as signals:
    for step in range(1, 10**5):
      if signals.stops_after(step):
        print("stopped after", step, flush=True)
        return signals.status
      if step == 1:
        print("begun", flush=True)
      time.sleep(0.01)

if __name__ == "__main__":
  sys.exit(launch.run("several", "go", distributed=True))
"""


def flags(address=None, number=None, process=None) -> dict:
  return dict(zip(processes.FLAGS, (address, number, process), strict=True))


def test_flags_are_all_or_none():
  assert processes.named(flags()) is None
  assert processes.named(flags("10.0.0.2:8476", "16", "15")) == ("10.0.0.2:8476", 16, 15)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (("a:1",), "give --num_processes and --process_id too, in every process of the run."),
    ((None, "2", "0"), "give --coordinator_address too"),
    (("a", "2", "0"), "--coordinator_address=a is not HOST:PORT"),
    ((":8476", "2", "0"), "--coordinator_address=:8476 is not HOST:PORT"),
    (("a:1", "2", "2"), "--process_id=2 --num_processes=2: processes count from 0"),
    (("a:1", "2", "-1"), "--process_id=-1 --num_processes=2: processes count from 0"),
    (("a:1", "two", "0"), "--process_id=0 --num_processes=two: processes count from 0"),
  ],
)
def test_flags_that_cannot_be_meant(given, message):
  with pytest.raises(ValueError, match="^" + message.replace(".", r"\.")):
    processes.named(flags(*given))


@pytest.mark.parametrize(
  ("platforms", "tpu"), [(None, False), ("cpu", False), ("tpu,cpu", True), ("cuda", False)]
)
def test_only_tpu_hosts_look_for_others(monkeypatch, capsys, platforms, tpu):
  jax.devices()  # found before platforms are named that are not there
  calls = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **kw: calls.append((a, kw)))
  monkeypatch.setattr(processes, "_joined", False)
  before = jax.config.jax_platforms
  try:
    jax.config.update("jax_platforms", platforms)
    processes.join(flags())
  finally:
    jax.config.update("jax_platforms", before)
  timeouts = {"initialization_timeout": 600, "heartbeat_timeout_seconds": 30}
  assert calls == [((), timeouts)] * tpu and processes.joined() == tpu
  assert ("process 0 of 1" in capsys.readouterr().out) == tpu


def test_a_tpu_host_that_knows_of_no_others_runs_alone(monkeypatch, capsys):
  def unknown(**_):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(jax.distributed, "initialize", unknown)
  before = jax.config.jax_platforms
  try:
    jax.config.update("jax_platforms", "tpu,cpu")
    processes.join(flags())
  finally:
    jax.config.update("jax_platforms", before)
  assert not processes.joined() and processes.writes() and processes.fail(7) == 7
  assert "this TPU host runs alone: it knows of no others (coord" in capsys.readouterr().err


@pytest.fixture
def start(tmp_path):
  """Starts two processes of one run, each with a folder of its own: start(fails, heartbeat)."""
  started = []

  def both(fails: int, heartbeat: int) -> list[subprocess.Popen]:
    (tmp_path / "several.py").write_text(COMMAND.format(heartbeat=heartbeat))
    address = f"localhost:{ports.free()}"
    for process in (0, 1):
      arguments = [
        f"--gin.MODEL_DIR={tmp_path / str(process)}", "--gin.several.go.folder=%MODEL_DIR",
        f"--gin.several.go.fails={fails}", f"--coordinator_address={address}",
        "--num_processes=2", f"--process_id={process}",
      ]  # fmt: skip
      started.append(subprocess.Popen(
        [sys.executable, "several.py", *arguments], cwd=tmp_path, text=True,
        env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      ))  # fmt: skip
    return started

  yield both
  for process in started:
    process.kill()
    process.communicate()


def test_all_stop_after_the_same_step_and_only_the_first_writes(start, tmp_path):
  both = start(fails=-1, heartbeat=30)
  for number, process in enumerate(both):
    assert process.stdout.readline() == f"process {number} of 2, with 1 of 2 devices (cpu)\n"
    assert process.stdout.readline() == "begun\n"
  both[1].terminate()
  (first, _), (second, _) = (p.communicate(timeout=TIMEOUT) for p in both)
  assert [p.returncode for p in both] == [75, 75]
  assert first == second and first.startswith("stopped after ")
  assert (tmp_path / "0" / "config.gin").exists() and not (tmp_path / "1").exists()


def test_a_failure_ends_all(start):
  both = start(fails=1, heartbeat=3)
  (_, left), (_, failed) = (p.communicate(timeout=TIMEOUT) for p in both)
  assert both[1].returncode == 2 and failed.endswith("error: no luck\n")
  assert both[0].returncode < 0 and "another task died" in left
