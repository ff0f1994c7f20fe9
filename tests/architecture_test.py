"""Enforces the house rules: who may import whom, how long things get, what no file may name.

    tasks -> data -> core        core <- models <- hypermodels <- training <- evaluation <- commands

Each rule is a function from a file's path and text to a list of readable violations. The first half
of this file runs them over the repository, the second over made-up sources that break them.
"""

import ast
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAX_LINES = 400
MAX_ARGUMENTS = 8

# A command is one module; `systems`, `runs`, `resuming`, `progress` and `answers` are what they
# share.
COMMANDS = ("adapt", "cli", "compile", "convert", "doctor", "evaluate", "predict", "report")
COMMANDS += ("train", "tune", "systems", "runs", "resuming", "progress", "answers")

# Files of `evaluation` that score texts alone: tasks name their functions as metrics.
METRICS = (["evaluation", "classification"], ["evaluation", "text_metrics"])

# {room: rooms that it may import}; `sources` (names become local paths), `storage` (folders here
# and in buckets) and `children` (processes) lie below them all.
# `text_metrics` is a file of evaluation/ and a room of its own: tasks name their metrics.
_LIBRARY = {"core", "models", "hypermodels", "sources", "storage"}
ROOMS = {
  "core": {"core"},
  "sources": {"sources"},
  "storage": {"storage"},
  "children": {"children"},
  "models": {"models", "core", "sources"},
  "hypermodels": _LIBRARY,
  "training": _LIBRARY | {"training"},
  "metrics": {"sources"},
  "evaluation": _LIBRARY | {"training", "evaluation", "metrics"},
  "adapters": _LIBRARY | {"adapters"},
  "data": {"data", "core", "sources", "storage", "children", "metrics"},
  "tasks": {"tasks", "data", "metrics"},
  "launch": {"launch", "storage"},
  "commands": _LIBRARY
  | {"training", "evaluation", "metrics", "adapters", "data", "tasks", "launch", "commands"},
}

# Files that run in the process that builds data: everything else must start without TensorFlow.
_BUILDERS = (
  r"tasks/.*\.py",
  r"hyperjax/data/(build|registering|rows_source|task_rows|seqio_cache|seqio_forms|__main__)\.py",
)
_TENSORFLOW_MODULES = (
  r"hyperjax\.(tasks|data\.(build|registering|rows_source|task_rows|seqio_forms))(\..*)?"
)

