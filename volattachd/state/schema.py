"""The journal's file: what it looks like in each version, the way from one version to the next, and the check.

Rules:

1. ``MIGRATIONS[n]`` leads from version n to n + 1, and version 0 is an empty file. So there is one way to make a
   file and to bring an old one forward, and the last entry's number is the version that this program knows.
   An entry that was released is never changed: ``tests/golden`` holds a file of every released version.
2. All steps that are due are one transaction, with the version number in it: a crash leaves the old version or
   the new one.
3. A file that is refused stays as it is, byte by byte, its log included, for whoever has to rescue it. SQLite
   cannot promise that for a file that it may write: it moves the log into the file when it closes it. So the check
   looks at the file through a hard link in a directory of its own, opened for reading only, beside a copy of the
   log: the kernel keeps it from writing to the one, and the other is a copy.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from volattachd.errors import JournalDamaged, JournalUnusable

#: A script of statements, or a function over the connection, which is inside a transaction.
Migration = str | Callable[[sqlite3.Connection], None]

MIGRATIONS: tuple[Migration, ...] = (
    """
CREATE TABLE volumes (
    id TEXT PRIMARY KEY, path TEXT NOT NULL, device TEXT NOT NULL, multiattach INTEGER NOT NULL,
    read_only INTEGER NOT NULL, target_name TEXT NOT NULL UNIQUE, serial TEXT NOT NULL UNIQUE,
    created_at REAL NOT NULL
) STRICT;
CREATE TABLE attachments (
    id TEXT PRIMARY KEY, volume TEXT NOT NULL REFERENCES volumes (id), state TEXT NOT NULL, mode TEXT NOT NULL,
    owner INTEGER NOT NULL, created_at REAL NOT NULL, updated_at REAL NOT NULL, connector TEXT, secret TEXT,
    instance_uuid TEXT, host_name TEXT, mount_point TEXT, ttl REAL
) STRICT;
CREATE TABLE journal (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, boot_id TEXT NOT NULL, uid INTEGER NOT NULL,
    pid INTEGER NOT NULL, call TEXT NOT NULL, volume TEXT NOT NULL, attachment_id TEXT, before TEXT, after TEXT
) STRICT;
CREATE INDEX journal_by_volume ON journal (volume, seq);
CREATE INDEX journal_by_attachment ON journal (attachment_id, seq);
-- What outlives the history that is trimmed: an id that has ended is never taken again.
CREATE TABLE ended_attachments (
    id TEXT PRIMARY KEY, volume TEXT NOT NULL, seq INTEGER NOT NULL, mode TEXT NOT NULL, owner INTEGER NOT NULL,
    created_at REAL NOT NULL, updated_at REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX ended_by_volume ON ended_attachments (volume, seq);
CREATE TABLE ended_volumes (id TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
-- The journal's last number each time that the daemon had run for one more hour: age without a clock on the wall.
CREATE TABLE hours (hour INTEGER PRIMARY KEY, seq INTEGER NOT NULL) STRICT;
""",
)

SCHEMA_VERSION = len(MIGRATIONS)

#: How long the log grows, in pages, before its content goes into the file and it is begun again from its start. A
#: commit into a log that still grows takes a third longer, and a start reads all of it; each such turn costs a sync.
LOG_PAGES = 256

_RESTORE = "restore it from a backup"
_ROOM = ".check"


def verify(path: Path, migrations: Sequence[Migration], read: Callable[[sqlite3.Connection], object]) -> None:
    """See that the file can be used, without changing a byte of it or of its log.

    ``read`` takes the rows of a file of the newest version and raises ValueError or TypeError for one that it
    cannot understand. Raises JournalUnusable, saying what to do.
    """
    log = path.with_name(path.name + "-wal")
    if _size(path) == 0:
        if _size(log) > 0:
            raise JournalDamaged(f"{path} is empty or missing, and its log {log.name} is not: {_RESTORE}")
        return
    try:
        with _look(path, log) as db:
            _check(db, path, migrations, read)
    except sqlite3.Error as error:
        raise unusable(path, error) from error
    except OSError as error:
        raise JournalUnusable(f"{path} cannot be checked: {error}") from error


def prepare(db: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> None:
    """Set a checked file up for work, and bring it to the newest version."""
    # First of all: the log's index is then kept in memory, and other programs are kept out.
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
    db.execute("PRAGMA secure_delete = ON")  # a secret dies with its attachment
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version < len(migrations):
        _migrate(db, migrations[version:], len(migrations))
        _sync_directory(path.parent)
    db.execute("PRAGMA foreign_keys = ON")  # only now: a migration may have to make a table anew


def unusable(path: Path, error: sqlite3.Error) -> JournalUnusable:
    """What to do about SQLite's refusal of a file."""
    told = str(error)
    if "locked" in told:
        return JournalUnusable(f"{path} cannot be used: {told}: end the program that has it open")
    if "full" in told or "I/O" in told or "unable to open" in told:
        return JournalUnusable(f"{path} cannot be used: {told}: make room, or mend the disk, and start again")
    return JournalDamaged(f"{path} cannot be used: {told}; {_RESTORE}")


def _size(path: Path) -> int:
    """Bytes of a file; 0 where there is none. A link in its place is not followed: OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return 0
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


@contextmanager
def _look(path: Path, log: Path) -> Iterator[sqlite3.Connection]:
    """The file as it stands, log included, through a connection that can write to neither."""
    room = path.parent / _ROOM
    shutil.rmtree(room, ignore_errors=True)  # of a check that was killed
    os.mkdir(room, 0o700)
    try:
        os.link(path, room / path.name)
        if log.exists():
            shutil.copyfile(log, room / log.name)
        # Without SQLite's locks: the daemon's own is held, and a killed one may hold SQLite's (state/lock.py).
        url = f"file:{quote(str(room / path.name))}?mode=ro&vfs=unix-none"
        db = sqlite3.connect(url, uri=True, isolation_level=None)
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.row_factory = sqlite3.Row
        try:
            yield db
        finally:
            db.close()
    finally:
        shutil.rmtree(room)


def _check(
    db: sqlite3.Connection, path: Path, migrations: Sequence[Migration], read: Callable[[sqlite3.Connection], object]
) -> None:
    version, known = db.execute("PRAGMA user_version").fetchone()[0], len(migrations)
    if version > known:
        raise JournalDamaged(
            f"{path} has schema version {version}, and this volattachd knows {known}:"
            " install the version that wrote it, or restore an older backup"
        )
    problems = [row[0] for row in db.execute("PRAGMA integrity_check(5)") if row[0] != "ok"]
    problems += [f"a row of {row[0]} refers to nothing in {row[2]}" for row in db.execute("PRAGMA foreign_key_check")]
    if problems:
        raise JournalDamaged(f"{path} is damaged ({'; '.join(problems[:5])}): {_RESTORE}")
    if _tables(db) != _tables_of(migrations[:version]):
        raise JournalDamaged(f"{path} does not have the tables of a journal of version {version}: {_RESTORE}")
    if version == known:
        _understand(db, read)


def _understand(db: sqlite3.Connection, read: Callable[[sqlite3.Connection], object]) -> None:
    try:
        read(db)
    except (ValueError, TypeError) as error:
        raise JournalDamaged(f"a row of the journal cannot be understood ({error}): {_RESTORE}") from error


def _tables(db: sqlite3.Connection) -> set[tuple[object, ...]]:
    """Every table with its columns, without SQLite's own."""
    query = (
        "SELECT m.name, p.name, p.type, p.pk FROM sqlite_master AS m, pragma_table_info(m.name) AS p"
        " WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'"
    )
    return {tuple(row) for row in db.execute(query)}


def _tables_of(migrations: Sequence[Migration]) -> set[tuple[object, ...]]:
    db = sqlite3.connect(":memory:", isolation_level=None)
    try:
        _migrate(db, migrations, len(migrations))
        return _tables(db)
    finally:
        db.close()


def _migrate(db: sqlite3.Connection, steps: Sequence[Migration], version: int) -> None:
    """Run the steps that are due, as one transaction that also writes the version."""
    db.execute("BEGIN IMMEDIATE")
    for step in steps:
        if callable(step):
            step(db)
        else:
            for statement in _statements(step):
                db.execute(statement)
    if db.execute("PRAGMA foreign_key_check").fetchone() is not None:
        raise JournalUnusable(f"bringing the journal to version {version} would leave rows that refer to nothing")
    db.execute(f"PRAGMA user_version = {version}")
    db.execute("COMMIT")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script: executescript would end the transaction that they belong to."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement.strip()
            statement = ""
    assert not statement.strip(), f"a statement without its end: {statement}"


def _sync_directory(path: Path) -> None:
    """A new file's name is durable only when its directory is synced."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
