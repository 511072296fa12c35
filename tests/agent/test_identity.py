from __future__ import annotations

from volattachd.agent.identity import new_id, was_made_by
from volattachd.model import UUID


def test_a_host_knows_its_own_ids_and_no_others() -> None:
    name = new_id("host-a", "vol-1")
    assert UUID.fullmatch(name)
    assert was_made_by("host-a", "vol-1", name)
    assert not was_made_by("host-b", "vol-1", name)
    assert not was_made_by("host-a", "vol-2", name)
    assert not was_made_by("host-a", "vol-1", "6f1c8a52-9d0e-4b7a-8f23-5c1d2e3f4a5b")


def test_no_two_are_the_same() -> None:
    assert len({new_id("host-a", "vol-1") for _ in range(1000)}) == 1000
