"""A tiny whole setting for tests of the commands: tasks, a random model, stores, a finished run.

Made once per session; every test that asks for it shares the compiled programs.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from hyperjax import launch, sources, train
from hyperjax.data import vocabularies
from hyperjax.models import families

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 40
HELD_OUT = ["held_words", "held_choice"]

# A learning rate that knows no end, so that runs of all lengths share their compiled programs.
GIN = """
from __gin__ import dynamic_registration
from hyperjax.training import optimizers
include 'models/llama_tiny.gin'
include 'systems/hyperllama.gin'
include 'data/fewshot.gin'
include 'runs/mtf.gin'

MODEL_SOURCE = {model!r}
VOCABULARY = {model!r}
FEWSHOT_DIR = {tasks!r}
FEWSHOT_HELD_OUT = {held_out!r}
DATA_DIR = {data!r}
TRAIN_STEPS = {steps}
BATCH_SIZE = 2
NUM_SHOTS = 3
NUM_QUERIES = 2
NUM_GIST = 2
GIST_INIT_TEXT = 'Q: word\\nA: word\\n'
SINK_TEXT = ''
LORA_RANK = 2
LEARNING_RATE = 0.03
WARMUP_STEPS = 2
MAX_BUCKETS = 2
CHECKPOINT_PERIOD = 3
optimizers.Schedule.decay = 'rsqrt'
"""


def examples() -> dict[str, list[dict]]:
  """Six tasks of 40 examples: of two lengths, so that there are two shapes; two with options."""
  yes_no = ["yes", "no"]
  long = "a rather long sentence in which one reads of the number"
  return {
    "words": [{"input": f"word {i}", "output": "yes"} for i in range(40)],
    "digits": [{"input": f"{i}", "output": f"{i % 4}"} for i in range(40)],
    "long": [{"input": f"{long} {i}", "output": "yes"} for i in range(40)],
    "choice": [
      {"input": f"is {i} odd", "output": yes_no[i % 2], "options": yes_no} for i in range(40)
    ],
    "held_words": [{"input": f"word {i}", "output": "yes"} for i in range(100, 140)],
    "held_choice": [
      {"input": f"pick {i}", "output": ["no", "yes", "not at all"][i % 3],
       "options": ["yes", "no", "not at all"]}
      for i in range(40)
    ],
  }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tiny:
  """The setting.

  Attributes:
    base: the folder of all that follows.
    gin: a gin file that lacks MODEL_DIR only.
    model, tasks, data: folders of the model, of the tasks' files, of the stores.
    run: the folder of a finished run of STEPS steps.
  """

  base: pathlib.Path
  gin: pathlib.Path
  model: pathlib.Path
  tasks: pathlib.Path
  data: pathlib.Path
  run: pathlib.Path

  def arguments(self, folder, *more: str, **macros) -> list[str]:
    """The command line of a training run."""
    given = {"MODEL_DIR": folder, **macros}
    bindings = [f"--gin.{name}={value}" for name, value in given.items()]
    return [f"--gin_file={self.gin}", *bindings, *more]

  def train(self, folder, *more: str, **macros) -> int:
    """Trains in this process; returns the exit status."""
    return train.main(self.arguments(folder, *more, **macros))

  def environment(self) -> dict[str, str]:
    """The environment of a subprocess that shares the compiled programs."""
    return {
      **os.environ,
      "PYTHONPATH": str(ROOT),
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": str(self.base / "programs"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

  def start(self, folder, *more: str, **macros) -> subprocess.Popen:
    """Starts to train in a process of its own."""
    return subprocess.Popen(
      [sys.executable, "-m", "hyperjax.train", *self.arguments(folder, *more, **macros)],
      env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@functools.cache
def make(base: pathlib.Path) -> Tiny:
  """Writes tasks and model, builds the stores, trains the run."""
  base.mkdir()
  tiny = Tiny(base, *(base / name for name in ("tiny.gin", "model", "tasks", "data", "run")))
  tiny.tasks.mkdir()
  for name, rows in examples().items():
    (tiny.tasks / f"{name}.json").write_text(json.dumps(rows))
  text = GIN.format(
    model=str(tiny.model), tasks=str(tiny.tasks), data=str(tiny.data), steps=STEPS,
    held_out=HELD_OUT,
  )  # fmt: skip
  tiny.gin.write_text(text)
  given = launch.arguments([tiny.gin], "hyperjax.train", "train", bindings=["MODEL_DIR='none'"])
  config = given["model"].architecture
  params = families.random(config, seed=1).params
  vocabulary = vocabularies.load(sources.EMBEDDED)
  families.save(tiny.model, config, params, tokenizer=vocabulary, max_positions=256)
  with shared_programs(base):
    assert tiny.train(tiny.run, EVAL_PERIOD=STEPS) == 0
  return tiny


@contextlib.contextmanager
def shared_programs(base: pathlib.Path):
  """Reads and writes compiled programs below a folder: a setting's, where its subprocesses do."""
  names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
           "jax_persistent_cache_min_entry_size_bytes")  # fmt: skip
  before = {name: getattr(jax.config, name) for name in names}
  for name, value in zip(names, (str(base / "programs"), 0, -1), strict=True):
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def fixture(tmp_path_factory):
  """The setting: `tiny = tests.tiny.fixture` in a test module."""
  tiny = make(tmp_path_factory.getbasetemp() / "tiny")
  with shared_programs(tiny.base):
    yield tiny


def saved(folder, step: int | None = None) -> dict[str, np.ndarray]:
  """Every array of a run's newest checkpoint, by name, as Orbax itself reads it."""
  with ocp.CheckpointManager(pathlib.Path(folder).resolve() / "checkpoints") as manager:
    items = {name: ocp.args.StandardRestore() for name in ("trained", "optimizer")}
    step = manager.latest_step() if step is None else step
    tree = dict(manager.restore(step, args=ocp.args.Composite(**items)))
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same(one, other) -> None:
  """Both runs' newest checkpoints are bit-identical."""
  left, right = saved(one), saved(other)
  assert left.keys() == right.keys() and len(left) > 3
  for name in left:
    np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def refused(capsys, status: int, code: int = 2) -> str:
  """The message of a command that was refused: one line, no traceback."""
  captured = capsys.readouterr()
  assert status == code, captured.err
  lines = captured.err.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
  return lines[0].removeprefix("error: ")
