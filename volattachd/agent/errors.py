"""What can go wrong between a connection that the daemon granted and a device that a program can use.

Each is a kind of the error that asks the same of its caller, so exit codes and ``except`` clauses need no second table:

    InvalidInput
    └── ConnectorUnusable   this host cannot use the connector: install what is missing, or name another one
    InvalidVolume
    └── AttachedElsewhere   another host has the volume: detach it there, or use force
    SessionActive
    └── DeviceInUse         something on this host uses the device: end that, or use force
    DriverError
    ├── ConnectFailed       the device did not appear, or does not go: mend what is named, then try again
    │   └── PortalSilent    a login ran out of time
    │       └── PortalBusy  the portal had accepted the connection: it is alive
    └── WrongDevice         what appeared is not the volume, and was not handed out
    BadAnswer (of the client)
    └── UntrustedAnswer     a value of the daemon's answer does not fit its grammar, and was not used
"""

from __future__ import annotations

from volattachd.client.protocol import BadAnswer
from volattachd.errors import DriverError, InvalidInput, InvalidVolume, SessionActive


class ConnectorUnusable(InvalidInput):
    """This host, or this user, lacks what the connector needs; or there is no such connector."""


class AttachedElsewhere(InvalidVolume):
    """The volume's attachment belongs to another host."""


class DeviceInUse(SessionActive):
    """The device is mounted, held or open on this host."""


class ConnectFailed(DriverError):
    """The initiator, the network or the kernel refused; the message has their words."""


class PortalSilent(ConnectFailed):
    """A login ran out of time: the portal is dead, or busy with other logins. It may be tried again."""


class PortalBusy(PortalSilent):
    """The portal accepted the connection and did not come to the login in time: it serves others first."""


class WrongDevice(DriverError):
    """A device appeared, but it says that it is another volume."""


class UntrustedAnswer(BadAnswer):
    """The daemon answered with a value that cannot be one, or about something else than it was asked for."""
