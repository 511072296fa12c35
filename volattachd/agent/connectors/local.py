"""The daemon's own host: the device itself, without a network.

A block device that may be written is handed out as it is. A regular file gets a loop device, and so does whatever is
attached read-only: a loop device made read-only refuses every write, whoever asks. That is all that is enforced: a
program that may open the volume's own path is kept from it by file permissions alone.
"""

from __future__ import annotations

import os
import stat
import time
from typing import Any

from volattachd.agent import open_iscsi, usage
from volattachd.agent.connectors.base import Connection, Connector, Device, describe_host
from volattachd.agent.disks import Appearance
from volattachd.agent.errors import ConnectFailed, ConnectorUnusable, DeviceInUse

#: How long a loop device may take to go, in seconds.
GOES_WITHIN = 30.0


class LocalConnector(Connector):
    """Volumes of the host that the agent runs on; needs root."""

    name = "local"
    volume_type = "local"

    def get_connector(self, host: str) -> dict[str, Any]:
        return describe_host(host, do_local_attach=True)

    def connect(self, connection: Connection) -> Device:
        _need_root()
        path = connection.local.path
        if not needs_loop(path, connection.mode):
            return Device(path, {"serial": connection.serial})
        loops = loops_over(path)
        loop = loops[0] if loops else self._make_loop(path, connection.mode)
        return Device(loop, {"serial": connection.serial, "path": path})

    def _make_loop(self, path: str, mode: str) -> str:
        options = ["--read-only"] if mode == "ro" else []
        done = open_iscsi.run("losetup", "--find", "--show", *options, path)
        if done.returncode:
            raise ConnectFailed(f"cannot make a loop device of {path}: {' '.join(done.stdout.split())}")
        return done.stdout.strip()

    def disconnect(self, connection: Connection, force: bool = False) -> list[str]:
        path = connection.volume.path
        loops = loops_over(path)
        if loops:
            _need_root()
        disks = [os.path.basename(loop) for loop in loops]
        if not loops and connection.mode == "rw" and is_block(path):
            disks = [os.path.basename(os.path.realpath(path))]
        lost = self._drop(disks) if force else self._let_go(disks)
        for loop in loops:
            self._remove_loop(loop, path)
        return lost

    def _let_go(self, disks: list[str]) -> list[str]:
        for disk in disks:
            with usage.claimed(disk) as fd:
                try:
                    usage.flush(fd)
                except OSError as error:
                    why = os.strerror(error.errno or 0)
                    raise DeviceInUse(f"cannot write what /dev/{disk} has still to write: {why}") from error
        return []

    def _drop(self, disks: list[str]) -> list[str]:
        """Nothing is lost that can be written: a local device stays where it is, and its users keep it."""
        lost = [
            f"{user}: it still has the device, which others may get now" for d in disks for user in usage.users_of(d)
        ]
        late = [disk for disk in disks if not usage.flush_by_force(disk)]
        return lost + [f"/dev/{disk}: what had not been written is lost" for disk in late]

    def _remove_loop(self, loop: str, path: str) -> None:
        """Detach it, and wait until it is gone: while udev still looks at it, the kernel only makes a note."""
        appearance = Appearance()
        done = open_iscsi.run("losetup", "--detach", loop)
        deadline = time.monotonic() + GOES_WITHIN
        if appearance.wait(lambda: loop not in loops_over(path) or None, lambda: deadline - time.monotonic()) is None:
            raise ConnectFailed(f"cannot remove {loop}: {' '.join(done.stdout.split()) or 'something has it open'}")


def needs_loop(path: str, mode: str) -> bool:
    """Whether the path itself is not what can be handed out."""
    return mode == "ro" or not is_block(path)


def is_block(path: str) -> bool:
    """Whether the path is a block device."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError as error:
        raise ConnectFailed(f"cannot use {path}: {error.strerror}") from error


def loops_over(path: str) -> list[str]:
    """The loop devices over a file or device."""
    done = open_iscsi.run("losetup", "--noheadings", "--output", "NAME", "--associated", path)
    return done.stdout.split() if done.returncode == 0 else []


def _need_root() -> None:
    if os.geteuid() != 0:
        raise ConnectorUnusable("the connector local needs root", "become root")
