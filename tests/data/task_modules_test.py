"""Modules of tasks, found and identified by their files alone."""

import hashlib
import importlib
import sys

import pytest

from hyperjax.data import task_modules


@pytest.fixture
def write(tmp_path, monkeypatch):
  """Writes a file below a folder of Python's path."""
  monkeypatch.syspath_prepend(str(tmp_path))

  def write(name, text="raise AssertionError('it is never imported')\n"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path

  return write


@pytest.mark.parametrize("name, path, others", [
  ("found_a", "found_a.py", []),
  ("found_b", "found_b/__init__.py", []),
  ("found_c.tasks", "found_c/tasks.py", []),
  ("found_d.tasks", "found_d/tasks.py", ["found_d/__init__.py"]),
  ("found_e.more.tasks", "found_e/more/tasks.py", []),
  ("found_f.more.tasks", "found_f/more/tasks.py", ["found_f/__init__.py"]),
  ("found_g.tasks", "found_g/tasks/__init__.py", ["found_g/tasks.py", "found_g/__init__.py"]),
])  # fmt: skip
def test_a_module_is_found_and_nothing_imported(write, name, path, others):
  for other in others:
    write(other)
  expected = write(path)
  assert task_modules.file(name) == expected
  assert not {module for module in sys.modules if module.startswith(name.partition(".")[0])}


@pytest.mark.parametrize("name", ["no_such", "no_such.tasks", "plain.tasks", "sys", ""])
def test_what_has_no_file_has_no_identity(write, name):
  write("plain.py")
  assert task_modules.file(name) is task_modules.identity(name) is None


@pytest.fixture
def identity(write):
  def identity(text):
    write("own.py", text)
    return task_modules.identity("own")

  return identity


def test_a_module_is_its_file_unless_it_sets_a_version(identity):
  assert identity("ROWS = 1\n") == hashlib.sha256(b"ROWS = 1\n").hexdigest()
  assert identity("ROWS = 2\n") == hashlib.sha256(b"ROWS = 2\n").hexdigest()
  assert identity("VERSION = '3'\nROWS = 1\n") == identity("ROWS = 2\nVERSION = '3'\n") == "3"
  assert identity("VERSION: int = 0\n") == "0"


@pytest.mark.parametrize("text", [
  "VERSION = 1 + {}\n", "VERSION: str\nROWS = {}\n", "from x import VERSION\nROWS = {}\n",
  "if True:\n  VERSION = 1\nROWS = {}\n", "VERSION = 1\nVERSION = f({})\n", "not Python: {}",
  "VERSION = 1\0{}",
])  # fmt: skip
def test_what_is_no_plain_version_does_not_vouch(identity, text):
  assert identity(text.format(1)) != identity(text.format(2))


def test_the_modules_of_hyperjax_vouch_for_themselves():
  for name in ("hyperjax.tasks.lexical", "hyperjax.tasks.rules"):
    assert task_modules.identity(name) == importlib.import_module(name).VERSION
