"""Target drivers: the contract in base, one file a kind of target, found through the registry."""
