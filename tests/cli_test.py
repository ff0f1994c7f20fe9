"""Tests of the `hyperjax` command itself."""

import ast
import importlib.util
import pathlib
import runpy
import subprocess
import sys
import types
import warnings

import pytest

import hyperjax
from hyperjax import cli


def test_help_names_every_command(capsys):
  assert cli.main(["--help"]) == 0
  out = capsys.readouterr().out
  for name, (_, summary) in cli.COMMANDS.items():
    assert f"  {name} " in out and summary in out
  assert "hyperjax adapt --examples" in out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_a_main(command):
  spec = importlib.util.find_spec(cli.COMMANDS[command][0])
  assert spec is not None
  body = ast.parse(pathlib.Path(spec.origin).read_text()).body
  assert "main" in {node.name for node in body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_is_a_program_too(command, monkeypatch, capsys):
  """As `python -m` runs it, which benchmarks do."""
  module = cli.COMMANDS[command][0].removesuffix(".__main__")
  monkeypatch.setattr("sys.argv", [module, "--help"])
  with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
    warnings.simplefilter("ignore", RuntimeWarning)  # it may be imported already
    runpy.run_module(module, run_name="__main__")
  assert not ended.value.code and f"usage: hyperjax {command} " in capsys.readouterr().out


def test_no_command_prints_the_help_and_fails(capsys):
  assert cli.main([]) == 2
  assert "usage: hyperjax COMMAND" in capsys.readouterr().out


def test_version(capsys):
  assert cli.main(["--version"]) == 0
  assert capsys.readouterr().out == f"{hyperjax.__version__}\n"


def test_an_unknown_command_names_the_nearest(capsys):
  assert cli.main(["evalute", "--gin_file=x.gin"]) == 2
  error = capsys.readouterr().err
  assert "unknown command 'evalute'. Did you mean 'evaluate'?" in error
  assert "Commands: data, train" in error


def test_a_word_near_nothing_gets_no_hint(capsys):
  assert cli.main(["xyzzy"]) == 2
  assert "Did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (3, 3)])
def test_the_rest_of_the_line_reaches_the_command(monkeypatch, returned, status):
  seen = []
  module = types.SimpleNamespace(main=lambda argv: seen.append(argv) or returned)
  monkeypatch.setitem(sys.modules, cli.COMMANDS["train"][0], module)
  assert cli.main(["train", "--gin_file=a.gin", "--help"]) == status
  assert seen == [["--gin_file=a.gin", "--help"]]


def test_an_interrupt_is_one_line(monkeypatch, capsys):
  def main(argv):
    raise KeyboardInterrupt

  monkeypatch.setitem(sys.modules, cli.COMMANDS["adapt"][0], types.SimpleNamespace(main=main))
  assert cli.main(["adapt", "--out", "x"]) == 130
  assert capsys.readouterr().err == "interrupted\n"
  with pytest.raises(KeyboardInterrupt):
    cli.main(["adapt", "--debug"])


@pytest.mark.parametrize("safe", [False, True])
def test_modules_of_the_current_folder_are_found_as_by_python_m(monkeypatch, tmp_path, safe):
  """A script's own path begins with the folder that the script lies in."""
  (tmp_path / "lies_here.py").write_text("")
  found = lambda argv: int(importlib.util.find_spec("lies_here") is not None)
  monkeypatch.setitem(sys.modules, cli.COMMANDS["data"][0], types.SimpleNamespace(main=found))
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
  flags = {name: getattr(sys.flags, name) for name in dir(sys.flags) if name[0] != "_"}
  monkeypatch.setattr(sys, "flags", types.SimpleNamespace(**flags | {"safe_path": safe}))
  before = list(sys.path)
  assert cli.main(["data"]) == cli.main(["data"]) == int(not safe)
  assert sys.path == (before if safe else [str(tmp_path), *before])


def test_help_imports_no_command():
  """Which would take it seconds."""
  program = (
    "import sys; from hyperjax import cli; cli.main(['--help']);"
    "sys.exit(bool({'jax', 'numpy', 'gin', 'tensorflow'} & set(sys.modules)))"
  )
  subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
