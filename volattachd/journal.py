"""The journal: durable state, and the history of how it came about.

On disk: ``journal.db`` (SQLite, WAL, synchronous=FULL) in the state directory, with a row for each volume and
attachment that exists, and the append-only table ``journal``, one row for each transition. ``lock`` beside it is
held by flock for the life of the daemon: one daemon for one state directory.

Rules, and why a crash at any instant is harmless:

1. A change of rows and its line of history are one transaction, synced before ``commit`` returns. So what was
   acknowledged is on the disk, and what is on the disk has its history.
2. Rows in memory change only after the transaction committed, by swapping in frozen objects. Readers need no
   lock and never see what is not durable.
3. A failed commit is fatal, and is not tried again: after a failed fsync the kernel may have dropped the pages
   and report success the next time. Everybody who waits gets JournalFailed, nothing is accepted any more, and the
   owner ends the process (``on_failure``), which starts again from the disk.
4. Nothing is ordered by the clock of the wall: ``seq`` orders, timestamps are for people.

Group commit: callers append to a queue, then take the writer's lock; the first to get it commits for all who
wait, the others find themselves done. A lone caller pays no hand-over to another thread.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from volattachd.errors import JournalFailed, JournalUnusable
from volattachd.model import Attachment, Caller, Device, Mode, Secret, State, Volume, now

SCHEMA_VERSION = 1

_SCHEMA = """
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
"""


@dataclass(frozen=True)
class Change:
    """One transition: what it puts or drops, and the line of history that tells of it.

    ``before`` and ``after`` are the public views (no secret is in them) for the history.
    """

    call: str
    caller: Caller
    volume_id: str
    attachment_id: str | None = None
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    put: Volume | Attachment | None = None
    drop: Volume | Attachment | None = None


@dataclass
class _Waiting:
    """A change in the queue, and what became of it."""

    change: Change
    seq: int | None = None
    error: BaseException | None = field(default=None)


class Journal:
    """The open journal. Every method may be called from any thread."""

    def __init__(
        self,
        state_dir: Path,
        on_failure: Callable[[BaseException], None] | None = None,
        connect: Callable[[Path], sqlite3.Connection] | None = None,
    ) -> None:
        """Take the lock, check, migrate and load. ``connect`` opens the file: the seam for tests of faults.

        Raises JournalUnusable (files untouched) where another daemon holds the directory, others could read
        it, or the file is damaged or from a newer version.
        """
        self._on_failure = on_failure
        self._queue: list[_Waiting] = []
        self._queue_lock = threading.Lock()
        self._writer = threading.Lock()
        self._failed: BaseException | None = None
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        self._lock_fd = _take_lock(state_dir)
        try:
            self._db = _open_database(state_dir, connect or open_connection)
            self.volumes, self.attachments = _load(self._db)
            self.seq: int = self._db.execute("SELECT coalesce(max(seq), 0) FROM journal").fetchone()[0]
        except BaseException:
            os.close(self._lock_fd)
            raise

    def close(self) -> None:
        """Close the file and release the lock; waits for a commit that is under way."""
        with self._writer:
            self._failed = self._failed or JournalFailed("the journal is closed")
            self._db.close()
            os.close(self._lock_fd)

    def commit(self, change: Change) -> int:
        """Make a change durable, then visible; the answer is its sequence number.

        Raises JournalFailed where it is not known to be durable: the daemon must end.
        """
        waiting = _Waiting(change)
        with self._queue_lock:
            self._queue.append(waiting)
        with self._writer:
            if waiting.seq is None and waiting.error is None:
                with self._queue_lock:
                    batch, self._queue = self._queue, []
                self._commit_batch(batch)
        if waiting.error is not None:
            raise JournalFailed(f"the journal cannot be written: {waiting.error}") from waiting.error
        assert waiting.seq is not None
        return waiting.seq

    def _commit_batch(self, batch: list[_Waiting]) -> None:
        error = self._failed
        if error is None:
            try:
                seqs = self._write([waiting.change for waiting in batch])
            except BaseException as failure:  # noqa: BLE001 - whatever it was, nothing after it can be trusted
                error = self._failed = failure
                if self._on_failure is not None:
                    self._on_failure(failure)
        if error is not None:
            for waiting in batch:
                waiting.error = error
            return
        for waiting, seq in zip(batch, seqs, strict=True):
            self._apply(waiting.change)
            self.seq = waiting.seq = seq

    def _write(self, changes: list[Change]) -> list[int]:
        self._db.execute("BEGIN IMMEDIATE")
        seqs = [self._write_one(change) for change in changes]
        self._db.execute("COMMIT")
        return seqs

    def _write_one(self, change: Change) -> int:
        if change.drop is not None:
            self._db.execute(f"DELETE FROM {_table(change.drop)} WHERE id = ?", (change.drop.id,))  # noqa: S608
        if change.put is not None:
            columns = _to_columns(change.put)
            self._db.execute(_upsert(_table(change.put), tuple(columns)), tuple(columns.values()))
        cursor = self._db.execute(
            "INSERT INTO journal (at, boot_id, uid, pid, call, volume, attachment_id, before, after)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                now(),
                self.boot_id,
                change.caller.uid,
                change.caller.pid,
                change.call,
                change.volume_id,
                change.attachment_id,
                _json_or_none(change.before),
                _json_or_none(change.after),
            ),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _apply(self, change: Change) -> None:
        """Show a durable change to the readers."""
        if isinstance(change.drop, Volume):
            self.volumes.pop(change.drop.id, None)
        elif isinstance(change.drop, Attachment):
            self.attachments.drop(change.drop)
        if isinstance(change.put, Volume):
            self.volumes[change.put.id] = change.put
        elif isinstance(change.put, Attachment):
            self.attachments.put(change.put)

    def _check_alive(self) -> None:
        if self._failed is not None:
            raise JournalFailed(f"the journal cannot be used: {self._failed}") from self._failed

    def history(
        self,
        volume: str | None = None,
        attachment_id: str | None = None,
        since: int | None = None,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """Lines of history, oldest first: those after ``since``, or without it the newest ``limit``."""
        where, values = ["1"], []
        for column, value in (("volume", volume), ("attachment_id", attachment_id)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        order = "DESC" if since is None else "ASC"
        query = (
            f"SELECT * FROM journal WHERE {' AND '.join(where)} AND seq > ?"  # noqa: S608 - no caller's text
            f" ORDER BY seq {order} LIMIT ?"
        )
        with self._writer:
            self._check_alive()
            rows = self._db.execute(query, (*values, since or 0, limit)).fetchall()
        lines = [_history_line(row) for row in rows]
        return lines[::-1] if since is None else lines

    def last_ended(self, volume: str) -> dict[str, Any] | None:
        """The line of history with which the volume's latest attachment to end did so, or None."""
        query = (
            "SELECT * FROM journal WHERE volume = ? AND attachment_id IS NOT NULL AND after IS NULL"
            " ORDER BY seq DESC LIMIT 1"
        )
        with self._writer:
            self._check_alive()
            row = self._db.execute(query, (volume,)).fetchone()
        return None if row is None else _history_line(row)

    def last_of(self, attachment_id: str) -> dict[str, Any] | None:
        """The newest line of history of an attachment that may have ended; None where it never was."""
        lines = self.history(attachment_id=attachment_id, limit=1)
        return lines[0] if lines else None


