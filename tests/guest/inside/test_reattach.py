"""A host that was cut off stays cut off, however often it tries, while the volume goes to another one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tests.drivers.initiator import LoginRefused, Session
from tests.figures import RecordFigure
from tests.guest.inside.initiator import Initiator, write_pattern
from tests.guest.inside.program import Program, connector
from tests.soak import PART, times
from volattachd.model import Secret

ROUNDS = times(50, 10_000)
GUEST = {"timeout": 86400 if PART else 600}
OLD, NEW = "iqn.2026-11.com.example:old-host", "iqn.2026-11.com.example:new-host"
BLOCK = 4096


def session(info: dict[str, Any], initiator: str) -> Session:
    """A login from user space, which ends at once where the target ends it."""
    data = info["data"]
    secret = Secret(data["auth_username"], data["auth_password"])
    return Session(data["target_portal"], data["target_iqn"], data["target_lun"], initiator, secret)


def connect(program: Program, initiator: str) -> dict[str, Any]:
    program.call("reserve_volume", volume="moving")
    info: dict[str, Any] = program.call("initialize_connection", volume="moving", connector=connector(initiator))
    program.call("attach", volume="moving", host_name=initiator.rpartition(":")[2])
    return info


def cut_off(program: Program, initiator: str) -> None:
    program.call("terminate_connection", volume="moving", connector=connector(initiator), force=True)


class Hammer:
    """The old host: it tries to log in with what it had, again and again, and to read when it is in."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.tries = 0
        self.bytes_read = 0
        self._info = info
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set() or self.tries < 3:
            self.tries += 1
            try:
                opened = session(self._info, OLD)
            except LoginRefused:
                continue
            self.bytes_read += len(opened.read(BLOCK) or b"")
            opened.logout()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


def test_the_old_host_reads_nothing_of_the_new_ones(
    program: Program, new_device: Callable[[str], str], record_figure: RecordFigure
) -> None:
    program.call("register_volume", volume="moving", path=new_device("file"))
    tries = total = 0
    for number in range(ROUNDS):
        old_info = connect(program, OLD)
        old = session(old_info, OLD)
        assert old.read(BLOCK) is not None, "while it has access, it reads"
        cut_off(program, OLD)
        hammer = Hammer(old_info)
        program.call("detach", volume="moving")
        new_info = connect(program, NEW)
        new = session(new_info, NEW)
        assert new.write(bytes([number % 251 + 1]) * BLOCK)
        total += len(old.read(BLOCK) or b"")
        hammer.stop()
        total += hammer.bytes_read
        tries += hammer.tries
        old.logout()
        new.logout()
        program.call("begin_detaching", volume="moving")
        program.call("terminate_connection", volume="moving", connector=connector(NEW))
        program.call("detach", volume="moving")
    record_figure("reattached to another host", f"{ROUNDS} times, old logins tried: {tries}, bytes read: {total}")
    assert total == 0
    program.call("unregister_volume", volume="moving")


def test_a_kernel_that_recovers_its_session_by_itself_does_not_get_back_in(
    program: Program, host1: Initiator, host2: Initiator, volume: str
) -> None:
    program.call("reserve_volume", volume=volume)
    old = program.call("initialize_connection", volume=volume, connector=connector(host1.name))
    program.call("attach", volume=volume, host_name="old")
    assert host1.login(old)
    disk = host1.disk(old)
    program.call("terminate_connection", volume=volume, connector=connector(host1.name), force=True)
    program.call("detach", volume=volume)
    program.call("reserve_volume", volume=volume)
    new = program.call("initialize_connection", volume=volume, connector=connector(host2.name))
    assert host2.login(new)
    write_pattern(host2.disk(new), 77)
    try:
        data = disk.open("rb", buffering=0).read(BLOCK)
    except OSError:
        data = b""
    assert data == b"", "the old host's disk gives nothing while its kernel tries to log in again"
    host1.logout(old)
    host2.logout(new)
