"""The method table: one row for each call, with its parameters, role, result and purpose. Pure data.

Everything that must agree about a call reads this table: the server (names, validation, roles), rpc.discover
and the method reference (docs), the command line (types of ``key=value``) and the client. The handler of a
call is the service's method of the same name; the server refuses to start when one is missing.

Schemas are JSON Schema (draft 7). A value that a schema refuses is InvalidInput; a parameter that is missing,
unknown or too many is JSON-RPC's -32602.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

Schema = dict[str, Any]


class Role(IntEnum):
    """What a caller may do; each role includes the ones below it."""

    NOBODY = 0
    READER = 1
    AGENT = 2
    PROVISIONER = 3
    ADMIN = 4


@dataclass(frozen=True)
class Param:
    """One parameter. ``default`` is for the reader; the handler's signature holds the same."""

    name: str
    schema: Schema
    summary: str
    required: bool = False
    default: Any = None
    is_kept: bool = False  # as it is, with each change of its attachment: [limits] max_connector_* keep it small


@dataclass(frozen=True)
class Method:
    """One call of the wire."""

    name: str
    summary: str
    role: Role
    params: tuple[Param, ...]
    result: Schema
    changes: bool = True
    of_connection: bool = False  # it is about the connection that it comes over: its handler is given that too


VOLUME_ID: Schema = {
    "type": "string",
    "pattern": r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?\Z",
    "description": "a volume's name: 1 to 63 of a-z 0-9 . - that begins and ends with a letter or digit",
}
ATTACHMENT_ID: Schema = {
    "type": "string",
    "pattern": r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z",
    "description": "a lower-case UUID",
}
MODE: Schema = {"type": "string", "enum": ["rw", "ro"], "description": "'rw' or 'ro'"}
BOOLEAN: Schema = {"type": "boolean"}
#: Free text that people gave: no control characters, so that it cannot forge a line of a log or of a table.
TEXT: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 255,
    "pattern": r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*\Z",
    "description": "1 to 255 characters without control characters",
}
OWNER: Schema = {
    "type": ["integer", "string"],
    "minimum": 0,
    "maximum": 4294967294,
    "minLength": 1,
    "maxLength": 255,
    "pattern": TEXT["pattern"],
    "description": "a user of the daemon's host: a uid or a name",
}
PATH: Schema = {
    "type": "string",
    "pattern": r"^/[^\x00-\x1f\x7f-\x9f]*\Z",
    "maxLength": 4095,
    "description": "an absolute path without control characters",
}
CONNECTOR: Schema = {
    "type": "object",
    "properties": {
        "initiator": {"type": "string", "description": "the iSCSI name that the host logs in with"},
        "host": {"type": "string"},
        "ip": {"type": "string"},
        "multipath": {"type": ["boolean", "null"]},
        "do_local_attach": {"type": ["boolean", "null"]},
    },
    "additionalProperties": True,
    "maxProperties": 64,
    "description": "Cinder's connector, as os-brick's get_connector_properties gives it; unknown keys are kept. "
    "At most 16 KiB of JSON, and 64 values at all levels together",
}

