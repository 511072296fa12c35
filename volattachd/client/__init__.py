"""The clients, and what they are made of: the standard library alone."""
