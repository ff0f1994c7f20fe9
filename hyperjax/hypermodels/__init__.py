"""Producers of phi: whatever is called with a downstream model and a support and returns a phi."""
