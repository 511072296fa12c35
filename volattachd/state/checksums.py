"""Checksums of the journal's rows: what a row is hashed as, the chain of the history, and the sum over current rows.

Invariants:

1. A value is hashed as it is read back from the file. Columns of type REAL are floats before they are hashed
   (codec.py), so the row that is written and the row that is read have the same text.
2. The text that is hashed is a JSON array with the table's name first: no two rows have one text, and any language
   can check a file.
3. The hash finds damage and mistakes. It is no signature: who can write the file can also write the hashes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import blake2b

#: Bytes of a hash, and of a sum of hashes.
SIZE = 16
NOTHING = bytes(SIZE)
_MODULUS = 1 << (8 * SIZE)


class Damage(ValueError):
    """Something in the journal's files is not as it was written; the message says what, and where."""


Value = str | int | float | bytes | None

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=bytes.hex).encode


def hash_text(text: str) -> bytes:
    """The hash of a text."""
    return blake2b(text.encode(), digest_size=SIZE).digest()


def hash_row(table: str, values: Iterable[Value]) -> bytes:
    """The checksum of a row, over all of its columns but the checksum."""
    return hash_text(_encode([table, *values]))


def hash_link(previous: bytes, values: Iterable[Value]) -> bytes:
    """The hash of a line of history: over its columns and the hash of the line before it."""
    return blake2b(previous + _encode(list(values)).encode(), digest_size=SIZE).digest()


class RowSum:
    """The sum of the checksums of a set of rows. It has no order, and one row can be taken out of it."""

    def __init__(self, value: bytes = NOTHING) -> None:
        self._value = int.from_bytes(value, "big")

    def add(self, checksum: bytes) -> None:
        """A row has come."""
        self._value = (self._value + int.from_bytes(checksum, "big")) % _MODULUS

    def remove(self, checksum: bytes) -> None:
        """A row has gone."""
        self._value = (self._value - int.from_bytes(checksum, "big")) % _MODULUS

    def __bytes__(self) -> bytes:
        return self._value.to_bytes(SIZE, "big")
