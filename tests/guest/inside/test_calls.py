"""What the calls promise beside the plain cycle: repeats, refusals, force, modes, several attachments."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.inside.conftest import remove_volume
from tests.guest.inside.initiator import Initiator, read_back, run, write_pattern
from tests.guest.inside.program import TARGET, Program, configfs, connector

GUEST = {"together": "calls"}

#: WRITE(10) of one block at LBA 0.
WRITE_10 = ("2a", "00", "00", "00", "00", "00", "00", "00", "01", "00")


def connect(program: Program, volume: str, host: Initiator, **reserve: Any) -> dict[str, Any]:
    """Reserve, initialize and attach; the answer is the connection info."""
    at = {
        "volume": volume,
        "attachment_id": program.call("reserve_volume", volume=volume, **reserve)["attachment_id"],
    }
    info: dict[str, Any] = program.call("initialize_connection", **at, connector=connector(host.name))
    program.call("attach", **at, host_name=host.iface)
    return info


@pytest.fixture
def shared(program: Program, new_device: Callable[[str], str]) -> Iterator[str]:
    """A volume that takes several attachments."""
    name = f"shared-{uuid.uuid4()}"
    program.call("register_volume", volume=name, path=new_device("file"), multiattach=True)
    yield name
    remove_volume(program, name)


def test_each_call_sent_twice_gives_the_same_answer_and_has_one_effect(
    program: Program, host1: Initiator, volume: str
) -> None:
    name = str(uuid.uuid4())
    at = {"volume": volume, "attachment_id": name}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("reserve_volume", at),
        ("initialize_connection", {**at, "connector": connector(host1.name)}),
        ("attach", {**at, "host_name": "guest", "mount_point": "/dev/vdb"}),
        ("begin_detaching", at),
        ("terminate_connection", {**at, "connector": connector(host1.name)}),
        ("detach", at),
    ]
    for method, params in calls:
        first = program.call(method, **params)
        target, history = configfs(), program.call("get_history", volume=volume)
        assert program.call(method, **params) == first, method
        assert configfs() == target, f"the second {method} changed the target"
        assert program.call("get_history", volume=volume) == history, f"the second {method} changed the journal"
    gone = program.call("terminate_connection", **at, connector=connector(host1.name))
    assert (gone["attachment_id"], gone["state"]) == (name, "gone")


def test_terminate_refuses_while_the_initiator_is_logged_in(program: Program, host1: Initiator, volume: str) -> None:
    info = connect(program, volume, host1)
    assert host1.login(info)
    program.call("begin_detaching", volume=volume)
    target, journal = configfs(), program.journal()
    error = program.refused("terminate_connection", volume=volume, connector=connector(host1.name))
    assert (error.kind, error.code, error.retriable) == ("SessionActive", 1006, False)
    assert (configfs(), program.journal()) == (target, journal)
    assert host1.sessions(info["data"]["target_iqn"]), "the session lives on"
    host1.logout(info)
    ended = program.call("terminate_connection", volume=volume, connector=connector(host1.name))
    assert ended["state"] == "disconnected"


def test_force_ends_the_session_and_keeps_the_initiator_out(program: Program, host1: Initiator, volume: str) -> None:
    info = connect(program, volume, host1)
    assert host1.login(info)
    disk = host1.disk(info)
    ended = program.call("terminate_connection", volume=volume, connector=connector(host1.name), force=True)
    assert ended["state"] == "disconnected"
    assert target_sessions(info) == [], "the target has no session of it"
    with pytest.raises((OSError, AssertionError)):
        write_pattern(disk, 3)
    host1.logout(info)
    assert not host1.login(info), "its old secret opens nothing"


def target_sessions(info: dict[str, Any]) -> list[str]:
    """The initiators that the kernel's target has sessions of."""
    acls = TARGET / "iscsi" / info["data"]["target_iqn"] / "tpgt_1/acls"
    return [acl.name for acl in acls.glob("*") if "LIO Session ID" in (acl / "info").read_text()]


