"""A daemon that answers what it is told to answer: the client half's tests need no other."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def result(value: Any) -> dict[str, Any]:
    """A reply with a result."""
    return {"result": value}


def failure(code: int, message: str, **data: Any) -> dict[str, Any]:
    """A reply with an error."""
    return {"error": {"code": code, "message": message, "data": data}}


class FakeDaemon:
    """Gives one reply of the script to each request, in order; after the last one it hangs up.

    A reply is a dict (members of the answer, completed with the request's id), bytes (sent as they are), or
    None: no answer, and the connection stays open until the test is over.
    """

    def __init__(self, path: Path, script: list[dict[str, Any] | bytes | None]) -> None:
        self.path = str(path)
        self.requests: list[dict[str, Any]] = []
        self._script = iter(script)
        self._over = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection.makefile("rwb") as stream:
            for line in stream:
                self.requests.append(json.loads(line))
                if not self._answer(stream):
                    return

    def _answer(self, stream: Any) -> bool:
        reply = next(self._script, b"")
        if reply is None:
            self._over.wait(10)
        elif isinstance(reply, dict):
            answer = {"jsonrpc": "2.0", "id": self.requests[-1]["id"], **reply}
            reply = json.dumps(answer).encode() + b"\n"
        try:
            stream.write(reply or b"")
            stream.flush()
        except OSError:
            return False
        return bool(reply)


@contextmanager
def serving(path: Path, *script: dict[str, Any] | bytes | None) -> Iterator[FakeDaemon]:
    """A daemon with this script for the length of a ``with``."""
    daemon = FakeDaemon(path, list(script))
    try:
        yield daemon
    finally:
        daemon.stop()
