"""The few operations on files of the state directory that several modules need."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from volattachd.errors import JournalUnusable


def read_file(path: Path) -> bytes | None:
    """The content of a small regular file; None where there is none. A link in its place is refused."""
    fd = open_regular(path)
    if fd is None:
        return None
    with open(fd, "rb") as file:
        return file.read()


def file_size(path: Path) -> int:
    """Bytes of a regular file; 0 where there is none. A link in its place is refused."""
    fd = open_regular(path)
    if fd is None:
        return 0
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def open_regular(path: Path) -> int | None:
    """Open a regular file for reading; None where there is none. Raises JournalUnusable for anything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JournalUnusable(f"cannot open {path}: {_words(path, error)}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise JournalUnusable(f"cannot open {path}: it is not a regular file: move it out of the state directory")
    return fd


def _words(path: Path, error: OSError) -> str:
    if path.is_symlink():
        return "it is a symbolic link, which is not followed: put the file itself there"
    return error.strerror or str(error)


def sync_file(path: Path) -> None:
    """Make what was written to a file durable; nothing where there is none."""
    fd = open_regular(path)
    if fd is None:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
