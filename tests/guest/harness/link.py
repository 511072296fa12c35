"""An Ethernet link between two guests, with no privilege on the host: a pair of datagram sockets, one frame each."""

from __future__ import annotations

import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class End:
    """What one guest needs to know of the link."""

    fd: int
    mac: str
    ipv4: str
    ipv6: str


class Link:
    """Give it to two guests as `network`; the first one gets .1, the second .2.

    The sockets stay open here as long as the link lives: a guest may die and come back on the same end.
    """

    def __init__(self) -> None:
        self._sockets = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._joined = 0

    def join(self) -> End:
        """The next free end."""
        if self._joined == len(self._sockets):
            raise ValueError("a link has two ends, and both are taken")
        sock = self._sockets[self._joined]
        self._joined += 1
        number = self._joined
        return End(sock.fileno(), f"02:00:00:00:77:{number:02x}", f"10.77.0.{number}", f"fd77::{number}")

    def close(self) -> None:
        """For when both guests are gone."""
        for sock in self._sockets:
            sock.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
