"""Log messages and metrics."""
