"""An empty stand-in for tfds-nightly, which t5 requires and which owns tensorflow-datasets' files.

Its version is above every nightly's, so no resolver ever prefers the real one.
"""

from setuptools import setup

setup(
  name="tfds-nightly",
  version="4.9.99.dev99991231",
  packages=[],
  py_modules=[],
  install_requires=["tensorflow-datasets>=4.9.9"],
)
