"""Guests: a real Linux kernel (User-Mode Linux) with LIO beside the test process, without virtualisation."""
