"""The simulator passes the suite that real targets pass."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.drivers.contract import *  # noqa: F403 - the suite
from tests.drivers.contract import IQN_PREFIX, Breakage
from volattachd.drivers.base import TargetDriver
from volattachd.drivers.memory import MemoryDriver, SimulatedExport
from volattachd.errors import DriverError, InvalidInput
from volattachd.model import Device, Grant, Mode, Volume


class MemoryCase:
    """Initiators of the simulator; data goes straight to the backing file where the session allows it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.memory = MemoryDriver(IQN_PREFIX, [])
        self.driver: TargetDriver = self.memory
        self.breakages: Mapping[str, Breakage] = {
            "disabled": self._disable,
            "without its grant": self._drop_grant,
        }

    def _disable(self, volume: Volume, grant: Grant) -> None:
        self.memory.exports[volume.target_name].enabled = False

    def _drop_grant(self, volume: Volume, grant: Grant) -> None:
        self.memory.exports[volume.target_name].grants.clear()

    def new_volume(self, read_only: bool = False) -> Volume:
        path = self.directory / str(uuid.uuid4())
        path.write_bytes(bytes(65536))
        return Volume(
            id=path.name,
            path=str(path),
            device=Device("file", 65536, {}, False),
            multiattach=True,
            read_only=read_only,
            target_name=f"{IQN_PREFIX}:{path.name}",
            serial=path.name,
            created_at=0.0,
        )

    def login(self, volume: Volume, grant: Grant) -> bool:
        try:
            self.memory.login(volume.target_name, grant.initiator, grant.secret.username, grant.secret.password)
        except DriverError:
            return False
        return True

    def logout(self, volume: Volume, grant: Grant) -> None:
        self.memory.logout(volume.target_name, grant.initiator)

    def write(self, volume: Volume, grant: Grant, pattern: int) -> bool:
        export = self.memory.exports.get(volume.target_name)
        if export is None or export.sessions.get(grant.initiator) is not Mode.RW:
            return False
        with open(volume.path, "r+b") as store:
            store.write(bytes([pattern]) * 4096)
        return True

    def read(self, volume: Volume, grant: Grant, pattern: int) -> bool:
        export = self.memory.exports.get(volume.target_name)
        return export is not None and grant.initiator in export.sessions and self.stored(volume, pattern)

    def stored(self, volume: Volume, pattern: int) -> bool:
        with open(volume.path, "rb") as store:
            return store.read(4096) == bytes([pattern]) * 4096

    def identity(self, volume: Volume, grant: Grant) -> tuple[str, str]:
        assert self.login(volume, grant)
        self.logout(volume, grant)
        serial = self.memory.exports[volume.target_name].serial
        return serial, "6001405" + serial.replace("-", "")[:25]

    def restart(self) -> TargetDriver:
        self.memory = MemoryDriver(IQN_PREFIX, [], self.memory.exports)
        self.memory.start()
        self.driver = self.memory
        return self.driver

    def make_foreign(self) -> str:
        self.memory.exports["iqn.2001-04.com.example:foreign"] = SimulatedExport(os.devnull, "foreign")
        return "iqn.2001-04.com.example:foreign"

    def describe_foreign(self, name: str) -> str:
        return repr(self.memory.exports[name])


@pytest.fixture
def case(tmp_path: Path) -> MemoryCase:
    return MemoryCase(tmp_path)


def test_a_path_with_a_comma_is_refused(case: MemoryCase) -> None:
    volume = case.new_volume()
    with pytest.raises(InvalidInput, match="comma"):
        case.driver.check_volume(Volume(**{**vars(volume), "path": "/a,b"}))
    case.driver.check_volume(volume)