VOLUME: Schema = {
    "type": "object",
    "description": "a volume",
    "properties": {
        "volume": VOLUME_ID,
        "path": {"type": "string"},
        "size": {"type": "integer", "description": "bytes"},
        "status": {"type": "string", "enum": ["available", "attaching", "in-use", "detaching"]},
        "multiattach": BOOLEAN,
        "read_only": BOOLEAN,
        "target_name": {"type": "string", "description": "the target's IQN, the same for life"},
        "serial": {"type": "string", "description": "the unit serial (UUID), the same for life"},
        "conditions": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "kind": {"type": "string"},
                    "message": {"type": "string"},
                    "since": {"type": "number", "description": "seconds since the epoch"},
                },
            },
        },
        "attachments": {"type": "array", "items": ATTACHMENT_ID},
    },
}
_NULLABLE_TEXT: Schema = {"type": ["string", "null"]}
ATTACHMENT: Schema = {
    "type": "object",
    "description": "an attachment; no secret is in it",
    "properties": {
        "attachment_id": ATTACHMENT_ID,
        "volume": VOLUME_ID,
        "state": {
            "type": "string",
            "enum": ["reserved", "connected", "attached", "detaching", "disconnected", "gone"],
        },
        "mode": MODE,
        "owner": {"type": "integer", "description": "uid of the user that it belongs to"},
        "connector": {"type": ["object", "null"]},
        "instance_uuid": _NULLABLE_TEXT,
        "host_name": _NULLABLE_TEXT,
        "mount_point": _NULLABLE_TEXT,
        "created_at": {"type": "number", "description": "seconds since the epoch"},
        "updated_at": {"type": "number", "description": "seconds since the epoch"},
    },
}
CONNECTION: Schema = {
    "type": "object",
    "description": "connection info, field for field what os-brick takes",
    "properties": {
        "driver_volume_type": {"type": "string"},
        "attachment_id": ATTACHMENT_ID,
        "data": {"type": "object"},
    },
}
HISTORY: Schema = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "seq": {"type": "integer"},
            "at": {"type": "number", "description": "seconds since the epoch, for people: order is by seq"},
            "boot_id": {"type": "string"},
            "uid": {"type": "integer"},
            "pid": {"type": "integer"},
            "call": {"type": "string"},
            "volume": VOLUME_ID,
            "attachment_id": {"type": ["string", "null"]},
            "before": {"type": ["object", "null"]},
            "after": {"type": ["object", "null"]},
        },
    },
}
RECONCILIATION: Schema = {
    "type": "object",
    "properties": {
        "dry_run": BOOLEAN,
        "volumes": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "volume": {"type": ["string", "null"]},
                    "target_name": {"type": "string"},
                    "differences": {"type": "array", "items": {"type": "string"}},
                    "steps": {"type": "array", "items": {"type": "string"}},
                    "error": {"type": ["string", "null"]},
                },
            },
        },
    },
}
STATUS: Schema = {
    "type": "object",
    "properties": {
        "ready": BOOLEAN,
        "degraded": {"type": "array", "items": {"type": "string"}},
        "version": {"type": "string"},
        "driver": {"type": "string"},
        "portals": {"type": "array", "items": {"type": "string"}},
        "volumes": {"type": "integer"},
        "attachments": {"type": "integer"},
        "pending": {"type": "array", "items": VOLUME_ID},
        "seq": {"type": "integer", "description": "the journal's last sequence number"},
        "boot_id": {"type": "string"},
        "caller": {
            "type": "object",
            "description": "who the daemon takes the caller for",
            "properties": {
                "uid": {"type": "integer"},
                "role": {"type": "string", "enum": [role.name.lower() for role in Role if role]},
            },
        },
    },
}
METRICS: Schema = {
    "type": "string",
    "description": "Prometheus' text format, version 0.0.4",
    "examples": ["# TYPE volattachd_sessions gauge\nvolattachd_sessions 3.0\n"],
}
SUBSCRIPTION: Schema = {
    "type": "object",
    "properties": {
        "since": {"type": "integer", "description": "the first notification has the next number"},
        "oldest": {"type": "integer", "description": "the oldest sequence number that the journal still has"},
        "seq": {"type": "integer", "description": "the journal's last sequence number"},
    },
}
BACKUP: Schema = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "seq": {"type": "integer", "description": "the last sequence number in the copy"},
        "size": {"type": "integer", "description": "bytes"},
    },
}

_volume = Param("volume", VOLUME_ID, "the volume", required=True)
_some_volume = Param("volume", VOLUME_ID, "only this volume")
_attachment = Param("attachment_id", ATTACHMENT_ID, "may be left out where the volume has one candidate")
_connector = Param("connector", CONNECTOR, "the host that connects, in Cinder's form", required=True, is_kept=True)
#: Sequence numbers are SQLite's integers.
SEQ: Schema = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1, "description": "0 to 9223372036854775807"}
PAGE: Schema = {"type": "integer", "minimum": 1, "maximum": 1000, "description": "1 to 1000"}
_page = Param("limit", PAGE, "at most so many, by rising ids; without it and marker, all of them")

