"""A copy of the journal in a file of its own, made while calls go on.

Invariants:

1. The copy is made, completed and checked in the state directory, which is the daemon's alone: SQLite opens files by
   name, and there nobody else can exchange what a name stands for. It holds secrets, so it is 0600 from its first
   moment.
2. In the target's directory nothing is opened by name. Each directory on the way is opened in the one before. A
   symbolic link is followed only where nobody but root and the daemon's user could have put it.
3. The file appears under its name when it is whole and synced. linkat(2) gives the name, and never replaces or
   follows what is there. What is linked is the file that was written, by its descriptor, or by its name in the state
   directory.
4. On another file system the bytes are copied into a file without a name (O_TMPFILE), which is linked by its
   descriptor.
5. The state directory's file system keeps room for the journal's own work: a copy that would take it is refused.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from volattachd.errors import AlreadyExists, Busy, InvalidInput
from volattachd.state.database import BACKUP_PART, open_connection
from volattachd.state.journal import Journal

_one_at_a_time = threading.Lock()
#: Bytes that a copy leaves free for the journal itself, and the size of a piece that is copied to another file
#: system.
_RESERVE, _PIECE = 16 << 20, 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MOST_LINKS = 40  # as the kernel has it


def write_backup(journal: Journal, path: Path) -> dict[str, Any]:
    """Make the file; the answer says what is in it.

    Raises AlreadyExists for a file that is there, Busy while another copy is being made, InvalidInput where the
    file cannot be written.
    """
    if not _one_at_a_time.acquire(blocking=False):
        raise Busy("another backup is being written", "send the call again when it is done")
    try:
        with _opened(open_directory(path.parent)) as directory:
            return _write(journal, path, directory)
    except FileExistsError as error:
        raise AlreadyExists(f"cannot write the backup {path}: it exists", "name a new file") from error
    except (OSError, sqlite3.Error) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InvalidInput(
            f"cannot write the backup {path}: {why}", "name a directory with room, in which the daemon may write"
        ) from error
    finally:
        _one_at_a_time.release()


def _write(journal: Journal, path: Path, directory: int) -> dict[str, Any]:
    _check_absent(path.name, directory)
    _check_room(journal)
    part = journal.state_dir / BACKUP_PART
    part.unlink(missing_ok=True)
    try:
        with _opened(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)) as fd:
            seq = _copy(journal, part)
            size = os.fstat(fd).st_size
            if os.fstat(fd).st_dev == os.fstat(directory).st_dev:
                os.fsync(fd)
                os.link(part, path.name, dst_dir_fd=directory, follow_symlinks=False)
            else:
                _copy_across(fd, path.name, directory)
    finally:
        part.unlink(missing_ok=True)
    os.fsync(directory)
    return {"path": str(path), "seq": seq, "size": size}


def _check_absent(name: str, directory: int) -> None:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    raise FileExistsError(name)


def _check_room(journal: Journal) -> None:
    found, needed = os.statvfs(journal.state_dir), journal.size() + _RESERVE
    if found.f_bavail * found.f_frsize < needed:
        why = f"{journal.state_dir} needs {needed} free bytes for it while it is made"
        raise OSError(errno.ENOSPC, why)


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


def _copy_across(source: int, name: str, directory: int) -> None:
    """Copy an open file into a new one in a directory of another file system, and give that its name."""
    try:
        fd = os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
        raise OSError(
            error.errno, "its file system has no files without a name (O_TMPFILE), as local ones have"
        ) from None
    with _opened(fd):
        at = 0
        while piece := os.pread(source, _PIECE, at):
            at += os.pwrite(fd, piece, at)
        os.fsync(fd)
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory, follow_symlinks=True)


def open_directory(path: Path) -> int:
    """A descriptor of a directory, each part of whose path was opened in the one before."""
    fd, parts, links = os.open("/", _DIRECTORY), list(path.absolute().parts[1:])[::-1], 0
    try:
        while parts:
            name = parts.pop()
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                links += 1
                _check_link(name, fd, links)
                target = Path(os.readlink(name, dir_fd=fd))
                parts += target.parts[::-1]
                continue
            following = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = following
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_link(name: str, directory: int, links: int) -> None:
    found = os.fstat(directory)
    others = stat.S_IMODE(found.st_mode) & 0o022
    if others or found.st_uid not in (0, os.geteuid()):
        raise OSError(errno.ELOOP, f"{name} is a symbolic link in a directory that another user can write")
    if links > _MOST_LINKS:
        raise OSError(errno.ELOOP, "too many symbolic links")


@contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
