"""The driver contract on the kernel's target: the suite that tgt and the simulator pass."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.drivers.contract import *  # noqa: F403 - the suite
from tests.drivers.contract import IQN_PREFIX, Breakage
from tests.drivers.initiator import LoginRefused, Session
from tests.guest.inside.initiator import Initiator, wwid
from tests.guest.inside.initiator import run as command
from tests.guest.inside.program import TARGET, configfs
from volattachd.drivers.base import Portal, TargetDriver
from volattachd.drivers.lio import LioDriver
from volattachd.errors import DriverError
from volattachd.model import Device, Export, Grant, Mode, Volume

GUEST = {"together": "calls"}

SIZE = 1 << 20
PORTAL = Portal(ip_address("127.0.0.1"), 3270)
FOREIGN = "iqn.2001-04.com.example:foreign"
BLOCK = 4096


class LioCase:
    """LIO on this guest's kernel."""

    def __init__(self, directory: Path, kind: str = "file") -> None:
        self.directory = directory
        self.kind = kind
        self.sessions: dict[tuple[str, str], Session] = {}
        self.loops: list[str] = []
        self.volumes: list[Volume] = []
        self.driver: TargetDriver
        self.restart()
        self.breakages: Mapping[str, Breakage] = self._breakages()

    def restart(self) -> TargetDriver:
        self.driver = LioDriver(IQN_PREFIX, [PORTAL])
        self.driver.start()
        return self.driver

    def new_volume(self, read_only: bool = False) -> Volume:
        path = self.directory / str(uuid.uuid4())
        with path.open("xb") as store:
            store.truncate(SIZE)
        device, name = str(path), path.name
        if self.kind == "block":
            device = command("losetup", "--find", "--show", device).stdout.strip()
            self.loops.append(device)
        made = Volume(
            id=name,
            path=device,
            device=Device(self.kind, SIZE, {}, discard=True),
            multiattach=True,
            read_only=read_only,
            target_name=f"{IQN_PREFIX}:{name}",
            serial=name,
            created_at=0.0,
        )
        self.volumes.append(made)
        return made

    def login(self, volume: Volume, grant: Grant) -> bool:
        try:
            session = Session(str(PORTAL), volume.target_name, 0, grant.initiator, grant.secret)
        except LoginRefused:
            return False
        self.logout(volume, grant)
        self.sessions[volume.id, grant.initiator] = session
        return True

    def logout(self, volume: Volume, grant: Grant) -> None:
        former = self.sessions.pop((volume.id, grant.initiator), None)
        if former is not None:
            former.logout()

    def write(self, volume: Volume, grant: Grant, pattern: int) -> bool:
        return self.sessions[volume.id, grant.initiator].write(bytes([pattern]) * BLOCK)

    def read(self, volume: Volume, grant: Grant, pattern: int) -> bool:
        return self.sessions[volume.id, grant.initiator].read(BLOCK) == bytes([pattern]) * BLOCK

    def stored(self, volume: Volume, pattern: int) -> bool:
        return (self.directory / volume.serial).read_bytes()[:BLOCK] == bytes([pattern]) * BLOCK

    def identity(self, volume: Volume, grant: Grant) -> tuple[str, str]:
        """As Linux's own initiator reads them."""
        host = Initiator(grant.initiator)
        secret = {"auth_username": grant.secret.username, "auth_password": grant.secret.password}
        info = {"data": {"target_iqn": volume.target_name, "target_portal": str(PORTAL), "target_lun": 0, **secret}}
        assert host.login(info)
        disk = host.disk(info)
        serial = Path("/sys/block", disk.name, "device/vpd_pg80").read_bytes()[4:].decode().rstrip("\0")
        seen = serial, wwid(disk).removeprefix("naa.")
        host.logout(info)
        return seen

    def make_foreign(self) -> str:
        (TARGET / "core/fileio_0/foreign").mkdir(parents=True)
        (TARGET / "iscsi" / FOREIGN / "tpgt_1").mkdir(parents=True)
        return FOREIGN

    def describe_foreign(self, name: str) -> str:
        return repr({path: value for path, value in configfs().items() if name in path or "/fileio_0" in path})

    def close(self) -> None:
        """Nothing of this test stays in the kernel."""
        for session in self.sessions.values():
            session.logout()
        for volume in self.volumes:
            for step in self.driver.plan(Export(volume, exported=False)):
                step.run()
        for path in (f"iscsi/{FOREIGN}/tpgt_1", f"iscsi/{FOREIGN}", "core/fileio_0/foreign", "core/fileio_0"):
            if (TARGET / path).exists():
                (TARGET / path).rmdir()
        for loop in self.loops:
            command("losetup", "-d", loop)

    # What breaks. Each leaves what a crash, targetcli or a person could leave.

    def _breakages(self) -> Mapping[str, Breakage]:
        attributes = {
            "authentication off": ("attrib/authentication", "0"),
            "anybody may log in": ("attrib/generate_node_acls", "1"),
            "disabled": ("enable", "0"),
            "another password": ("acls/{initiator}/auth/password", "another"),
            "no password": ("acls/{initiator}/auth/password", "NULL"),
            "another user": ("acls/{initiator}/auth/userid", "another"),
            "read-only": ("acls/{initiator}/lun_0/write_protect", "1"),
        }
        written = {what: self._writing(path, value) for what, (path, value) in attributes.items()}
        return {
            **written,
            "XCOPY on": lambda v, g: self._store(v, "attrib/emulate_3pc", "1"),
            "no mapping": lambda v, g: self._unmap(v, g, whole=False),
            "no mapped LUN": lambda v, g: self._unmap(v, g, whole=True),
            "mapped at another LUN": self._map_elsewhere,
            "a rogue ACL": lambda v, g: (self._tpg(v) / "acls/iqn.2026-11.com.example:rogue").mkdir(),
            "another LUN": lambda v, g: (self._tpg(v) / "lun/lun_1").mkdir(),
            "another portal": lambda v, g: (self._tpg(v) / "np/127.0.0.1:3271").mkdir(),
            "another portal group": lambda v, g: (self._tpg(v).parent / "tpgt_2").mkdir(),
            "no portal": lambda v, g: (self._tpg(v) / f"np/{PORTAL}").rmdir(),
            "no grant": self._remove_acl,
            "no target": self._remove_target,
            "a backstore that is not enabled": self._unconfigure,
            "a backstore of another device": self._swap_device,
            "a backstore of another serial": self._swap_serial,
            "nothing": lambda v, g: self._run_plan(Export(v, exported=False)),
        }

    def _tpg(self, volume: Volume) -> Path:
        return TARGET / "iscsi" / volume.target_name / "tpgt_1"

    def _writing(self, path: str, value: str) -> Callable[[Volume, Grant], None]:
        def write(volume: Volume, grant: Grant) -> None:
            (self._tpg(volume) / path.format(initiator=grant.initiator)).write_text(value)

        return write

    def _store(self, volume: Volume, attribute: str, value: str) -> None:
        [backstore] = TARGET.glob(f"core/*/volattach-{volume.serial}")
        (backstore / attribute).write_text(value)

    def _run_plan(self, want: Export) -> None:
        for step in self.driver.plan(want):
            step.run()

    def _unmap(self, volume: Volume, grant: Grant, *, whole: bool) -> None:
        mapped = self._tpg(volume) / "acls" / grant.initiator / "lun_0"
        (mapped / "lun").unlink()
        if whole:
            mapped.rmdir()

    def _map_elsewhere(self, volume: Volume, grant: Grant) -> None:
        self._unmap(volume, grant, whole=True)
        mapped = self._tpg(volume) / "acls" / grant.initiator / "lun_5"
        mapped.mkdir()
        (mapped / "lun").symlink_to(self._tpg(volume) / "lun/lun_0")

    def _remove_acl(self, volume: Volume, grant: Grant) -> None:
        self._unmap(volume, grant, whole=True)
        (self._tpg(volume) / "acls" / grant.initiator).rmdir()

    def _remove_target(self, volume: Volume, grant: Grant) -> None:
        for step in self.driver.plan(Export(volume, exported=False)):
            if "core/" not in step.subject.split(" ")[0]:
                step.run()

    def _unconfigure(self, volume: Volume, grant: Grant) -> None:
        self._run_plan(Export(volume, exported=False))
        names = LioDriver(IQN_PREFIX, [PORTAL]).names_of(volume)
        (TARGET / names.backstore).mkdir(parents=True)

    def _swap_device(self, volume: Volume, grant: Grant) -> None:
        self._run_plan(Export(volume, exported=False))
        other = replace(self.new_volume(), serial=volume.serial, target_name=volume.target_name)
        self._run_plan(Export(other, exported=True, grants=(grant,)))

    def _swap_serial(self, volume: Volume, grant: Grant) -> None:
        self._run_plan(Export(volume, exported=False))
        serial = volume.serial[:-12] + "0" * 12
        self._run_plan(Export(replace(volume, serial=serial), exported=True, grants=(grant,)))