METHODS: tuple[Method, ...] = (
    Method(
        "reserve_volume",
        "Takes the volume for one attachment.",
        Role.AGENT,
        (
            _volume,
            Param("attachment_id", ATTACHMENT_ID, "chosen by the client to make the call safe to send again"),
            Param("mode", MODE, "what the initiator may do; the target enforces it", default="rw"),
            Param("instance_uuid", TEXT, "the instance that will use it"),
            Param(
                "ttl",
                {"type": "number", "minimum": 1, "maximum": 86400, "description": "1 to 86400 seconds, a day"},
                "seconds after which a reservation without a connection ends by itself",
            ),
            Param("owner", OWNER, "whose attachment it is, if not the caller's; provisioners and admins only"),
        ),
        ATTACHMENT,
    ),
    Method(
        "initialize_connection",
        "Exports the volume if it is not yet, and grants this connector alone.",
        Role.AGENT,
        (_volume, _connector, _attachment),
        CONNECTION,
    ),
    Method(
        "attach",
        "Finalises the attachment; instance_uuid or host_name is required.",
        Role.AGENT,
        (
            _volume,
            Param("instance_uuid", TEXT, "the instance that uses the volume"),
            Param("host_name", TEXT, "the host that uses the volume"),
            Param("mount_point", TEXT, "where the instance sees it"),
            Param("mode", MODE, "must be the mode that was reserved"),
            _attachment,
        ),
        ATTACHMENT,
    ),
    Method(
        "begin_detaching",
        "Says that the client is letting go; access is still granted.",
        Role.AGENT,
        (_volume, _attachment),
        ATTACHMENT,
    ),
    Method(
        "terminate_connection",
        "Revokes the grant; refuses while the initiator is logged in, unless force.",
        Role.AGENT,
        (
            _volume,
            _connector,
            Param("force", BOOLEAN, "admin only: end live sessions, from any connected state", default=False),
            _attachment,
        ),
        ATTACHMENT,
    ),
    Method(
        "detach",
        "Forgets the attachment; removes the export when it was the last.",
        Role.AGENT,
        (_volume, _attachment),
        VOLUME,
    ),
    Method(
        "unreserve_volume",
        "Undoes reserve_volume; does nothing where nothing is reserved.",
        Role.AGENT,
        (_volume, _attachment),
        VOLUME,
    ),
    Method(
        "roll_detaching",
        "Undoes begin_detaching; does nothing where nothing is detaching.",
        Role.AGENT,
        (_volume, _attachment),
        ATTACHMENT,
    ),
    Method(
        "register_volume",
        "Takes a block device or regular file into care, after checking that nothing else uses it.",
        Role.ADMIN,
        (
            _volume,
            Param("path", PATH, "the block device or regular file", required=True),
            Param("multiattach", BOOLEAN, "more than one attachment at a time", default=False),
            Param("read_only", BOOLEAN, "nobody may write to it", default=False),
        ),
        VOLUME,
    ),
    Method(
        "unregister_volume",
        "Forgets an available volume; its data stays.",
        Role.ADMIN,
        (_volume,),
        {"type": "object", "properties": {"volume": VOLUME_ID}},
    ),
    Method(
        "list_volumes",
        "Every registered volume, or a page of them.",
        Role.READER,
        (_page, Param("marker", VOLUME_ID, "only volumes after this one: the last of the page before")),
        {"type": "array", "items": VOLUME},
        changes=False,
    ),
    Method("show_volume", "One volume.", Role.READER, (_volume,), VOLUME, changes=False),
    Method(
        "list_attachments",
        "Every attachment, or those of one volume, or a page of them.",
        Role.READER,
        (_some_volume, _page, Param("marker", ATTACHMENT_ID, "only those after this one: the last of the page before")),
        {"type": "array", "items": ATTACHMENT},
        changes=False,
    ),
    Method(
        "show_attachment",
        "One attachment.",
        Role.READER,
        (Param("attachment_id", ATTACHMENT_ID, "the attachment", required=True),),
        ATTACHMENT,
        changes=False,
    ),
    Method(
        "get_history",
        "What happened, from the journal, oldest first.",
        Role.READER,
        (
            _some_volume,
            Param("attachment_id", ATTACHMENT_ID, "only this attachment"),
            Param(
                "since",
                SEQ,
                "only rows after this sequence number; without it, the newest rows",
            ),
            Param("limit", PAGE, "at most so many rows; a page that is long in bytes has fewer", default=100),
            Param("before", SEQ, "only rows before this sequence number"),
        ),
        HISTORY,
        changes=False,
    ),
    Method(
        "reconcile",
        "Finds what differs between journal and target, as the exact steps that mend it; then mends it.",
        Role.ADMIN,
        (Param("dry_run", BOOLEAN, "only tell the steps", default=False),),
        RECONCILIATION,
    ),
    Method(
        "get_status",
        "Whether the daemon is ready, what is degraded and why, and what is pending.",
        Role.READER,
        (),
        STATUS,
        changes=False,
    ),
    Method(
        "get_metrics",
        "Counts, times and what there is, in Prometheus' text format.",
        Role.READER,
        (),
        METRICS,
        changes=False,
    ),
    Method(
        "subscribe",
        "Sends each further row of the journal over this connection, as a notification volume_changed.",
        Role.READER,
        (
            Param(
                "since",
                SEQ,
                "first everything after this sequence number; without it, only what is new",
            ),
        ),
        SUBSCRIPTION,
        changes=False,
        of_connection=True,
    ),
    Method(
        "unsubscribe",
        "Ends the notifications of this connection; none comes after the answer.",
        Role.READER,
        (),
        {"type": "object", "properties": {"subscribed": BOOLEAN}},
        changes=False,
        of_connection=True,
    ),
    Method(
        "backup_journal",
        "Writes a consistent copy of the journal to a new file, while other calls go on.",
        Role.ADMIN,
        (Param("path", PATH, "the new file, on the daemon's host; one that exists is never replaced", required=True),),
        BACKUP,
        changes=False,
    ),
    Method(
        "rpc.discover",
        "This reference, as an OpenRPC document.",
        Role.READER,
        (),
        {"type": "object"},
        changes=False,
    ),
)

BY_NAME: dict[str, Method] = {method.name: method for method in METHODS}
if len(BY_NAME) != len(METHODS):
    raise AssertionError("a method stands twice in the table")
