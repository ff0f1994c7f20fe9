"""Producers of phi: everything that is called with a downstream model and a support, and returns a phi."""
