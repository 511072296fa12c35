"""Ways from connection info to a device: one module each, and the contract in ``base``."""
