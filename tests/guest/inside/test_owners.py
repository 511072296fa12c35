"""Secrets of two users on one volume, with LIO and a real initiator: each logs in with its own alone."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.guest.inside.conftest import remove_volume
from tests.guest.inside.initiator import Initiator
from tests.guest.inside.program import Program, connector
from tests.support import Wire
from tests.test_trespass import connect_as

GUEST = {"together": "calls"}
ALICE, BOB = 54401, 54402


@pytest.fixture
def users(program: Program) -> Iterator[dict[int, Wire]]:
    """A connection of each user; the program gives both the role."""
    program.stop()
    before = program.config.read_text()
    program.config.write_text(before + f'\n[access]\nagent = ["{ALICE}", "{BOB}"]\n')
    program.start()
    for directory in program.socket.parents:
        directory.chmod(directory.stat().st_mode | 0o011)
    program.socket.chmod(0o666)
    wires = {uid: connect_as(program.socket, uid) for uid in (ALICE, BOB)}
    yield wires
    for wire in wires.values():
        wire.socket.close()
    program.stop()
    program.config.write_text(before)
    program.start()


def test_an_old_secret_and_that_of_another_owner_log_nobody_in(
    program: Program,
    users: dict[int, Wire],
    host1: Initiator,
    host2: Initiator,
    new_device: Callable[[str], str],
) -> None:
    volume = f"owners-{uuid.uuid4()}"
    program.call("register_volume", volume=volume, path=new_device("file"), multiattach=True)
    try:
        _try_secrets(volume, users, host1, host2)
    finally:
        remove_volume(program, volume)


def _try_secrets(volume: str, users: dict[int, Wire], host1: Initiator, host2: Initiator) -> None:
    def connect(uid: int, host: Initiator) -> tuple[dict[str, Any], dict[str, Any]]:
        name = users[uid].call("reserve_volume", volume=volume)["attachment_id"]
        at = {"volume": volume, "attachment_id": name}
        return at, users[uid].call("initialize_connection", **at, connector=connector(host.name))

    at, old = connect(ALICE, host1)
    own, theirs = connect(BOB, host2)
    assert host1.login(old), "the owner's secret is good"
    host1.logout(old)
    # The other owner's secret is no key to this host's rule, nor this one's to the other's.
    credentials = {name: theirs["data"][name] for name in ("auth_username", "auth_password")}
    assert not host1.login(old, **credentials)
    assert not host2.login(theirs, **{name: old["data"][name] for name in credentials})
    # Bob cannot connect as alice's host while she does.
    third = users[BOB].call("reserve_volume", volume=volume)["attachment_id"]
    params = {"volume": volume, "attachment_id": third, "connector": connector(host1.name)}
    refused = users[BOB].ask({"jsonrpc": "2.0", "id": 1, "method": "initialize_connection", "params": params})
    assert refused["error"]["data"]["kind"] == "PermissionDenied"
    # After her last attachment has ended he may have the name, and her secret is dead.
    users[ALICE].call("terminate_connection", **at, connector=connector(host1.name))
    new = users[BOB].call("initialize_connection", **params)
    assert not host1.login(old)
    assert not host1.login(new, **{name: old["data"][name] for name in credentials})
    assert host1.login(new), "the new owner's secret is good"
    host1.logout(new)
    users[BOB].call("terminate_connection", **params)
    users[BOB].call("terminate_connection", **own, connector=connector(host2.name))
