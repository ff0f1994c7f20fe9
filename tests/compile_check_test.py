"""benchmarks/compile_check.py: what it compares, and its two small configurations, compiled."""

import copy
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

from hyperjax.training.hlo_costs import Costs
from tests import tiny as tiny_lib
from tests.training.topologies_test import with_libtpu

FILE = tiny_lib.ROOT / "benchmarks" / "compile_check.py"
SMALL = ["tiny_hyperllama_v5e_2x2", "tiny_hypert5_v5e_2x2"]


def load():
  spec = importlib.util.spec_from_file_location(FILE.stem, FILE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


compile_check = load()
FOUND = {
  "fits": True, "seconds": 31.0,
  "memory": {"peak": 2000, "limit": 10_000},
  "costs": {
    "matmul_flops": 123_456, "unknown_loops": [],
    "collectives": {"all-gather": {"calls": 4, "bytes": 400}},
  },
}  # fmt: skip
VERSIONS = {"python": "3.11", "libtpu": "0.0.42.1"}


def record(name: str = SMALL[0]):
  return {
    "versions": VERSIONS, "configurations": {name: compile_check.recorded(copy.deepcopy(FOUND))}
  }


def moved():
  """What was found, with other memory, products and collectives."""
  found = copy.deepcopy(FOUND)
  found["memory"]["peak"] = 2100
  found["costs"]["collectives"] = {"all-reduce": {"calls": 1, "bytes": 8}}
  return found


def test_what_is_as_recorded_passes(capsys):
  again = {**FOUND, "seconds": 99.0}
  assert compile_check.check(record(), {SMALL[0]: again}, VERSIONS) == 0
  assert capsys.readouterr().out == f"{SMALL[0]}: as recorded\n"


def test_what_moved_fails_and_is_told(capsys):
  assert compile_check.check(record(), {SMALL[0]: moved()}, VERSIONS) == 1
  lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
  assert lines[:4] == [
    f"{SMALL[0]}: moved",
    "memory.peak 2,000 -> 2,100 (+5.00%)",
    'costs.collectives.all-gather {"calls": 4, "bytes": 400} -> null',
    'costs.collectives.all-reduce null -> {"calls": 1, "bytes": 8}',
  ]
  assert lines[4].startswith("1 of 1 moved.")


def test_with_other_versions_differences_are_told_and_pass(capsys):
  other = {**VERSIONS, "libtpu": "0.0.50.1"}
  assert compile_check.check(record(), {SMALL[0]: moved()}, other) == 0
  out = capsys.readouterr().out
  assert "2,000 -> 2,100  (+5.00%)" in out
  assert '"0.0.42.1" -> "0.0.50.1"' in out and "nothing follows from a difference" in out


def test_what_is_not_recorded_is_told(capsys):
  assert compile_check.check(record(), {SMALL[1]: FOUND}, VERSIONS) == 0
  assert capsys.readouterr().out == f"{SMALL[1]}: not recorded\n"


def test_a_record_is_renewed_and_keeps_the_rest():
  both = compile_check.renewed(record(SMALL[1]), {SMALL[0]: moved()}, VERSIONS)
  assert [*both["configurations"]] == SMALL and both["versions"] == VERSIONS
  assert both["configurations"][SMALL[0]]["memory"]["peak"] == 2100
  assert "seconds" not in both["configurations"][SMALL[0]]


def test_records_of_different_versions_are_not_mixed():
  other = {**VERSIONS, "jax": "1"}
  with pytest.raises(SystemExit, match=f"{SMALL[1]} are recorded with other versions"):
    compile_check.renewed(record(SMALL[1]), {SMALL[0]: FOUND}, other)
  alone = compile_check.renewed(record(SMALL[0]), {SMALL[0]: FOUND}, other)
  assert alone["versions"] == other


def test_an_unknown_configuration_names_the_nearest():
  with pytest.raises(SystemExit, match=f"no configuration 'tiny_hypert5'. .*'{SMALL[1]}'"):
    compile_check.chosen(["tiny_hypert5"])
  assert compile_check.chosen([]) == [*compile_check.CONFIGURATIONS]


def test_every_pods_file_is_checked_and_every_record_is_of_a_configuration():
  pods = {file.stem for file in (tiny_lib.ROOT / "gin/pods").glob("*.gin")}
  assert {*SMALL, *pods} == compile_check.CONFIGURATIONS.keys()
  for name, (topology, files, _) in compile_check.CONFIGURATIONS.items():
    generation, sizes = topology.split(":")
    assert f"_{generation}_{sizes}" in name
    if name in pods:
      assert f"--topology={topology} " in (tiny_lib.ROOT / "gin" / files[-1]).read_text()
  recorded = json.loads(compile_check.RECORD.read_text())
  assert {*SMALL} <= recorded["configurations"].keys() <= compile_check.CONFIGURATIONS.keys()


def test_what_is_finished_is_compiled_again_when_the_step_has_changed(tmp_path, monkeypatch):
  made = []
  report = compile_check.compile_lib.Report(True, 10, 4, 5, Costs(7, {}, 0))
  monkeypatch.setattr(compile_check.compile_lib, "make", lambda _: made.append(1) or report)
  monkeypatch.setattr(compile_check.compile_lib, "versions", lambda: VERSIONS)
  here = compile_check.topologies.Topology("here:1", jax.devices(), 10**9)
  monkeypatch.setattr(compile_check.topologies, "load", lambda name: here)
  topology, files, bindings = compile_check.CONFIGURATIONS[SMALL[0]]
  first = compile_check.measure(SMALL[0], tmp_path)
  assert first["memory"]["peak"] == 10 and first["costs"]["matmul_flops"] == 7
  assert compile_check.measure(SMALL[0], tmp_path) == first and len(made) == 1
  other = topology, files, [*bindings, "LEARNING_RATE=1e-4"]
  monkeypatch.setitem(compile_check.CONFIGURATIONS, SMALL[0], other)
  assert compile_check.measure(SMALL[0], tmp_path) == first and len(made) == 2
  monkeypatch.setattr(compile_check.compile_lib, "versions", lambda: {"jax": "1"})
  compile_check.measure(SMALL[0], tmp_path)
  assert len(made) == 3


@with_libtpu
def test_small_configurations_are_as_recorded(tmp_path):
  """In a process of its own: without what makes this one compile faster."""
  environment = {
    name: value for name, value in os.environ.items()
    if name not in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
  }
  environment["PYTHONPATH"] = os.pathsep.join([str(tiny_lib.ROOT), *filter(None, sys.path)])
  command = [sys.executable, FILE, "--only", *SMALL, "--out", "out"]
  done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.count(": compiling\n") == 2 and "not recorded" not in done.stdout
  same = all(
    importlib.metadata.version(name) == version
    for name, version in json.loads(compile_check.RECORD.read_text())["versions"].items()
    if name != "python"
  )
  if same:
    assert done.stdout.count(": as recorded\n") == 2, done.stdout
