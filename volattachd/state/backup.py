"""A copy of the journal in a file of its own, made while calls go on.

The file appears under its name when it is whole and on the disk, and not before: it is written beside it under
another name, synced, checked, and then linked, which never replaces a file that is there. It holds secrets, so it is
0600 from its first moment.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

from volattachd.errors import AlreadyExists, Busy, InvalidInput
from volattachd.state.journal import Journal, open_connection

_one_at_a_time = threading.Lock()


def write_backup(journal: Journal, path: Path) -> dict[str, Any]:
    """Make the file; the answer says what is in it.

    Raises AlreadyExists for a file that is there, Busy while another copy is being made, InvalidInput where the
    file cannot be written.
    """
    if not _one_at_a_time.acquire(blocking=False):
        raise Busy("another backup is being written", "send the call again when it is done")
    try:
        return _write(journal, path)
    except FileExistsError as error:
        raise AlreadyExists(f"cannot write the backup {path}: it exists", "name a new file") from error
    except (OSError, sqlite3.Error) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InvalidInput(
            f"cannot write the backup {path}: {why}", "name a directory with room, in which the daemon may write"
        ) from error
    finally:
        _one_at_a_time.release()


def _write(journal: Journal, path: Path) -> dict[str, Any]:
    if os.path.lexists(path):
        raise FileExistsError(path)
    part = path.with_name(f".{path.name[:200]}.volattachd-part")
    part.unlink(missing_ok=True)  # of a copy that was killed
    os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    try:
        seq = _copy(journal, part)
        _sync(part, os.O_RDWR)
        os.link(part, path)
        size = path.stat().st_size
    finally:
        part.unlink()
    _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    return {"path": str(path), "seq": seq, "size": size}


def _copy(journal: Journal, part: Path) -> int:
    target = open_connection(part)
    try:
        target.execute("PRAGMA journal_mode = OFF")  # a copy that is cut short is thrown away
        target.execute("PRAGMA synchronous = OFF")  # it is synced once, when it is whole
        seq = journal.copy_to(target)
        problems = [row[0] for row in target.execute("PRAGMA quick_check(1)") if row[0] != "ok"]
    finally:
        target.close()
    if problems:
        raise sqlite3.DatabaseError(f"the copy is damaged, and so may be the journal: {problems[0]}")
    return seq


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