def test_read_only_is_enforced_by_the_target(program: Program, host1: Initiator, volume: str) -> None:
    info = connect(program, volume, host1, mode="ro")
    assert info["data"]["access_mode"] == "ro"
    assert host1.login(info)
    disk = host1.disk(info)
    assert len(read_back(disk, 4096)) == 4096, "reading works"
    # The initiator's kernel keeps writers out by itself; a raw SCSI write asks the target.
    generic = next(Path("/sys/block", disk.name, "device/scsi_generic").iterdir()).name
    written = run(
        "sg_raw",
        "--send=512",
        "--infile=/dev/zero",
        f"/dev/{generic}",
        *["2a", "00", "00", "00", "00", "00", "00", "00", "01", "00"],
        check=False,
    )
    assert "Write protected" in written.stderr, written
    with pytest.raises(OSError):
        write_pattern(disk, 1)
    host1.logout(info)


def test_one_of_two_initiators_leaves_and_the_other_goes_on(
    program: Program, host1: Initiator, host2: Initiator, shared: str
) -> None:
    first, second = connect(program, shared, host1), connect(program, shared, host2)
    assert first["data"]["auth_password"] != second["data"]["auth_password"]
    assert host1.login(first) and host2.login(second)
    disk, session = host2.disk(second), host2.sessions(second["data"]["target_iqn"])
    failures: list[OSError] = []
    writing = threading.Event()
    stop = threading.Event()

    def keep_writing() -> None:
        while not stop.is_set():
            try:
                write_pattern(disk, 7, blocks=8)
                writing.set()
            except OSError as error:
                failures.append(error)
                return

    writer = threading.Thread(target=keep_writing)
    writer.start()
    assert writing.wait(20)
    host1.logout(first)
    at = {"volume": shared, "attachment_id": first["attachment_id"]}
    program.call("begin_detaching", **at)
    program.call("terminate_connection", **at, connector=connector(host1.name))
    program.call("detach", **at)
    writing.clear()
    assert writing.wait(20), "it still writes after the other has gone"
    stop.set()
    writer.join(30)
    assert failures == []
    assert host2.sessions(second["data"]["target_iqn"]) == session, "in the same session"
    host2.logout(second)


def test_two_attachments_of_one_host_do_not_cut_each_other_off(program: Program, host1: Initiator, shared: str) -> None:
    first, second = connect(program, shared, host1), connect(program, shared, host1)
    assert first["data"]["auth_password"] == second["data"]["auth_password"], "one host has one access rule"
    assert host1.login(first)
    disk, session = host1.disk(first), host1.sessions(first["data"]["target_iqn"])
    at = {"volume": shared, "attachment_id": first["attachment_id"]}
    program.call("begin_detaching", **at)
    program.call("terminate_connection", **at, connector=connector(host1.name))
    program.call("detach", **at)
    write_pattern(disk, 9)
    assert host1.sessions(first["data"]["target_iqn"]) == session
    host1.logout(second)
    at["attachment_id"] = second["attachment_id"]
    program.call("begin_detaching", **at)
    program.call("terminate_connection", **at, connector=connector(host1.name))
    assert not host1.login(second), "with the last of them the secret dies"


def test_one_host_cannot_have_two_modes(program: Program, host1: Initiator, shared: str) -> None:
    connect(program, shared, host1)
    name = program.call("reserve_volume", volume=shared, mode="ro")["attachment_id"]
    error = program.refused("initialize_connection", volume=shared, attachment_id=name, connector=connector(host1.name))
    assert error.kind == "InvalidVolumeAttachMode"


