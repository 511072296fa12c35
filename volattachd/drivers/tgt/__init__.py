"""The user-space target tgt."""
