"""The whole life of an attachment with a real target and a real initiator, for a file and for a block device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.guest.inside.initiator import Initiator, read_back, write_pattern, wwid
from tests.guest.inside.program import TARGET, Program, connector

GUEST = {"together": "calls"}

FIELDS = {
    "target_discovered": False,
    "target_portal": "127.0.0.1:3260",
    "target_lun": 0,
    "auth_method": "CHAP",
    "encrypted": False,
    "qos_specs": None,
    "access_mode": "rw",
}


def ours() -> list[str]:
    """Targets and backstores of ours that the kernel holds."""
    targets = [p.name for p in TARGET.glob("iscsi/iqn.2026-11.org.volattachd*")]
    return targets + [p.name for p in TARGET.glob("core/*/volattach-*")]


@pytest.mark.parametrize("kind", ["file", "block"])
def test_a_volume_goes_through_its_life_twice_and_stays_the_same(
    kind: str, program: Program, host1: Initiator, host2: Initiator, new_device: Callable[[str], str]
) -> None:
    name = f"cycle-{kind}"
    made = program.call("register_volume", volume=name, path=new_device(kind))
    assert (made["status"], made["attachments"], made["conditions"]) == ("available", [], [])
    seen, pattern = [], b""
    for round_number in (1, 2):
        info = connect(program, name, host1)
        assert_refusals(program, info, host1, host2)
        assert host1.login(info), "the right secret logs in"
        disk = host1.disk(info)
        if pattern:
            assert read_back(disk, len(pattern)) == pattern, "the first round's data is there"
        pattern = write_pattern(disk, seed=round_number)
        assert read_back(disk, len(pattern)) == pattern
        seen.append((wwid(disk), info["data"]["target_iqn"], info["data"]["target_lun"]))
        disconnect(program, name, host1, info)
        assert ours() == [], "after detach neither target nor backstore is left"
    assert seen[0] == seen[1], "WWID, IQN and LUN are the same in both rounds"
    assert seen[0][0].startswith("naa.6001405" + made["serial"].replace("-", "")[:25])
    assert program.call("unregister_volume", volume=name) == {"volume": name}


def connect(program: Program, name: str, host: Initiator) -> dict[str, Any]:
    """Reserve, initialize, attach, with the status after each."""
    reserved = program.call("reserve_volume", volume=name)
    assert (reserved["state"], reserved["mode"], reserved["owner"]) == ("reserved", "rw", 0)
    assert status(program, name) == "attaching"
    info: dict[str, Any] = program.call("initialize_connection", volume=name, connector=connector(host.name))
    assert info["driver_volume_type"] == "iscsi"
    assert info["attachment_id"] == reserved["attachment_id"]
    shown = program.call("show_volume", volume=name)
    expected = {**FIELDS, "target_iqn": shown["target_name"], "volume_id": name}
    secret = {key: info["data"].pop(key) for key in ("auth_username", "auth_password")}
    assert {k: v for k, v in info["data"].items() if k != "discard"} == expected
    assert isinstance(info["data"]["discard"], bool)
    info["data"].update(secret)
    assert status(program, name) == "attaching"
    attached = program.call("attach", volume=name, host_name="guest", mount_point="/dev/vdb")
    assert (attached["state"], attached["host_name"], attached["mount_point"]) == ("attached", "guest", "/dev/vdb")
    assert status(program, name) == "in-use"
    return info


def disconnect(program: Program, name: str, host: Initiator, info: dict[str, Any]) -> None:
    """Begin, log out, terminate, detach, with the status after each."""
    assert program.call("begin_detaching", volume=name)["state"] == "detaching"
    assert status(program, name) == "detaching"
    host.logout(info)
    ended = program.call("terminate_connection", volume=name, connector=connector(host.name))
    assert ended["state"] == "disconnected"
    assert status(program, name) == "detaching"
    assert program.call("detach", volume=name)["status"] == "available"


def assert_refusals(program: Program, info: dict[str, Any], host: Initiator, other: Initiator) -> None:
    """Who has the wrong secret, or is not listed, stays outside."""
    assert not host.login(info, auth_password="0" * 32), "a wrong secret is refused"
    assert not host.login(info, auth_username="somebody-else"), "a wrong user is refused"
    assert not other.login(info), "an unlisted initiator is refused, even with the right secret"


def status(program: Program, name: str) -> str:
    return str(program.call("show_volume", volume=name)["status"])


def test_the_secret_is_nowhere_but_in_the_answer_and_in_the_journal(
    program: Program, host1: Initiator, volume: str
) -> None:
    program.call("reserve_volume", volume=volume)
    info = program.call("initialize_connection", volume=volume, connector=connector(host1.name))
    secret = info["data"]["auth_password"]
    shown = [program.call(m) for m in ("list_volumes", "list_attachments", "get_status")]
    shown += [program.call("get_history", limit=1000), program.call("reconcile", dry_run=True)]
    assert secret not in repr(shown)
    assert secret not in Path("/host/out/volattachd.log").read_text()
    assert all(secret.encode() not in path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline"))
    journal = program.state_dir / "journal.db"
    assert (program.state_dir.stat().st_mode & 0o777, journal.stat().st_mode & 0o777) == (0o700, 0o600)
