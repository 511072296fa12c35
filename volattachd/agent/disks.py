"""The kernel's view of iSCSI on this host: sessions, the disks behind them, and what a disk says that it is.

A disk is looked for below its session and never by a name that may belong to another one by now (``sdb``, a link in
/dev/disk). What it is comes from the unit itself, asked now.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from volattachd.agent.errors import ConnectFailed, ConnectorUnusable, WrongDevice
from volattachd.agent.inquiry import inquire

T = TypeVar("T")

SYS = Path("/sys")

#: How many digits of the serial an NAA identifier (6 and the vendor's 001405) has room for.
_WWID_DIGITS = 25


@dataclass(frozen=True)
class Session:
    """A session of the kernel's initiator."""

    path: Path
    state: str
    username: str

    @property
    def number(self) -> str:
        return self.path.name.removeprefix("session")

    def disks(self, lun: int | None = None) -> list[str]:
        """The kernel's names of the disks behind it."""
        found = self.path.glob(f"device/target*/*:{'*' if lun is None else lun}/block/*")
        return sorted(path.name for path in found)


def sessions_of(target_name: str, sys: Path = SYS) -> list[Session]:
    """The sessions with a target, whatever state they are in."""
    found = []
    for path in sorted((sys / "class/iscsi_session").glob("session*")):
        if read(path / "targetname") == target_name:
            found.append(Session(path, read(path / "state"), read(path / "username")))
    return found


def verify(disk: str, serial: str) -> str:
    """The disk's WWID, after seeing that serial and WWID are the volume's. Raises WrongDevice where they are not."""
    try:
        told, naa = inquire(f"/dev/{disk}")
    except OSError as error:
        raise ConnectFailed(f"cannot ask {disk} which volume it is: {error.strerror}") from error
    if told != serial or not naa.endswith(serial.replace("-", "")[:_WWID_DIGITS]):
        raise WrongDevice(
            f"{disk} is not the volume: its serial is {told!r} and its WWID {naa!r}, and {serial!r} was expected",
            "log its session out (iscsiadm -m session -P 3 shows which it is); then try again",
        )
    return f"naa.{naa}"


def remove(disk: str, sys: Path = SYS) -> None:
    """Remove a disk; the kernel has its write cache emptied first."""
    try:
        (sys / "block" / disk / "device/delete").write_text("1")
    except FileNotFoundError:
        pass  # it is gone already
    except OSError as error:
        raise ConnectFailed(f"cannot remove {disk}: {error.strerror}") from error


class Appearance:
    """Waits for devices by udev's own messages. Make it before the login, or the message may be over."""

    def __init__(self) -> None:
        self._pyudev = _pyudev()
        self._context = self._pyudev.Context()
        self._monitor = self._pyudev.Monitor.from_netlink(self._context, source="udev")
        self._monitor.filter_by("block")
        self._monitor.start()

    def is_ready(self, disk: str) -> bool:
        """Whether udev's rules are through with it, and its node is there."""
        try:
            device = self._pyudev.Devices.from_name(self._context, "block", disk)
        except self._pyudev.DeviceNotFoundError:
            return False
        return bool(device.is_initialized) and os.path.exists(f"/dev/{disk}")

    def wait(self, find: Callable[[], T | None], left: Callable[[], float]) -> T | None:
        """What ``find`` finds, now or after one of the next messages; None where time is over first."""
        while True:
            found = find()
            if found is not None:
                return found
            seconds = left()
            if seconds <= 0:
                return None
            self._monitor.poll(timeout=seconds)


def _pyudev() -> Any:
    """pyudev, which only this half of the agent needs."""
    try:
        import pyudev
    except ImportError as error:
        raise ConnectorUnusable(
            f"the agent waits for devices through udev, and {error}",
            "install python3-pyudev, or pip install 'volattachd[agent]'",
        ) from error
    return pyudev


def read(path: Path) -> str:
    """An attribute of the kernel's; empty where it is not there (any more), or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