class Attachments:
    """The attachments that exist, by id and by volume: no call's cost may grow with their number."""

    def __init__(self, rows: Iterable[Attachment] = ()) -> None:
        self._by_id: dict[str, Attachment] = {}
        self._by_volume: dict[str, dict[str, Attachment]] = {}
        for row in rows:
            self.put(row)

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, attachment_id: str) -> Attachment | None:
        """The attachment, or None."""
        return self._by_id.get(attachment_id)

    def of_volume(self, volume: str) -> list[Attachment]:
        """The attachments of one volume, oldest first."""
        return list(self._by_volume.get(volume, {}).values())

    def all(self) -> list[Attachment]:
        """Every attachment, oldest first."""
        return list(self._by_id.values())

    def put(self, row: Attachment) -> None:
        """Add it, or swap in its new state."""
        self._by_id[row.id] = row
        # A new inner dictionary, so that a reader in another thread never iterates over one that changes.
        self._by_volume[row.volume] = {**self._by_volume.get(row.volume, {}), row.id: row}

    def drop(self, row: Attachment) -> None:
        """Remove it."""
        self._by_id.pop(row.id, None)
        rest = {k: v for k, v in self._by_volume.get(row.volume, {}).items() if k != row.id}
        if rest:
            self._by_volume[row.volume] = rest
        else:
            self._by_volume.pop(row.volume, None)


# Opening.


