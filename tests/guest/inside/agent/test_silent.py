"""Connections to the portal that say nothing: the target takes logins one after the other, and gives each of them 15 s.

The long form has 40 of them, and takes eleven minutes.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.guest.inside.agent.compute import Compute, leftovers, rename_initiator
from tests.guest.inside.program import Program
from tests.soak import PART

GUEST = {"timeout": 1500.0 if PART else 600.0}

STANDING = {"initiator": "iqn.2026-11.com.example:standing", "ip": "127.0.0.1"}
SECONDS = 1000.0


@pytest.fixture(scope="module")
def compute(program: Program) -> Compute:
    rename_initiator("iqn.2026-11.com.example:silent")
    return Compute(program)


@pytest.fixture
def portal(program: Program, new_device: Callable[[str], str]) -> Iterator[tuple[str, int]]:
    """A portal that listens before the volume of the test is exported: another one is."""
    program.call("register_volume", volume="standing", path=new_device("file"))
    program.call("reserve_volume", volume="standing")
    program.call("initialize_connection", volume="standing", connector=STANDING)
    yield "127.0.0.1", 3260
    program.call("terminate_connection", volume="standing", connector=STANDING)
    program.call("unregister_volume", volume="standing")


@pytest.mark.parametrize("number", [1, 4, 40] if PART else [1, 4])
def test_an_attach_succeeds_behind_silent_connections_and_says_what_it_waits_for(
    number: int, portal: tuple[str, int], compute: Compute, volume: str
) -> None:
    with ExitStack() as standing:
        for _ in range(number):
            standing.enter_context(socket.create_connection(portal))
        done = compute.volattach("attach", volume, seconds=SECONDS)
    assert done.returncode == 0, done.stderr
    waits = [line for line in done.stderr.splitlines() if "trying again for " in line]
    assert number == 1 or waits, "with one alone the first try may be long enough"
    assert all("accepts the connection and does not come to the login" in line for line in waits), waits
    compute.detach(volume)
    assert [line for line in leftovers() if "/sys/kernel/config" not in line] == []
