"""The contract suite of connectors: ``from tests.agent.contract import *`` and a fixture ``bench``.

``bench`` is a Bench: a connector, a granted connection, and what the host holds that the connector made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from volattachd.agent.connectors.base import Connection, Connector


@dataclass(frozen=True)
class Bench:
    """What the suite needs. ``secret`` is the connection's; ``left`` lists what is on the host because of it."""

    connector: Connector
    connection: Connection
    left: Callable[[], list[str]]
    secret: str | None = None


def without_info(connection: Connection) -> Connection:
    """As an agent has it that comes after a crash."""
    return replace(connection, info=None)


def test_it_describes_the_host_in_cinders_form(bench: Bench) -> None:
    told = bench.connector.get_connector("host-7")
    assert told["host"] == "host-7"
    assert {"ip", "platform", "os_type", "multipath", "do_local_attach"} <= set(told)
    assert bench.connector.get_connector("host-7") == told, "the same host is always told the same way"


def test_connecting_again_gives_the_same_device(bench: Bench) -> None:
    first = bench.connector.connect(bench.connection)
    assert first.path
    assert bench.connector.connect(bench.connection) == first
    bench.connector.disconnect(without_info(bench.connection))


def test_disconnecting_needs_no_connection_info_and_leaves_nothing(bench: Bench) -> None:
    bench.connector.connect(bench.connection)
    assert bench.connector.disconnect(without_info(bench.connection)) == []
    assert bench.left() == []


def test_disconnecting_what_is_not_connected_does_nothing(bench: Bench) -> None:
    assert bench.connector.disconnect(without_info(bench.connection)) == []
    assert bench.connector.disconnect(without_info(bench.connection), force=True) == []
    assert bench.left() == []


def test_what_is_told_of_the_device_has_no_secret(bench: Bench) -> None:
    device = bench.connector.connect(bench.connection)
    assert bench.secret is None or bench.secret not in repr(device)
    assert bench.secret is None or bench.secret not in repr(bench.connection)
    bench.connector.disconnect(without_info(bench.connection))
