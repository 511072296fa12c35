from __future__ import annotations

import grp
import json
import os
import pwd
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import serving
from volattachd.api.access import Access, Peer, peer_of
from volattachd.api.methods import METHODS, Role
from volattachd.config import Config
from volattachd.errors import ConfigError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

#: Ids that no account of a test host has: numbers serve as well as names.
USER, OTHER, GROUP, OTHER_GROUP = 54321, 54322, 54331, 54332


def access(**names: Sequence[str]) -> Access:
    lists: dict[str, Any] = {"agent": (), **{role: tuple(who) for role, who in names.items()}}
    return Access(replace(Config(), **lists))


def role(granted: Access, uid: int = USER, *gids: int) -> Role:
    return granted.role_of(Peer(1, uid, frozenset(gids)))


# Roles.


@pytest.mark.parametrize("name", ["reader", "agent", "provisioner", "admin"])
def test_a_role_goes_to_the_users_and_groups_that_are_named(name: str) -> None:
    expected = Role[name.upper()]
    by_user, by_group = access(**{name: [str(USER)]}), access(**{name: [f"%{GROUP}"]})
    assert role(by_user) is expected
    assert role(by_user, OTHER, USER) is Role.NOBODY  # a group of the same number is no user
    assert role(by_group, OTHER, GROUP) is expected
    assert role(by_group, OTHER, OTHER_GROUP, GROUP) is expected
    assert role(by_group, GROUP, OTHER_GROUP) is Role.NOBODY


def test_names_are_looked_up() -> None:
    granted = access(reader=[pwd.getpwuid(65534).pw_name], agent=[f"%{grp.getgrgid(0).gr_name}"])
    assert role(granted, 65534) is Role.READER
    assert role(granted, OTHER, 0) is Role.AGENT


def test_the_highest_of_all_roles_counts() -> None:
    granted = access(reader=[str(USER), f"%{GROUP}"], agent=[f"%{OTHER_GROUP}"], admin=[str(OTHER)])
    assert role(granted, USER, GROUP) is Role.READER
    assert role(granted, USER, GROUP, OTHER_GROUP) is Role.AGENT
    assert role(granted, OTHER, GROUP, OTHER_GROUP) is Role.ADMIN
    twice = access(admin=[str(USER)], reader=[str(USER)])
    assert role(twice) is Role.ADMIN


def test_the_highest_role_counts_also_when_one_user_or_group_is_named_for_several() -> None:
    assert role(access(admin=[f"%{GROUP}"], reader=[f"%{GROUP}"]), USER, GROUP) is Role.ADMIN
    assert role(access(admin=["root"], reader=["root"]), 0) is Role.ADMIN


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_lower_role_that_is_granted_later_takes_nothing_away(order: tuple[int, int]) -> None:
    granted = access()
    names = [(f"%{GROUP}", Role.ADMIN), (f"%{GROUP}", Role.READER)]
    for index in order:
        granted._grant(*names[index])
    assert role(granted, USER, GROUP) is Role.ADMIN


def test_a_kernel_that_refuses_to_tell_the_groups_is_no_peer_without_groups() -> None:
    with pytest.raises(OSError, match="EBADF"):
        told(1, 0, 54321, OSError(9, "EBADF"))


def test_root_is_admin_whatever_the_file_says() -> None:
    assert role(access(), 0) is Role.ADMIN
    assert role(access(reader=["root"]), 0) is Role.ADMIN


def test_who_is_not_named_is_nobody() -> None:
    assert role(Access(Config()), USER, GROUP) is Role.NOBODY


def test_a_group_that_does_not_exist_has_nobody_in_it() -> None:
    assert role(access(admin=["%no-such-group"]), USER, GROUP) is Role.NOBODY


@pytest.mark.parametrize("name", ["no-such-user", "²", "٣", "-1", "1.5", "", " "])
@pytest.mark.parametrize("key", ["reader", "agent", "provisioner", "admin"])
def test_a_user_that_does_not_exist_is_an_error_that_names_it(key: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"access\.{key}: there is no user") as caught:
        access(**{key: [name]})
    assert repr(name) in str(caught.value)


# The kernel's word.


class Told:
    """A connection of which the kernel tells this."""

    def __init__(self, pid: int, uid: int, gid: int, groups: Sequence[int] | OSError) -> None:
        self._credentials = struct.pack("iII", pid, uid, gid)
        self._groups = groups

    def getsockopt(self, level: int, option: int, room: int) -> bytes:
        assert level == socket.SOL_SOCKET
        if option == socket.SO_PEERCRED:
            return self._credentials[:room]
        if isinstance(self._groups, OSError):
            raise self._groups
        return struct.pack(f"{len(self._groups)}I", *self._groups)


