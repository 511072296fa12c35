"""Measurements: what things cost, for people to read. No test depends on a time."""
