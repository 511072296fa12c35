"""The journal: durable state, and the history of how it came about.

On disk: ``journal.db`` (SQLite, WAL, synchronous=FULL; schema.py) in the state directory, with a row for each volume
and attachment that exists, and the table ``journal``, one row for each transition: new ones are appended, the oldest
are trimmed, none is changed. ``lock`` beside it is held by flock for the life of the daemon: one daemon for one state
directory.

Rules, and why a crash at any instant is harmless:

1. A change of rows and its line of history are one transaction, synced before ``commit`` returns. So what was
   acknowledged is on the disk, and what is on the disk has its history.
2. Rows in memory change only after the transaction committed, by swapping in frozen objects. Readers need no
   lock and never see what is not durable.
3. A failed commit is fatal, and is not tried again: after a failed fsync the kernel may have dropped the pages
   and report success the next time. Everybody who waits gets JournalFailed, nothing is accepted any more, and the
   owner ends the process (``on_failure``), which starts again from the disk.
4. Nothing is ordered, and nothing is trimmed, by the clock of the wall: ``seq`` orders, timestamps are for people,
   and the age of a row is counted in hours that the daemon has run.
5. ``seq`` has no gap and is never given twice, whatever was trimmed: who saw number n misses nothing where the next
   one that he sees is n + 1.
6. Trimming takes the oldest rows of history and nothing else. Of an attachment that has ended its id, volume, mode
   and owner stay for ever, and of a volume that was unregistered its name: calls that are sent again, however
   late, find their result, and an id is never taken again.

Changes of many callers at once are committed together (group.py).
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from volattachd.errors import JournalFailed
from volattachd.model import Attachment, Caller, Device, Mode, Secret, State, Volume, now
from volattachd.state.group_commit import Group
from volattachd.state.lock import release_lock, take_lock
from volattachd.state.schema import MIGRATIONS, SCHEMA_VERSION, Migration, prepare, unusable, verify

__all__ = ["SCHEMA_VERSION", "Attachments", "Change", "Journal", "open_connection"]

#: Pages (of 4 KiB) that a copy takes before it lets waiting calls through, and the pause in which they get in: a
#: lock that is given back and asked for at once mostly stays with the same thread.
_COPY_PAGES, _PAUSE = 256, 0.001
_SQLITE_DONE = 101  # the sqlite3 module of Python 3.10 has no name for it

#: What is left of an attachment's view when the history of its end is trimmed.
_KEPT = ("mode", "owner", "created_at", "updated_at")
_DROPPED = ("connector", "instance_uuid", "host_name", "mount_point")


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
        migrations: Sequence[Migration] = MIGRATIONS,
        on_commit: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Take the lock, check, migrate and load. ``connect`` opens the file: the seam for tests of faults.
        ``on_commit`` is told the seconds that each commit took.

        Raises JournalUnusable (files untouched) where another daemon holds the directory, others could read
        it, or the file is damaged or from a newer version.
        """
        self._on_failure = on_failure
        self._on_commit = on_commit
        self._path = state_dir / "journal.db"
        self._group = Group(self._commit_batch)
        self._writer = threading.Lock()
        self._news = threading.Condition()
        self._followers = 0
        self._failed: BaseException | None = None
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        self._lock_fd, passed_over = take_lock(state_dir)
        usual = open_past_lock if passed_over else open_connection
        try:
            self._db = _open_database(state_dir, connect or usual, migrations)
        except BaseException:
            release_lock(self._lock_fd)
            raise
        try:
            self.volumes, self.attachments = _load(self._db)
            # Not the greatest number that is there: all of them may have been trimmed.
            last = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'journal'").fetchone()
            self.seq: int = 0 if last is None else last[0]
        except sqlite3.Error as error:
            self._db.close()
            release_lock(self._lock_fd)
            raise unusable(state_dir / "journal.db", error) from error
        except BaseException:
            self._db.close()
            release_lock(self._lock_fd)
            raise

    def close(self) -> None:
        """Close the file and release the lock; waits for a commit that is under way."""
        with self._writer:
            self._failed = self._failed or JournalFailed("the journal is closed")
            self._db.close()
            release_lock(self._lock_fd)
        self.wake()

    def commit(self, change: Change) -> int:
        """Make a change durable, then visible; the answer is its sequence number.

        Raises JournalFailed where it is not known to be durable: the daemon must end.
        """
        waiting = _Waiting(change)
        self._group.do(waiting)
        if waiting.error is not None:
            raise JournalFailed(f"the journal cannot be written: {waiting.error}") from waiting.error
        assert waiting.seq is not None
        return waiting.seq

    def _commit_batch(self, batch: list[_Waiting]) -> None:
        with self._writer:
            self._commit_all(batch)

    def _commit_all(self, batch: list[_Waiting]) -> None:
        error, began = self._failed, time.monotonic()
        if error is None:
            try:
                seqs = self._write([waiting.change for waiting in batch])
            except BaseException as failure:  # noqa: BLE001 - whatever it was, nothing after it can be trusted
                error = failure
                self._fail(failure)
        if error is not None:
            for waiting in batch:
                waiting.error = error
            return
        for waiting, seq in zip(batch, seqs, strict=True):
            self._apply(waiting.change)
            self.seq = waiting.seq = seq
        self._on_commit(time.monotonic() - began)
        self.wake()

    def _fail(self, failure: BaseException) -> None:
        """Accept nothing any more, and tell the owner."""
        self._failed = failure
        if self._on_failure is not None:
            self._on_failure(failure)
        self.wake()

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
        row = self._first(
            "SELECT * FROM journal WHERE volume = ? AND attachment_id IS NOT NULL AND after IS NULL"
            " ORDER BY seq DESC LIMIT 1",
            volume,
        )
        if row is not None:
            return _history_line(row)
        row = self._first("SELECT * FROM ended_attachments WHERE volume = ? ORDER BY seq DESC LIMIT 1", volume)
        return None if row is None else _ended_line(row)

    def last_of(self, attachment_id: str) -> dict[str, Any] | None:
        """The newest line of history of an attachment that may have ended; None where it never was."""
        lines = self.history(attachment_id=attachment_id, limit=1)
        if lines:
            return lines[0]
        row = self._first("SELECT * FROM ended_attachments WHERE id = ?", attachment_id)
        return None if row is None else _ended_line(row)

    def was_unregistered(self, volume: str) -> bool:
        """Whether a volume that is not registered has been so."""
        lines = self.history(volume=volume, limit=1)
        if lines:
            return bool(lines[0]["after"] is None and lines[0]["attachment_id"] is None)
        return self._first("SELECT id FROM ended_volumes WHERE id = ?", volume) is not None

    def _first(self, query: str, *values: Any) -> sqlite3.Row | None:
        with self._writer:
            self._check_alive()
            row: sqlite3.Row | None = self._db.execute(query, values).fetchone()
        return row

    # Following.

    def kept(self) -> tuple[int, int]:
        """The numbers of the oldest row of history that is still there, and of the newest.

        Where none is there, the first is one more than the second.
        """
        with self._writer:
            self._check_alive()
            oldest = self._db.execute("SELECT min(seq) FROM journal").fetchone()[0]
            return self.seq + 1 if oldest is None else oldest, self.seq

    def wait_beyond(self, seq: int, enough: Callable[[], bool]) -> None:
        """Wait until there is a row after ``seq``, the journal has ended, or ``enough`` (ask again: ``wake``)."""
        with self._news:
            self._followers += 1
            try:
                self._news.wait_for(lambda: self.seq > seq or self._failed is not None or enough())
            finally:
                self._followers -= 1

    def wake(self) -> None:
        """Let those who wait look again. Who is not counted yet looks only now, and sees what there is news of."""
        if self._followers:
            with self._news:
                self._news.notify_all()

    # Care.

    def copy_to(self, target: sqlite3.Connection) -> int:
        """Copy everything into an empty database while calls go on; the answer is the copy's last number.

        The copy is of one moment: what is committed on the way is taken over into what was copied already.
        Raises JournalFailed, or sqlite3.Error where the target cannot be written.
        """

        def let_others_in(status: int, remaining: int, total: int) -> None:
            if status != _SQLITE_DONE:  # from there on nothing is taken over any more
                self._writer.release()
                time.sleep(_PAUSE)
                self._writer.acquire()
                self._check_alive()

        with self._writer:
            self._check_alive()
            self._db.backup(target, pages=_COPY_PAGES, progress=let_others_in)
            return self.seq

    def size(self) -> int:
        """Bytes of the file and of its log.

        Asked by name: a descriptor of the file that is opened and closed would end the locks that SQLite has on it.
        """
        found = 0
        for path in (self._path, self._path.with_name(self._path.name + "-wal")):
            try:
                found += os.stat(path).st_size
            except FileNotFoundError:
                continue
        return found

    def count_hour(self) -> None:
        """Note that the daemon has run for one more hour."""
        with self._writer, self._transaction():
            hour = self._db.execute("SELECT coalesce(max(hour), 0) + 1 FROM hours").fetchone()[0]
            self._db.execute("INSERT INTO hours (hour, seq) VALUES (?, ?)", (hour, self.seq))

    def trim(self, hours: int, rows: int, at_most: int) -> int:
        """Take away history that is older than ``hours`` of running, or beyond the newest ``rows``.

        The oldest come first, and ``at_most`` of them; the answer is how many they were.
        """
        with self._writer:
            self._check_alive()
            query = "SELECT * FROM journal WHERE seq <= ? ORDER BY seq LIMIT ?"
            old = self._db.execute(query, (max(self.seq - rows, self._seq_at_age(hours)), at_most)).fetchall()
            if old:
                with self._transaction():
                    self._forget(old, hours)
            return len(old)

    def _seq_at_age(self, hours: int) -> int:
        """The last number at the time when the daemon had run for so many hours less than now; or 0."""
        query = "SELECT coalesce(max(seq), 0) FROM hours WHERE hour <= (SELECT max(hour) FROM hours) - ?"
        seq: int = self._db.execute(query, (hours,)).fetchone()[0]
        return seq

    def _forget(self, old: list[sqlite3.Row], hours: int) -> None:
        """Remove the oldest rows, keeping what calls that are sent again may ask for."""
        for row in old:
            if row["after"] is None and row["attachment_id"] is not None:
                view = json.loads(row["before"])
                self._db.execute(
                    "INSERT OR REPLACE INTO ended_attachments VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (row["attachment_id"], row["volume"], row["seq"], *(view[name] for name in _KEPT)),
                )
            elif row["after"] is None:
                self._db.execute("INSERT OR IGNORE INTO ended_volumes VALUES (?)", (row["volume"],))
        self._db.execute("DELETE FROM journal WHERE seq <= ?", (old[-1]["seq"],))
        # One mark of that age stays: it is the answer for the hours to come.
        self._db.execute("DELETE FROM hours WHERE hour < (SELECT max(hour) FROM hours) - ?", (hours,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """A transaction of our own keeping. Its failure is as fatal as that of a commit."""
        self._check_alive()
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as failure:
            self._fail(failure)
            raise JournalFailed(f"the journal cannot be written: {failure}") from failure


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


def open_connection(path: Path) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time, and that begins and ends transactions when told."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)


def open_past_lock(path: Path) -> sqlite3.Connection:
    """The same without SQLite's own locks, which a daemon that was killed but cannot end yet still holds."""
    url = f"file:{quote(str(path))}?vfs=unix-none"
    return sqlite3.connect(url, uri=True, isolation_level=None, check_same_thread=False, timeout=0)


def _open_database(
    state_dir: Path, connect: Callable[[Path], sqlite3.Connection], migrations: Sequence[Migration]
) -> sqlite3.Connection:
    path = state_dir / "journal.db"
    verify(path, migrations, _load)
    # Created by hand: SQLite would use the umask, and a file that was readable for a moment was readable.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    db = connect(path)
    db.row_factory = sqlite3.Row
    try:
        prepare(db, path, migrations)
    except sqlite3.Error as error:
        db.close()
        raise unusable(path, error) from error
    except BaseException:
        db.close()
        raise
    return db


# Rows.


def _load(db: sqlite3.Connection) -> tuple[dict[str, Volume], Attachments]:
    """The rows. Raises ValueError or TypeError for one that cannot be understood: the check has seen to that."""
    volumes = [_to_volume(row) for row in db.execute("SELECT * FROM volumes ORDER BY rowid")]
    attachments = [_to_attachment(row) for row in db.execute("SELECT * FROM attachments ORDER BY rowid")]
    return {volume.id: volume for volume in volumes}, Attachments(attachments)


def _table(row: Volume | Attachment) -> str:
    return "volumes" if isinstance(row, Volume) else "attachments"


@cache
def _upsert(table: str, columns: tuple[str, ...]) -> str:
    """Insert, or update in place: a replaced row would lose its place in the order of creation.

    The id is not among what is updated: SQLite would write its index again.
    """
    marks = ", ".join("?" * len(columns))
    updates = ", ".join(f"{column} = excluded.{column}" for column in columns if column != "id")
    names = ", ".join(columns)
    return f"INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET {updates}"  # noqa: S608


def _to_columns(row: Volume | Attachment) -> dict[str, Any]:
    """The row's columns. Whatever has parts goes in as JSON."""
    return {name: _AS_COLUMN.get(type(value), _as_it_is)(value) for name, value in vars(row).items()}


def _as_it_is(value: Any) -> Any:
    return value


_AS_COLUMN: dict[type, Callable[[Any], Any]] = {
    Device: lambda device: json.dumps(asdict(device)),
    Secret: lambda secret: json.dumps(asdict(secret)),
    dict: json.dumps,
    State: lambda state: state.value,
    Mode: lambda mode: mode.value,
}


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


def _ended_line(row: sqlite3.Row) -> dict[str, Any]:
    """What is known of an attachment's end whose line of history was trimmed, as a line of history."""
    view = {
        "attachment_id": row["id"],
        "volume": row["volume"],
        "state": State.GONE.value,
        **{name: row[name] for name in _KEPT},
        **dict.fromkeys(_DROPPED),
    }
    return {"seq": row["seq"], "volume": row["volume"], "attachment_id": row["id"], "before": view, "after": None}


def _json_or_none(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)
