"""The contract of a target driver: what a third party implements, and what the contract suite checks.

A driver turns *what should be* (an Export) into *what is*. It works in two halves:

``plan(want)`` reads the target and returns the steps that would make it equal to ``want``. It writes nothing.
The plan of a healthy export is empty: that is what makes a restart of the daemon invisible to sessions.

A ``Step`` is one small change of the target, and it is idempotent in this sense: whatever step the process
dies at, or whatever error it ends with, planning again gives the rest of the way. The order of a plan
keeps three laws:

1. Removals come before additions, and access is taken away before the thing it gave access to.
2. Access opens last: secret, mapping and write protection are complete before an initiator could log in.
3. When the step that removes a grant has returned, the initiator is out: its sessions are gone and no
   I/O of it is outstanding.

A driver keeps no truth of its own: it reads the target each time. It never touches an object that does not
carry one of our names. Foreign errors (OSError, a tool's exit code) become DriverError at its boundary.
One driver object serves many threads; calls for one volume never overlap. What can take a time-out of its own has one,
shorter than a call's: only the kernel itself may hold a thread for longer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar

from volattachd.errors import DriverError
from volattachd.model import Export, Volume


@dataclass(frozen=True)
class Portal:
    """An address and TCP port where initiators log in. The address may be a wildcard (``0.0.0.0``, ``::``)."""

    address: IPv4Address | IPv6Address
    port: int = 3260

    def __str__(self) -> str:
        """As iSCSI writes it: IPv6 in brackets (RFC 3720 section 12.8)."""
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


class Difference(str, Enum):
    """What a step mends: in which way the target is not what it should be."""

    EXPORT_MISSING = "ExportMissing"
    EXPORT_UNEXPECTED = "ExportUnexpected"
    EXPORT_DIFFERS = "ExportDiffers"
    GRANT_MISSING = "GrantMissing"
    GRANT_UNEXPECTED = "GrantUnexpected"
    GRANT_DIFFERS = "GrantDiffers"
    PORTAL_MISSING = "PortalMissing"
    PORTAL_UNEXPECTED = "PortalUnexpected"


@dataclass(frozen=True)
class Step:
    """One change of the target. ``action`` and ``subject`` are for people; a secret is in neither."""

    action: str
    subject: str
    run: Callable[[], None] = field(repr=False, compare=False)
    difference: Difference = Difference.EXPORT_DIFFERS

    def __str__(self) -> str:
        return f"{self.action} {self.subject}"


@dataclass(frozen=True)
class Session:
    """An initiator that is logged in to a target now."""

    initiator: str
    address: str | None = None


@dataclass(frozen=True)
class Capabilities:
    """What a driver can do; a call that asks for more is refused with the driver's name in the message."""

    per_grant_mode: bool  # an initiator can have read-only access while another one writes
    ends_sessions: bool  # removing a grant also ends the initiator's live sessions
    grows: bool  # an export follows a device that has grown; else the next export of it has the new size


class TargetSilent(DriverError):
    """The target is there and does not answer. Each look asks it again; a start goes on without it."""

    @property
    def kind(self) -> str:
        return DriverError.__name__


class TargetDriver(ABC):
    """One kind of target on this host."""

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]

    #: Whether each step looks at what it did. Where it does not, the plan is made again to see that nothing is left.
    checks_steps: ClassVar[bool] = False

    #: The logical unit that holds a volume's data; connection info names it. Some targets keep 0 for a controller.
    lun: ClassVar[int] = 0

    def __init__(self, iqn_prefix: str, portals: Sequence[Portal]) -> None:
        self.iqn_prefix = iqn_prefix
        self.portals = tuple(portals)

    def start(self) -> None:  # noqa: B027 - most targets need nothing started
        """Bring up what the driver needs (a module, a process); adopt it where it already runs.

        Raises DriverError, saying what to install or load; TargetSilent where it runs and does not answer. After that
        the driver finishes its start by itself, once the target answers.
        """

    def stop(self) -> None:  # noqa: B027
        """Let go without touching exports: sessions outlive the daemon."""

    @abstractmethod
    def check_volume(self, volume: Volume) -> None:
        """Raise InvalidInput where this target could never export the volume (a comma in the path, say)."""

    def looking(self) -> TargetDriver:
        """This driver, for the length of one converge: it may remember what it has read until it changes something."""
        return self

    @abstractmethod
    def plan(self, want: Export) -> list[Step]:
        """The steps from what the target holds for this volume to ``want``, in order; empty when it is so."""

    def plan_revocation(self, want: Export) -> list[Step]:
        """The steps from what the target holds to no more access than ``want`` grants; empty when it is so.

        It may leave alone whatever else differs, which the next pass sees to: a driver that need not read all of an
        export to take a grant away says so here.
        """
        return self.plan(want)

    @abstractmethod
    def holds_device(self, volume: Volume) -> bool:
        """Whether the target has this volume's device open now."""

    @abstractmethod
    def list_exports(self) -> list[str]:
        """The target names under our prefix that are in the target, complete or not."""

    @abstractmethod
    def plan_removal(self, target_name: str) -> list[Step]:
        """The steps that remove an export of ours that no volume accounts for."""

    @abstractmethod
    def list_sessions(self, target_name: str) -> list[Session]:
        """Who is logged in to the target; empty where there is no such target."""

    def find_session(self, target_name: str, initiator: str) -> Session | None:
        """The session of one initiator, if it has one."""
        return next((found for found in self.list_sessions(target_name) if found.initiator == initiator), None)
