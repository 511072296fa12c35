"""What the calls show of a volume, an attachment and a connection: plain dictionaries, and no secret but one.

The connection info is the one answer that carries CHAP credentials: it goes to the caller that connects.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from volattachd.drivers.base import Portal
from volattachd.lifecycle import status_of
from volattachd.model import LOCAL, Attachment, Condition, State, Volume


def volume_view(volume: Volume, attachments: Sequence[Attachment], conditions: Iterable[Condition]) -> dict[str, Any]:
    """A volume as the calls show it."""
    return {
        "volume": volume.id,
        "path": volume.path,
        "size": volume.size,
        "status": status_of(attachments).value,
        "multiattach": volume.multiattach,
        "read_only": volume.read_only,
        "target_name": volume.target_name,
        "serial": volume.serial,
        "conditions": [vars(condition) for condition in conditions],
        "attachments": [attachment.id for attachment in attachments],
    }


def attachment_view(attachment: Attachment) -> dict[str, Any]:
    """An attachment as the calls show it."""
    return {
        "attachment_id": attachment.id,
        "volume": attachment.volume,
        "state": attachment.state.value,
        "mode": attachment.mode.value,
        "owner": attachment.owner,
        "connector": None if attachment.connector is None else dict(attachment.connector),
        "instance_uuid": attachment.instance_uuid,
        "host_name": attachment.host_name,
        "mount_point": attachment.mount_point,
        "created_at": attachment.created_at,
        "updated_at": attachment.updated_at,
    }


def gone_view(last_seen: dict[str, Any]) -> dict[str, Any]:
    """An attachment that has ended, from the last that the history saw of it."""
    return {**last_seen, "state": State.GONE.value}


def connection_view(
    volume: Volume, attachment: Attachment, portals: Sequence[Portal], lun: int, with_secret: bool = True
) -> dict[str, Any]:
    """Connection info, field for field what os-brick takes: for its ISCSIConnector, or for its LocalConnector.

    Without the secret, for a caller that the attachment does not belong to, the password is null.
    """
    if attachment.local:
        return {"driver_volume_type": LOCAL, "attachment_id": attachment.id, "data": _local_data(volume, attachment)}
    assert attachment.secret is not None and attachment.connector is not None
    data: dict[str, Any] = {
        "target_discovered": False,
        "target_portal": str(portals[0]),
        "target_iqn": volume.target_name,
        "target_lun": lun,
        "volume_id": volume.id,
        "auth_method": "CHAP",
        "auth_username": attachment.secret.username,
        "auth_password": attachment.secret.password if with_secret else None,
        "encrypted": False,
        "qos_specs": None,
        "access_mode": attachment.mode.value,
        "discard": volume.device.discard,
    }
    if attachment.connector.get("multipath") or len(portals) > 1:
        data["target_portals"] = [str(portal) for portal in portals]
        data["target_iqns"] = [volume.target_name] * len(portals)
        data["target_luns"] = [lun] * len(portals)
    return {"driver_volume_type": "iscsi", "attachment_id": attachment.id, "data": data}


def _local_data(volume: Volume, attachment: Attachment) -> dict[str, Any]:
    return {
        "device_path": volume.path,
        "volume_id": volume.id,
        "encrypted": False,
        "qos_specs": None,
        "access_mode": attachment.mode.value,
        "discard": volume.device.discard,
    }
