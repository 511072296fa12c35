"""A connector for tests: its devices are files in a directory. It also stands for a third party's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from volattachd.agent.connectors.base import Connection, Connector, Device, describe_host
from volattachd.agent.errors import ConnectFailed, DeviceInUse


class PlainConnector(Connector):
    """``directory`` is the host: a file for each device that is there, and ``NAME.used`` where somebody uses it."""

    name = "plain"

    def __init__(self, directory: Path, initiator: str = "iqn.2026-11.com.example:plain") -> None:
        super().__init__()
        self.directory = directory
        self.initiator = initiator
        self.fails: Exception | None = None
        self.lacks: Exception | None = None

    def get_connector(self, host: str) -> dict[str, Any]:
        if self.lacks:
            raise self.lacks
        return describe_host(host, initiator=self.initiator, ip="127.0.0.1")

    def connect(self, connection: Connection) -> Device:
        if self.fails:
            raise self.fails
        if connection.iscsi.target_name != connection.target_name:
            raise ConnectFailed("no such target")
        path = self.directory / connection.name
        path.write_text(connection.serial)
        return Device(str(path))

    def disconnect(self, connection: Connection, force: bool = False) -> list[str]:
        path = self.directory / connection.name
        used = path.with_suffix(".used")
        if path.exists() and used.exists() and not force:
            raise DeviceInUse(f"{path} is mounted")
        lost = [f"{path} is mounted"] if path.exists() and used.exists() else []
        path.unlink(missing_ok=True)
        return lost
