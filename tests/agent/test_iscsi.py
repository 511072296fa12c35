"""Logins of the connector iscsi, with open-iscsi played by a script; the real one is in tests/guest/inside/agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.cli.hostile_daemon import SERIAL, TARGET, VOLUME
from volattachd.agent.answers import IscsiInfo, VolumeInfo
from volattachd.agent.connectors.base import Connection, Waiting
from volattachd.agent.connectors.iscsi import IscsiConnector
from volattachd.agent.errors import ConnectFailed, PortalBusy, PortalSilent

FIRST, SECOND = "192.0.2.1:3260", "192.0.2.2:3260"
SILENT, REFUSED = PortalSilent("it does not answer"), ConnectFailed("it refused the name")
BUSY = PortalBusy("it does not answer the login")


class ScriptedNode:
    """Each login takes the next outcome of the script: None lets in."""

    def __init__(self, script: list[Exception | None]) -> None:
        self.script = script
        self.portals: list[str] = []

    def record(self, portal: str, settings: Mapping[str, str]) -> None:
        pass

    def log_in(self, portal: str) -> None:
        self.portals.append(portal)
        outcome = self.script.pop(0)
        if outcome is not None:
            raise outcome


def log_in(
    script: list[Exception | None], timeout: float = 60.0, busy: float = 900.0
) -> tuple[ScriptedNode, list[str]]:
    """What the connector asked open-iscsi, and what it said that it waited for."""
    node = ScriptedNode(script)
    said: list[str] = []

    def report(line: str) -> None:
        if isinstance(line, Waiting):
            said.append(line)

    made: Any = node
    connector = IscsiConnector(report, lambda: "iqn.2026-11.com.example:a", node=lambda name: made)
    volume = VolumeInfo(VOLUME, "/srv/vol-1", 1 << 20, "attaching", False, TARGET, SERIAL)
    info = IscsiInfo(TARGET, (FIRST, SECOND), 0, "volattach-1", "s3cret")
    try:
        connector._log_in(Connection(SERIAL, volume, "rw", info, timeout, busy))
    except ConnectFailed as error:
        said.append(f"raised: {error.message}")
    return node, said


def test_the_first_portal_that_lets_in_is_enough() -> None:
    node, said = log_in([None])
    assert (node.portals, said) == ([FIRST], [])
    node, said = log_in([REFUSED, None])
    assert (node.portals, said) == ([FIRST, SECOND], [])


def test_portals_that_are_busy_are_tried_in_turn_and_the_reason_is_shown() -> None:
    node, said = log_in([SILENT, REFUSED, SILENT, SILENT, None])
    assert node.portals == [FIRST, SECOND, FIRST, SECOND, FIRST]
    assert len(said) == 2
    assert all(line.startswith(f"{VOLUME}: {SILENT.message}; trying again for ") for line in said)


def test_portals_that_all_refuse_are_not_tried_again() -> None:
    node, said = log_in([REFUSED, REFUSED, None])
    assert (node.portals, said) == ([FIRST, SECOND], [f"raised: {REFUSED.message}"])


@pytest.mark.parametrize("order", [[SILENT, REFUSED], [REFUSED, SILENT]])
def test_the_agents_timeout_ends_it_with_what_could_have_helped(order: list[Exception | None]) -> None:
    node, said = log_in([*order, None], timeout=0)
    assert (node.portals, said) == ([FIRST, SECOND], [f"raised: {SILENT.message}"])


def test_a_portal_that_is_busy_is_waited_for_longer_than_one_that_may_be_dead() -> None:
    node, said = log_in([SILENT, BUSY, BUSY, SILENT, None], timeout=0)
    assert (len(node.portals), len(said)) == (5, 2) and all(BUSY.message in line for line in said)
    node, said = log_in([BUSY, SILENT, None], timeout=0, busy=0)
    assert (len(node.portals), said) == (2, [f"raised: {BUSY.message}"])
