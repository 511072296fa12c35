"""The last change that was acknowledged, recorded beside the journal: a log that has lost its end is recognised.

SQLite takes a damaged frame for the end of its log, so that a journal whose log was damaged or cut looks like a
whole, older one. The file ``acknowledged`` says how far the journal must reach at the least.

Invariants:

1. The record is written after the commit was synced and before its answer is sent, with one pwrite(2) into a file
   that has its blocks already, and without a sync of its own.
2. After kill -9 the record is exact, because the page cache outlives the process: it names the last commit, or the
   one before where the process died between commit and record. A commit that was torn by the kill was not recorded:
   it is never taken for damage.
3. After a power cut the record is some older one, because it reaches the disk whenever the kernel writes it back. It
   is never newer than the journal: what it names was synced before it was written. A record that is newer than the
   journal after a power cut therefore means that synced data was lost, which is damage.
4. A start that finds a journal newer than the record syncs the log before it brings the record forward: what
   a killed process wrote may still be in the page cache alone.
5. There are two slots, in pages of their own, written in turns. A power cut can tear the one that was being written;
   the other one counts then. A start accepts one bad slot, because the journal was checked against the other.
6. Behind an older record (3) a log that was damaged in its last synced transaction looks like one that was torn. What
   can be proven there is damage before the last transaction (log_scan.py).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from volattachd.state.checksums import NOTHING, SIZE
from volattachd.state.files import read_file, sync_directory

NAME = "acknowledged"
_MAGIC = b"volatt:1"
_RECORD = struct.Struct(f">8sQQ{SIZE}s")
_SLOT = 4096  # a page each: they are written to the disk apart


@dataclass(frozen=True, order=True)
class Mark:
    """How far the journal has come: the turn of its care (trims and hours), its last number, and that line's hash."""

    seq: int
    turn: int
    head: bytes = NOTHING


class Acknowledged:
    """The file, open for writing."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._slot = 0

    @classmethod
    def create(cls, state_dir: Path, mark: Mark) -> Acknowledged:
        """Make the file, or make it anew, with ``mark`` in both slots; it is durable when this returns."""
        fd = os.open(state_dir / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.pwrite(fd, 2 * _packed(mark).ljust(_SLOT, b"\0"), 0)
            os.fsync(fd)
            sync_directory(state_dir)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd)

    @classmethod
    def open(cls, state_dir: Path) -> Acknowledged:
        """Open the file, which was read and found good."""
        return cls(os.open(state_dir / NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))

    def write(self, mark: Mark) -> None:
        """Record that everything up to ``mark`` may be answered for."""
        self._slot ^= 1
        os.pwrite(self._fd, _packed(mark), self._slot * _SLOT)

    def close(self) -> None:
        """Close the file, synced: an ordered end leaves an exact record."""
        try:
            os.fsync(self._fd)
        finally:
            os.close(self._fd)


def read_mark(state_dir: Path) -> Mark | None:
    """The newest whole record; None where the file is missing or no record in it is whole."""
    data = read_file(state_dir / NAME) or b""
    marks = [mark for mark in map(_unpacked, (data[:_SLOT], data[_SLOT:])) if mark is not None]
    return max(marks, default=None)


def _packed(mark: Mark) -> bytes:
    record = _RECORD.pack(_MAGIC, mark.seq, mark.turn, mark.head)
    return record + _checksum(record)


def _unpacked(data: bytes) -> Mark | None:
    record, checksum = data[: _RECORD.size], data[_RECORD.size : _RECORD.size + SIZE]
    if len(record) < _RECORD.size or checksum != _checksum(record):
        return None
    _, seq, turn, head = _RECORD.unpack(record)
    return Mark(seq, turn, head)


def _checksum(record: bytes) -> bytes:
    return blake2b(record, digest_size=SIZE).digest()
