"""Rows of the journal's file, and the objects that they stand for.

A connector is kept once for all rows that have it, in the table ``connectors``, under the hash of its text. A row of
``attachments``, and each of the two views in a line of history, has that hash alone.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from volattachd.model import Attachment, Device, Mode, Secret, State, Volume
from volattachd.state.checksums import Value, hash_text

VOLUMES, ATTACHMENTS = "volumes", "attachments"
COLUMNS = {
    VOLUMES: tuple(field.name for field in fields(Volume)),
    ATTACHMENTS: tuple(field.name for field in fields(Attachment)),
}
#: A line of history as it is hashed, and as the file has it: with the hash behind it.
HASHED: tuple[str, ...] = ("seq", "at", "boot_id", "uid", "pid", "call", "volume", "attachment_id", "before", "after")
HASHED += ("before_connector", "after_connector", "rows_sum")
LINE = (*HASHED, "hash")

#: What is left of an attachment's view when the history of its end is trimmed, and what is not.
KEPT = ("mode", "owner", "created_at", "updated_at")
DROPPED = ("connector", "instance_uuid", "host_name", "mount_point")

_dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True)
class Connector:
    """A connector as the file has it."""

    digest: bytes
    text: str

    @classmethod
    def of(cls, members: Mapping[str, Any]) -> Connector:
        """The connector with these members."""
        text = _dump(dict(members))
        return cls(hash_text(text), text)


#: From a secret to what the journal has of it, and back.
Seal = Callable[[Secret], str]
Unseal = Callable[[str], Secret]


def table_of(row: Volume | Attachment) -> str:
    """The table that a row belongs to."""
    return VOLUMES if isinstance(row, Volume) else ATTACHMENTS


def volume_values(row: Volume) -> tuple[Value, ...]:
    """The columns of a volume."""
    values = dict(vars(row), device=_dump(asdict(row.device)), created_at=_real(row.created_at))
    values |= {"multiattach": int(row.multiattach), "read_only": int(row.read_only)}
    return tuple(values[name] for name in COLUMNS[VOLUMES])


def attachment_values(row: Attachment, connector: bytes | None, seal: Seal) -> tuple[Value, ...]:
    """The columns of an attachment, whose connector is kept under its hash."""
    values = dict(vars(row), state=row.state.value, mode=row.mode.value)
    values |= {"created_at": _real(row.created_at), "updated_at": _real(row.updated_at)}
    values |= {"ttl": None if row.ttl is None else _real(row.ttl)}
    values |= {"connector": connector, "secret": None if row.secret is None else seal(row.secret)}
    return tuple(values[name] for name in COLUMNS[ATTACHMENTS])


def _real(value: float) -> float:
    """As SQLite gives it back: it has neither whole numbers nor a negative zero in a column of type REAL."""
    return float(value) + 0.0


def to_volume(values: tuple[Any, ...]) -> Volume:
    """The volume that a row stands for. Raises ValueError or TypeError for one that cannot be understood."""
    members = dict(zip(COLUMNS[VOLUMES], values, strict=True))
    members["device"] = Device(**json.loads(members["device"]))
    members["multiattach"], members["read_only"] = bool(members["multiattach"]), bool(members["read_only"])
    return Volume(**members)


def to_attachment(values: tuple[Any, ...], connectors: Mapping[bytes, Any], unseal: Unseal) -> Attachment:
    """The attachment that a row stands for. Raises ValueError, TypeError or KeyError, or what ``unseal`` raises."""
    members = dict(zip(COLUMNS[ATTACHMENTS], values, strict=True))
    members["state"], members["mode"] = State(members["state"]), Mode(members["mode"])
    members["connector"] = None if members["connector"] is None else connectors[members["connector"]]
    members["secret"] = None if members["secret"] is None else unseal(members["secret"])
    return Attachment(**members)


# History.


def split_view(view: Mapping[str, Any] | None) -> tuple[str | None, Mapping[str, Any] | None]:
    """A view as a line of history has it, without its connector, and the connector."""
    if view is None:
        return None, None
    connector = view.get("connector")
    return _dump(dict(view) if connector is None else {**view, "connector": None}), connector


def to_line(row: sqlite3.Row, find_connector: Callable[[bytes], Mapping[str, Any]]) -> dict[str, Any]:
    """A line of history as the calls show it."""
    line = {name: row[name] for name in HASHED[:8]}
    for name in ("before", "after"):
        line[name] = None if row[name] is None else json.loads(row[name])
        digest = row[f"{name}_connector"]
        if digest is not None:
            line[name]["connector"] = find_connector(digest)
    return line


def to_ended_line(row: sqlite3.Row) -> dict[str, Any]:
    """What is known of an attachment's end whose line of history was trimmed, as a line of history."""
    view = {
        "attachment_id": row["id"],
        "volume": row["volume"],
        "state": State.GONE.value,
        **{name: row[name] for name in KEPT},
        **dict.fromkeys(DROPPED),
    }
    return {"seq": row["seq"], "volume": row["volume"], "attachment_id": row["id"], "before": view, "after": None}


def line_size(call: str, before: str | None, after: str | None) -> int:
    """About how many bytes a line of history takes in the file, its places in two indexes included."""
    return 400 + len(call) + len(before or "") + len(after or "")
