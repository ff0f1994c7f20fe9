"""Downstream models: they consume phi and know nothing of who made it."""
