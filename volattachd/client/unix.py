"""The way to a daemon on this host: its Unix socket."""

from __future__ import annotations

import grp
import os
import select
import socket
import time
from collections.abc import Sequence

from volattachd.client.protocol import AccessRefused, Unreachable

DEFAULT_SOCKET = "/run/volattachd/volattachd.sock"

_BACKLOG_PAUSE = 0.02
_DAEMONS_GROUP = "volattach"
_UNIT = "volattachd.socket"
_UNIT_DIRECTORIES = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")


class Link:
    """An open way to a daemon."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    def has_ended(self) -> bool:
        """Whether the other side has hung up already, as far as this one can know."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        try:
            return bool(poll.poll(0)) and not self.socket.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def close(self) -> None:
        """Ends it, and what was started for it."""
        self.socket.close()

    def last_words(self) -> str | None:
        """What the way itself has to say about its end, once the stream has ended."""
        return None


def dial(path: str, timeout: float) -> Link:
    """Opens the socket within ``timeout`` seconds. Raises Unreachable, or AccessRefused."""
    return Link(_connect(path, timeout))


def _connect(path: str, timeout: float) -> socket.socket:
    deadline = time.monotonic() + timeout
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout)
        try:
            connection.connect(path)
        except BlockingIOError as error:
            # A full backlog of a Unix socket is told at once, whatever the time-out.
            connection.close()
            if time.monotonic() >= deadline:
                raise Unreachable(f"too many clients wait for {path}", "try again later") from error
            time.sleep(_BACKLOG_PAUSE)
        except (OSError, ValueError) as error:
            connection.close()
            raise _unreachable(path, error) from error
        else:
            return connection


def wait_for(connection: socket.socket, event: int, seconds: float | None) -> None:
    """Wait until the connection can be read or written, or has ended. Raises TimeoutError after so many seconds."""
    poll = select.poll()
    poll.register(connection, event)
    if not poll.poll(None if seconds is None else max(0.0, seconds) * 1000):
        raise TimeoutError


def _unreachable(path: str, error: Exception) -> Unreachable:
    message = f"cannot reach the daemon at {path}: {words(error)}"
    if isinstance(error, PermissionError):
        return AccessRefused(message, f"become root or a member of the group {_group(path)!r} (then log in again)")
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        return Unreachable(message, f"{how_to_start(path)}, or name its socket")
    return Unreachable(message, "name the daemon's socket")


def how_to_start(path: str = DEFAULT_SOCKET, directories: Sequence[str] = _UNIT_DIRECTORIES) -> str:
    """How the daemon of this socket is started here: by systemd where it has the unit."""
    if path == DEFAULT_SOCKET and any(os.path.exists(f"{directory}/{_UNIT}") for directory in directories):
        return f"start it: systemctl start {_UNIT}"
    return "start volattachd on this host as root"


def _group(path: str) -> str:
    """The group that may open the socket, as far as this user can see it."""
    try:
        return grp.getgrgid(os.stat(path).st_gid).gr_name
    except (OSError, KeyError):
        return _DAEMONS_GROUP


def words(error: Exception) -> str:
    """An error of the system in its own words."""
    return getattr(error, "strerror", None) or str(error)
