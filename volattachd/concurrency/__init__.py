"""Locks, worker threads and deadlines: they know neither volumes nor targets."""
