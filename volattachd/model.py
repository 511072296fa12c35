"""What the daemon knows: volumes, attachments, connectors, grants, conditions. Plain data, no I/O.

Everything here is frozen: a change is a new object, which the journal swaps in after its commit.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from volattachd.errors import InvalidInput

#: DESIGN: a lower-case UUID fits, and every name is also valid inside an IQN (RFC 3722 allows ``[a-z0-9.:-]``).
VOLUME_ID = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")

#: Attachment ids are canonical UUIDs: they name rows and never paths, and two spellings must not be two ids.
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

#: RFC 3720 section 3.2.6.1: an iSCSI name has at most 223 bytes. The kernel lower-cases the name at login.
INITIATOR_MAX_BYTES = 223
INITIATOR = re.compile(r"(iqn\.[0-9]{4}-[0-9]{2}\.[a-z0-9.:-]+|eui\.[0-9a-f]{16}|naa\.[0-9a-f]{16}([0-9a-f]{16})?)")


#: The member that marks the connector of a local attachment where it is kept, and what it says.
VOLUME_TYPE, LOCAL = "driver_volume_type", "local"


class State(str, Enum):
    """The states of an attachment. GONE stands for "never was" and "has ended": nothing is stored for it."""

    RESERVED = "reserved"
    CONNECTED = "connected"
    ATTACHED = "attached"
    DETACHING = "detaching"
    DISCONNECTED = "disconnected"
    GONE = "gone"


class Status(str, Enum):
    """The status of a volume, derived from its attachments and never stored."""

    AVAILABLE = "available"
    ATTACHING = "attaching"
    IN_USE = "in-use"
    DETACHING = "detaching"


class Mode(str, Enum):
    """What the target lets the initiator do."""

    RW = "rw"
    RO = "ro"


@dataclass(frozen=True)
class Device:
    """What a volume's path led to when it was looked at.

    ``identity`` holds what stays with the medium over reboots and renames (dm uuid, WWID, partition UUID,
    inode and generation), as strings. ``size`` is in bytes.
    """

    kind: str  # "block" or "file"
    size: int
    identity: Mapping[str, str]
    discard: bool


@dataclass(frozen=True)
class Volume:
    """A registered volume. What an initiator knows it by never changes; its device may grow."""

    id: str
    path: str
    device: Device
    multiattach: bool
    read_only: bool
    target_name: str
    serial: str  # canonical lower-case UUID; LIO derives the NAA identifier from its first 25 hex digits
    created_at: float

    @property
    def size(self) -> int:
        """Bytes that initiators see."""
        return self.device.size


@dataclass(frozen=True)
class Secret:
    """CHAP credentials of one grant. Never printed: its repr shows the user name only."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Attachment:
    """One holder of a volume, from reserve_volume until it is gone. Its id is the idempotency key of them all."""

    id: str
    volume: str
    state: State
    mode: Mode
    owner: int
    created_at: float
    updated_at: float
    connector: Mapping[str, Any] | None = None
    secret: Secret | None = field(default=None, repr=False)
    instance_uuid: str | None = None
    host_name: str | None = None
    mount_point: str | None = None
    ttl: float | None = None

    @property
    def local(self) -> bool:
        """Whether it is the daemon's own host that has it: the device itself, and nothing in the target."""
        return self.connector is not None and self.connector.get(VOLUME_TYPE) == LOCAL

    @property
    def initiator(self) -> str | None:
        """The name that the connector logs in with, in lower case; None before it connects, or where it is local."""
        return None if self.connector is None or self.local else str(self.connector["initiator"])


@dataclass(frozen=True)
class Caller:
    """Who sent a call: the peer of the socket as the kernel told at accept. ``admin``: may act for others.

    ``role`` is the name of its role, for get_status to show; a ``provisioner`` may reserve for other users.
    ``call_id`` is the number of the call in the life of this daemon, so no two calls have the same caller. 0 is no
    call.
    """

    uid: int
    pid: int
    admin: bool = False
    role: str = ""
    call_id: int = 0

    @property
    def provisions(self) -> bool:
        """Whether it may reserve for other users."""
        return self.admin or self.role == "provisioner"

    def may_see_secret_of(self, row: Attachment) -> bool:
        """A secret is for the attachment's owner, and for admins, who act for it."""
        return self.admin or self.uid == row.owner


#: Who the journal names for what the daemon does by itself.
DAEMON = Caller(uid=0, pid=0, admin=True, role="admin")


@dataclass(frozen=True)
class Grant:
    """One initiator's access to one volume. Attachments of one host share it: a target knows initiators only."""

    initiator: str
    mode: Mode
    secret: Secret


def _accept(path: str) -> None:
    """For who does not ask what a target has opened."""


@dataclass(frozen=True)
class Export:
    """What the target should hold for one volume: nothing at all, or an export with exactly these grants.

    ``check_opened`` is given a path to what the target has opened (its own descriptor in /proc, say), and raises
    DriverError unless that is the volume's device: a name may have led elsewhere when the target opened it.
    """

    volume: Volume
    exported: bool
    grants: tuple[Grant, ...] = ()
    check_opened: Callable[[str], None] = field(default=_accept, repr=False, compare=False)


@dataclass(frozen=True)
class Condition:
    """Something wrong with the world around a volume: shown, logged, retried, and cleared when it is over."""

    kind: str
    message: str
    since: float


def parse_initiator(name: object) -> str:
    """The initiator's name as the kernel will present it: lower case and checked.

    Raises InvalidInput for anything that could not be an iSCSI name (RFC 3720 section 3.2.6).
    """
    if not isinstance(name, str):
        raise InvalidInput(
            "the connector has no initiator",
            "give the name from /etc/iscsi/initiatorname.iscsi as connector.initiator",
        )
    lowered = name.lower()
    if len(name.encode("utf-8", "replace")) > INITIATOR_MAX_BYTES:
        raise InvalidInput(f"connector.initiator is longer than {INITIATOR_MAX_BYTES} bytes")
    if not INITIATOR.fullmatch(lowered):
        raise InvalidInput(
            f"connector.initiator {name[:80]!r} is not an iSCSI name",
            "use a name like iqn.2026-11.com.example:host1, made of a-z 0-9 . : -",
        )
    return lowered


def now() -> float:
    """Seconds since the epoch, for people to read. Nothing is ever ordered or timed by it."""
    return time.time()
