"""Tests of volattachd.rpc."""
