"""The contract of a connector: what a third party implements, and what the contract suite checks.

A connector makes the device of a granted connection appear on this host, and go. Laws:

1. ``connect`` and ``disconnect`` may run again after the process died anywhere in them, and then give the rest of the
   way. Connecting what is connected gives the same device; disconnecting what is not does nothing.
2. A device is handed out only after it has been seen to be the volume, by what the medium itself says.
3. ``disconnect`` needs no connection info: an agent that comes after a crash has none. What is on this host is found
   by the volume's target name, path or id.
4. Without force, a device in use is refused with DeviceInUse before anything is changed, and what was written to it is
   at the target before it goes. With force it goes, and the answer says what was lost.
5. A secret is in no argument of a command, in no file that others can read, and in no message.
6. What comes from the daemon is in ``connection.volume`` and ``connection.info``, whose values are checked
   (``volattachd.agent.answers``). Data of a third party's own kind is only free of control characters: check the rest.
7. Foreign errors become those of ``volattachd.agent.errors`` at your boundary.
"""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from volattachd.agent.answers import ConnectionInfo, IscsiInfo, LocalInfo, VolumeInfo

Report = Callable[[str], None]


class Waiting(str):
    """A reported line that says what is waited for, and why: it is also for those who watch no steps."""

    __slots__ = ()


@dataclass(frozen=True)
class Connection:
    """One volume on this host. ``info`` is how to reach it; an agent that only disconnects has none.

    ``timeout`` is for how long the connector may wait for what may still come, in seconds; ``busy_timeout`` the same
    for what is certainly there and has others to serve first.
    """

    attachment_id: str
    volume: VolumeInfo
    mode: str = "rw"
    info: ConnectionInfo | None = field(default=None, repr=False)
    timeout: float = 60.0
    busy_timeout: float = 900.0

    @property
    def name(self) -> str:
        return self.volume.name

    @property
    def target_name(self) -> str:
        return self.volume.target_name

    @property
    def serial(self) -> str:
        return self.volume.serial

    @property
    def iscsi(self) -> IscsiInfo:
        """How to log in, for a connector of the kind iscsi."""
        assert isinstance(self.info, IscsiInfo)
        return self.info

    @property
    def local(self) -> LocalInfo:
        """The device, for a connector of the kind local."""
        assert isinstance(self.info, LocalInfo)
        return self.info


@dataclass(frozen=True)
class Device:
    """What a program can open, and what else it may want to know of it (in the answer's JSON)."""

    path: str
    details: Mapping[str, Any] = field(default_factory=dict)


class Connector(ABC):
    """One way to reach volumes from this host. ``report`` takes a line about what it waits for."""

    name: ClassVar[str]

    #: The ``driver_volume_type`` of the connection info that it takes.
    volume_type: ClassVar[str] = "iscsi"

    #: Whether this host has no session with the target any more once ``disconnect`` has returned. Then a session that
    #: the target still counts is one that it has not yet seen to be dead, and the agent waits until it has.
    ends_sessions: ClassVar[bool] = False

    def __init__(self, report: Report = lambda line: None) -> None:
        self.report = report

    @abstractmethod
    def get_connector(self, host: str) -> dict[str, Any]:
        """This host in Cinder's form, for initialize_connection. Raises ConnectorUnusable, saying what is missing."""

    @abstractmethod
    def connect(self, connection: Connection) -> Device:
        """The device of the volume, seen to be it. Raises ConnectFailed or WrongDevice; then it may be called again."""

    @abstractmethod
    def disconnect(self, connection: Connection, force: bool = False) -> list[str]:
        """Make the device go, and everything that ``connect`` made; the answer is what was lost by force."""


def describe_host(host: str, **members: Any) -> dict[str, Any]:
    """The members of Cinder's connector that are the same for every way, and those of one way."""
    general = {"host": host, "ip": own_address(), "platform": os.uname().machine, "os_type": "linux"}
    return {**general, "multipath": False, "do_local_attach": False, **members}


def own_address() -> str:
    """The address that this host uses towards others. Nothing is sent: the kernel is only asked for the route."""
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as asked:
            try:
                asked.connect((elsewhere, 9))
            except OSError:
                continue
            return str(asked.getsockname()[0])
    return "127.0.0.1"
