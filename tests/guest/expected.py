"""What journald has of a volume, as journalctl gives it: one dictionary of fields for each record."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from volattachd.telemetry import messages

Entry = dict[str, Any]
Told = tuple[str | None, str | None, str | None]

#: The calls that make up the life of a volume with one attachment, each with the attachment's state before and after.
LIFE: list[Told] = [
    ("register_volume", None, None),
    ("reserve_volume", "gone", "reserved"),
    ("initialize_connection", "reserved", "connected"),
    ("attach", "connected", "attached"),
    ("begin_detaching", "attached", "detaching"),
    ("terminate_connection", "detaching", "disconnected"),
    ("detach", "disconnected", "gone"),
]


def calls_told(entries: Iterable[Entry]) -> list[Told]:
    """The calls that did something, in their order."""
    done = [entry for entry in entries if entry.get("MESSAGE_ID") == messages.CALL_DONE.id]
    return [
        (entry.get("VOLATTACH_CALL"), entry.get("VOLATTACH_STATE_BEFORE"), entry.get("VOLATTACH_STATE_AFTER"))
        for entry in done
    ]
