"""Tests of volattachd.cli."""