def told(*words: Any) -> Peer:
    return peer_of(Told(*words))  # type: ignore[arg-type]


def test_a_peer_is_who_made_the_connection() -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        peer = peer_of(mine)
    assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
    assert peer.gids == {os.getegid(), *os.getgroups()}


def test_ids_of_all_32_bits_are_what_they_are() -> None:
    peer = told(1, 4294967294, 4294967293, [4294967292])
    assert peer == Peer(1, 4294967294, frozenset({4294967293, 4294967292}))


def test_more_groups_than_fit_are_asked_of_the_user_database() -> None:
    peer = told(1, 0, 54321, OSError(34, "ERANGE"))
    assert peer.gids == set(os.getgrouplist(pwd.getpwuid(0).pw_name, 54321))


def test_a_user_whom_the_database_does_not_know_has_at_least_the_group_that_the_kernel_told() -> None:
    assert told(1, USER, GROUP, OSError(34, "ERANGE")).gids == {GROUP}


# Whole calls, by processes of other users.

PROGRAM = """
import json, os, socket, sys
path, uid, gid, groups = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
os.setgroups(groups); os.setgid(gid); os.setuid(uid)
with socket.socket(socket.AF_UNIX) as client:
    client.settimeout(20)
    client.connect(path)
    try:
        for method in json.loads(sys.argv[5]):
            client.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method}).encode())
        client.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # refused: the answer says why
    received = b""
    try:
        while data := client.recv(65536):
            received += data
    except ConnectionResetError:
        pass  # what a refused client sent was not read
    answers = received.decode().splitlines()
print(json.dumps([json.loads(answer) for answer in answers]))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can enter."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711)
        yield Path(directory) / "d.sock"


def allowed(path: Path, uid: int, gid: int, groups: Sequence[int]) -> set[str]:
    """The methods that a process of this user may call, asked one after the other."""
    names = [method.name for method in METHODS]
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        str(path),
        str(uid),
        str(gid),
        json.dumps(list(groups)),
        json.dumps(names),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answers = json.loads(done.stdout)
    if answers[0]["id"] is None:  # said of the connection: a user without a role has none
        (refusal,) = answers
        assert refusal["error"]["data"]["kind"] == "PermissionDenied"
        assert f"uid {uid} has no role" in refusal["error"]["message"]
        return set()
    assert len(answers) == len(names)
    refused = set()
    for name, answer in zip(names, answers, strict=True):
        if answer.get("error", {}).get("code") == 1008:
            assert answer["error"]["data"]["kind"] == "PermissionDenied"
            assert f"uid {uid} is " in answer["error"]["message"]
            refused.add(name)
    return set(names) - refused


@needs_root
@pytest.mark.parametrize(
    ("uid", "gid", "groups", "expected"),
    [
        (USER, 54340, [], Role.NOBODY),
        (54301, 54340, [], Role.READER),
        (54302, 54340, [], Role.AGENT),
        (54303, 54340, [], Role.ADMIN),
        (USER, 54311, [], Role.READER),
        (USER, 54312, [], Role.AGENT),
        (USER, 54313, [], Role.ADMIN),
        (USER, 54340, [54341, 54311], Role.READER),
        (USER, 54340, [54312], Role.AGENT),
        (USER, 54340, [54311, 54313], Role.ADMIN),
        (USER, 54340, list(range(54400, 54600)), Role.NOBODY),
        (USER, 54340, [*range(54400, 54600), 54313], Role.ADMIN),
        (0, 0, [], Role.ADMIN),
    ],
)
def test_a_process_may_call_what_its_user_and_its_groups_allow(
    place: Path, uid: int, gid: int, groups: list[int], expected: Role
) -> None:
    granted = access(reader=["54301", "%54311"], agent=["54302", "%54312"], admin=["54303", "%54313"])
    handlers = {method.name: lambda *about, **params: None for method in METHODS}
    with serving(place, handlers, access=granted):
        assert allowed(place, uid, gid, groups) == {m.name for m in METHODS if m.role <= expected}


@needs_root
def test_a_process_with_more_groups_than_the_kernel_tells_does_not_end_the_server(place: Path) -> None:
    handlers = {method.name: lambda *about, **params: None for method in METHODS}
    with serving(place, handlers, access=access(admin=["%54313"])):
        assert allowed(place, USER, 54340, list(range(54400, 54800))) == set()
        assert allowed(place, USER, 54313, []) == {method.name for method in METHODS}
