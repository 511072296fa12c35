"""Writes the reference in docs/ from the tables that the daemon runs by, or checks that it is up to date.

python -m docgen.reference           writes docs/methods.md, docs/errors.md, docs/states.md and docs/records.md
python -m docgen.reference --check   names the files that are stale, and fails if there are any
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from volattachd import errors, lifecycle
from volattachd.api.methods import ATTACHMENT, METHODS, VOLUME, Method, Param, Schema
from volattachd.lifecycle import TRANSITIONS, Call
from volattachd.model import State
from volattachd.rpc.strictjson import MAX_BYTES, MAX_DEPTH
from volattachd.telemetry import messages

DOCS = Path(__file__).resolve().parents[1] / "docs"

_GENERATED = "<!-- Made by `python -m docgen.reference` from tables in the code: change those. -->"

#: What the calls of the protocol itself can answer, before a method is found.
_ENVELOPE_ERRORS = (
    (-32700, "Parse error", "The bytes are not JSON in UTF-8.", "correct the program that wrote them"),
    (
        -32600,
        "Invalid Request",
        "Not a JSON-RPC 2.0 request; or it has a duplicate key, a number beyond 64 bits, a lone surrogate, "
        f"more than {MAX_DEPTH} levels of nesting, or more than {MAX_BYTES} bytes.",
        "correct what the message names",
    ),
    (-32601, "Method not found", "No method has that name.", "see methods.md, or call rpc.discover"),
    (-32603, "Internal error", "A fault of the daemon; its log has the details.", "report it"),
)

_UUID = "6f1c8a52-9d0e-4b7a-8f23-5c1d2e3f4a5b"
_INITIATOR = "iqn.2026-11.com.example:host1"
_TARGET = "iqn.2026-11.com.example.volattachd:vol-1"

#: A value for each name of a parameter or of a result's member: the examples are made of them.
_SAMPLES: dict[str, Any] = {
    "volume": "vol-1",
    "attachment_id": _UUID,
    "attachments": [_UUID],
    "connector": {"initiator": _INITIATOR, "host": "host1", "ip": "192.0.2.10", "multipath": False},
    "instance_uuid": "0d9b5c1e-7a64-4f0e-9c55-3f2b8e7d6a10",
    "host_name": "host1",
    "mount_point": "/dev/vdb",
    "mode": "rw",
    "path": "/dev/vg0/vol-1",
    "size": 10737418240,
    "status": "in-use",
    "state": "attached",
    "multiattach": False,
    "read_only": False,
    "target_name": _TARGET,
    "serial": "3b2f6a9e-41c7-4e58-a2d1-7c9f0b8e6d54",
    "conditions": [],
    "owner": 0,
    "created_at": 1790000000.0,
    "updated_at": 1790000060.0,
    "dry_run": True,
    "force": False,
    "since": 41,
    "limit": 10,
    "seq": 42,
    "oldest": 1,
    "subscribed": True,
    "at": 1790000060.0,
    "boot_id": "c0ffee00-1111-4222-8333-444455556666",
    "caller": {"uid": 0, "role": "admin"},
    "uid": 0,
    "pid": 4711,
    "call": "attach",
    "before": {"state": "connected"},
    "after": {"state": "attached"},
    "differences": ["PortalMissing"],
    "steps": ["create portal 192.0.2.1:3260"],
    "error": None,
    "ready": True,
    "degraded": [],
    "version": "0.1.0",
    "driver": "lio",
    "portals": ["192.0.2.1:3260"],
    "pending": [],
    "driver_volume_type": "iscsi",
    "data": {
        "target_discovered": False,
        "target_portal": "192.0.2.1:3260",
        "target_iqn": _TARGET,
        "target_lun": 0,
        "volume_id": "vol-1",
        "auth_method": "CHAP",
        "auth_username": "4Xr0aZsYb2",
        "auth_password": "…",
        "encrypted": False,
        "qos_specs": None,
        "access_mode": "rw",
        "discard": True,
    },
}

#: Where a name means something else in one method.
_OWN_SAMPLES: dict[str, dict[str, Any]] = {"backup_journal": {"path": "/var/lib/volattachd/backup.db"}}

#: Optional parameters that an example shows beyond the required ones.
_SHOWN: dict[str, tuple[str, ...]] = {
    "reserve_volume": ("attachment_id", "mode", "instance_uuid"),
    "initialize_connection": ("attachment_id",),
    "attach": ("instance_uuid", "host_name", "mount_point", "attachment_id"),
    "list_attachments": ("volume",),
    "get_history": ("since", "limit"),
    "subscribe": ("since",),
    "reconcile": ("dry_run",),
}

#: Calls after which a volume of one attachment has none.
_LEAVES_NONE = {"detach", "unreserve_volume", "register_volume"}


def pages() -> dict[str, str]:
    """The text of every generated page, by file name."""
    return {
        "methods.md": methods_page(),
        "errors.md": errors_page(),
        "states.md": states_page(),
        "records.md": records_page(),
    }


def methods_page() -> str:
    """docs/methods.md."""
    return _page(
        "The calls",
        "JSON-RPC 2.0 over the Unix socket, parameters by name or by position in the order given. A null",
        "counts as left out. Every call may be sent again after a lost reply: it gives the same answer and",
        "has one effect. What a call can answer in place of a result stands in [errors.md](errors.md), and",
        "which call may follow which in [states.md](states.md).",
        "",
        *_table(("Call", "Role", "Does"), (_summary_row(method) for method in METHODS)),
        *(line for method in METHODS for line in _method_section(method)),
    )


def errors_page() -> str:
    """docs/errors.md."""
    return _page(
        "Errors",
        'An error of a call has a code, a message, and `data = {"kind": …, "retriable": …}`. The message',
        "says what could not be done, to what, and why. `data.correction` says what to do, where there is",
        "one thing to do. `retriable` means that the same call, sent again later, may succeed without",
        "anybody changing anything.",
        "",
        *_table(("Code", "Kind", "Retriable", "Means", "What to do"), _kind_rows()),
        "",
        "## Errors of the protocol",
        "",
        "These come before a method is found. After -32700, or a message that is too long, the connection is",
        "closed: nobody can be sure where the next message begins.",
        "",
        *_table(("Code", "Name", "Means", "What to do"), _ENVELOPE_ERRORS),
    )


def states_page() -> str:
    """docs/states.md."""
    return _page(
        "The life of an attachment",
        "`[*]` is both ends: an attachment that never was, and one that is gone. A reservation with a `ttl`",
        "also ends by itself when that time is over before it was connected. Calls that leave the state as",
        "it is are not drawn; the table below has them.",
        "",
        "```mermaid",
        "stateDiagram-v2",
        *_arrows(),
        "```",
        "",
        "## Every call in every state",
        "",
        "*stays*: the call succeeds and changes nothing, so it may be sent again. —: the call answers",
        "`InvalidVolume`, which names the state and the call to make instead, and changes nothing.",
        "",
        *_table(("Call", *(_state_name(s) for s in _STATES)), (_call_row(call) for call in TRANSITIONS)),
        "",
        "## What each state means for the target",
        "",
        *_table(("State", "Exported", "Access granted", "The next call"), (_state_row(s) for s in _STATES)),
    )


def records_page() -> str:
    """docs/records.md."""
    return _page(
        "What the log tells",
        "Each record is of one of these kinds. Under systemd it has the `MESSAGE_ID` of the table, which is fixed for",
        "ever, and fields for what its line names; [monitoring.md](monitoring.md) has the queries. Elsewhere the line",
        "goes to standard error. `journalctl -x` shows what it means.",
        "",
        *_table(("Field", "Is the line's"), ((f"`{field}`", name) for name, field in messages.FIELDS.items())),
        "",
        *_table(
            ("Priority", "Line", "Means, and what to do", "MESSAGE_ID"), map(_record_row, messages.kinds().values())
        ),
    )


def _record_row(kind: messages.Kind) -> tuple[str, ...]:
    meaning = re.sub(r"@(\w+)@", r"`\1`", f"{kind.subject}. {kind.explanation}")
    return logging.getLevelName(kind.level).lower(), f"`{kind.line}`", meaning, f"`{kind.id}`"


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Gives 1 where ``--check`` finds a stale page."""
    parser = argparse.ArgumentParser(prog="python -m docgen.reference", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is stale")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the directory of the pages")
    args = parser.parse_args(argv)
    if args.check:
        return _report(stale(args.docs))
    for name, text in pages().items():
        (args.docs / name).write_text(text, encoding="utf-8")
    return 0


