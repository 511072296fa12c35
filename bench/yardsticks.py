"""What the figures are measured against: a bare SQLite commit, a bare socket echo, bare reading of attributes."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from tests.faults.injection import Operation
from volattachd.state.schema import LOG_PAGES

#: As many bytes as a row of the journal and its line of history have together, about.
_ROW = b"x" * 1024


class BareCommits:
    """A database with the journal's own settings, on the same disk."""

    def __init__(self, directory: Path) -> None:
        self._db = sqlite3.connect(directory / "bare.db", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        self._db.execute("CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, body BLOB)")

    def commit(self, times: int) -> None:
        """One row, durable, so many times."""
        for _ in range(times):
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("INSERT INTO rows (body) VALUES (?)", (_ROW,))
            self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()


def serve_echo(listening: int, size: int) -> None:
    """For each line that comes, ``size`` bytes: what answering costs before anything is looked at."""
    answer = b"x" * (size - 1) + b"\n"
    listener = socket.socket(fileno=listening)
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as lines:
            for _ in lines:
                connection.sendall(answer)


class Echo:
    """That server in a process of its own, and a connection to it."""

    def __init__(self, path: str, size: int) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            code = f"from bench.yardsticks import serve_echo; serve_echo({listener.fileno()}, {size})"
            self._process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[listener.fileno()])
        self._path = path
        self.line = Line(path)

    def close(self) -> None:
        self.line.close()
        self._process.kill()
        self._process.wait(10)
        os.unlink(self._path)


class Line:
    """A connection that is sent requests as bytes and gives answers line by line: the cheapest client there is."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self._left = b""
        self._room = bytearray(1 << 18)  # one for all: malloc would take some from the system and give it back

    def ask(self, requests: Sequence[bytes]) -> list[bytes]:
        """Send all of them at once, then read as many answers."""
        self.socket.sendall(b"".join(requests))
        answers: list[bytes] = []
        while len(answers) < len(requests):
            answers += self.receive()
        return answers

    def receive(self) -> list[bytes]:
        """The whole answers of what has come."""
        size = self.socket.recv_into(self._room)
        if not size:
            raise RuntimeError("the other end has closed the connection")
        *answers, self._left = (self._left + self._room[:size]).split(b"\n")
        return answers

    def close(self) -> None:
        self.socket.close()


def read_bare(root: str, operations: Iterable[Operation]) -> None:
    """The reading operations of a recording again, with nothing but the system calls."""
    for operation in operations:
        with suppress(FileNotFoundError):  # the recording found nothing there either
            _READERS[operation.name](f"{root}/{operation.subject}")


def _read(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 4096)
    os.close(fd)


def _scan(path: str) -> None:
    with os.scandir(path) as entries:
        for entry in entries:
            entry.is_symlink()


def _stat(path: str) -> None:
    os.stat(path)


def _readlink(path: str) -> None:
    os.readlink(path)


_READERS = {"read": _read, "stat": _stat, "readlink": _readlink, "dirs": _scan, "links": _scan, "list": _scan}