# {package: files that may import it}; of what is not named for its files only core is picky.
_NOWHERE: tuple[str, ...] = ()
PACKAGES = {
  **dict.fromkeys(
    ("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "t5", "mesh_tensorflow"),
    _BUILDERS,
  ),
  **dict.fromkeys(
    ("torch", "transformers", "peft", "pytest", "hypothesis", "beartype"), _NOWHERE
  ),
  **dict.fromkeys(("gin", "absl"), (r"hyperjax/launch(/.*)?\.py",)),
  "qwix": (r"hyperjax/core/quantised\.py",),
}
CORE_PACKAGES = {"jax", "flax", "numpy", "jaxtyping"}

# Files of one of these families never import the other, in the same folder.
RIVALS = [("hyperjax.models.llama", "hyperjax.models.t5")]
RIVALS += [("hyperjax.hypermodels.hyperllama", "hyperjax.hypermodels.hypert5")]


def module_name(path: str) -> str:
  """Returns the dotted name under which a file is imported."""
  parts = pathlib.PurePosixPath(path).with_suffix("").parts
  parts = ("hyperjax", *parts) if parts[0] == "tasks" else parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str | None:
  """Returns the room of a module of hyperjax; None for the package itself, or a name in it."""
  parts = module.split(".")
  if parts[0] != "hyperjax" or len(parts) == 1:
    return None
  if parts[1] in COMMANDS or parts[-1] == "__main__":
    return "commands"
  if parts[1:3] in METRICS:
    return "metrics"
  return parts[1] if parts[1] in ROOMS else None


def imported(path: str, tree: ast.AST) -> list[tuple[int, str]]:
  """Returns (line, module) of every import, also late ones and import_module("...")."""
  package = module_name(path).split(".")
  if not path.endswith("__init__.py"):
    package = package[:-1]
  found = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found += [(node.lineno, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      base = package[: len(package) - node.level + 1] if node.level else []
      source = ".".join([*base, *filter(None, [node.module])])
      found += [(node.lineno, f"{source}.{alias.name}") for alias in node.names]
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
      ("import_module", "__import__")
    ):
      found += [
        (node.lineno, arg.value)
        for arg in node.args[:1]
        if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
      ]
  return found


def matches(path: str, patterns) -> bool:
  """Says whether a path is one of those that the patterns describe."""
  return any(re.fullmatch(pattern, path) for pattern in patterns)


def import_violations(path: str, source: str) -> list[str]:
  """Checks what a file of hyperjax/ or tasks/ imports."""
  module, home = module_name(path), room(module_name(path))
  if home is None and module != "hyperjax":
    return [f"{path}: no room of the house is called '{module}'; rooms: {', '.join(ROOMS)}"]
  violations = []
  for line, target in imported(path, ast.parse(source)):
    where, top = f"{path}:{line}", target.split(".")[0]
    if room(target) and room(target) not in ROOMS.get(home, set()):
      violations.append(f"{where}: {home or 'hyperjax'} may not import {room(target)} ({target})")
    if re.fullmatch(_TENSORFLOW_MODULES, target) and not matches(path, _BUILDERS):
      violations.append(f"{where}: {target} imports TensorFlow; name it in a subprocess instead")
    if not matches(path, PACKAGES.get(top, (r".*",))):
      allowed = ", ".join(PACKAGES[top]) or "the tests"
      violations.append(f"{where}: {top} is for {allowed} only")
    stranger = top not in CORE_PACKAGES | sys.stdlib_module_names | {"hyperjax"}
    if home == "core" and stranger and not matches(path, PACKAGES.get(top, _NOWHERE)):
      violations.append(f"{where}: core may import {sorted(CORE_PACKAGES)} only, not {top}")
    for one, other in [*RIVALS, *((b, a) for a, b in RIVALS)]:
      if module.startswith(one) and target.startswith(other):
        violations.append(f"{where}: {one}* and {other}* may not import one another")
  return violations


def size_violations(path: str, source: str) -> list[str]:
  """Checks the length of a file and the number of arguments of its functions."""
  violations = []
  lines = len(source.splitlines())
  if lines > MAX_LINES:
    violations.append(f"{path}: {lines} lines, over {MAX_LINES}")
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      continue
    a = node.args
    names = [arg.arg for arg in [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg] if arg]
    count = len(names) - (names[:1] in (["self"], ["cls"]))
    if count > MAX_ARGUMENTS:
      violations.append(
        f"{path}:{node.lineno}: {node.name} takes {count} arguments, over {MAX_ARGUMENTS}"
      )
  return violations


_MACHINE_PATH = re.compile(
  r"\.\./shared\b|\bshared/(data|notes|prototypes|design|hooks)|/(work|root)/\w"
)


def text_violations(path: str, text: str) -> list[str]:
  """Checks that a file names no folder of the machine that it was written on."""
  return [
    f"{path}:{number}: names a path of one machine: '{match.group()}'"
    for number, line in enumerate(text.splitlines(), 1)
    if (match := _MACHINE_PATH.search(line))
  ]


def gin_folder_violations(paths: list[str]) -> list[str]:
  """Checks that no Python file lies in gin/."""
  return [
    f"{path}: a Python file in gin/ would shadow gin-config"
    for path in paths
    if path.startswith("gin/") and path.endswith((".py", ".pyc", ".pyi"))
  ]


# ---- The repository ----------------------------------------------------------------------------


def files(*patterns: str) -> list[str]:
  """Returns the repository's files that match, relative to its root."""
  found = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
  return sorted(str(path.relative_to(ROOT)) for path in found)


def read(path: str) -> str:
  """Returns the text of a file of the repository."""
  return (ROOT / path).read_text(encoding="utf-8")


LIBRARY = files("hyperjax/**/*.py", "tasks/**/*.py")
SOURCES = [*LIBRARY, *files("*.py", "benchmarks/**/*.py", "packaging/**/*.py")]
TEXTS = [
  *SOURCES,
  *files("gin/**/*.gin", "tests/**/*.py", "tpu_scripts/*", "docs/**/*.md", "benchmarks/**/*.md"),
  *files("*.md", "*.toml", "*.txt", "*.in", "Makefile", ".ci/run"),
]


def test_the_walk_sees_the_repository():
  assert {"hyperjax/__init__.py", "hyperjax/core/phi.py", "hyperjax/models/llama.py"} < set(LIBRARY)
  assert {"hyperjax/data/build.py", "tasks/__init__.py"} < set(LIBRARY)
  assert {"setup.py", "Makefile", ".ci/run", "tests/architecture_test.py"} < set(TEXTS)
  assert {room(module_name(path)) for path in LIBRARY} >= {
    *("core", "models", "hypermodels", "training", "data", "tasks", "launch", "commands")
  }
  seen = [target for path in LIBRARY for _, target in imported(path, ast.parse(read(path)))]
  assert {"jax", "seqio", "gin"} <= {target.split(".")[0] for target in seen}


@pytest.mark.parametrize(
  ("check", "paths"),
  [(import_violations, LIBRARY), (size_violations, SOURCES), (text_violations, TEXTS)],
  ids=["imports", "sizes", "texts"],
)
def test_the_repository_keeps_the_rules(check, paths):
  violations = [violation for path in paths for violation in check(path, read(path))]
  assert not violations, "\n" + "\n".join(violations)


def test_gin_holds_no_python():
  assert not gin_folder_violations(files("gin/**/*"))


# ---- The rules ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("path", "source", "message"),
  [
    ("hyperjax/core/x.py", "import optax", "core may import ['flax', 'jax', 'jaxtyping', 'numpy']"),
    ("hyperjax/core/x.py", "from hyperjax import models", "core may not import models"),
    ("hyperjax/core/x.py", "import hyperjax.models.llama", "core may not import models"),
    ("hyperjax/core/x.py", "from ..models import llama", "core may not import models"),
    ("hyperjax/core/x.py", "from .. import models", "core may not import models"),
    ("hyperjax/core/__init__.py", "from ..data import store", "core may not import data"),
    ("hyperjax/models/x.py", "import hyperjax.data.store", "models may not import data"),
    ("hyperjax/models/x.py", "def f():\n  from hyperjax.training import step", "x.py:2"),
    ("hyperjax/models/llama.py", "from hyperjax.models import t5", "may not import one another"),
    ("hyperjax/models/t5_weights.py", "import hyperjax.models.llama", "may not import one another"),
    ("hyperjax/hypermodels/hypert5.py", "from .hyperllama import Y", "may not import one another"),
    (
      "hyperjax/training/x.py",
      "import hyperjax.evaluation.y",
      "training may not import evaluation",
    ),
    ("hyperjax/training/x.py", "import hyperjax.data.loader", "training may not import data"),
    (
      "hyperjax/evaluation/x.py",
      "from hyperjax import train",
      "evaluation may not import commands",
    ),
    ("hyperjax/launch/x.py", "from hyperjax import train", "launch may not import commands"),
    ("hyperjax/data/x.py", "from hyperjax import launch", "data may not import launch"),
    ("hyperjax/__init__.py", "from hyperjax import core", "hyperjax may not import core"),
    ("tasks/x.py", "import hyperjax.models.llama", "tasks may not import models"),
    ("tasks/x.py", "from hyperjax.evaluation import scoring", "tasks may not import evaluation"),
    (
      "hyperjax/evaluation/classification.py",
      "from hyperjax.core import batch",
      "metrics may not import core",
    ),
    ("hyperjax/train.py", "from hyperjax.data import build", "imports TensorFlow"),
    ("hyperjax/train.py", "from hyperjax.tasks import p3", "imports TensorFlow"),
    ("hyperjax/train.py", "import tensorflow as tf", "tensorflow is for"),
    ("hyperjax/train.py", "import importlib\nimportlib.import_module('seqio')", "seqio is for"),
    ("hyperjax/data/loader.py", "from t5.data import tasks", "t5 is for"),
    ("hyperjax/models/x.py", "import torch.nn", "torch is for the tests only"),
    ("hyperjax/convert.py", "from transformers import AutoModel", "transformers is for the tests"),
    ("hyperjax/train.py", "import gin", "gin is for"),
    ("hyperjax/core/layers.py", "def f():\n  import qwix", "core may import ['flax', 'jax', 'jax"),
    ("hyperjax/models/weights.py", "import qwix", "qwix is for hyperjax/core/quantised"),
    ("hyperjax/train.py", "from absl import logging", "absl is for"),
    ("hyperjax/utils/x.py", "", "no room of the house is called 'hyperjax.utils.x'"),
  ],
)
def test_a_forbidden_import_is_named(path, source, message):
  violations = import_violations(path, source)
  assert any(message in violation for violation in violations), violations


@pytest.mark.parametrize(
  ("path", "source"),
  [
    ("hyperjax/core/x.py", "import dataclasses\nimport jax.numpy as jnp\nfrom . import phi"),
    ("hyperjax/core/quantised.py", "def f():\n  import qwix"),
    ("hyperjax/models/llama_weights.py", "from hyperjax import sources\nfrom .llama import Llama"),
    ("hyperjax/hypermodels/hyperllama.py", "from hyperjax.models import llama, t5"),
    ("hyperjax/data/build.py", "import seqio\nfrom hyperjax.core.batch import Batch"),
    ("hyperjax/data/__main__.py", "from hyperjax import launch, tasks\nfrom . import build"),
    ("hyperjax/launch/__init__.py", "import gin\nfrom absl import app\nimport hyperjax"),
    ("hyperjax/train.py", "from hyperjax import __version__, launch\nfrom .data import loader"),
    ("tasks/x.py", "import t5.data\nfrom hyperjax.data import manifest\nfrom . import registry"),
    ("tasks/x.py", "from hyperjax.evaluation import classification, text_metrics"),
  ],
)
def test_an_allowed_import_passes(path, source):
  assert not import_violations(path, source)


def test_long_files_and_long_signatures_are_named():
  assert not size_violations("x.py", "\n" * MAX_LINES)
  assert size_violations("x.py", "\n" * (MAX_LINES + 1)) == ["x.py: 401 lines, over 400"]
  eight = "class C:\n  def f(self, a, b, /, c, d, *e, g, h, **i): pass"
  assert not size_violations("x.py", eight)
  assert size_violations("x.py", eight.replace("self", "z")) == [
    "x.py:2: f takes 9 arguments, over 8"
  ]


@pytest.mark.parametrize("path", ["..{}data", "{}design.md", "/work{}x", "/root{}x"])
def test_a_machine_path_is_named(path):
  text = "see\n" + path.format("/shared/" if not path.startswith("/") else "/")
  assert "x.md:2: names a path of one machine" in text_violations("x.md", text)[0]


def test_prose_about_sharing_is_no_path():
  assert not text_violations("x.md", "random/shared/generated initialisation; ~/root; work/life")


def test_python_in_gin_is_named():
  assert not gin_folder_violations(["gin/models/x.gin", "tasks/x.py"])
  assert "gin/__init__.py" in gin_folder_violations(["gin/__init__.py"])[0]
