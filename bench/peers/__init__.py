"""Whoever can attach and detach a volume: one class each."""
