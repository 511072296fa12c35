"""Revocations that meet a login of their initiator, at each point of it: they end, and there is nothing to read.

A login holds a reference to its ACL before the kernel knows its session. Where the ACL was removed in between, its
``rmdir`` slept until the initiator logged out (drivers/lio.py).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.drivers.initiator import OFFER, Login
from tests.drivers.initiator import Session as Libiscsi
from tests.figures import RecordFigure
from tests.guest.inside.initiator import Initiator
from tests.guest.inside.program import TARGET, Program, connector
from tests.guest.inside.test_stalled import cycle, kinds, wait_until
from tests.guest.races import VOLUMES, block, check, fill, race, shown
from tests.soak import PART, times
from volattachd.model import Secret

GUEST = {"timeout": 86400 if PART else 600}

ROUNDS = times(20, 1_000)
CALL_SECONDS = 3
VOLUME = "racing"
RACER = "iqn.2026-11.com.example:racer"
NEIGHBOUR = "iqn.2026-11.com.example:neighbour"
PORTAL = ("127.0.0.1", 3260)
READ = bytes([0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0])


@pytest.fixture(scope="module")
def program(base: Path) -> Iterator[Program]:
    """A daemon whose callers wait three seconds."""
    made = Program(
        base, f'[target]\ndriver = "lio"\n[limits]\ncall_seconds = {CALL_SECONDS}\n[reconcile]\ninterval = 1\n'
    )
    made.start()
    yield made
    assert made.stop() == 0


@pytest.fixture
def racing(program: Program, base: Path) -> Iterator[str]:
    """A volume that several initiators may have, and that holds a pattern."""
    path = base / "racing.img"
    fill(str(path))
    program.call("register_volume", volume=VOLUME, path=str(path), multiattach=True)
    yield VOLUME
    for row in program.call("list_attachments", volume=VOLUME):
        at = {"volume": VOLUME, "attachment_id": row["attachment_id"]}
        if row["state"] != "disconnected":
            program.call("terminate_connection", **at, connector=row["connector"], force=True)
        program.call("detach", **at)
    program.call("unregister_volume", volume=VOLUME)


def grant(program: Program, initiator: str) -> dict[str, Any]:
    """An attachment of an initiator, and what it needs to log in."""
    row = program.call("reserve_volume", volume=VOLUME)
    at = {"volume": VOLUME, "attachment_id": row["attachment_id"]}
    info = program.call("initialize_connection", **at, connector=connector(initiator))
    program.call("attach", **at, host_name=initiator.rpartition(":")[2])
    return {"data": info["data"], "revocation": {**at, "connector": connector(initiator), "force": True}}


def secret_of(granted: dict[str, Any]) -> Secret:
    return Secret(granted["data"]["auth_username"], granted["data"]["auth_password"])


@contextmanager
def stopped_login(granted: dict[str, Any], *, authenticated: bool) -> Iterator[Login]:
    """A login that stops: after its first message, or with its last one still to come."""
    login = Login(PORTAL, RACER, granted["data"]["target_iqn"])
    try:
        assert login.authenticate(secret_of(granted)) if authenticated else login.begin()
        yield login
    finally:
        login.close()


def libiscsi(granted: dict[str, Any], initiator: str) -> Libiscsi:
    """A session from user space."""
    return Libiscsi("127.0.0.1:3260", granted["data"]["target_iqn"], 0, initiator, secret_of(granted))


def acls(granted: dict[str, Any]) -> list[str]:
    return [path.name for path in (TARGET / "iscsi" / granted["data"]["target_iqn"] / "tpgt_1/acls").iterdir()]


@pytest.mark.parametrize("neighbours", [0, 1])
def test_a_login_that_goes_on_during_its_revocation_is_refused_or_its_session_ends_at_once(
    neighbours: int, program: Program, racing: str
) -> None:
    """A group that is disabled refuses it; one that others use lets it in, and the revocation puts it out."""
    others = [grant(program, NEIGHBOUR) for _ in range(neighbours)]
    granted = grant(program, RACER)
    with stopped_login(granted, authenticated=True) as login:
        error = program.refused("terminate_connection", **granted["revocation"])
        assert error.kind == "Busy", "the revocation waits for the login, with the mapping away"
        assert "/np/" in error.message
        assert login.finish(OFFER) is (neighbours > 0)
        assert program.call("terminate_connection", **granted["revocation"])["state"] == "disconnected"
        login.wait_for_end()
    assert acls(granted) == [NEIGHBOUR] * neighbours
    for other in others:
        session = libiscsi(other, NEIGHBOUR)
        assert session.read(len(block())) == block(), "its portals are back"
        session.logout()


@pytest.mark.parametrize("authenticated", [False, True])
def test_a_login_that_is_given_up_during_its_revocation_lets_it_end(
    authenticated: bool, program: Program, racing: str
) -> None:
    granted = grant(program, RACER)
    with stopped_login(granted, authenticated=authenticated):
        assert program.refused("terminate_connection", **granted["revocation"]).kind == "Busy"
    assert program.call("terminate_connection", **granted["revocation"])["state"] == "disconnected"
    assert acls(granted) == []


def test_a_session_reads_nothing_once_its_revocation_has_begun_even_where_a_login_holds_it_up(
    program: Program, racing: str
) -> None:
    granted = grant(program, RACER)
    session = libiscsi(granted, RACER)
    assert session.read(len(block())) == block()
    with stopped_login(granted, authenticated=True):
        assert program.refused("terminate_connection", **granted["revocation"]).kind == "Busy"
        assert session.read(len(block())) is None, "not the volume, nor what the kernel's memory holds"
    session.logout()
    assert program.call("terminate_connection", **granted["revocation"])["state"] == "disconnected"


def test_a_neighbours_session_lives_through_a_revocation_that_a_login_holds_up(program: Program, racing: str) -> None:
    other, granted = grant(program, NEIGHBOUR), grant(program, RACER)
    session, evicted = libiscsi(other, NEIGHBOUR), libiscsi(granted, RACER)
    with stopped_login(granted, authenticated=True):
        assert program.refused("terminate_connection", **granted["revocation"]).kind == "Busy"
        assert session.read(len(block())) == block()
        assert evicted.read(len(block())) is None
    assert program.call("terminate_connection", **granted["revocation"])["state"] == "disconnected"
    assert session.read(len(block())) == block()
    evicted.logout()
    session.logout()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_other_volumes_and_the_next_daemon_are_served_while_a_login_holds_a_revocation_up(
    number: int, program: Program, racing: str, host2: Initiator, volume: str
) -> None:
    granted = grant(program, RACER)
    with stopped_login(granted, authenticated=False):
        assert program.refused("terminate_connection", **granted["revocation"]).kind == "Busy"
        cycle(program, volume, host2)
        former = program.process
        assert former is not None
        program.send_signal(number)
        program.start()
        assert kinds(program, VOLUME) == ["Pending"]
        cycle(program, volume, host2)
    former.wait(60)
    wait_until(lambda: kinds(program, VOLUME) == [])
    assert program.call("terminate_connection", **granted["revocation"])["state"] == "disconnected"
    assert acls(granted) == []


def test_a_revocation_that_meets_a_login_of_the_same_kernel_ends_and_leaves_nothing_to_read(
    program: Program, base: Path, record_figure: RecordFigure
) -> None:
    for volume in VOLUMES:
        fill(str(base / volume))
        program.call("register_volume", volume=volume, path=str(base / volume))
    outcome = race(str(program.socket), "127.0.0.1", ROUNDS)
    record_figure("revocations that meet a login, one kernel", shown(outcome))
    check(outcome, ROUNDS)
