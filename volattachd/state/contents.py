"""All that is in the journal's file, read once and checked as it is read.

What is checked, and what each check finds:

- the checksum of each row: a row that was changed;
- the chain of the history, from the anchor to its head: a line that was changed, lost, added or moved;
- the sum of the current rows in the last line, and the sum of the other rows in the anchor: a row that is whole and
  is not the one that belongs there, as an old page leaves it;
- the hash of each connector, and that every connector that is referred to is there;
- the key of each secret.

The anchor is the one row that says where the history begins: the number and the hash of the last line that was
trimmed.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from volattachd.model import Attachment, Secret, Volume
from volattachd.state.acknowledged import Mark
from volattachd.state.checksums import NOTHING, Damage, RowSum, Value, hash_link, hash_row, hash_text
from volattachd.state.codec import ATTACHMENTS, COLUMNS, LINE, VOLUMES, line_size, to_attachment, to_volume
from volattachd.state.keys import unsealed

#: Tables whose rows have a checksum, with their columns; the checksum is the last one in the file.
ENDED_ATTACHMENTS = ("id", "volume", "seq", "mode", "owner", "created_at", "updated_at")
CARE = {"ended_attachments": ENDED_ATTACHMENTS, "ended_volumes": ("id",), "hours": ("hour", "seq")}

#: What ``Anchor.portable`` says of the keys: they are in the file ``keys``; they are in this file; they were in
#: this file, and its log may still have them.
AT_HOME, PORTABLE, MOVING = 0, 1, 2


@dataclass(frozen=True)
class Anchor:
    """Where the history begins, and what the other rows add up to."""

    turn: int = 0
    seq: int = 0
    hash: bytes = NOTHING
    rows_sum: bytes = NOTHING
    kept_sum: bytes = NOTHING
    portable: int = PORTABLE

    def values(self) -> tuple[Value, ...]:
        """Its columns without the checksum."""
        return self.turn, self.seq, self.hash, self.rows_sum, self.kept_sum, self.portable

    def write(self, db: sqlite3.Connection) -> None:
        """Put it in the place of the one that is there."""
        values = self.values()
        db.execute(
            "INSERT OR REPLACE INTO anchor VALUES (1, ?, ?, ?, ?, ?, ?, ?)", (*values, hash_row("anchor", values))
        )


@dataclass
class Contents:
    """What a journal holds."""

    anchor: Anchor
    volumes: dict[str, Volume] = field(default_factory=dict)
    attachments: list[Attachment] = field(default_factory=list)
    #: The checksum of each current row, by table and id, and their sum.
    checksums: dict[tuple[str, str], bytes] = field(default_factory=dict)
    rows_sum: RowSum = field(default_factory=RowSum)
    kept_sum: RowSum = field(default_factory=RowSum)
    #: How many rows and views have each connector, and how long its text is.
    references: Counter[bytes] = field(default_factory=Counter)
    sizes: dict[bytes, int] = field(default_factory=dict)
    #: The connector of each attachment, and its hash.
    connectors: dict[str, tuple[Mapping[str, Any], bytes]] = field(default_factory=dict)
    #: Bytes that the lines of history and the connectors take.
    size: int = 0
    seq: int = 0
    head: bytes = NOTHING
    keys: Mapping[int, bytes] = field(default_factory=dict)
    slots: dict[Secret, int] = field(default_factory=dict)

    @property
    def mark(self) -> Mark:
        """How far it has come."""
        return Mark(self.seq, self.anchor.turn, self.head)


def read_contents(db: sqlite3.Connection, keys: Mapping[int, bytes]) -> Contents:
    """Read and check everything. ``keys`` are those of the file ``keys``. Raises Damage, saying what and where."""
    anchor = _read_anchor(db)
    contents = Contents(anchor, keys=_keys_of(db, anchor, keys))
    connectors = _read_rows(db, contents)
    _read_history(db, contents)
    _read_connectors(db, contents, connectors)
    _read_care(db, contents)
    return contents


def _tuples(db: sqlite3.Connection, query: str) -> Iterator[tuple[Any, ...]]:
    cursor = db.cursor()
    cursor.row_factory = None
    return cursor.execute(query)


def _read_anchor(db: sqlite3.Connection) -> Anchor:
    rows = list(_tuples(db, "SELECT turn, seq, hash, rows_sum, kept_sum, portable, checksum FROM anchor"))
    if len(rows) != 1:
        raise Damage(f"the table anchor has {len(rows)} rows and not one")
    *values, checksum = rows[0]
    if hash_row("anchor", values) != checksum:
        raise Damage("the row of the table anchor does not match its checksum")
    return Anchor(*values)


def _keys_of(db: sqlite3.Connection, anchor: Anchor, keys: Mapping[int, bytes]) -> Mapping[int, bytes]:
    return dict(_tuples(db, "SELECT slot, key FROM keys")) if anchor.portable == PORTABLE else keys


def _read_rows(db: sqlite3.Connection, contents: Contents) -> dict[bytes, dict[str, Any]]:
    """The current rows; the answer has the connectors that they share, which are to be filled in."""
    connectors: dict[bytes, dict[str, Any]] = {}

    def unseal(text: str) -> Secret:
        secret, slot = unsealed(text, contents.keys)
        contents.slots[secret] = slot
        return secret

    for values in _checked(db, VOLUMES, contents):
        row = to_volume(values)
        contents.volumes[row.id] = row
    place = COLUMNS[ATTACHMENTS].index("connector")
    for values in _checked(db, ATTACHMENTS, contents):
        if values[place] is not None:
            contents.references[values[place]] += 1
            contents.connectors[values[0]] = connectors.setdefault(values[place], {}), values[place]
        contents.attachments.append(to_attachment(values, connectors, unseal))
    return connectors


def _checked(db: sqlite3.Connection, table: str, contents: Contents) -> Iterator[tuple[Any, ...]]:
    names = ", ".join(COLUMNS[table])
    for *values, checksum in _tuples(db, f"SELECT {names}, checksum FROM {table} ORDER BY rowid"):  # noqa: S608
        if hash_row(table, values) != checksum:
            raise Damage(f"the row {values[0]!r} of the table {table} does not match its checksum")
        contents.checksums[table, values[0]] = checksum
        contents.rows_sum.add(checksum)
        yield tuple(values)


def _read_history(db: sqlite3.Connection, contents: Contents) -> None:
    anchor, references, size = contents.anchor, contents.references, 0
    seq, head, rows_sum = anchor.seq, anchor.hash, anchor.rows_sum
    for *values, link in _tuples(db, f"SELECT {', '.join(LINE)} FROM journal ORDER BY seq"):  # noqa: S608
        seq += 1
        if values[0] != seq:
            raise Damage(f"the history has line {values[0]} where line {seq} belongs")
        head = hash_link(head, values)
        if head != link:
            raise Damage(f"line {seq} of the history does not match its hash")
        call, before, after, before_connector, after_connector, rows_sum = (values[i] for i in (5, 8, 9, 10, 11, 12))
        references.update(digest for digest in (before_connector, after_connector) if digest is not None)
        size += line_size(call, before, after)
    contents.seq, contents.head, contents.size = seq, head, size
    if bytes(contents.rows_sum) != rows_sum:
        raise Damage(f"the tables volumes and attachments do not have the rows that line {seq} of the history left")


def _read_connectors(db: sqlite3.Connection, contents: Contents, wanted: Mapping[bytes, dict[str, Any]]) -> None:
    for digest, text in _tuples(db, "SELECT digest, connector FROM connectors"):
        if hash_text(text) != digest:
            raise Damage(f"the connector {digest.hex()} does not match its hash")
        contents.sizes[digest] = len(text.encode())
        if digest in wanted:
            wanted[digest].update(json.loads(text))
    missing = contents.references.keys() - contents.sizes.keys()
    if missing:
        raise Damage(f"the connector {min(missing).hex()} is missing")
    contents.size += sum(contents.sizes.values())


def _read_care(db: sqlite3.Connection, contents: Contents) -> None:
    for table, columns in CARE.items():
        for *values, checksum in _tuples(db, f"SELECT {', '.join(columns)}, checksum FROM {table}"):  # noqa: S608
            if hash_row(table, values) != checksum:
                raise Damage(f"the row {values[0]!r} of the table {table} does not match its checksum")
            contents.kept_sum.add(checksum)
    if bytes(contents.kept_sum) != contents.anchor.kept_sum:
        raise Damage(f"the tables {', '.join(CARE)} do not have the rows that belong there")


def check_mark(db: sqlite3.Connection, contents: Contents, mark: Mark) -> None:
    """See that the journal has everything that was acknowledged. Raises Damage."""
    if contents.seq < mark.seq or contents.anchor.turn < mark.turn:
        raise Damage(
            f"it ends with line {contents.seq}, turn {contents.anchor.turn}, and line {mark.seq}, turn {mark.turn},"
            " were acknowledged: its log has lost its end"
        )
    found = db.execute("SELECT hash FROM journal WHERE seq = ?", (mark.seq,)).fetchone()
    here = contents.anchor.hash if mark.seq == contents.anchor.seq else found and found["hash"]
    if here is not None and here != mark.head:
        raise Damage(
            f"its line {mark.seq} is another one than was acknowledged: it is a journal of another time or host"
        )


def replaced(anchor: Anchor, **members: Any) -> Anchor:
    """The anchor of the next turn."""
    return replace(anchor, turn=anchor.turn + 1, **members)
