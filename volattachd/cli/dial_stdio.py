"""The far side of ``--host``: bytes between standard input and output and the daemon's socket, as they are.

Laws:

1. The end of the input is passed on as the end of what is sent, and the answers still come: half a connection ends.
2. It is over when the daemon ends the connection, or when nobody takes the output any more.
3. Each direction waits for its own reader alone.
"""

from __future__ import annotations

import os
import socket
import threading

from volattachd.client.transport import dial

_CHUNK = 64 * 1024


def relay(address: str, timeout: float, source: int = 0, sink: int = 1) -> None:
    """Copies both ways until it is over. Raises Unreachable before the first byte, or the sink's OSError."""
    link = dial(address, timeout)
    link.socket.settimeout(None)
    try:
        threading.Thread(target=_send, args=(source, link.socket), daemon=True).start()
        while data := _received(link.socket):
            _write(sink, data)
    finally:
        link.close()


def _send(source: int, connection: socket.socket) -> None:
    try:
        while data := os.read(source, _CHUNK):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the daemon has hung up: whoever reads from it sees that


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(_CHUNK)
    except ConnectionResetError:
        return b""  # how a Unix socket tells that the daemon hung up before it had read everything


def _write(sink: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(sink, left) :]
