"""``volattach doctor`` on a host that is broken in one way after the other: it names that, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.guest.inside.initiator import Initiator, run
from tests.guest.inside.program import Program, connector

GUEST = {"together": "agent"}

NAME_FILE = Path("/etc/iscsi/initiatorname.iscsi")
LEVELS = ("warning", "problem")


@contextmanager
def broken(breaking: list[str], mending: list[str]) -> Iterator[None]:
    run(*breaking)
    try:
        yield
    finally:
        run(*mending)


def doctor(program: Program) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and what is not as it should be."""
    words = [sys.executable, "-m", "volattachd.cli", "--socket", str(program.socket), "--json", "doctor"]
    done = subprocess.run(words, cwd="/host/repo", capture_output=True, text=True, timeout=90, check=False)
    assert done.stderr == ""
    return done.returncode, [finding for finding in json.loads(done.stdout) if finding["level"] in LEVELS]


@pytest.fixture
def connected(program: Program, host1: Initiator, volume: str) -> dict[str, Any]:
    """Connection info of a volume that host1 may log in to."""
    program.call("reserve_volume", volume=volume)
    info: dict[str, Any] = program.call("initialize_connection", volume=volume, connector=connector(host1.name))
    return info


@pytest.fixture
def session(host1: Initiator, connected: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same, logged in."""
    assert host1.login(connected)
    yield connected
    host1.logout(connected)


def test_a_host_with_a_session_is_healthy(program: Program, session: dict[str, Any]) -> None:
    assert doctor(program) == (0, [])


def test_a_session_without_an_attachment_is_a_leftover_and_so_is_its_record(
    program: Program, host1: Initiator, volume: str, session: dict[str, Any]
) -> None:
    name = session["data"]["target_iqn"]
    program.call("terminate_connection", volume=volume, connector=connector(host1.name), force=True)
    code, found = doctor(program)
    assert (code, [(finding["check"], finding["level"]) for finding in found]) == (
        9,
        [("leftovers", "problem"), ("leftovers", "warning")],
    )
    assert f"logged in to {name}" in found[0]["message"] and f"-T {name} --logout" in found[0]["correction"]
    assert f"node record of {name}" in found[1]["message"]
    for finding in found:
        command = finding["correction"].rpartition("then: ")[2]
        run(*command.split())
    assert doctor(program) == (0, [])


def the_one(program: Program) -> tuple[int, str, str]:
    code, found = doctor(program)
    (finding,) = found
    return code, finding["check"], f"{finding['message']}; {finding['correction']}"


def test_configfs_that_is_not_mounted(program: Program) -> None:
    where = "/sys/kernel/config"
    with broken(["umount", "--lazy", where], ["mount", "-t", "configfs", "configfs", where]):
        assert the_one(program) == (
            9,
            "target",
            f"configfs is not mounted; mount -t configfs configfs {where}",
        )
    assert doctor(program) == (0, [])


def test_an_initiator_without_a_name(program: Program) -> None:
    aside = f"{NAME_FILE}.aside"
    with broken(["mv", str(NAME_FILE), aside], ["mv", aside, str(NAME_FILE)]):
        code, check, words = the_one(program)
    assert (code, check) == (9, "initiator")
    assert "names no initiator" in words


def test_iscsid_that_does_not_run(program: Program) -> None:
    with broken(["iscsiadm", "-k", "0"], ["iscsid"]):
        code, check, words = the_one(program)
    assert (code, check) == (0, "initiator"), "a warning is no failure"
    assert "iscsid does not run" in words


def test_a_portal_that_cannot_be_reached(program: Program, connected: dict[str, Any]) -> None:
    with broken(["ip", "link", "set", "lo", "down"], ["ip", "link", "set", "lo", "up"]):
        code, found = doctor(program)
    assert code == 9
    assert {finding["check"] for finding in found} == {"portals"}
    assert all("cannot be reached" in finding["message"] for finding in found)
    assert doctor(program) == (0, [])


def test_another_host_with_this_hosts_name(program: Program, volume: str) -> None:
    mine = NAME_FILE.read_text().strip().partition("=")[2]
    program.call("reserve_volume", volume=volume)
    program.call("initialize_connection", volume=volume, connector={**connector(mine), "host": "copy"})
    code, check, words = the_one(program)
    assert (code, check) == (9, "initiator")
    assert f"host 'copy' attached '{volume}' with this host's initiator name" in words


def test_a_daemon_that_does_not_run(program: Program) -> None:
    assert program.stop() == 0
    try:
        code, check, words = the_one(program)
    finally:
        program.start()
    assert (code, check) == (9, "daemon")
    assert "cannot reach the daemon" in words
    assert doctor(program) == (0, [])
