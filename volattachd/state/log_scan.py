"""Damage in SQLite's log that SQLite takes for the log's end.

A frame of the log counts where it has the salt of the log's header and where the checksums, each of which goes on
from the one before, are right up to it. SQLite stops at the first frame that does not count. Behind it there may be:

- frames with another salt, of an earlier generation of the log: they mean nothing;
- frames of one transaction that was being written when the process or the host died. Any of them may be missing,
  since they were not synced. This is no damage: the transaction was not acknowledged;
- frames of two or more transactions. The first of them was synced before the next one began, so its frames were
  whole: this is damage.

So damage is proven by a frame that ends a transaction, with a whole frame behind it.

https://www.sqlite.org/fileformat2.html#walformat
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from volattachd.state.files import open_regular

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_BIG_ENDIAN = 0x377F0683
_MASK = 0xFFFFFFFF
Sums = tuple[int, int]


@dataclass(frozen=True)
class _Frame:
    number: int
    ends: bool  # a transaction
    content: bytes
    sums: Sums


def find_damage(log: Path) -> int | None:
    """The number (from 1) of the first damaged frame, where damage before the last transaction is proven."""
    fd = open_regular(log)
    if fd is None:
        return None
    with open(fd, "rb") as file:
        data = file.read()
    if len(data) < _HEADER.size:
        return None
    order = ">" if struct.unpack_from(">I", data)[0] == _BIG_ENDIAN else "<"
    counts = _checksum(order, data[: _HEADER.size - 8], (0, 0))
    if counts != _HEADER.unpack_from(data)[6:]:
        return 1 if _has_transactions(list(_frames(data)), order) else None
    frames, last = list(_frames(data)), 0
    for frame in frames:
        counts = _checksum(order, frame.content, counts)
        if counts != frame.sums:
            break
        last = frame.number
    behind = [frame for frame in frames if frame.number > last]
    return last + 1 if _has_transactions(behind, order) else None


def _has_transactions(frames: list[_Frame], order: str) -> bool:
    """Whether a frame that ends a transaction has a whole frame behind it. Each is checked against its neighbour."""
    ended = False
    for before, frame in pairwise(frames):
        ended = ended or before.ends
        follows = frame.number == before.number + 1
        if ended and follows and _checksum(order, frame.content, before.sums) == frame.sums:
            return True
    return False


def _frames(data: bytes) -> Iterator[_Frame]:
    """The frames that have the log's salt."""
    _, _, page_size, _, salt, other_salt, _, _ = _HEADER.unpack_from(data)
    size = _FRAME.size + page_size
    if not 512 <= page_size <= 65536:
        return
    for number, at in enumerate(range(_HEADER.size, len(data) - size + 1, size), start=1):
        _, pages, *salts, first, second = _FRAME.unpack_from(data, at)
        if salts == [salt, other_salt]:
            content = data[at : at + 8] + data[at + _FRAME.size : at + size]
            yield _Frame(number, pages != 0, content, (first, second))


def _checksum(order: str, data: bytes, sums: Sums) -> Sums:
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & _MASK
        second = (second + odd + first) & _MASK
    return first, second
