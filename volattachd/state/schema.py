"""The journal's file: what it looks like in each version, the way from one version to the next, and the check.

Rules:

1. ``MIGRATIONS[n]`` leads from version n to n + 1, and version 0 is an empty file. So there is one way to make a
   file and to bring an old one forward, and the last entry's number is the version that this program knows.
   An entry that was released is never changed: ``tests/golden`` holds a file of every released version.
2. All steps that are due are one transaction, with the version number in it: a crash leaves the old version or
   the new one.
3. A file that is refused stays as it is, byte by byte, its log included, for whoever has to rescue it. SQLite cannot
   promise that for a file that it may write: it moves the log into the file when it closes it, and removes a log in
   which it finds nothing. So the check looks at both through hard links, with the file opened for reading only. The
   kernel keeps SQLite from writing to the file, so it cannot move the log; and what it removes is a link.
4. The check takes no room on the disk: a start on a full disk must be possible.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from volattachd.errors import JournalDamaged, JournalUnusable
from volattachd.model import Device, Mode, Secret, State
from volattachd.state.checksums import Damage, RowSum, Value, hash_link, hash_row
from volattachd.state.codec import ATTACHMENTS, COLUMNS, HASHED, VOLUMES, Connector, split_view
from volattachd.state.contents import CARE, PORTABLE, Anchor
from volattachd.state.files import file_size, sync_directory
from volattachd.state.keys import new_key, sealed

T = TypeVar("T")

#: A script of statements, or a function over the connection, which is inside a transaction.
Migration = str | Callable[[sqlite3.Connection], None]

_VERSION_1 = """
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
"""

_VERSION_2 = """
CREATE TABLE volumes (
    id TEXT PRIMARY KEY, path TEXT NOT NULL, device TEXT NOT NULL, multiattach INTEGER NOT NULL,
    read_only INTEGER NOT NULL, target_name TEXT NOT NULL UNIQUE, serial TEXT NOT NULL UNIQUE,
    created_at REAL NOT NULL, checksum BLOB NOT NULL
) STRICT;
CREATE TABLE attachments (
    id TEXT PRIMARY KEY, volume TEXT NOT NULL REFERENCES volumes (id), state TEXT NOT NULL, mode TEXT NOT NULL,
    owner INTEGER NOT NULL, created_at REAL NOT NULL, updated_at REAL NOT NULL, connector BLOB, secret TEXT,
    instance_uuid TEXT, host_name TEXT, mount_point TEXT, ttl REAL, checksum BLOB NOT NULL
) STRICT;
-- Each connector once, under the hash of its text, whatever number of rows and lines refers to it.
CREATE TABLE connectors (digest BLOB PRIMARY KEY, connector TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE journal (
    seq INTEGER PRIMARY KEY, at REAL NOT NULL, boot_id TEXT NOT NULL, uid INTEGER NOT NULL, pid INTEGER NOT NULL,
    call TEXT NOT NULL, volume TEXT NOT NULL, attachment_id TEXT, before TEXT, after TEXT, before_connector BLOB,
    after_connector BLOB, rows_sum BLOB NOT NULL, hash BLOB NOT NULL
) STRICT;
CREATE INDEX journal_by_volume ON journal (volume, seq);
CREATE INDEX journal_by_attachment ON journal (attachment_id, seq);
CREATE TABLE ended_attachments (
    id TEXT PRIMARY KEY, volume TEXT NOT NULL, seq INTEGER NOT NULL, mode TEXT NOT NULL, owner INTEGER NOT NULL,
    created_at REAL NOT NULL, updated_at REAL NOT NULL, checksum BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX ended_by_volume ON ended_attachments (volume, seq);
CREATE TABLE ended_volumes (id TEXT PRIMARY KEY, checksum BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE hours (hour INTEGER PRIMARY KEY, seq INTEGER NOT NULL, checksum BLOB NOT NULL) STRICT;
-- Where the history begins, and what the rows add up to (contents.py).
CREATE TABLE anchor (
    id INTEGER PRIMARY KEY CHECK (id = 1), turn INTEGER NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL,
    rows_sum BLOB NOT NULL, kept_sum BLOB NOT NULL, portable INTEGER NOT NULL, checksum BLOB NOT NULL
) STRICT;
-- The keys of the secrets, in a copy; in the daemon's own file there are none (keys.py).
CREATE TABLE keys (slot INTEGER PRIMARY KEY, key BLOB NOT NULL) STRICT;
"""

_TABLES_1 = ("volumes", "attachments", "journal", "ended_attachments", "ended_volumes", "hours")


def _to_version_2(db: sqlite3.Connection) -> None:
    """Make every table anew, with checksums, a chained history, connectors apart and sealed secrets.

    ``ALTER TABLE`` would leave definitions that differ from version to version of SQLite.
    """
    numbered = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'journal'").fetchone()
    old = {table: list(db.execute(f"SELECT * FROM {table} ORDER BY rowid")) for table in _TABLES_1[:2]}  # noqa: S608
    old |= {table: list(db.execute(f"SELECT * FROM {table}")) for table in _TABLES_1[3:]}  # noqa: S608
    db.execute("DROP TABLE attachments")
    for table in ("volumes", *_TABLES_1[3:]):
        db.execute(f"DROP TABLE {table}")
    db.execute("DROP INDEX journal_by_volume")
    db.execute("DROP INDEX journal_by_attachment")
    db.execute("ALTER TABLE journal RENAME TO old_journal")
    for statement in _statements(_VERSION_2):
        db.execute(statement)
    rows_sum, kept_sum = RowSum(), RowSum()
    _copy_rows(db, old, rows_sum)
    for table, columns in CARE.items():
        for row in old[table]:
            kept_sum.add(_insert(db, table, tuple(row[name] for name in columns)))
    oldest = db.execute("SELECT min(seq) FROM old_journal").fetchone()[0]
    first = oldest - 1 if oldest is not None else numbered["seq"] if numbered is not None else 0
    anchor = Anchor(turn=1, seq=first, rows_sum=bytes(rows_sum), kept_sum=bytes(kept_sum), portable=PORTABLE)
    anchor.write(db)
    _copy_history(db, anchor)
    db.execute("DROP TABLE old_journal")


def _insert(db: sqlite3.Connection, table: str, values: tuple[Value, ...]) -> bytes:
    """Insert a row behind which its checksum is put, and return that."""
    checksum = hash_row(table, values)
    marks = ", ".join("?" * (len(values) + 1))
    db.execute(f"INSERT INTO {table} VALUES ({marks})", (*values, checksum))  # noqa: S608
    return checksum


def _copy_rows(db: sqlite3.Connection, old: dict[str, list[sqlite3.Row]], rows_sum: RowSum) -> None:
    keys: dict[Secret, tuple[int, bytes]] = {}
    for row in old["volumes"]:
        rows_sum.add(_insert(db, VOLUMES, tuple(row[name] for name in COLUMNS[VOLUMES])))
    for row in old["attachments"]:
        values = dict(row)
        if values["connector"] is not None:
            values["connector"] = _put_connector(db, json.loads(values["connector"]))
        if values["secret"] is not None:
            secret = Secret(**json.loads(values["secret"]))
            values["secret"] = sealed(secret, *keys.setdefault(secret, (len(keys), new_key())))
        rows_sum.add(_insert(db, ATTACHMENTS, tuple(values[name] for name in COLUMNS[ATTACHMENTS])))
    db.executemany("INSERT INTO keys VALUES (?, ?)", keys.values())


def _copy_history(db: sqlite3.Connection, anchor: Anchor) -> None:
    """Chain the old lines. What the rows were at each of them is not known: every one has the sum of the rows now."""
    head = anchor.hash
    for row in db.execute("SELECT * FROM old_journal ORDER BY seq"):
        line = dict(row) | {"rows_sum": anchor.rows_sum}
        for name in ("before", "after"):
            line[name], members = split_view(None if row[name] is None else json.loads(row[name]))
            line[f"{name}_connector"] = None if members is None else _put_connector(db, members)
        values = [line[name] for name in HASHED]
        head = hash_link(head, values)
        marks = ", ".join("?" * (len(values) + 1))
        db.execute(f"INSERT INTO journal VALUES ({marks})", (*values, head))  # noqa: S608


def _put_connector(db: sqlite3.Connection, members: Mapping[str, Any]) -> bytes:
    connector = Connector.of(members)
    db.execute("INSERT OR IGNORE INTO connectors VALUES (?, ?)", (connector.digest, connector.text))
    return connector.digest


MIGRATIONS: tuple[Migration, ...] = (_VERSION_1, _to_version_2)

SCHEMA_VERSION = len(MIGRATIONS)

#: How long the log grows, in pages, before its content goes into the file and it is begun again from its start. A
#: commit into a log that still grows takes a third longer, and a start reads all of it; each such turn costs a sync.
LOG_PAGES = 256

RESTORE = "restore it from a backup, or see docs/backup.md"
_LINK = ".check.db"


def verify(path: Path, migrations: Sequence[Migration], read: Callable[[sqlite3.Connection, int], T]) -> T | None:
    """See that the file can be used, without changing a byte of it or of its log; None where there is none yet.

    ``read`` takes what is in a file of a version, and raises Damage, ValueError or TypeError for what cannot be
    understood. Raises JournalUnusable, saying what to do.
    """
    log = path.with_name(path.name + "-wal")
    if file_size(path) == 0:
        if file_size(log) > 0:
            raise JournalDamaged(f"{path} is empty or missing, and its log {log.name} is not: {RESTORE}")
        return None
    try:
        with _look(path, log) as db:
            return _check(db, path, migrations, read)
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
        sync_directory(path.parent)
    db.execute("PRAGMA foreign_keys = ON")  # only now: a migration may have to make a table anew


def unusable(path: Path, error: sqlite3.Error) -> JournalUnusable:
    """What to do about SQLite's refusal of a file."""
    told = str(error)
    if "locked" in told:
        return JournalUnusable(f"{path} cannot be used: {told}: end the program that has it open")
    if "full" in told or "I/O" in told or "unable to open" in told:
        return JournalUnusable(f"{path} cannot be used: {told}: make room, or mend the disk, and start again")
    return JournalDamaged(f"{path} cannot be used: {told}; {RESTORE}")


@contextmanager
def _look(path: Path, log: Path) -> Iterator[sqlite3.Connection]:
    """The file as it stands, log included, through a connection that can write to neither."""
    link, log_link = path.with_name(_LINK), path.with_name(_LINK + "-wal")
    _unlink(link, log_link)  # of a check that was killed
    try:
        os.link(path, link, follow_symlinks=False)
        if log.exists():
            os.link(log, log_link, follow_symlinks=False)
        # Without SQLite's locks: the daemon's own is held, and a killed one may hold SQLite's (volattachd/lock.py).
        url = f"file:{quote(str(link))}?mode=ro&vfs=unix-none"
        db = sqlite3.connect(url, uri=True, isolation_level=None)
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.row_factory = sqlite3.Row
        try:
            yield db
        finally:
            db.close()
    finally:
        _unlink(link, log_link)


def _unlink(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _check(
    db: sqlite3.Connection, path: Path, migrations: Sequence[Migration], read: Callable[[sqlite3.Connection, int], T]
) -> T | None:
    version, known = db.execute("PRAGMA user_version").fetchone()[0], len(migrations)
    if version > known:
        raise JournalDamaged(
            f"{path} has schema version {version}, and this volattachd knows {known}:"
            " install the version that wrote it, or restore an older backup"
        )
    problems = [row[0] for row in db.execute("PRAGMA integrity_check(5)") if row[0] != "ok"]
    problems += [f"a row of {row[0]} refers to nothing in {row[2]}" for row in db.execute("PRAGMA foreign_key_check")]
    if problems:
        raise damaged(path, "; ".join(problems[:5]).replace("\n", "; "))
    if _definitions(db) != _definitions_of(migrations[:version]):
        raise JournalDamaged(f"{path} does not have the tables of a journal of version {version}: {RESTORE}")
    if version == 0:
        return None  # the first start was interrupted: there are no tables yet
    try:
        return read(db, version)
    except Damage as error:
        raise damaged(path, str(error)) from error
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise damaged(path, f"a row cannot be understood: {error!r}") from error


def damaged(path: Path, what: str) -> JournalDamaged:
    """The refusal of a damaged journal: what is damaged, where, and what to do."""
    return JournalDamaged(f"{path} is damaged ({what}): {RESTORE}")


def read_version_1(db: sqlite3.Connection) -> None:
    """See that each row of a file of version 1 can be understood, before the migration changes anything."""
    for row in db.execute("SELECT device FROM volumes"):
        Device(**json.loads(row["device"]))
    for row in db.execute("SELECT state, mode, connector, secret FROM attachments"):
        State(row["state"]), Mode(row["mode"])
        json.loads(row["connector"] or "{}")
        Secret(**json.loads(row["secret"] or '{"username": "", "password": ""}'))
    for row in db.execute("SELECT before, after FROM journal"):
        json.loads(row["before"] or "{}"), json.loads(row["after"] or "{}")


def _definitions(db: sqlite3.Connection) -> set[tuple[object, ...]]:
    """Every table and index as it was made, without SQLite's own."""
    query = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
    return {tuple(row) for row in db.execute(query)}


def _definitions_of(migrations: Sequence[Migration]) -> set[tuple[object, ...]]:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.row_factory = sqlite3.Row
    try:
        _migrate(db, migrations, len(migrations))
        return _definitions(db)
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
