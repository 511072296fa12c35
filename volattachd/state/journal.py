"""The journal: durable state, and the history of how it came about.

On disk: ``journal.db`` (SQLite, WAL, synchronous=FULL; schema.py) in the state directory, with a row for each volume
and attachment that exists, and the table ``journal``, one row for each transition: new ones are appended, the oldest
are trimmed, none is changed. Beside it: ``acknowledged``, how far it must reach at the least (acknowledged.py);
``keys``, which open the secrets in it (keys.py); and ``lock``, held by flock for the life of the daemon: one daemon
for one state directory.

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
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from volattachd.api.paging import Rows
from volattachd.errors import JournalFailed, JournalUnusable
from volattachd.model import Attachment, Caller, Volume, now
from volattachd.state.checksums import hash_link, hash_row
from volattachd.state.codec import (
    COLUMNS,
    KEPT,
    LINE,
    attachment_values,
    line_size,
    split_view,
    table_of,
    to_ended_line,
    to_line,
    volume_values,
)
from volattachd.state.connector_table import ConnectorTable
from volattachd.state.contents import CARE, PORTABLE, Contents, replaced
from volattachd.state.database import NAME, Database, open_connection, open_past_lock, open_state, transaction
from volattachd.state.group_commit import Group
from volattachd.state.lock import release_lock, take_lock
from volattachd.state.schema import MIGRATIONS, SCHEMA_VERSION, Migration

__all__ = ["SCHEMA_VERSION", "Attachments", "Change", "Journal", "open_connection"]

#: Pages (of 4 KiB) that a copy takes before it lets waiting calls through, and the pause in which they get in: a
#: lock that is given back and asked for at once mostly stays with the same thread.
_COPY_PAGES, _PAUSE = 256, 0.001
_SQLITE_DONE = 101  # the sqlite3 module of Python 3.10 has no name for it
#: No row has this number.
_NO_SEQ = 2**63 - 1
_ADD_LINE = f"INSERT INTO journal ({', '.join(LINE)}) VALUES ({', '.join('?' * len(LINE))})"  # noqa: S608


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
        self.state_dir = state_dir
        self._path = state_dir / NAME
        self._group = Group(self._commit_batch)
        self._writer = threading.Lock()
        self._news = threading.Condition()
        self._followers = 0
        self._failed: BaseException | None = None
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        self._lock_fd, passed_over = take_lock(state_dir)
        try:
            self._files = _opened(
                state_dir, connect or (open_past_lock if passed_over else open_connection), migrations
            )
        except BaseException:
            release_lock(self._lock_fd)
            raise
        self._db = self._files.db
        self._contents: Contents = self._files.contents
        self._connectors = ConnectorTable(self._db, self._contents)
        self.volumes = self._contents.volumes
        self.attachments = Attachments(self._contents.attachments)
        self.seq: int = self._contents.seq

    def close(self) -> None:
        """Close the file and release the lock; waits for a commit that is under way."""
        with self._writer:
            self._failed = self._failed or JournalFailed("the journal is closed")
            self._files.close()
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
            waiting.seq = seq
        self._on_commit(time.monotonic() - began)
        self.wake()

    def _fail(self, failure: BaseException) -> None:
        """Accept nothing any more, and tell the owner."""
        self._failed = failure
        if self._on_failure is not None:
            self._on_failure(failure)
        self.wake()

    def _write(self, changes: list[Change]) -> list[int]:
        """Make changes durable, then visible; record that they are durable, and destroy the secrets that they end."""
        self._db.execute("BEGIN IMMEDIATE")
        seqs = [self._write_one(change) for change in changes]
        self._db.execute("COMMIT")
        self._files.acknowledged.write(self._contents.mark)
        for change, seq in zip(changes, seqs, strict=True):
            self._count_secret(change)
            self._apply(change)
            self.seq = seq
        return seqs

    def _write_one(self, change: Change) -> int:
        contents, refer = self._contents, self._connectors.refer
        before, before_connector = split_view(change.before)
        after, after_connector = split_view(change.after)
        referred = refer(change.attachment_id, before_connector), refer(change.attachment_id, after_connector)
        if change.drop is not None:
            self._drop(change.drop)
        if change.put is not None:
            self._put(change.put)
        contents.seq += 1
        caller = change.caller
        whose = self.boot_id, caller.uid, caller.pid, change.call, change.volume_id, change.attachment_id
        values = (contents.seq, now(), *whose, before, after, *referred, bytes(contents.rows_sum))
        contents.head = hash_link(contents.head, values)
        self._db.execute(_ADD_LINE, (*values, contents.head))
        contents.size += line_size(change.call, before, after)
        return contents.seq

    def _drop(self, row: Volume | Attachment) -> None:
        table = table_of(row)
        self._db.execute(f"DELETE FROM {table} WHERE id = ?", (row.id,))  # noqa: S608
        self._replace_checksum(table, row.id, None)
        if isinstance(row, Attachment):
            self._connectors.hold(row.id, None)

    def _put(self, row: Volume | Attachment) -> None:
        table = table_of(row)
        if isinstance(row, Volume):
            values = volume_values(row)
        else:
            values = attachment_values(row, self._connectors.hold(row.id, row.connector), self._files.keys.seal)
        checksum = hash_row(table, values)
        self._db.execute(_upsert(table), (*values, checksum))
        self._replace_checksum(table, row.id, checksum)

    def _replace_checksum(self, table: str, name: str, checksum: bytes | None) -> None:
        """The row that has this name has another checksum now, or is gone."""
        old = self._contents.checksums.pop((table, name), None)
        if old is not None:
            self._contents.rows_sum.remove(old)
        if checksum is not None:
            self._contents.checksums[table, name] = checksum
            self._contents.rows_sum.add(checksum)

    def _count_secret(self, change: Change) -> None:
        """The attachment of a durable change has another secret than the one that is shown, or none."""
        row = change.put or change.drop
        if isinstance(row, Attachment):
            shown = self.attachments.get(row.id)
            after = change.put.secret if isinstance(change.put, Attachment) else None
            self._files.keys.count(None if shown is None else shown.secret, after)

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
        before: int | None = None,
        max_bytes: int | None = None,
    ) -> list[dict[str, Any]]:
        """Lines of history, oldest first: see ``history_page``."""
        return list(self.history_page(volume, attachment_id, since, limit, before, max_bytes))

    def history_page(
        self,
        volume: str | None = None,
        attachment_id: str | None = None,
        since: int | None = None,
        limit: int = 100,
        before: int | None = None,
        max_bytes: int | None = None,
    ) -> Rows:
        """Lines of history before ``before``, oldest first: those after ``since``, or without it the newest ``limit``.

        They are fewer where more would have more than ``max_bytes``, though at least one.
        """
        where, values = ["1"], []
        for column, value in (("volume", volume), ("attachment_id", attachment_id)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        order = "DESC" if since is None else "ASC"
        query = (
            f"SELECT * FROM journal WHERE {' AND '.join(where)} AND seq > ?"  # noqa: S608 - no caller's text
            f" AND seq < ? ORDER BY seq {order} LIMIT ?"
        )
        end = _NO_SEQ if before is None else before
        lines = self._lines(query, *values, since or 0, end, limit, max_bytes=max_bytes)
        return Rows(lines[::-1] if since is None else lines, _as_it_is, is_page=True)

    def last_ended(self, volume: str) -> dict[str, Any] | None:
        """The line of history with which the volume's latest attachment to end did so, or None."""
        lines = self._lines(
            "SELECT * FROM journal WHERE volume = ? AND attachment_id IS NOT NULL AND after IS NULL"
            " ORDER BY seq DESC LIMIT 1",
            volume,
        )
        if lines:
            return lines[0]
        row = self._first("SELECT * FROM ended_attachments WHERE volume = ? ORDER BY seq DESC LIMIT 1", volume)
        return None if row is None else to_ended_line(row)

    def last_of(self, attachment_id: str) -> dict[str, Any] | None:
        """The newest line of history of an attachment that may have ended; None where it never was."""
        lines = self.history(attachment_id=attachment_id, limit=1)
        if lines:
            return lines[0]
        row = self._first("SELECT * FROM ended_attachments WHERE id = ?", attachment_id)
        return None if row is None else to_ended_line(row)

    def was_unregistered(self, volume: str) -> bool:
        """Whether a volume that is not registered has been so."""
        lines = self.history(volume=volume, limit=1)
        if lines:
            return bool(lines[0]["after"] is None and lines[0]["attachment_id"] is None)
        return self._first("SELECT id FROM ended_volumes WHERE id = ?", volume) is not None

    def _lines(self, query: str, *values: Any, max_bytes: int | None = None) -> list[dict[str, Any]]:
        """Lines of history, with the connectors that they refer to; no more than fit into so many bytes, but one."""
        with self._writer:
            self._check_alive()
            find_connector = self._connectors.finder()
            lines = (to_line(row, find_connector) for row in self._db.execute(query, values))
            return list(lines if max_bytes is None else _up_to(lines, max_bytes))

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
            return self._contents.anchor.seq + 1, self.seq

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
            self._make_portable(target)
            return self.seq

    def _make_portable(self, target: sqlite3.Connection) -> None:
        """Put the keys of the secrets into a copy, which then needs no other file."""
        with transaction(target):
            target.executemany("INSERT INTO keys VALUES (?, ?)", self._files.keys.used().items())
            replaced(self._contents.anchor, portable=PORTABLE).write(target)

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
        with self._writer, self._turn():
            hour = self._db.execute("SELECT coalesce(max(hour), 0) + 1 FROM hours").fetchone()[0]
            self._keep("hours", (hour, self.seq))

    def trim(self, hours: int, rows: int, at_most: int, max_bytes: int | None = None) -> int:
        """Take away history that is older than ``hours`` of running, or beyond the newest ``rows`` or ``max_bytes``.

        The oldest come first, and ``at_most`` of them; the answer is how many they were.
        """
        with self._writer:
            self._check_alive()
            bound = max(self.seq - rows, self._seq_at_age(hours))
            if self._contents.anchor.seq >= bound and not self._exceeds(max_bytes):
                return 0
            with self._turn():
                return self._trim_lines(bound, at_most, max_bytes, hours)

    def _exceeds(self, max_bytes: int | None) -> bool:
        contents = self._contents
        return max_bytes is not None and contents.size > max_bytes and contents.anchor.seq < contents.seq

    def _trim_lines(self, bound: int, at_most: int, max_bytes: int | None, hours: int) -> int:
        count = 0
        for row in self._db.execute("SELECT * FROM journal ORDER BY seq LIMIT ?", (at_most,)).fetchall():
            if row["seq"] > bound and not self._exceeds(max_bytes):
                break
            self._forget(row)
            count += 1
        self._forget_hours(hours)
        return count

    def _seq_at_age(self, hours: int) -> int:
        """The last number at the time when the daemon had run for so many hours less than now; or 0."""
        query = "SELECT coalesce(max(seq), 0) FROM hours WHERE hour <= (SELECT max(hour) FROM hours) - ?"
        seq: int = self._db.execute(query, (hours,)).fetchone()[0]
        return seq

    def _forget(self, row: sqlite3.Row) -> None:
        """Remove the oldest line, keeping what calls that are sent again may ask for."""
        contents = self._contents
        if row["after"] is None and row["attachment_id"] is not None:
            view = json.loads(row["before"])
            kept = [_as_kept(name, view[name]) for name in KEPT]
            self._keep("ended_attachments", (row["attachment_id"], row["volume"], row["seq"], *kept))
        elif row["after"] is None:
            self._keep("ended_volumes", (row["volume"],))
        self._db.execute("DELETE FROM journal WHERE seq = ?", (row["seq"],))
        self._connectors.release(row["before_connector"])
        self._connectors.release(row["after_connector"])
        contents.size -= line_size(row["call"], row["before"], row["after"])
        contents.anchor = replace(contents.anchor, seq=row["seq"], hash=row["hash"], rows_sum=row["rows_sum"])

    def _forget_hours(self, hours: int) -> None:
        """Remove old marks of age. One of that age stays: it is the answer for the hours to come."""
        old = "FROM hours WHERE hour < (SELECT max(hour) FROM hours) - ?"
        for row in self._db.execute(f"SELECT checksum {old}", (hours,)):
            self._contents.kept_sum.remove(row["checksum"])
        self._db.execute(f"DELETE {old}", (hours,))

    def _keep(self, table: str, values: tuple[Any, ...]) -> None:
        """Insert a row that outlives the history, or put it in the place of the one with its key."""
        key = CARE[table][0]
        query = f"SELECT checksum FROM {table} WHERE {key} = ?"  # noqa: S608
        for row in self._db.execute(query, values[:1]):
            self._contents.kept_sum.remove(row["checksum"])
        checksum = hash_row(table, values)
        marks = ", ".join("?" * (len(values) + 1))
        self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", (*values, checksum))  # noqa: S608
        self._contents.kept_sum.add(checksum)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """A transaction of our own care. Its failure is as fatal as that of a commit."""
        self._check_alive()
        try:
            with transaction(self._db):
                yield
                contents = self._contents
                contents.anchor = replaced(contents.anchor, kept_sum=bytes(contents.kept_sum))
                contents.anchor.write(self._db)
            self._files.acknowledged.write(self._contents.mark)
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


