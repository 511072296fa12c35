"""Several portals, IPv6, and the address that a connector can reach."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.inside.initiator import Initiator, run
from tests.guest.inside.program import Program, connector

GUEST = {"together": "host"}

CONFIG = """
[target]
driver = "lio"
portals = ["127.0.0.1", "[::1]:3260", "dummy0:3261"]
"""
ADDRESSES = ("192.0.2.10", "2001:db8::10")


@pytest.fixture(scope="module")
def program(base: Path) -> Iterator[Program]:
    """A daemon with portals by address and by interface."""
    run("ip", "link", "add", "dummy0", "type", "dummy")
    for address, length in zip(ADDRESSES, ("24", "64"), strict=True):
        extra = ["nodad"] if ":" in address else []
        run("ip", "address", "add", f"{address}/{length}", "dev", "dummy0", *extra)
    run("ip", "link", "set", "dummy0", "up")
    made = Program(base, CONFIG)
    made.start()
    yield made
    assert made.stop() == 0


def connect(program: Program, volume: str, host: Initiator, **more: Any) -> dict[str, Any]:
    program.call("reserve_volume", volume=volume)
    info: dict[str, Any] = program.call("initialize_connection", volume=volume, connector=connector(host.name, **more))
    return info


@pytest.mark.parametrize(
    ("ip", "portals"),
    [
        ("127.0.0.1", ["127.0.0.1:3260", "192.0.2.10:3261"]),
        ("::1", ["[::1]:3260", "[2001:db8::10]:3261"]),
        ("192.0.2.77", ["192.0.2.10:3261"]),
        ("2001:db8::77", ["[2001:db8::10]:3261"]),
    ],
)
def test_each_portal_that_is_given_can_be_reached(
    ip: str, portals: list[str], program: Program, host1: Initiator, volume: str
) -> None:
    data = connect(program, volume, host1, ip=ip)["data"]
    assert data["target_portal"] == portals[0]
    assert data.get("target_portals", [data["target_portal"]]) == portals
    for portal in portals:
        assert host1.login({"data": data}, portal=portal), portal
        assert host1.disk({"data": data})
        host1.logout({"data": data}, portal=portal)


def test_a_port_that_another_process_has_is_told_with_that_process(
    program: Program, host1: Initiator, volume: str
) -> None:
    """The portals are made with the first export: until then the port is free."""
    program.call("reserve_volume", volume=volume)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("192.0.2.10", 3261))
        taken.listen()
        error = program.refused("initialize_connection", volume=volume, connector=connector(host1.name))
    assert error.kind == "DriverError"
    name = Path("/proc/self/comm").read_text().strip()
    seen = f"process {os.getpid()} ({name})"
    if "VOLATTACHD_SANDBOX" in os.environ:  # the unit's sandbox hides whose a socket is
        seen = "the kernel, or a process that volattachd cannot see"
    assert f"cannot listen on 192.0.2.10:3261: the port is in use by {seen}" in error.message
    assert "Invalid argument" not in error.message
    assert program.call("initialize_connection", volume=volume, connector=connector(host1.name))


def test_multipath_lists_the_portals_even_where_there_is_one(program: Program, host1: Initiator, volume: str) -> None:
    data = connect(program, volume, host1, ip="192.0.2.77", multipath=True)["data"]
    assert data["target_portals"] == ["192.0.2.10:3261"]
    assert data["target_iqns"] == [data["target_iqn"]]
    assert data["target_luns"] == [0]


def test_two_sessions_through_two_portals_reach_one_disk(program: Program, host1: Initiator, volume: str) -> None:
    info = connect(program, volume, host1)
    portals = info["data"]["target_portals"]
    assert all(host1.login(info, portal=portal) for portal in portals)
    assert len(host1.sessions(info["data"]["target_iqn"])) == len(portals) == 2
    for portal in portals:
        host1.logout(info, portal=portal)


def test_the_wildcard_takes_both_families(
    base: Path, program: Program, host1: Initiator, new_device: Callable[[str], str]
) -> None:
    program.stop()
    program.config.write_text('[target]\ndriver = "lio"\n')
    program.start()
    assert program.call("get_status")["portals"] == ["[::]:3260"]
    program.call("register_volume", volume="wild", path=new_device("file"))
    program.call("reserve_volume", volume="wild")
    for ip, portal in (("127.0.0.1", "127.0.0.1:3260"), ("::1", "[::1]:3260"), ("192.0.2.77", "192.0.2.10:3260")):
        info = program.call("initialize_connection", volume="wild", connector=connector(host1.name, ip=ip))
        assert info["data"]["target_portal"] == portal
        assert host1.login(info)
        host1.logout(info)
    program.call("terminate_connection", volume="wild", connector=connector(host1.name))
    program.call("unregister_volume", volume="wild")
