"""A wheel of the checkout, installed elsewhere: commands that use the files that it carries."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from hyperjax import adapt as adapt_lib
from hyperjax import predict as predict_lib
from tests import tiny as tiny_lib

tiny = tiny_lib.fixture


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """A folder into which pip has installed the wheel, as built from a copy of the checkout."""
  source = tmp_path_factory.mktemp("checkout")
  for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
    if (tiny_lib.ROOT / name).exists():
      shutil.copy(tiny_lib.ROOT / name, source)
  for name in ("hyperjax", "tasks", "gin"):
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(tiny_lib.ROOT / name, source / name, ignore=ignore)
  folder = tmp_path_factory.mktemp("site")
  wheels = tmp_path_factory.mktemp("wheels")
  pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
  build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source]
  subprocess.run(build, check=True, cwd=wheels)
  [wheel] = wheels.glob("hyperjax-*.whl")
  install = [*pip, "install", "--no-deps", "--no-compile", "--target", folder, wheel]
  subprocess.run(install, check=True, cwd=wheels)
  shutil.rmtree(source)
  return folder


PROGRAM = """
import json, pathlib, sys

site = pathlib.Path(sys.argv[1])
import hyperjax
from hyperjax import cli
assert pathlib.Path(hyperjax.__file__).is_relative_to(site), hyperjax.__file__
for command in json.loads(sys.argv[2]):
  print('>', command[0], flush=True)
  status = cli.main(command)
  assert status == 0, (command, status)
print('done')
for name, module in list(sys.modules.items()):
  file = getattr(module, '__file__', None)
  if file and name.split('.')[0] in ('hyperjax', 'tasks'):
    assert pathlib.Path(file).is_relative_to(site), (name, file)
"""


def test_a_wheel_does_what_a_checkout_does(tiny, site, tmp_path, capsys):
  work = tmp_path / "elsewhere"
  work.mkdir()
  # The hypermodel's own run, in another place; its configuration names only the model and the data.
  shutil.copytree(tiny.run, tmp_path / "run")
  (work / "ten.jsonl").write_text(
    "\n".join(json.dumps(row) for row in tiny_lib.examples()["held_words"][:3])
  )
  train = [
    "train", "--gin_file=models/smollm2_135m.gin", "--gin_file=systems/hyperllama.gin",
    "--gin_file=data/lexical.gin", "--gin_file=runs/mtf.gin", "--gin.MODEL_DIR=no_run",
    "--gin.DATA_DIR=no_data", "--gin.TRAIN_STEPS=20", "--dry_run",
  ]  # fmt: skip
  run = str(tmp_path / "run")
  adapt = ["adapt", "--checkpoint", run, "--examples", "ten.jsonl", "--out", "mine"]
  predict = ["predict", "--adapter", "mine", "--input", "word 7", "--max_new_tokens", "4"]
  environment = tiny.environment() | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}

  def start(*commands):
    given = [sys.executable, "-c", PROGRAM, str(site), json.dumps(commands)]
    return subprocess.run(given, env=environment, cwd=work, capture_output=True, text=True)

  # What the checkout answers, from the same examples.
  given = [*adapt[1:-1], str(tmp_path / "theirs")]
  given[given.index("ten.jsonl")] = str(work / "ten.jsonl")
  assert adapt_lib.main(given) == 0
  capsys.readouterr()
  assert predict_lib.main(["--adapter", str(tmp_path / "theirs"), *predict[3:]]) == 0
  expected = capsys.readouterr().out
  first = start(train, adapt)
  assert first.returncode == 0, first.stdout + first.stderr
  assert "frozen 134,515,008, stored once" in first.stdout and "done" in first.stdout
  assert "next   hyperjax predict --adapter mine" in first.stdout
  # The adapter and the base model are enough.
  shutil.rmtree(tmp_path / "run")
  os.remove(work / "ten.jsonl")
  second = start(predict)
  assert second.returncode == 0, second.stdout + second.stderr
  answer = second.stdout.split("> predict\n")[1].removesuffix("done\n")
  assert answer == expected
  assert [path.name for path in work.iterdir()] == ["mine"]


def test_the_wheels_script_is_installed(site):
  scripts = [path.name for path in (site / "bin").iterdir()]
  assert scripts == ["hyperjax"]
