"""What the daemon sees of its host: devices, addresses, events. Nothing here changes the host."""
