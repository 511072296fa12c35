"""A restart of the daemon is invisible to sessions: no I/O error, the same session, not one write to the target."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.inside.initiator import Initiator
from tests.guest.inside.program import OUT, Program, configfs, connector

GUEST = {"together": "host"}

TRACE = OUT / "strace.txt"
#: The system calls with which a process could change configfs, and which open it for writing.
CHANGES = "mkdir,mkdirat,rmdir,unlink,unlinkat,symlink,symlinkat,rename,renameat,renameat2,open,openat,creat"


@pytest.fixture
def writing(program: Program, host1: Initiator, new_device: Callable[[str], str]) -> Iterator[Any]:
    """An attached volume to which dd writes all the time."""
    program.call("register_volume", volume="busy", path=new_device("block"))
    program.call("reserve_volume", volume="busy")
    info = program.call("initialize_connection", volume="busy", connector=connector(host1.name))
    program.call("attach", volume="busy", host_name="guest")
    assert host1.login(info)
    command = (
        f"while dd if=/dev/zero of={host1.disk(info)} bs=64k count=64 oflag=direct 2>>/host/out/dd.log; do :; done"
    )
    dd = subprocess.Popen(["sh", "-c", command])
    yield info, dd
    dd.kill()
    dd.wait(30)
    host1.logout(info)
    program.call("begin_detaching", volume="busy")
    program.call("terminate_connection", volume="busy", connector=connector(host1.name))
    program.call("detach", volume="busy")
    program.call("unregister_volume", volume="busy")


def copied() -> int:
    """How often dd has come through."""
    return Path("/host/out/dd.log").read_text().count("copied")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_leaves_io_session_and_target_alone(
    number: int, program: Program, host1: Initiator, writing: Any
) -> None:
    info, dd = writing
    sessions, before = host1.sessions(info["data"]["target_iqn"]), configfs()
    program.stop(number)
    program.wrapper = ("strace", "-f", "-qq", "-e", f"trace={CHANGES}", "-o", str(TRACE))
    program.start()
    program.stop()
    program.wrapper = ()
    program.start()
    done = copied()
    while copied() < done + 2:
        assert dd.poll() is None, "dd goes on without an error"
    assert host1.sessions(info["data"]["target_iqn"]) == sessions, "the session is the same"
    assert configfs() == before
    assert configfs_writes() == [], "a restart writes nothing to configfs"
    assert program.call("show_volume", volume="busy")["status"] == "in-use"
    again = program.call("initialize_connection", volume="busy", connector=connector(host1.name))
    assert again == info, "the same connection info as before the restart"


def configfs_writes() -> list[str]:
    """The traced calls that could have changed configfs; every trace must show that configfs was read at all."""
    lines = [line for line in TRACE.read_text().splitlines() if "/sys/kernel/config" in line]
    assert any("/attrib/" in line for line in lines), "the trace saw the daemon read attributes"
    reading = re.compile(r"open(at)?\(.*O_RDONLY")
    return [line for line in lines if not reading.search(line)]


def test_what_drifted_while_the_daemon_was_away_is_mended_at_start(
    program: Program, host1: Initiator, writing: Any
) -> None:
    info, dd = writing
    tpg = Path("/sys/kernel/config/target/iscsi", info["data"]["target_iqn"], "tpgt_1")
    sessions = host1.sessions(info["data"]["target_iqn"])
    program.stop()
    before = configfs()
    (tpg / "attrib/generate_node_acls").write_text("1")
    (tpg / "acls/iqn.2026-11.com.example:rogue").mkdir()
    program.start()
    assert configfs() == before
    assert host1.sessions(info["data"]["target_iqn"]) == sessions
    assert dd.poll() is None