def stale(docs: Path = DOCS) -> list[str]:
    """The names of the pages that are missing or differ from what the tables say."""
    return [name for name, text in pages().items() if _read(docs / name) != text]


def remedies() -> dict[str, tuple[int, str]]:
    """Code and remedy of each kind of error, from the tree that opens ``volattachd.errors``."""
    rows = re.findall(r"[├└]── (\w+) +(-?\d+) +(.+)", errors.__doc__ or "")
    return {kind: (int(code), remedy) for kind, code, remedy in rows}


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _report(names: list[str]) -> int:
    for name in names:
        print(f"docs/{name} is stale: run python -m docgen.reference", file=sys.stderr)
    return 1 if names else 0


def _page(title: str, *lines: str) -> str:
    return "\n".join([_GENERATED, "", f"# {title}", "", *lines]).rstrip() + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *(_row(row) for row in rows)]


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _summary_row(method: Method) -> tuple[str, str, str]:
    anchor = method.name.replace(".", "")
    return f"[`{method.name}`](#{anchor})", method.role.name.lower(), method.summary


def _method_section(method: Method) -> list[str]:
    return [
        "",
        f"## {method.name}",
        "",
        method.summary,
        "",
        f"Role: {method.role.name.lower()}. {'Changes state.' if method.changes else 'Only reads.'}",
        "",
        *_parameters(method),
        "",
        f"Result: {_result(method.result)}.",
        "",
        "```json",
        *_example(method),
        "```",
    ]