def _take_lock(state_dir: Path) -> int:
    """Make the directory where it is missing, check that it is ours alone, and lock it."""
    try:
        os.mkdir(state_dir, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise JournalUnusable(f"cannot make the state directory {state_dir}: {error.strerror}") from error
    found = os.stat(state_dir)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        # Never chmod what somebody else may have made: say so instead.
        raise JournalUnusable(
            f"{state_dir} must be a directory of uid {os.geteuid()} with mode 0700, because it holds secrets:"
            f" it has uid {found.st_uid} and mode {stat.S_IMODE(found.st_mode):04o}"
        )
    fd = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise JournalUnusable(f"another volattachd (pid {holder}) works on {state_dir}") from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def open_connection(path: Path) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time, and that begins and ends transactions when told."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)


def _open_database(state_dir: Path, connect: Callable[[Path], sqlite3.Connection]) -> sqlite3.Connection:
    path = state_dir / "journal.db"
    # Created by hand: SQLite would use the umask, and a file that was readable for a moment was readable.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    fresh = path.stat().st_size == 0
    db = connect(path)
    db.row_factory = sqlite3.Row
    try:
        # Before anything is written to it: a file from the future, or a damaged one, stays as it is.
        _check(db, path)
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA secure_delete = ON")  # a secret dies with its attachment
        if fresh or db.execute("PRAGMA user_version").fetchone()[0] == 0:
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            _sync_directory(state_dir)
    except sqlite3.Error as error:
        db.close()
        raise JournalUnusable(f"{path} cannot be used: {error}; restore it from a backup") from error
    except BaseException:
        db.close()
        raise
    return db


def _check(db: sqlite3.Connection, path: Path) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise JournalUnusable(
            f"{path} has schema version {version}, and this volattachd knows {SCHEMA_VERSION}:"
            " install the version that wrote it, or restore an older backup"
        )
    problems = [row[0] for row in db.execute("PRAGMA quick_check(5)") if row[0] != "ok"]
    if problems:
        raise JournalUnusable(f"{path} is damaged ({'; '.join(problems)}): restore it from a backup")


def _sync_directory(path: Path) -> None:
    """A new file's name is durable only when its directory is synced."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# Rows.


def _load(db: sqlite3.Connection) -> tuple[dict[str, Volume], Attachments]:
    try:
        volumes = [_to_volume(row) for row in db.execute("SELECT * FROM volumes ORDER BY rowid")]
        attachments = [_to_attachment(row) for row in db.execute("SELECT * FROM attachments ORDER BY rowid")]
    except (ValueError, TypeError) as error:
        raise JournalUnusable(f"a row cannot be understood ({error}): restore the journal from a backup") from error
    return {volume.id: volume for volume in volumes}, Attachments(attachments)


def _table(row: Volume | Attachment) -> str:
    return "volumes" if isinstance(row, Volume) else "attachments"


def _upsert(table: str, columns: tuple[str, ...]) -> str:
    """Insert, or update in place: a replaced row would lose its place in the order of creation."""
    marks = ", ".join("?" * len(columns))
    updates = ", ".join(f"{column} = excluded.{column}" for column in columns)
    names = ", ".join(columns)
    return f"INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET {updates}"  # noqa: S608


def _to_columns(row: Volume | Attachment) -> dict[str, Any]:
    """The row's columns. Enumerations are strings already; whatever has parts goes in as JSON."""
    columns: dict[str, Any] = {}
    for name, value in vars(row).items():
        if isinstance(value, (Device, Secret)):
            value = json.dumps(asdict(value))
        elif isinstance(value, Mapping):
            value = json.dumps(value)
        elif isinstance(value, (State, Mode)):
            value = value.value
        columns[name] = value
    return columns


def _to_volume(row: sqlite3.Row) -> Volume:
    values = dict(row)
    values["device"] = Device(**json.loads(values["device"]))
    values["multiattach"] = bool(values["multiattach"])
    values["read_only"] = bool(values["read_only"])
    return Volume(**values)


def _to_attachment(row: sqlite3.Row) -> Attachment:
    values = dict(row)
    values["state"] = State(values["state"])
    values["mode"] = Mode(values["mode"])
    values["connector"] = None if values["connector"] is None else json.loads(values["connector"])
    values["secret"] = None if values["secret"] is None else Secret(**json.loads(values["secret"]))
    return Attachment(**values)


def _history_line(row: sqlite3.Row) -> dict[str, Any]:
    line = dict(row)
    for name in ("before", "after"):
        line[name] = None if line[name] is None else json.loads(line[name])
    return line


def _json_or_none(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)
