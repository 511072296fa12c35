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
from xml.sax.saxutils import quoteattr

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
        data, secret = connection.data, self._secret_file(connection)
        _write_private(secret, str(data["auth_password"]))
        portal = str(data["target_portal"])
        url = f"iscsi://{portal}/{data['target_iqn']}/{data['target_lun']}"
        key = f"volattach-{connection.name}"
        blockdev = {
            "driver": "iscsi",
            "node-name": _node_name(connection),
            "transport": "tcp",
            "portal": portal,
            "target": data["target_iqn"],
            "lun": data["target_lun"],
            "initiator-name": initiator_name(),
            "user": data["auth_username"],
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
    data = connection.data
    host, _, port = portal.rpartition(":")
    unit, user = f"{data['target_iqn']}/{data['target_lun']}", str(data["auth_username"])
    secret = f"volattach-{connection.name}"
    lines = [
        '<disk type="network" device="disk">',
        '  <driver name="qemu" type="raw" cache="none"/>',
        f'  <source protocol="iscsi" name={quoteattr(unit)}>',
        f"    <host name={quoteattr(host.strip('[]'))} port={quoteattr(port)}/>",
        f"    <auth username={quoteattr(user)}>",
        f'      <secret type="iscsi" usage={quoteattr(secret)}/>',
        "    </auth>",
        f"    <initiator><iqn name={quoteattr(initiator_name())}/></initiator>",
        "  </source>",
        '  <target dev="vda" bus="virtio"/>',
        *(["  <readonly/>"] if connection.mode == "ro" else []),
        f"  <serial>{connection.serial}</serial>",
        "</disk>",
    ]
    return "\n".join(lines)


def _write_private(path: Path, text: str) -> None:
    """A new file that its owner alone can read, in place of an older one."""
    scratch = path.with_suffix(".new")
    scratch.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(scratch, flags, 0o600), "w", encoding="ascii") as file:
        file.write(text)
    os.replace(scratch, path)
