"""The files of the state directory together: checked, opened, and brought to the form that the daemon works on.

The order of a start, and why a crash at any instant of it is harmless:

1. Everything is read and checked, and nothing is written. Damage ends the start here.
2. An older version is migrated, in one transaction.
3. A new journal, a migrated one and a restored copy have their keys in themselves (``PORTABLE``). They are moved: the
   files ``keys`` and ``acknowledged`` are made and synced; then one transaction removes the keys from the database
   and says ``MOVING``; the log is emptied into the database, so that neither has them any more; then the anchor says
   ``AT_HOME``. A start that is cut short does what is left: before the transaction all of it again, after it the
   rest.
4. Slots of ``keys`` that no row refers to are overwritten and synced.
5. Where the journal is newer than what was acknowledged, its log is synced before it counts as acknowledged.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from volattachd.errors import JournalUnusable
from volattachd.state.acknowledged import NAME as ACKNOWLEDGED
from volattachd.state.acknowledged import Acknowledged, read_mark
from volattachd.state.checksums import Damage
from volattachd.state.contents import AT_HOME, MOVING, PORTABLE, Contents, check_mark, read_contents, replaced
from volattachd.state.files import sync_file
from volattachd.state.keys import Keys, read_keys
from volattachd.state.log_scan import find_damage
from volattachd.state.schema import MIGRATIONS, Migration, prepare, read_version_1, unusable, verify

NAME = "journal.db"
#: A copy that is being made. One that was killed is removed by the next start: it has keys in it.
BACKUP_PART = "backup.part"
#: The first version with checksums, and with the files beside the journal.
_CHECKED = 2


@dataclass(frozen=True)
class Database:
    """The open files, and what was in them."""

    db: sqlite3.Connection
    contents: Contents
    keys: Keys
    acknowledged: Acknowledged

    def close(self) -> None:
        """Close them all. SQLite moves its log into the file."""
        self.db.close()
        self.keys.close()
        self.acknowledged.close()


def check_state(state_dir: Path, migrations: Sequence[Migration] = MIGRATIONS) -> Contents | None:
    """Check everything, and change nothing; None for a journal that is not there yet or has an older version.

    Raises JournalUnusable, saying what is wrong and what to do.
    """
    path, mark, keys = state_dir / NAME, read_mark(state_dir), read_keys(state_dir) or {}

    def read(db: sqlite3.Connection, version: int) -> Contents | None:
        if version < _CHECKED:
            read_version_1(db)
            _check_log(path)
            return None
        contents = read_contents(db, keys)
        if contents.anchor.portable != PORTABLE:
            if mark is None:
                raise Damage(f"the file {ACKNOWLEDGED} beside it is missing or damaged")
            check_mark(db, contents, mark)
        _check_log(path)  # also if the record is as old as what a damaged log shows
        return contents

    return verify(path, migrations, read)


def _check_log(path: Path) -> None:
    frame = find_damage(_log_of(path))
    if frame is not None:
        raise Damage(f"frame {frame} of its log {_log_of(path).name} is damaged, and transactions follow it")


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def open_state(
    state_dir: Path, connect: Callable[[Path], sqlite3.Connection], migrations: Sequence[Migration] = MIGRATIONS
) -> Database:
    """Check everything, and open it for work. Raises JournalUnusable; damage is found before anything is changed."""
    path, mark = state_dir / NAME, read_mark(state_dir)
    contents = check_state(state_dir, migrations)
    (state_dir / BACKUP_PART).unlink(missing_ok=True)
    # Created by hand: SQLite would use the umask, and a file that was readable for a moment was readable.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    db = connect(path)
    db.row_factory = sqlite3.Row
    try:
        prepare(db, path, migrations)
        if contents is None:
            contents = read_contents(db, {})
        _bring_home(db, state_dir, contents)
        return _open_files(db, state_dir, contents, mark != contents.mark)
    except sqlite3.Error as error:
        db.close()
        raise unusable(path, error) from error
    except BaseException:
        db.close()
        raise


def _bring_home(db: sqlite3.Connection, state_dir: Path, contents: Contents) -> None:
    """Move the keys out of a portable journal."""
    if contents.anchor.portable == PORTABLE:
        Keys.create(state_dir, contents.keys)
        Acknowledged.create(state_dir, contents.mark).close()
        with transaction(db):
            db.execute("DELETE FROM keys")
            _say_portable(db, contents, MOVING)
    if contents.anchor.portable == MOVING:
        busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise JournalUnusable(
                f"{state_dir / NAME} cannot be used: its log is in use: end the program that has it open"
            )
        with transaction(db):
            _say_portable(db, contents, AT_HOME)


def _say_portable(db: sqlite3.Connection, contents: Contents, portable: int) -> None:
    contents.anchor = replaced(contents.anchor, portable=portable)
    contents.anchor.write(db)


def _open_files(db: sqlite3.Connection, state_dir: Path, contents: Contents, is_newer: bool) -> Database:
    users = [row.secret for row in contents.attachments if row.secret is not None]
    keys = Keys.open(state_dir, contents.keys, contents.slots, users)
    try:
        acknowledged = Acknowledged.open(state_dir)
        if is_newer:
            sync_file(_log_of(state_dir / NAME))
            acknowledged.write(contents.mark)
    except BaseException:
        keys.close()
        raise
    return Database(db, contents, keys, acknowledged)


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """A transaction that is durable at its end."""
    db.execute("BEGIN IMMEDIATE")
    yield
    db.execute("COMMIT")


def open_connection(path: Path) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time, and that begins and ends transactions when told."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)


def open_past_lock(path: Path) -> sqlite3.Connection:
    """The same without SQLite's own locks, which a daemon that was killed but cannot end yet still holds."""
    url = f"file:{quote(str(path))}?vfs=unix-none"
    return sqlite3.connect(url, uri=True, isolation_level=None, check_same_thread=False, timeout=0)
