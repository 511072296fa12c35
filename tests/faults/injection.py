"""The seam: every operation on configfs and on the journal's file passes here, is counted, and may be made to fail.

A fault is a kind and a number: it strikes at the N-th operation that its kind applies to, once. Numbers go up from
1 until a run comes through untouched, so no operation is left out, and none has to be listed by hand.

A process that is killed does nothing any more, and that is what makes a killed one here true to life: once struck,
every later operation of the same life raises ProcessKilled before it does anything, whichever thread makes it.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from volattachd.drivers.configfs.tree import ConfigFs
from volattachd.state.journal import open_connection

T = TypeVar("T")
Connect = Callable[[Path], sqlite3.Connection]


class ProcessKilled(BaseException):
    """The process is dead: nothing of it may act any more. No handler for errors may stop this one."""


class Kind(Enum):
    """What happens at the chosen operation."""

    KILL_BEFORE = "killed before a change"
    KILL_AFTER = "killed after a change"
    KILL_READING = "killed before a read"
    EIO = "EIO from configfs"
    ENOSPC = "ENOSPC from configfs"
    SQL_EIO = "disk I/O error"
    SQL_FULL = "disk full"
    SQL_LOST = "disk I/O error of a commit that is durable all the same"


#: The short form. A kill between two changes leaves the same world wherever it falls, so striking at reads adds
#: nothing; neither does the other number of an error that is handled alike. A block device is read as a file is, so
#: errors of reads are left to the file. Beside another attachment, what may differ is what comes of the changes.
ALONE = (Kind.KILL_BEFORE, Kind.KILL_AFTER, Kind.EIO, Kind.SQL_EIO, Kind.SQL_FULL, Kind.SQL_LOST)
BLOCK = (Kind.KILL_BEFORE, Kind.KILL_AFTER, Kind.ENOSPC, Kind.SQL_EIO, Kind.SQL_FULL, Kind.SQL_LOST)
BESIDE_ANOTHER = (Kind.KILL_AFTER, Kind.ENOSPC, Kind.SQL_LOST)
KILLS = frozenset({Kind.KILL_BEFORE, Kind.KILL_AFTER, Kind.KILL_READING})
SQL = frozenset({Kind.SQL_EIO, Kind.SQL_FULL, Kind.SQL_LOST})
#: The process ends with these, so a start has to clean up.
ENDING = KILLS | SQL


@dataclass(frozen=True)
class Operation:
    """One operation, as the kinds of fault see it."""

    where: str  # "configfs" or "sql"
    name: str
    subject: str
    changes: bool

    def __str__(self) -> str:
        return f"{self.name} {self.subject}".strip()


@dataclass(frozen=True)
class Fault:
    """The N-th operation that ``kind`` applies to."""

    kind: Kind
    number: int

    def __str__(self) -> str:
        return f"{self.kind.value}, number {self.number}"


def applies(kind: Kind, operation: Operation) -> bool:
    """Whether a fault of this kind can strike there."""
    if kind in (Kind.KILL_BEFORE, Kind.KILL_AFTER):
        return operation.changes
    if kind is Kind.KILL_READING:
        return not operation.changes
    if kind is Kind.SQL_LOST:
        return operation.name == "COMMIT"
    if kind in SQL:
        return operation.where == "sql" and (operation.changes or kind is Kind.SQL_EIO)
    return operation.where == "configfs" and (operation.changes or kind is Kind.EIO)


class Seam:
    """One life's operations: counts them, and strikes where it was told to."""

    def __init__(self, fault: Fault | None = None) -> None:
        self.dead = False
        self.changes = 0
        self.struck: Operation | None = None
        self.seen: list[Operation] = []
        self._connections: list[sqlite3.Connection] = []
        self.arm(fault)

    def arm(self, fault: Fault | None) -> None:
        """From here on count anew, and strike at ``fault``."""
        self._fault = fault
        self._counted = 0
        self.struck = None
        self.seen = []

    def run(self, operation: Operation, real: Callable[[], T]) -> T:
        """Perform an operation, or what the fault makes of it."""
        if self.dead:
            raise ProcessKilled(str(operation))
        self.seen.append(operation)
        if self._is_due(operation):
            self.struck = operation
            assert self._fault is not None
            return self._strike(self._fault.kind, operation, real)
        if operation.changes and operation.where == "configfs":
            self.changes += 1
        return real()

    def _is_due(self, operation: Operation) -> bool:
        if self._fault is None or self.struck is not None or not applies(self._fault.kind, operation):
            return False
        self._counted += 1
        return self._counted == self._fault.number

    def _strike(self, kind: Kind, operation: Operation, real: Callable[[], T]) -> T:
        if kind in (Kind.KILL_AFTER, Kind.SQL_LOST):
            real()
        if kind in KILLS:
            self.dead = True
            raise ProcessKilled(str(operation))
        if kind in SQL:
            return self._fail_sql(kind)
        number = errno.EIO if kind is Kind.EIO else errno.ENOSPC
        raise OSError(number, os.strerror(number), operation.subject)

    def _fail_sql(self, kind: Kind) -> NoReturn:
        """What was not committed is lost, as after an fsync that failed; a later COMMIT finds nothing to do."""
        if kind is not Kind.SQL_LOST:
            for connection in self._connections:
                connection.rollback()
        raise sqlite3.OperationalError("database or disk is full" if kind is Kind.SQL_FULL else "disk I/O error")

    def connect(self, path: Path) -> sqlite3.Connection:
        """For the journal: the production's connection, with every statement counted."""
        connection = open_connection(path)
        self._connections.append(connection)
        return cast(sqlite3.Connection, CountedConnection(connection, self))

    def end(self) -> None:
        """The life is over: nothing acts any more, and open transactions are gone."""
        self.dead = True
        for connection in self._connections:
            with suppress(sqlite3.ProgrammingError):  # the journal has closed it already
                connection.rollback()
            connection.close()


