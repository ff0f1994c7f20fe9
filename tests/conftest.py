"""Sets what jax, TensorFlow, torch and tokenizers read from the environment as they start."""

import importlib.metadata
import os
import pathlib

# Here, because each of them reads its variable once, at its first import.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling takes most of the tests' time, and LLVM's optimisations half of that; XLA's own passes,
# and so the memory that a program needs, stay as they are. With 0 here, all is as users run it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# XLA's older emitter: unoptimised, its code compiles in a quarter of the time. The jaxlib that is
# pinned from Python 3.12 on has it no more, and ends the process at a flag that it does not know.
OLD_EMITTER = "--xla_cpu_use_fusion_emitters=false"
has_old_emitter = importlib.metadata.version("jaxlib").startswith("0.10.")
if has_old_emitter and os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {OLD_EMITTER}"
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# The environment comes first.
import gin  # noqa: E402
import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


# Of the 65 530 memory maps that Linux allows a process.
MAPS = 40_000


@pytest.fixture(scope="module", autouse=True)
def unlock_gin():
  """A command locks gin's configuration for its process; here the next module shares it."""
  gin.clear_config()


@pytest.fixture
def empty_registry(monkeypatch):
  """For tasks whose names other tests have given to other files."""
  import seqio

  from hyperjax.data import registering

  monkeypatch.setattr(registering, "_MODULES", {})
  for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
    monkeypatch.setattr(registry, "_REGISTRY", {})


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
  """Each compiled program holds memory maps, and a whole suite's programs hold too many."""
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and len(maps.read_bytes().splitlines()) > MAPS:
    jax.clear_caches()
