"""A command may read more tasks than a low limit of open files allows, where that can be raised."""

import resource
import subprocess
import sys

import pytest

from hyperjax.launch import open_files
from tests.data.fakes import numbered, write_folder
from tests.tiny import ROOT

FEW = 64  # open files; each of 40 stores keeps four
READING = '''
"""A command that reads of every task."""

from hyperjax.data.manifest import Manifest


def read(folder: str):
  manifest = Manifest.load(folder)
  stores = [manifest.store(task, "train") for task in manifest.tasks]
  for store in stores:
    print(store.input(0), store.options(0), store.references(0))
'''
PROGRAM = """
import resource, sys

soft, hard = (int(number) for number in sys.argv[1:3])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from hyperjax import launch

sys.exit(launch.run("reading", "read", ["--folder", sys.argv[3]], flags={"folder": "what is read"}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  base = tmp_path_factory.mktemp("many")
  (base / "reading.py").write_text(READING)
  write_folder(base, {f"task{i}": numbered(3) for i in range(40)})
  return base


def run(folder, soft: int, hard: int) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-c", PROGRAM, str(soft), str(hard), str(folder)], text=True,
    capture_output=True, env={"PYTHONPATH": f"{ROOT}:{folder}"},
  )  # fmt: skip


def test_a_command_raises_a_low_limit_of_open_files(folder):
  done = run(folder, FEW, 1024)
  assert done.returncode == 0 and done.stdout.count("\n") == 40, done.stderr


def test_what_the_system_refuses_is_not_asked_for(folder):
  done = run(folder, FEW, FEW)
  assert done.returncode == 1 and "Too many open files" in done.stderr


@pytest.mark.parametrize("now, tried", [
  ((256, resource.RLIM_INFINITY), [2**16, 10_240]), ((1024, 4096), [4096]), ((20_000, 20_000), []),
  ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), []), ((2**16, 2**20), []),
])  # fmt: skip
def test_as_many_are_allowed_as_the_system_has(monkeypatch, now, tried):
  """As macOS, which names no limit and refuses more than its own."""
  asked = []

  def setrlimit(_, limits):
    asked.append(limits)
    if limits[0] > 10_240:
      raise ValueError("not allowed to raise maximum limit")

  monkeypatch.setattr(open_files.resource, "getrlimit", lambda _: now)
  monkeypatch.setattr(open_files.resource, "setrlimit", setrlimit)
  open_files.allow_many()
  assert asked == [(soft, now[1]) for soft in tried]
