"""Carries connections from one socket to another: a compute host's calls to the daemon of a storage host.

``python3 -m tests.guest.relay FROM TO``, each the path of a Unix socket or HOST:PORT, until killed.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading


def listen(address: str) -> socket.socket:
    """A socket that takes connections at an address."""
    if address.startswith("/"):
        made = socket.socket(socket.AF_UNIX)
        made.bind(address)
        made.listen()
        return made
    return socket.create_server(_split(address))


def connect(address: str) -> socket.socket:
    """A connection to an address."""
    if address.startswith("/"):
        made = socket.socket(socket.AF_UNIX)
        made.connect(address)
        return made
    return socket.create_connection(_split(address))


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def carry(source: socket.socket, sink: socket.socket) -> None:
    """Everything from one to the other, until it ends."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def main(source: str, sink: str) -> None:
    """Carry until killed."""
    with listen(source) as server:
        while True:
            ends = server.accept()[0], connect(sink)
            for one, other in (ends, ends[::-1]):
                threading.Thread(target=carry, args=(one, other), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
