"""What the calls answer, as types. A result is the very dict that the daemon sent: a newer one may have more members.

The schemas of the method table say the same, and a test holds the two together.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

Mode = Literal["rw", "ro"]
State = Literal["reserved", "connected", "attached", "detaching", "disconnected", "gone"]
VolumeStatus = Literal["available", "attaching", "in-use", "detaching"]

#: Cinder's connector, as os-brick's get_connector_properties gives it; ``initiator`` is required.
Connector = dict[str, Any]


class Condition(TypedDict):
    """What is wrong with a volume."""

    kind: str
    message: str
    since: float


class Volume(TypedDict):
    """A registered volume."""

    volume: str
    path: str
    size: int
    status: VolumeStatus
    multiattach: bool
    read_only: bool
    target_name: str
    serial: str
    conditions: list[Condition]
    attachments: list[str]


class Unregistered(TypedDict):
    """The volume that is forgotten."""

    volume: str


class Attachment(TypedDict):
    """One use of a volume, from its reservation to its end."""

    attachment_id: str
    volume: str
    state: State
    mode: Mode
    owner: int
    connector: dict[str, Any] | None
    instance_uuid: str | None
    host_name: str | None
    mount_point: str | None
    created_at: float
    updated_at: float


class Connection(TypedDict):
    """Connection info, field for field what os-brick takes. ``data`` has the secret."""

    driver_volume_type: str
    attachment_id: str
    data: dict[str, Any]


class HistoryRow(TypedDict):
    """One row of the journal."""

    seq: int
    at: float
    boot_id: str
    uid: int
    pid: int
    call: str
    volume: str
    attachment_id: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class Reconciled(TypedDict):
    """What differs, or differed, for one volume."""

    volume: str | None
    target_name: str
    differences: list[str]
    steps: list[str]
    error: str | None


class Reconciliation(TypedDict):
    """What differs between journal and target."""

    dry_run: bool
    volumes: list[Reconciled]


class StatusCaller(TypedDict):
    """Who the daemon takes the caller for."""

    uid: int
    role: Literal["reader", "agent", "provisioner", "admin"]


class Status(TypedDict):
    """How the daemon is."""

    ready: bool
    degraded: list[str]
    version: str
    driver: str
    portals: list[str]
    volumes: int
    attachments: int
    pending: list[str]
    seq: int
    boot_id: str
    caller: StatusCaller


class Subscription(TypedDict):
    """Where the notifications of a connection begin."""

    since: int
    oldest: int
    seq: int


class Unsubscribed(TypedDict):
    """Whether notifications still come."""

    subscribed: bool


class Backup(TypedDict):
    """A copy of the journal."""

    path: str
    seq: int
    size: int
