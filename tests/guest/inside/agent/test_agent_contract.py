"""The connectors that need a real host, iscsi and local, against the contract suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.agent.contract import *  # noqa: F403 - the suite
from tests.agent.contract import Bench
from tests.guest.inside.agent.compute import leftovers
from tests.guest.inside.initiator import run
from tests.guest.inside.program import Program
from volattachd.agent.answers import parse_connection, parse_volume
from volattachd.agent.connectors.base import Connection
from volattachd.agent.connectors.registry import make_connector
from volattachd.agent.errors import DeviceInUse

GUEST = {"together": "agent"}


@pytest.fixture(params=["iscsi", "local"])
def bench(request: pytest.FixtureRequest, program: Program, volume: str) -> Iterator[Bench]:
    """A connection that the daemon has granted."""
    made = make_connector(request.param)
    told = made.get_connector("guest")
    attachment = program.call("reserve_volume", volume=volume)["attachment_id"]
    info = program.call("initialize_connection", volume=volume, connector=told)
    shown = parse_volume(program.call("show_volume", volume=volume))
    connection = Connection(attachment, shown, "rw", parse_connection(info, shown, attachment))
    path = shown.path
    yield Bench(
        made,
        connection,
        lambda: [line for line in [*leftovers(), *loops(path)] if "/sys/kernel/config" not in line],
        info["data"].get("auth_password"),
    )
    program.call("terminate_connection", volume=volume, connector=told)


def loops(path: str) -> list[str]:
    return run("losetup", "-j", path).stdout.splitlines()


def test_a_device_in_use_is_refused_and_left_as_it_is(bench: Bench) -> None:
    device = bench.connector.connect(bench.connection)
    run("mkfs.ext4", "-q", device.path)
    run("mount", device.path, "/mnt")
    with pytest.raises(DeviceInUse, match=f"{device.path} is mounted at /mnt"):
        bench.connector.disconnect(bench.connection)
    run("touch", "/mnt/still-there")
    run("umount", "/mnt")
    bench.connector.disconnect(bench.connection)
    assert bench.left() == []
