"""Scores, metrics and reports, the same for every producer."""