_SQL_CHANGES = ("BEGIN", "COMMIT", "INSERT", "UPDATE", "DELETE", "CREATE")


class CountedConnection:
    """A connection whose statements are counted; whatever else the journal asks of it, the real one answers."""

    def __init__(self, real: sqlite3.Connection, seam: Seam) -> None:
        self._real = real
        self._seam = seam

    @property
    def row_factory(self) -> Any:
        """As of the real one."""
        return self._real.row_factory

    @row_factory.setter
    def row_factory(self, factory: Any) -> None:
        self._real.row_factory = factory

    def execute(self, statement: str, values: Iterable[Any] = ()) -> sqlite3.Cursor:
        """One statement."""
        word, _, rest = statement.partition(" ")
        operation = Operation("sql", word, rest[:60], word in _SQL_CHANGES)

        def real() -> sqlite3.Cursor:
            if word == "COMMIT" and not self._real.in_transaction:
                return self._real.cursor()  # a second fsync reports success for what the first one lost
            return self._real.execute(statement, tuple(values))

        return self._seam.run(operation, real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class CountedFs(ConfigFs):
    """The file layer of the lio driver, with every operation counted."""

    def __init__(self, real: ConfigFs, seam: Seam) -> None:
        super().__init__(real.root)
        self._real = real
        self._seam = seam

    def _read(self, name: str, path: str, real: Callable[[str], T]) -> T:
        return self._seam.run(Operation("configfs", name, path, False), lambda: real(path))

    def _change(self, name: str, path: str, real: Callable[[], None]) -> None:
        self._seam.run(Operation("configfs", name, path, True), real)

    def is_dir(self, path: str) -> bool:
        try:
            return self._read("stat", path, self._real.is_dir)
        except OSError:
            return False  # os.path.isdir, which is behind it, tells of no error

    def list_dir(self, path: str) -> list[str]:
        return self._read("list", path, self._real.list_dir)

    def list_links(self, path: str) -> list[str]:
        return self._read("links", path, self._real.list_links)

    def list_dirs(self, path: str) -> list[str]:
        return self._read("dirs", path, self._real.list_dirs)

    def read(self, path: str) -> str:
        return self._read("read", path, self._real.read)

    def read_link(self, path: str) -> str | None:
        return self._read("readlink", path, self._real.read_link)

    def make_dir(self, path: str) -> None:
        self._change("mkdir", path, lambda: self._real.make_dir(path))

    def remove_dir(self, path: str) -> None:
        self._change("rmdir", path, lambda: self._real.remove_dir(path))

    def write(self, path: str, value: str) -> None:
        self._change("write", path, lambda: self._real.write(path, value))

    def write_and_read(self, path: str, value: str) -> str:
        written = Operation("configfs", "write", path, True)
        return self._seam.run(written, lambda: self._real.write_and_read(path, value))

    def make_link(self, path: str, target: str) -> None:
        self._change("symlink", path, lambda: self._real.make_link(path, target))

    def remove_link(self, path: str) -> None:
        self._change("unlink", path, lambda: self._real.remove_link(path))
