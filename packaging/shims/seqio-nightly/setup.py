"""An empty stand-in for seqio-nightly, which t5 requires and which owns the same files as seqio.

Its version is above every nightly's, so no resolver ever prefers the real one.
"""

from setuptools import setup

setup(
  name="seqio-nightly",
  version="0.0.21.dev99991231",
  packages=[],
  py_modules=[],
  install_requires=["seqio>=0.0.20"],
)