GOOD = connector("iqn.2026-11.com.example:host1")
BAD_INITIATORS = [
    "iqn.2026-11.com.example:" + "a" * 300,
    "iqn.2026-11.com.example:a/../../b",
    "iqn.2026-11.com.example:a\nb",
    "iqn.2026-11.com.example:ä",
    "host1",
    "",
    "..",
]
BAD_VOLUMES = ["../../etc", "Vol", "a\n", "a" * 300, "-a", "", "a b", "a/b", "."]
REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    ("InvalidVolume", "attach", {"host_name": "guest"}),
    ("InvalidVolume", "begin_detaching", {}),
    ("InvalidVolume", "detach", {}),
    ("InvalidVolume", "terminate_connection", {"connector": GOOD}),
    ("InvalidVolume", "reserve_volume", {}),
    ("VolumeNotFound", "reserve_volume", {"volume": "unknown"}),
    ("AttachmentNotFound", "detach", {"attachment_id": "00000000-0000-4000-8000-000000000000"}),
    ("InvalidInput", "attach", {}),
    ("InvalidInput", "initialize_connection", {"connector": {"host": "guest"}}),
    ("InvalidInput", "initialize_connection", {"connector": {"initiator": 5}}),
    ("InvalidInput", "initialize_connection", {"connector": {**GOOD, "ip": "guest"}}),
    ("InvalidInput", "reserve_volume", {"attachment_id": "../../x"}),
    ("InvalidInput", "reserve_volume", {"mode": "rwx"}),
    ("InvalidInput", "attach", {"host_name": "a\nb"}),
    ("InvalidParams", "reserve_volume", {"colour": "red"}),
    *[("InvalidInput", "initialize_connection", {"connector": {"initiator": name}}) for name in BAD_INITIATORS],
    *[("InvalidInput", "show_volume", {"volume": name}) for name in BAD_VOLUMES],
    *[("InvalidInput", "register_volume", {"volume": name, "path": "/dev/loop0"}) for name in BAD_VOLUMES],
    ("InvalidInput", "register_volume", {"volume": "new", "path": "relative"}),
    ("InvalidInput", "register_volume", {"volume": "new", "path": "/dev/null"}),
    ("InvalidInput", "register_volume", {"volume": "new", "path": "/dev/nothing"}),
    ("InvalidInput", "register_volume", {"volume": "new", "path": "/dev/loop0\nx"}),
    ("InvalidInput", "register_volume", {"volume": "new", "path": "/dev/../etc/passwd"}),
    ("InvalidInput", "register_volume", {"volume": "new", "path": "/etc/mtab"}),
]


@pytest.fixture(scope="module")
def reserved(program: Program, new_device: Callable[[str], str]) -> Iterator[str]:
    """One reserved volume, which no refused call may touch."""
    program.call("register_volume", volume="reserved", path=new_device("file"))
    program.call("reserve_volume", volume="reserved")
    yield "reserved"
    remove_volume(program, "reserved")


@pytest.mark.parametrize(("kind", "method", "params"), REFUSED)
def test_a_wrong_call_gets_its_kind_and_changes_nothing(
    kind: str, method: str, params: dict[str, Any], program: Program, reserved: str
) -> None:
    target, journal = configfs(), program.journal()
    error = program.refused(method, **{"volume": reserved, **params})
    assert error.kind == kind, error.message
    assert error.message
    assert (configfs(), program.journal()) == (target, journal)


def test_an_initiator_in_upper_case_is_the_same_initiator(program: Program, host1: Initiator, volume: str) -> None:
    program.call("reserve_volume", volume=volume)
    info = program.call("initialize_connection", volume=volume, connector=connector(host1.name.upper()))
    assert host1.login(info)
    host1.logout(info)


def test_an_attachment_id_that_looks_like_base64_is_no_trap(program: Program, host1: Initiator, volume: str) -> None:
    """LIO reads a CHAP user name that begins with 0b as base64: one random id of 256 could never log in."""
    at = {"volume": volume, "attachment_id": "0bd7cb7a-6ee4-49f0-ae39-27d9bb1a3d6c"}
    program.call("reserve_volume", **at)
    info = program.call("initialize_connection", **at, connector=connector(host1.name))
    assert host1.login(info)
    host1.logout(info)
