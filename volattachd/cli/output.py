"""Results for people: aligned plain text, without colour.

Laws:

1. No character that a terminal would obey comes out of here, whoever put it into a name, a path or a message.
2. A secret is masked unless it was asked for.
3. A member that an older or newer daemon leaves out is a ``-``, never an error. An answer of a shape that is not known
   here is shown as an outline of what it has.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

_SECRETS = ("password", "secret")
_MASK = "********"
_NONE = "-"


def text(value: Any) -> str:
    """``value`` as one line that is safe to print.

    What Unicode does not call printable becomes a visible escape: controls, line separators, marks that turn
    the direction of text, lone surrogates.
    """
    if value is None or value == "":
        return _NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    plain = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in plain)


def machine(value: Any) -> str:
    """``value`` as one line of JSON in ASCII: exactly the result, and harmless on any terminal."""
    return json.dumps(value, separators=(",", ":")).replace("\x7f", "\\u007f")


def size(value: Any) -> str:
    """Bytes for people: 10.0 GiB."""
    if not isinstance(value, int):
        return text(value)
    if value < 1024:
        return f"{value} B"
    amount, units = value / 1024, iter(("KiB", "MiB", "GiB", "TiB", "PiB"))
    unit = next(units)
    while amount >= 1023.95 and unit != "PiB":  # as 1024.0 it would be printed as a whole one of the next unit
        amount, unit = amount / 1024, next(units)
    return f"{amount:.1f} {unit}"


def moment(value: Any) -> str:
    """Seconds since the epoch as ISO 8601 local time with its offset."""
    if not isinstance(value, (int, float)):
        return text(value)
    try:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(value))
    except (ValueError, OverflowError, OSError):
        return text(value)
    return f"{stamp[:-2]}:{stamp[-2:]}"


def masked(value: Any) -> Any:
    """A copy of ``value`` in which no secret can be read."""
    if isinstance(value, dict):
        return {k: _MASK if v and _is_secret(k) else masked(v) for k, v in value.items()}
    return [masked(item) for item in value] if isinstance(value, list) else value


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, two blanks between them."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def record(fields: Sequence[tuple[str, str]]) -> str:
    """One thing, a line for each field."""
    width = max((len(name) for name, _ in fields), default=0) + 1
    return "\n".join(f"{name + ':':<{width}} {value}" for name, value in fields)


def outline(value: Any, level: int = 0) -> str:
    """Any result as indented ``name: value`` lines."""
    items = value.items() if isinstance(value, dict) else [("-", item) for item in value]
    return "\n".join(_outlined(str(name), item, level) for name, item in items)


def _outlined(name: str, value: Any, level: int) -> str:
    label = "  " * level + (name if name == "-" else f"{text(name)}:")
    if isinstance(value, (dict, list)) and value:
        return f"{label}\n{outline(value, level + 1)}"
    return f"{label} {text(value)}"


def volumes(result: Any) -> str:
    """The table of volumes, and under it what is wrong with any of them."""
    found = _objects(result)
    if not found:
        return "no volumes"
    rows = [_volume_row(volume) for volume in found]
    shown = table(("VOLUME", "SIZE", "STATUS", "ATTACHMENTS", "OPTIONS", "PATH"), rows)
    wrong = [f"! {text(v.get('volume'))}: {line}" for v in found for line in _conditions(v)]
    return "\n".join([shown, *wrong])


def volume(result: Any) -> str:
    """One volume."""
    fields = [
        ("volume", text(result.get("volume"))),
        ("status", text(result.get("status"))),
        ("size", size(result.get("size"))),
        ("path", text(result.get("path"))),
        ("options", _options(result)),
        ("target name", text(result.get("target_name"))),
        ("serial", text(result.get("serial"))),
    ]
    fields += [("attachment", text(attachment)) for attachment in result.get("attachments") or [None]]
    fields += [("condition", line) for line in _conditions(result) or ["none"]]
    return record(fields)


def attachments(result: Any) -> str:
    """The table of attachments."""
    found = _objects(result)
    if not found:
        return "no attachments"
    head = ("ATTACHMENT", "VOLUME", "STATE", "MODE", "HOST", "INSTANCE", "OWNER", "CHANGED")
    return table(head, [_attachment_row(attachment) for attachment in found])


def attachment(result: Any) -> str:
    """One attachment."""
    fields = [(_label(name), text(value)) for name, value in result.items() if name not in _SPECIAL]
    fields += [("connector " + text(key), text(value)) for key, value in (result.get("connector") or {}).items()]
    return record([*fields, ("created", moment(result.get("created_at"))), ("changed", _changed(result))])


def history(result: Any) -> str:
    """The rows of the journal."""
    found = _objects(result)
    if not found:
        return "nothing happened"
    head = ("SEQ", "TIME", "CALL", "VOLUME", "ATTACHMENT", "CHANGE", "UID", "PID")
    return table(head, [_history_row(row) for row in found])


def change(result: Any) -> str:
    """One row of the journal as a line of its own: nobody knows yet how wide the next one is."""
    seq, when, call, volume, attachment, states, uid, pid = _history_row(result)
    return f"{seq}  {when}  {call}  {volume}  {attachment}  {states}  uid={uid} pid={pid}"


def status(result: Any) -> str:
    """The state of the daemon, with what is wrong first."""
    state = "degraded" if result.get("degraded") else "ready" if result.get("ready") else "starting"
    fields = [("state", state)]
    fields += [("degraded", text(reason)) for reason in result.get("degraded") or []]
    plain = ("version", "driver", "volumes", "attachments", "seq", "boot_id")
    fields += [(_label(name), text(result.get(name))) for name in plain]
    caller = result.get("caller") or {}
    fields += [("portals", _joined(result, "portals")), ("pending", _joined(result, "pending"))]
    return record([*fields, ("caller", f"uid {text(caller.get('uid'))}, role {text(caller.get('role'))}")])


def reconciliation(result: Any) -> str:
    """What differs between journal and target, step by step."""
    found = _objects(result.get("volumes"))
    if not found:
        return "journal and target agree"
    title = "would do:" if result.get("dry_run") else "did:"
    return "\n".join([title, *(line for entry in found for line in _reconciled(entry))])


def unregistered(result: Any) -> str:
    """The one thing left to say about a volume that is forgotten."""
    return f"unregistered {text(result.get('volume'))}; its data stays"


def findings(result: Any) -> str:
    """What doctor found, a line for each."""
    return "\n".join(_finding(found) for found in _objects(result)) or "nothing was looked at"


def attached_device(result: Any) -> str:
    """The device alone, for a script to take; --json tells the rest."""
    return text(result.get("device"))


def detached_volume(result: Any) -> str:
    """That it is gone, and what that has cost."""
    lost = [f"! lost: {text(what)}" for what in result.get("lost") or []]
    return "\n".join([f"detached {text(result.get('volume'))}", *lost])


#: How the result of a method is shown; any other result is an outline.
RENDERERS: dict[str, Callable[[Any], str]] = {
    "list_volumes": volumes,
    "show_volume": volume,
    "register_volume": volume,
    "detach": volume,
    "unreserve_volume": volume,
    "unregister_volume": unregistered,
    "list_attachments": attachments,
    "show_attachment": attachment,
    "reserve_volume": attachment,
    "attach": attachment,
    "begin_detaching": attachment,
    "terminate_connection": attachment,
    "roll_detaching": attachment,
    "agent.attach": attached_device,
    "agent.detach": detached_volume,
    "get_history": history,
    "volume_changed": change,
    "get_status": status,
    "reconcile": reconciliation,
    "doctor": findings,
}


def render(method: str, result: Any, show_secret: bool = False) -> str:
    """The result of ``method`` for people."""
    shown = result if show_secret else masked(result)
    if method in RENDERERS and isinstance(shown, (dict, list)):
        try:
            return RENDERERS[method](shown)
        except (AttributeError, KeyError, TypeError):
            return outline(shown)  # of another shape than the one that is known here
    # Text of several lines (the metrics, say) keeps its lines; each is as safe as any other.
    return outline(shown) if shown and isinstance(shown, (dict, list)) else _lines(shown)


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in _SECRETS)


_SPECIAL = ("connector", "created_at", "updated_at")


def _label(name: str) -> str:
    return text(name).replace("_", " ")


def _lines(value: Any) -> str:
    return "\n".join(text(line) if line else "" for line in str(value).split("\n")).rstrip("\n")


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _joined(result: dict[str, Any], name: str) -> str:
    return ", ".join(map(text, result.get(name) or [])) or "none"


def _options(volume: dict[str, Any]) -> str:
    return ",".join(name for name in ("multiattach", "read_only") if volume.get(name)) or _NONE


def _conditions(volume: dict[str, Any]) -> list[str]:
    """A line for each thing that is wrong with the volume."""
    return [
        f"{text(wrong.get('kind'))} since {moment(wrong.get('since'))}: {text(wrong.get('message'))}"
        for wrong in _objects(volume.get("conditions"))
    ]


def _changed(attachment: dict[str, Any]) -> str:
    return moment(attachment.get("updated_at"))


def _volume_row(volume: dict[str, Any]) -> tuple[str, ...]:
    named = (text(volume.get("volume")), size(volume.get("size")), text(volume.get("status")))
    return *named, str(len(volume.get("attachments") or [])), _options(volume), text(volume.get("path"))


def _attachment_row(attachment: dict[str, Any]) -> tuple[str, ...]:
    named = (text(attachment.get(name)) for name in ("attachment_id", "volume", "state", "mode"))
    host = attachment.get("host_name") or (attachment.get("connector") or {}).get("host")
    used = (text(host), text(attachment.get("instance_uuid")), text(attachment.get("owner")))
    return *named, *used, _changed(attachment)


def _history_row(row: dict[str, Any]) -> tuple[str, ...]:
    what = (text(row.get(name)) for name in ("call", "volume", "attachment_id"))
    change = f"{_state(row.get('before'))} -> {_state(row.get('after'))}"
    return text(row.get("seq")), moment(row.get("at")), *what, change, text(row.get("uid")), text(row.get("pid"))


def _state(row: Any) -> str:
    """What a row of the journal says of a thing before or after: its state, or only that there is such a thing."""
    return text(row.get("state", "registered")) if isinstance(row, dict) else "none"


def _finding(found: dict[str, Any]) -> str:
    line = f"{text(found.get('level')):<8} {text(found.get('check'))}: {text(found.get('message'))}"
    return f"{line}; try: {text(found['correction'])}" if found.get("correction") else line


def _reconciled(entry: dict[str, Any]) -> list[str]:
    name = entry.get("volume") or f"no volume (target {entry.get('target_name')})"
    lines = [f"{text(name)}", *(f"  {text(step)}" for step in entry.get("steps") or [])]
    return [*lines, f"  ! {text(entry['error'])}"] if entry.get("error") else lines
