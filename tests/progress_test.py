"""Progress, signals and the count of compilations, each by itself."""

import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from hyperjax import progress


@pytest.fixture
def clock(monkeypatch):
  """A clock that the test sets."""

  class Clock:
    now = 1000.0

  monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
  return Clock


def test_compilations_are_counted_once_each():
  function = jax.jit(lambda x: x * 5 - 3)
  x, y = np.arange(7.0), np.arange(9.0)
  before = progress.compilations()
  function(x)
  assert progress.compilations() == before + 1
  function(x + 1)
  assert progress.compilations() == before + 1
  function(y)
  assert progress.compilations() == before + 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_handlers_come_back(number):
  previous = signal.getsignal(number)
  with progress.StopSignal() as stop:
    assert stop.received is None
    os.kill(os.getpid(), number)
    assert stop.received is number
    assert signal.getsignal(number) == previous  # a second one ends the process
  assert signal.getsignal(number) == previous


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_only_a_machine_that_is_taken_away_asks_for_another_start(number, status):
  with progress.StopSignal() as stop:
    assert not stop.stops_after(1)
    os.kill(os.getpid(), number)
    assert stop.stops_after(2)
    assert stop.status == status


def test_the_second_signal_ends_the_process():
  program = """
import os, signal
from hyperjax.progress import StopSignal
with StopSignal():
  os.kill(os.getpid(), signal.SIGTERM)
  print('still here', flush=True)
  os.kill(os.getpid(), signal.SIGTERM)
  print('and still', flush=True)
"""
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
  assert done.stdout == "still here\n", done.stderr
  assert done.returncode == -signal.SIGTERM


def test_time_that_is_paused_does_not_count(clock):
  bar = progress.Progress(10, 0)
  clock.now += 60
  with bar.paused():
    clock.now += 600
  clock.now += 60
  assert bar.minutes == 2
  assert bar.advance(240, 1.5) == 2 == bar.tokens_per_second


def test_a_resumed_run_counts_on_but_is_as_fast_as_it_is(clock, monkeypatch):
  monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: False)
  with progress.Progress(10, 4, minutes_before=7.0) as bar:
    clock.now += 120
    assert bar.advance(240, 1.0) == 2.0
    assert bar.minutes == 9.0


def test_without_a_terminal_lines_are_printed_now_and_then(clock, capsys):
  with progress.Progress(20, 10) as bar:
    for step in range(10):
      clock.now += 6
      bar.advance(300, 2.0 - step / 10)
      bar.note(f"note {step}") if step == 4 else None
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "training from step 10 to 20; the first steps compile"
  assert "note 4" in lines
  # After 18 seconds: 3 of 10 steps, so 42 seconds are left.
  assert lines[1] == "step 13/20  loss 1.800  50 tokens/s  ETA 0.7 min"
  assert lines[-1] == "step 20/20  loss 1.100  50 tokens/s  ETA 0.0 min"
  assert len([line for line in lines if line.startswith("step")]) == 4


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
  monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: True, raising=False)
  monkeypatch.setenv("FORCE_COLOR", "1")
  monkeypatch.setenv("COLUMNS", "110")
  with progress.Progress(4, 1) as bar:
    bar.advance(10, 0.5)
    bar.note("held-out 0.7")
  out = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
  assert "step 2/4" in out and "loss 0.500" in out and "ETA" in out and "held-out 0.7" in out


def test_devices_are_named_where_there_is_a_choice(monkeypatch, capsys):
  mesh = AbstractMesh((2, 2, 1), ("data", "fsdp", "tensor"))
  progress.say_devices(mesh)
  assert capsys.readouterr().out == ""
  monkeypatch.setattr(jax, "device_count", lambda: 8)
  progress.say_devices(mesh)
  assert capsys.readouterr().out == "mesh: data 2 x fsdp 2 x tensor 1, 4 of 8 devices\n"
