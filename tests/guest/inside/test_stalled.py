"""A device that does not answer: only its volume waits, and it finishes by itself."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.inside.initiator import Initiator, run
from tests.guest.inside.program import TARGET, Program, connector

GUEST = {"together": "host"}

SECTORS = 32768
CALL_SECONDS = 3


@pytest.fixture(scope="module")
def program(base: Path) -> Iterator[Program]:
    """A daemon whose callers wait three seconds."""
    limits = f"[limits]\ncall_seconds = {CALL_SECONDS}\n[reconcile]\ninterval = 1\n"
    made = Program(base, f'[target]\ndriver = "lio"\n{limits}')
    made.start()
    yield made
    assert made.stop() == 0


@pytest.fixture
def stalled(program: Program, host1: Initiator, new_device: Callable[[str], str]) -> Iterator[Any]:
    """A volume over device-mapper, suspended while a write of its initiator is under way."""
    run("dmsetup", "create", "stall", "--table", f"0 {SECTORS} linear {new_device('block')} 0")
    program.call("register_volume", volume="stalled", path="/dev/mapper/stall")
    program.call("reserve_volume", volume="stalled")
    info = program.call("initialize_connection", volume="stalled", connector=connector(host1.name))
    program.call("attach", volume="stalled", host_name="guest")
    assert host1.login(info)
    disk = host1.disk(info)
    run("dmsetup", "suspend", "--noflush", "stall")
    writer = subprocess.Popen(["dd", "if=/dev/zero", f"of={disk}", "bs=4k", "count=1", "oflag=direct"])
    wait_until(lambda: Path("/sys/block", disk.name, "inflight").read_text().split() != ["0", "0"])
    yield info
    run("dmsetup", "resume", "stall", check=False)
    writer.wait(60)
    host1.logout(info)
    for row in program.call("list_attachments", volume="stalled"):
        if row["state"] != "disconnected":
            program.call("terminate_connection", volume="stalled", connector=connector(host1.name), force=True)
        program.call("detach", volume="stalled")
    program.call("unregister_volume", volume="stalled")
    run("dmsetup", "remove", "--retry", "stall")


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.05)


def cycle(program: Program, volume: str, host: Initiator) -> None:
    """All six calls on a healthy volume."""
    program.call("reserve_volume", volume=volume)
    program.call("initialize_connection", volume=volume, connector=connector(host.name))
    program.call("attach", volume=volume, host_name="guest")
    program.call("begin_detaching", volume=volume)
    program.call("terminate_connection", volume=volume, connector=connector(host.name))
    program.call("detach", volume=volume)


def kinds(program: Program, volume: str) -> list[str]:
    return [c["kind"] for c in program.call("show_volume", volume=volume)["conditions"]]


def test_only_the_stalled_volume_is_pending_and_it_finishes_by_itself(
    program: Program, stalled: Any, host1: Initiator, host2: Initiator, volume: str
) -> None:
    force = {"volume": "stalled", "connector": connector(host1.name), "force": True}
    error = program.refused("terminate_connection", **force)
    assert (error.kind, error.retriable) == ("Busy", True)
    assert "enable" in error.message, "it says what it waits for"
    assert kinds(program, "stalled") == ["Pending"]
    status = program.call("get_status")
    assert (status["ready"], status["pending"]) == (True, ["stalled"])
    cycle(program, volume, host2)
    assert 'volattachd_conditions{kind="Pending"} 1.0' in program.call("get_metrics"), "a monitor need not wait"
    again = program.refused("terminate_connection", **force)
    assert again.kind == "Busy", "sent again while it waits, it is told so again"
    assert program.call("reconcile", dry_run=True)["volumes"] == [], "a pass does not wait for it"

    run("dmsetup", "resume", "stall")
    wait_until(lambda: kinds(program, "stalled") == [])
    assert program.call("terminate_connection", **force)["state"] == "disconnected"
    acls = TARGET / "iscsi" / stalled["data"]["target_iqn"] / "tpgt_1/acls"
    assert list(acls.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_that_ends_while_a_volume_is_stalled_is_followed_by_one_that_serves_the_others(
    number: int, program: Program, stalled: Any, host1: Initiator, host2: Initiator, volume: str
) -> None:
    force = {"volume": "stalled", "connector": connector(host1.name), "force": True}
    assert program.refused("terminate_connection", **force).kind == "Busy"
    former = program.process
    assert former is not None
    program.send_signal(number)
    program.start()
    cycle(program, volume, host2)
    assert program.call("show_volume", volume="stalled")["conditions"], "the stalled one says what it waits for"

    run("dmsetup", "resume", "stall")
    former.wait(60)
    wait_until(lambda: kinds(program, "stalled") == [])
    assert program.call("terminate_connection", **force)["state"] == "disconnected"