def _parameters(method: Method) -> list[str]:
    if not method.params:
        return ["No parameters."]
    head = ("Parameter", "Type", "Required", "Default", "Meaning")
    return _table(head, (_parameter_row(param) for param in method.params))


def _parameter_row(param: Param) -> tuple[str, ...]:
    default = "" if param.default is None else f"`{json.dumps(param.default)}`"
    required = "yes" if param.required else "no"
    return f"`{param.name}`", _type(param.schema), required, default, param.summary


def _type(schema: Schema) -> str:
    """The type in words: ``string: 'rw' or 'ro'``."""
    kind = schema.get("type", "any")
    names = " or ".join(kind) if isinstance(kind, list) else str(kind)
    return f"{names}: {schema['description']}" if "description" in schema else names


def _result(schema: Schema) -> str:
    if schema is VOLUME or schema is ATTACHMENT:
        return str(schema["description"]).partition(";")[0]
    if schema.get("type") == "array":
        return f"an array, each of {_result(schema['items'])}"
    if schema.get("type") == "string":
        return f"a string: {schema['description']}"
    members = ", ".join(f"`{name}`" for name in schema.get("properties", {}))
    return f"an object with {members}" if members else "an object"


def _example(method: Method) -> list[str]:
    request = {"jsonrpc": "2.0", "id": 1, "method": method.name, "params": example_params(method)}
    answer = {"jsonrpc": "2.0", "id": 1, "result": example_result(method)}
    return [json.dumps(message, ensure_ascii=False) for message in (request, answer)]


def example_params(method: Method) -> dict[str, Any]:
    """The parameters of the method's example."""
    shown = _SHOWN.get(method.name, ())
    samples = {**_SAMPLES, **_OWN_SAMPLES.get(method.name, {})}
    return {p.name: samples[p.name] for p in method.params if p.required or p.name in shown}


def example_result(method: Method) -> Any:
    """The result of the method's example."""
    if method.name == "rpc.discover":
        return {"openrpc": "…", "info": {}, "methods": []}
    result = _sample("", method.result)
    if method.result is ATTACHMENT:
        result.update(_state_after(method))
    elif method.result is VOLUME and method.name in _LEAVES_NONE:
        result.update(status="available", attachments=[])
    elif method.name in _OWN_SAMPLES:
        result.update(_OWN_SAMPLES[method.name])
    return result


def _sample(name: str, schema: Schema) -> Any:
    """A value that fits ``schema``: the sample of that name, or one made of the samples of its members."""
    kind = schema.get("type")
    if kind == "integer" and isinstance(_SAMPLES.get(name), list):
        return len(_SAMPLES[name])  # a list in one result may be a count in another
    if name in _SAMPLES:
        return _SAMPLES[name]
    if kind == "array":
        return [_sample("", schema["items"])]
    if "examples" in schema:
        return schema["examples"][0]
    if kind == "object":
        return {key: _sample(key, value) for key, value in schema["properties"].items()}
    return 1


def _state_after(method: Method) -> dict[str, Any]:
    """The state in a method's example: the first that its call moves to, short of the end."""
    state = State.ATTACHED
    for call, moves in TRANSITIONS.items():
        after = [b for a, b in moves.items() if a is not b and b is not State.GONE]
        state = after[0] if after and call.value == method.name else state
    unknown = ("connector", "host_name", "mount_point") if state is State.RESERVED else ()
    return {"state": state.value, **dict.fromkeys(unknown)}


def _kind_rows() -> Iterable[tuple[object, ...]]:
    told = remedies()
    for kind in errors.kinds():
        meaning = (kind.__doc__ or "").partition("\n")[0]
        yield (
            kind.code,
            f"`{kind.__name__}`",
            "yes" if kind.retriable else "no",
            meaning,
            told[kind.__name__][1],
        )


_STATES = (State.GONE, *(state for state in State if state is not State.GONE))


def _state_name(state: State) -> str:
    return "*none or gone*" if state is State.GONE else state.value


def _arrows() -> Iterable[str]:
    """One arrow for each pair of states, with every call that leads along it."""
    labels: dict[tuple[State, State], list[str]] = {}
    for call, moves in TRANSITIONS.items():
        for before, after in moves.items():
            if before is not after:
                labels.setdefault((before, after), []).append(call.value)
    for (before, after), calls in labels.items():
        yield f"    {_node(before)} --> {_node(after)}: {' / '.join(calls)}"


def _node(state: State) -> str:
    return "[*]" if state is State.GONE else state.value


def _call_row(call: Call) -> tuple[str, ...]:
    return (f"`{call.value}`", *(_cell(TRANSITIONS[call].get(state), state) for state in _STATES))


def _cell(after: State | None, before: State) -> str:
    if after is None:
        return "—"
    return "*stays*" if after is before else f"→ {'gone' if after is State.GONE else after.value}"


def _state_row(state: State) -> tuple[str, ...]:
    exported = "yes" if state in lifecycle.EXPORTED else "not for it"
    granted = "yes" if state in lifecycle.GRANTED else "no"
    return _state_name(state), exported, granted, f"`{lifecycle.NEXT_CALL[state].value}`"


if __name__ == "__main__":
    raise SystemExit(main())