@pytest.fixture
def case(tmp_path: Path) -> Iterator[LioCase]:
    made = LioCase(tmp_path)
    yield made
    made.close()


def test_a_block_device_is_exported_and_removed_step_by_step(tmp_path: Path) -> None:
    case = LioCase(tmp_path, "block")
    try:
        volume, grant = case.new_volume(), new_grant()  # noqa: F405
        check_each_prefix(case, None, Export(volume, True, (grant,)))  # noqa: F405
        assert case.login(volume, grant)
        assert case.write(volume, grant, 0x12)
        assert case.stored(volume, 0x12)
        check_each_prefix(case, (grant,), Export(volume, False))  # noqa: F405
    finally:
        case.close()


def test_a_drifted_password_is_mended_without_touching_the_session(case: LioCase) -> None:
    volume, grant = case.new_volume(), new_grant()  # noqa: F405
    converge(case, volume, grant)  # noqa: F405
    assert case.login(volume, grant)
    case.breakages["another password"](volume, grant)
    converge(case, volume, grant)  # noqa: F405
    assert case.write(volume, grant, 0x21), "the session is the same"


def test_the_kernels_own_words_come_back(case: LioCase) -> None:
    volume = case.new_volume()
    missing = replace(volume, path="/dev/missing", device=replace(volume.device, kind="block"))
    steps = case.driver.plan(Export(missing, exported=True))
    with pytest.raises(DriverError, match="No such file or directory"):
        for step in steps:
            step.run()
    for step in case.driver.plan(Export(missing, exported=False)):
        step.run()


def test_a_comma_in_a_path_is_refused(case: LioCase) -> None:
    from volattachd.errors import InvalidInput

    with pytest.raises(InvalidInput, match="comma"):
        case.driver.check_volume(replace(case.new_volume(), path="/a,b"))


def test_a_read_only_grant_is_read_only_from_its_first_moment(case: LioCase) -> None:
    volume, grant = case.new_volume(), new_grant(mode=Mode.RO)  # noqa: F405
    steps = [str(step) for step in case.driver.plan(Export(volume, True, (grant,)))]
    protect = next(i for i, step in enumerate(steps) if step.endswith("write_protect = 1"))
    password = next(i for i, step in enumerate(steps) if step.endswith("(secret)"))
    assert protect < password
