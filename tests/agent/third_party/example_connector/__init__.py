"""A whole connector in a package of its own: a local volume under a name of the user's choice.

``$VOLATTACH_LINKS/VOLUME`` leads to the device while the volume is attached.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from volattachd.agent.connectors.base import Connection, Connector, Device, describe_host
from volattachd.agent.errors import ConnectorUnusable


class SymlinkConnector(Connector):
    """A symbolic link to the device of a volume on this host."""

    name = "symlink"
    volume_type = "local"

    def get_connector(self, host: str) -> dict[str, Any]:
        return describe_host(host, do_local_attach=True)

    def connect(self, connection: Connection) -> Device:
        link = self._link(connection)
        link.unlink(missing_ok=True)
        link.symlink_to(connection.local.path)
        return Device(str(link), {"serial": connection.serial})

    def disconnect(self, connection: Connection, force: bool = False) -> list[str]:
        self._link(connection).unlink(missing_ok=True)
        return []

    def _link(self, connection: Connection) -> Path:
        directory = os.environ.get("VOLATTACH_LINKS")
        if not directory:
            raise ConnectorUnusable("VOLATTACH_LINKS is not set", "name a directory for the links")
        return Path(directory, connection.name)
