"""Benchmarks, each a command of the checkout: `python -m benchmarks.NAME`."""
