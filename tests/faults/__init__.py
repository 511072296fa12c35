"""Sweeps of faults: every call of the service with a fault at its first operation, its second, and so on."""