def _opened(
    state_dir: Path, connect: Callable[[Path], sqlite3.Connection], migrations: Sequence[Migration]
) -> Database:
    try:
        return open_state(state_dir, connect, migrations)
    except OSError as error:
        raise JournalUnusable(
            f"the files in {state_dir} cannot be used: {error.strerror or error}: make the directory writable,"
            " make room, or mend the disk, and start again"
        ) from error


@cache
def _upsert(table: str) -> str:
    """Insert, or update in place: a replaced row would lose its place in the order of creation.

    The id is not among what is updated: SQLite would write its index again.
    """
    columns = (*COLUMNS[table], "checksum")
    marks = ", ".join("?" * len(columns))
    updates = ", ".join(f"{column} = excluded.{column}" for column in columns if column != "id")
    names = ", ".join(columns)
    return f"INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET {updates}"  # noqa: S608


def _as_kept(name: str, value: Any) -> Any:
    """A member of a view as the file gives it back: times are floats there."""
    return float(value) + 0.0 if name.endswith("_at") else value


def _as_it_is(line: dict[str, Any]) -> dict[str, Any]:
    return line


def _up_to(lines: Iterable[dict[str, Any]], max_bytes: int) -> Iterator[dict[str, Any]]:
    """The first lines, as many as have so many bytes as JSON; one at least."""
    left = max_bytes
    for number, line in enumerate(lines):
        left -= len(json.dumps(line, ensure_ascii=False).encode(errors="replace"))
        if left < 0 and number > 0:
            return
        yield line
