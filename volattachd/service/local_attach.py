"""Attachments of the daemon's own host: the device itself, without network and target.

Laws:

1. Who asks for it names this host, and the kept connector says what was answered: a host that is renamed later changes
   nothing about the attachments that it has.
2. A local attachment stands alone. The target would read and write past the host's cache, and each would lose what the
   other wrote; so of a multiattach volume too it is the only one.
3. It ends as another one does: not while the device is mounted or held, unless by force. What a program may do with
   a device that it can open is decided by the device's permissions; the daemon hands out its path and nothing more.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from typing import Any

from volattachd.errors import InvalidInput, InvalidVolume, SessionActive
from volattachd.host.devices import check_unused, verify_device
from volattachd.lifecycle import EXPORTED
from volattachd.model import LOCAL, VOLUME_TYPE, Attachment, Volume
from volattachd.reconcile.applier import DeviceUnusable


def is_local(connector: Mapping[str, Any]) -> bool:
    """Whether a connector asks for a local attachment, and is of this host."""
    return bool(connector.get("do_local_attach")) and connector.get("host") == socket.gethostname()


def was_local(connector: Mapping[str, Any]) -> bool:
    """The same of a connector as it was kept, whatever the host is called by now."""
    return connector.get(VOLUME_TYPE) == LOCAL or is_local(connector)


def kept_connector(connector: Mapping[str, Any], initiator: str | None) -> dict[str, Any]:
    """The connector as the attachment keeps it. Without an initiator it is local; no client can claim that."""
    rest = {key: value for key, value in connector.items() if key != VOLUME_TYPE}
    return {**rest, VOLUME_TYPE: LOCAL} if initiator is None else {**rest, "initiator": initiator}


def check_alone(volume: Volume, row: Attachment, local: bool, neighbours: Iterable[Attachment]) -> None:
    """Raise where a local attachment and another one would have the volume at the same time."""
    for other in neighbours:
        if other.id != row.id and other.state in EXPORTED and (local or other.local):
            raise InvalidVolume(
                f"cannot initialize_connection volume {volume.id!r}: attachment {other.id} is {other.state.value},"
                " and a local attachment stands alone",
                "detach that attachment first",
                attachments=[other.id],
            )


def check_device(volume: Volume) -> None:
    """Raise where the path no longer leads to the volume."""
    condition = verify_device(volume)
    if condition is not None:
        raise DeviceUnusable(volume, condition)


def check_released(volume: Volume) -> None:
    """Raise SessionActive while this host uses the device. One that is away is used by nobody."""
    try:
        check_unused(volume.path, volume.read_only, ())
    except InvalidInput as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return
        raise SessionActive(
            f"cannot terminate_connection volume {volume.id!r}: {error.message}",
            "release the device first; an admin may use force",
        ) from error
