"""QEMU's own initiator: no device on the host, no root. QEMU logs in itself, with what is handed out here.

The "device" is an ``iscsi://`` URL without a secret. ``details`` has what QEMU and libvirt take as it stands: the
options of ``-object`` and ``-blockdev``, and a ``<disk>``. The secret is in a file that its user alone can read, and is
only named there. Who runs QEMU as another user hands the file over; it goes with ``volattach detach``.

Whether QEMU still has the volume is the target's to know: terminate_connection refuses while it is logged in.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from volattachd.agent.connectors.base import Connection, Connector, Device, Report, describe_host
from volattachd.agent.runtime import runtime_directory

_MACHINE_ID = Path("/etc/machine-id")


class QemuConnector(Connector):
    """``iscsi://`` for QEMU and libvirt."""

    name = "qemu"

    def __init__(self, report: Report = lambda line: None, directory: Path | None = None) -> None:
        super().__init__(report)
        self._directory = directory

    def get_connector(self, host: str) -> dict[str, Any]:
        return describe_host(host, initiator=initiator_name())

    def connect(self, connection: Connection) -> Device:
        info, secret = connection.iscsi, self._secret_file(connection)
        _write_private(secret, info.password)
        portal = info.portals[0]
        url = f"iscsi://{portal}/{info.target_name}/{info.lun}"
        key = f"volattach-{connection.name}"
        blockdev = {
            "driver": "iscsi",
            "node-name": _node_name(connection),
            "transport": "tcp",
            "portal": portal,
            "target": info.target_name,
            "lun": info.lun,
            "initiator-name": initiator_name(),
            "user": info.username,
            "password-secret": key,
            "read-only": connection.mode == "ro",
            "cache": {"direct": True, "no-flush": False},
        }
        options = {
            "object": json.dumps({"qom-type": "secret", "id": key, "file": str(secret)}),
            "blockdev": json.dumps(blockdev),
            "secret_file": str(secret),
            "libvirt": _disk(connection, portal),
            "serial": connection.serial,
        }
        return Device(url, options)

    def disconnect(self, connection: Connection, force: bool = False) -> list[str]:
        self._secret_file(connection).unlink(missing_ok=True)
        return []

    def _secret_file(self, connection: Connection) -> Path:
        return (self._directory or runtime_directory()) / f"{connection.name}.secret"


def initiator_name(machine_id: Path = _MACHINE_ID) -> str:
    """A name for this user's QEMU on this host: always the same, another on each host, and telling nothing of it."""
    try:
        known = machine_id.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        known = socket.gethostname()  # no systemd: by its name the agent tells a host from others anyway
    digest = hashlib.sha256(f"volattachd qemu {known} {os.geteuid()}".encode()).hexdigest()
    return f"iqn.2026-11.org.volattachd:qemu.{digest[:24]}"


def _node_name(connection: Connection) -> str:
    """A name that QEMU takes: at most 31 characters, and a letter first."""
    return "v" + connection.serial.replace("-", "")[:25]


def _disk(connection: Connection, portal: str) -> str:
    """A ``<disk>`` for libvirt. Its secret is one of libvirt's own: it takes none from a file (see the manual)."""
    info = connection.iscsi
    host, _, port = portal.rpartition(":")
    disk = ElementTree.Element("disk", type="network", device="disk")
    ElementTree.SubElement(disk, "driver", name="qemu", type="raw", cache="none")
    source = ElementTree.SubElement(disk, "source", protocol="iscsi", name=f"{info.target_name}/{info.lun}")
    ElementTree.SubElement(source, "host", name=host.strip("[]"), port=port)
    auth = ElementTree.SubElement(source, "auth", username=info.username)
    ElementTree.SubElement(auth, "secret", type="iscsi", usage=f"volattach-{connection.name}")
    ElementTree.SubElement(ElementTree.SubElement(source, "initiator"), "iqn", name=initiator_name())
    ElementTree.SubElement(disk, "target", dev="vda", bus="virtio")
    if connection.mode == "ro":
        ElementTree.SubElement(disk, "readonly")
    ElementTree.SubElement(disk, "serial").text = connection.serial
    ElementTree.indent(disk)
    return ElementTree.tostring(disk, encoding="unicode")


def _write_private(path: Path, text: str) -> None:
    """A new file that its owner alone can read, in place of an older one."""
    scratch = path.with_suffix(".new")
    scratch.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(scratch, flags, 0o600), "w", encoding="ascii") as file:
        file.write(text)
    os.replace(scratch, path)
