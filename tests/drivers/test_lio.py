"""The lio driver over a directory tree that behaves as LIO's configfs does.

The tree knows what the driver relies on: which objects bring children of their own, what cannot be removed yet, what
an attribute reads back as. The same suite runs on a real kernel in guests; here every operation can be made to fail.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from itertools import product
from pathlib import Path

import pytest

from tests.drivers.contract import *  # noqa: F403 - the suite
from tests.drivers.contract import HOST_A, HOST_B, IQN_PREFIX, Breakage, new_grant, run
from volattachd.drivers.base import Portal, Step, TargetDriver
from volattachd.drivers.configfs.tree import ConfigFs
from volattachd.drivers.lio import LioDriver, PortalTurn, load_module
from volattachd.errors import DriverError, InvalidInput
from volattachd.model import Device, Export, Grant, Mode, Volume

PORTALS = (Portal(ip_address("127.0.0.1")), Portal(ip_address("2001:db8::1"), 3261))
FOREIGN = "iqn.2001-04.com.example:foreign"
SERIAL_PREFIX = "T10 VPD Unit Serial Number: "
NO_SESSION = "No active iSCSI Session for Initiator Endpoint"

#: What the kernel makes below an object that mkdir made, by the object's depth and place.
BACKSTORE = {
    "attrib/emulate_tpu": "0",
    "attrib/emulate_3pc": "1",
    "attrib/emulate_write_cache": "1",
    "control": "",
    "udev_path": "",
    "enable": "0",
    "info": "",
    "wwn/vpd_unit_serial": SERIAL_PREFIX,
}
TPG = {
    **{f"attrib/{name}": "0" for name in ("authentication", "generate_node_acls", "demo_mode_discovery")},
    **{f"attrib/{name}": "1" for name in ("cache_dynamic_acls", "prod_mode_write_protect", "demo_mode_write_protect")},
    "enable": "0",
}
ACL = {"auth/userid": "", "auth/password": "", "cmdsn_depth": "64", "info": NO_SESSION}


class Kernel(ConfigFs):
    """LIO's tree in a plain directory. ``before`` is called with each change before it happens."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        (root / "core").mkdir(parents=True, exist_ok=True)
        self.before: Callable[[str, str], None] = lambda action, path: None
        self.opens: Callable[[str], str] = lambda path: path  # what a backstore opens for a path
        self.keeps: Callable[[str, str], str] = lambda path, value: value  # what an attribute is after a write
        self.made: set[str] = set()
        self.links: dict[str, str] = {}

    def make_dir(self, path: str) -> None:
        self.before("mkdir", path)
        os.mkdir(self._path(path))
        self.made.add(path)
        for name, value in self._children(path).items():
            child = Path(self._path(path), name)
            child.parent.mkdir(parents=True, exist_ok=True)
            child.write_text(value + "\n")
        if path.split("/")[0] == "iscsi" and path.count("/") == 2:
            for name in ("acls", "np", "lun"):
                os.mkdir(self._path(f"{path}/{name}"))

    @staticmethod
    def _children(path: str) -> dict[str, str]:
        words = path.split("/")
        if words[0] == "core":
            if len(words) == 2:
                plugin, _, index = words[1].rpartition("_")
                if plugin not in ("iblock", "fileio") or not 0 <= int(index) < 1 << 31:
                    raise OSError(errno.EINVAL, "Invalid argument")
            return BACKSTORE if len(words) == 3 else {}
        if len(words) == 3:
            return TPG
        if len(words) == 5 and words[3] == "acls":
            return ACL
        return {"write_protect": "0"} if len(words) == 6 else {}

    def remove_dir(self, path: str) -> None:
        self.before("rmdir", path)
        if path not in self.made:
            raise OSError(errno.EPERM if os.path.isdir(self._path(path)) else errno.ENOENT, "no such object")
        if any(name.startswith(path + "/") for name in (*self.made, *self.links)):
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        if path in self.links.values():
            raise OSError(errno.EBUSY, "Device or resource busy")
        shutil.rmtree(self._path(path))
        self.made.discard(path)

    def make_link(self, path: str, target: str) -> None:
        self.before("link", path)
        if target not in self.made:
            raise OSError(errno.ENOENT, "No such file or directory")
        if target.startswith("core/") and self.read(f"{target}/enable") != "1":
            raise OSError(errno.ENODEV, "No such device")
        os.symlink(self._path(target), self._path(path))
        self.links[path] = target

    def remove_link(self, path: str) -> None:
        self.before("unlink", path)
        os.unlink(self._path(path))
        del self.links[path]

    def write_and_read(self, path: str, value: str) -> str:
        self.write(path, value)
        return self.read(path)

    def write(self, path: str, value: str) -> None:
        self.before("write", path)
        assert "\n" not in value, "the kernel would keep the newline"
        if not os.path.exists(self._path(path)):
            raise OSError(errno.ENOENT, "No such file or directory")
        owner = path.rpartition("/")[0]
        if path.endswith("/wwn/vpd_unit_serial"):
            if owner.removesuffix("/wwn") in self.links.values():
                raise OSError(errno.EINVAL, "Invalid argument")
            value = SERIAL_PREFIX + value
        elif path.startswith("core/") and path.endswith("/enable"):
            self._open(owner)
        elif path.endswith("/tpgt_1/enable") and value == "0":
            for acl in self.list_dirs(f"{owner}/acls"):  # disabling drops the sessions
                Path(self._path(f"{owner}/acls/{acl}/info")).write_text(NO_SESSION + "\n")
        elif path.endswith("/cmdsn_depth") and value != self.read(path):  # so does another depth, in one ACL
            Path(self._path(f"{owner}/info")).write_text(NO_SESSION + "\n")
        Path(self._path(path)).write_text(self.keeps(path, value) + "\n")

    def _open(self, store: str) -> None:
        if self.read(f"{store}/enable") == "1":
            raise OSError(errno.EEXIST, "File exists")
        options = dict(word.split("=", 1) for word in self.read(f"{store}/control").split(","))
        name = options.get("fd_dev_name") or options.get("udev_path")
        if name is None:
            raise OSError(errno.EINVAL, "Invalid argument")
        os.stat(name)
        opened = self.opens(name)
        kind = "fd_dev_name" in options
        told = f"File: {opened}  Size: {os.path.getsize(name)}  Mode: O_DSYNC Async: 0"
        block = f"iBlock device: x  UDEV PATH: {opened}  readonly: 0\n        Major: 0 Minor: 0  CLAIMED: IBLOCK"
        Path(self._path(f"{store}/info")).write_text(f"Status: ACTIVATED\n        {told if kind else block}\n")


class LioCase:
    """LIO over such a tree; an initiator sees what the tree would let it see."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kernel = Kernel(directory / "target")
        self.driver: TargetDriver
        self.restart()
        self.breakages: Mapping[str, Breakage] = {
            name: lambda volume, grant, path=path, value=value: self._set(volume, grant, path, value)
            for name, path, value in (
                ("disabled", "enable", "0"),
                ("open to everybody", "attrib/authentication", "0"),
                ("with generated ACLs", "attrib/generate_node_acls", "1"),
                ("with another user name", "acls/{0}/auth/userid", "other"),
                ("with another password", "acls/{0}/auth/password", "other"),
                ("without a password", "acls/{0}/auth/password", ""),
                ("write-protected", "acls/{0}/lun_0/write_protect", "1"),
            )
        } | {
            "without its mapping": self._unmap,
            "without a portal": self._drop_portal,
            "without its target": self._drop,
        }

    def _tpg(self, volume: Volume) -> str:
        return f"iscsi/{volume.target_name}/tpgt_1"

    def _set(self, volume: Volume, grant: Grant, path: str, value: str) -> None:
        self.kernel.write(f"{self._tpg(volume)}/{path.format(grant.initiator)}", value)

    def _unmap(self, volume: Volume, grant: Grant) -> None:
        self.kernel.remove_link(f"{self._tpg(volume)}/acls/{grant.initiator}/lun_0/lun")

    def _drop_portal(self, volume: Volume, grant: Grant) -> None:
        self.kernel.remove_dir(f"{self._tpg(volume)}/np/{PORTALS[1]}")

    def _drop(self, volume: Volume, grant: Grant) -> None:
        run([step for step in self.driver.plan_removal(volume.target_name) if "iscsi/" in str(step)])

    def restart(self) -> TargetDriver:
        self.driver = LioDriver(IQN_PREFIX, PORTALS, self.kernel)
        self.driver.start()
        return self.driver

    def new_volume(self, read_only: bool = False) -> Volume:
        path = self.directory / str(uuid.uuid4())
        path.write_bytes(bytes(65536))
        return Volume(
            id=path.name,
            path=str(path),
            device=Device("file", 65536, {}, True),
            multiattach=True,
            read_only=read_only,
            target_name=f"{IQN_PREFIX}:{path.name}",
            serial=path.name,
            created_at=0.0,
        )

    def login(self, volume: Volume, grant: Grant) -> bool:
        fs, tpg = self.kernel, self._tpg(volume)
        acl = f"{tpg}/acls/{grant.initiator}"
        secret = grant.secret.username, grant.secret.password
        if not fs.is_dir(acl) or fs.read(f"{tpg}/enable") != "1" or fs.read(f"{tpg}/attrib/authentication") != "1":
            return False
        if "" in secret or (fs.read(f"{acl}/auth/userid"), fs.read(f"{acl}/auth/password")) != secret:
            return False
        told = "LIO Session ID: 1\nCID: 0  Connection State: TARG_CONN_STATE_LOGGED_IN\n   Address 192.0.2.9 TCP\n"
        Path(fs._path(f"{acl}/info")).write_text(told)
        return True

    def logout(self, volume: Volume, grant: Grant) -> None:
        info = Path(self.kernel._path(f"{self._tpg(volume)}/acls/{grant.initiator}/info"))
        if info.exists():
            info.write_text(NO_SESSION + "\n")

    def _mapped(self, volume: Volume, grant: Grant) -> bool:
        """Whether the session lives and leads to the volume's own file."""
        fs, tpg = self.kernel, self._tpg(volume)
        if grant.initiator not in [session.initiator for session in self.driver.list_sessions(volume.target_name)]:
            return False
        lun = fs.read_link(f"{tpg}/acls/{grant.initiator}/lun_0/lun")
        store = fs.read_link(f"{lun}/backstore")
        return f"File: {volume.path} " in fs.read(f"{store}/info")

    def write(self, volume: Volume, grant: Grant, pattern: int) -> bool:
        protection = f"{self._tpg(volume)}/acls/{grant.initiator}/lun_0/write_protect"
        if not self._mapped(volume, grant) or self.kernel.read(protection) != "0":
            return False
        with open(volume.path, "r+b") as store:
            store.write(bytes([pattern]) * 4096)
        return True

    def read(self, volume: Volume, grant: Grant, pattern: int) -> bool:
        return self._mapped(volume, grant) and self.stored(volume, pattern)

    def stored(self, volume: Volume, pattern: int) -> bool:
        with open(volume.path, "rb") as store:
            return store.read(4096) == bytes([pattern]) * 4096

    def identity(self, volume: Volume, grant: Grant) -> tuple[str, str]:
        store = self.kernel.read_link(f"{self._tpg(volume)}/lun/lun_0/backstore")
        serial = self.kernel.read(f"{store}/wwn/vpd_unit_serial").removeprefix(SERIAL_PREFIX)
        return serial, "6001405" + serial.replace("-", "")[:25]

    def make_foreign(self) -> str:
        for path in ("core/fileio_0", "core/fileio_0/foreign", f"iscsi/{FOREIGN}", f"iscsi/{FOREIGN}/tpgt_1"):
            self.kernel.make_dir(path)
        return FOREIGN

    def describe_foreign(self, name: str) -> str:
        root = Path(self.kernel.root)
        paths = [*sorted((root / "core/fileio_0").rglob("*")), *sorted((root / "iscsi" / name).rglob("*"))]
        return repr([(str(path), path.read_text() if path.is_file() else None) for path in paths])


@pytest.fixture
def case(quick_path: Path) -> LioCase:
    return LioCase(quick_path)


def grants(*hosts: str) -> tuple[Grant, ...]:
    return tuple(new_grant(host) for host in hosts)


# Names.


def test_names_follow_from_the_volume_and_belong_to_no_other(case: LioCase) -> None:
    driver = case.driver
    assert isinstance(driver, LioDriver)
    seen = set()
    for number in range(2000):
        serial = str(uuid.UUID(int=number << 100 | 0x4000 << 64))
        volume = replace(case_volume(), serial=serial, target_name=f"{IQN_PREFIX}:v.{serial[:8]}")
        names = driver.names_of(volume)
        assert names == driver.names_of(volume)
        plugin, _, index = names.hba.removeprefix("core/").rpartition("_")
        assert (plugin, 1 << 30 <= int(index) < 1 << 31) == ("fileio", True)
        assert names.backstore == f"{names.hba}/volattach-v.{serial[:8]}"
        seen.add(names.hba)
    assert len(seen) == 2000


@pytest.mark.parametrize(("digits", "index"), [("0000000", 1 << 30), ("fffffff", (1 << 30) + (1 << 28) - 1)])
def test_the_index_of_an_hba_is_above_targetclis_and_fits_the_kernel(case: LioCase, digits: str, index: int) -> None:
    driver = case.driver
    assert isinstance(driver, LioDriver)
    volume = replace(case_volume(), serial=f"{digits}0-0000-4000-8000-000000000000")
    assert driver.names_of(volume).hba == f"core/fileio_{index}"
    block = replace(volume, device=Device("block", 512, {}, True))
    assert driver.names_of(block).hba == f"core/iblock_{index}"


def case_volume() -> Volume:
    return Volume("v", "/srv/v", Device("file", 512, {}, True), False, False, f"{IQN_PREFIX}:v", "0" * 36, 0.0)


@pytest.mark.parametrize("path", ["/a,b", "/,", "/a\nb", "/a\n", "/" + "a" * 255, "/" + "é" * 128])
def test_a_path_that_lio_would_read_otherwise_is_refused(case: LioCase, path: str) -> None:
    with pytest.raises(InvalidInput, match="cannot export"):
        case.driver.check_volume(replace(case_volume(), path=path))


@pytest.mark.parametrize("path", ["/a", "/a b", "/a=b", "/" + "a" * 254, "/" + "é" * 127])
def test_a_path_that_lio_reads_as_it_is_may_be_taken(case: LioCase, path: str) -> None:
    case.driver.check_volume(replace(case_volume(), path=path))


# Plans.

BEFORE = [None, (HOST_A,), (HOST_B,), (HOST_A, HOST_B)]


@pytest.mark.parametrize(("before", "after"), list(product(BEFORE, BEFORE)))
def test_a_plan_takes_access_away_first_and_opens_it_last(
    case: LioCase, before: tuple[str, ...] | None, after: tuple[str, ...] | None
) -> None:
    volume = case.new_volume()
    if before is not None:
        run(case.driver.plan(Export(volume, True, grants(*before))))
    words = [str(step) for step in case.driver.plan(Export(volume, after is not None, grants(*(after or ()))))]
    actions = [word.partition(" ")[0] for word in words]
    removals = [n for n, action in enumerate(actions) if action in ("rmdir", "unlink")]
    additions = [n for n, action in enumerate(actions) if action in ("mkdir", "link")]
    assert not removals or not additions or max(removals) < min(additions)
    opening = [n for n, word in enumerate(words) if word.endswith("/tpgt_1/enable = 1")]
    assert len(opening) == (after is not None and before is None)
    if opening:
        assert opening == [len(words) - 1]
    for host in after or ():
        mine = [word for word in words if f"/acls/{host}" in word]
        assert (
            not mine or "/auth/password = (secret)" in [w for w in mine if "rmdir" not in w and "unlink" not in w][-1]
        )
    if after is None and before is not None:
        assert words[0].endswith("/tpgt_1/enable = 0")
        assert words[-1].startswith("rmdir core/")


@pytest.mark.parametrize(("before", "after"), list(product(BEFORE, BEFORE)))
def test_whichever_operation_fails_it_is_told_and_planning_again_goes_the_rest_of_the_way(
    case: LioCase, before: tuple[str, ...] | None, after: tuple[str, ...] | None
) -> None:
    first = Export(case.new_volume(), before is not None, grants(*(before or ())))
    want = Export(first.volume, after is not None, grants(*(after or ())))
    failing, failed = 0, True
    while failed:
        case.kernel.before = lambda action, path: None
        run(case.driver.plan(first))
        left = failing
        failed = False

        def fail(action: str, path: str) -> None:
            nonlocal left, failed
            left -= 1
            if left == -1:
                failed = True
                raise OSError(errno.EIO, "Input/output error")

        case.kernel.before = fail
        try:
            run(case.driver.plan(want))
        except DriverError as error:
            assert error.message.startswith("cannot ")
            assert error.message.endswith(": Input/output error (EIO)")
        assert failed or left >= 0
        case.kernel.before = lambda action, path: None
        run(case.restart().plan(want))
        assert case.driver.plan(want) == []
        failing += 1


def test_a_healthy_export_sees_no_write_at_all(case: LioCase) -> None:
    want = Export(case.new_volume(), True, grants(HOST_A, HOST_B))
    run(case.driver.plan(want))

    def refuse(action: str, path: str) -> None:
        raise AssertionError(f"{action} {path}")

    case.kernel.before = refuse
    assert case.restart().plan(want) == []


def test_every_portal_is_made_and_one_that_is_not_ours_is_removed(case: LioCase) -> None:
    volume = case.new_volume()
    want = Export(volume, True, grants(HOST_A))
    run(case.driver.plan(want))
    portals = f"iscsi/{volume.target_name}/tpgt_1/np"
    assert case.kernel.list_dirs(portals) == sorted(map(str, PORTALS))
    case.kernel.make_dir(f"{portals}/192.0.2.99:3260")
    run(case.driver.plan(want))
    assert case.kernel.list_dirs(portals) == sorted(map(str, PORTALS))


@pytest.mark.parametrize("mode", Mode)
def test_the_mode_is_enforced_by_the_mapping(case: LioCase, mode: Mode) -> None:
    volume, grant = case.new_volume(), new_grant(mode=mode)
    run(case.driver.plan(Export(volume, True, (grant,))))
    path = f"iscsi/{volume.target_name}/tpgt_1/acls/{grant.initiator}/lun_0/write_protect"
    assert case.kernel.read(path) == ("1" if mode is Mode.RO else "0")


@pytest.mark.parametrize("discard", [True, False])
def test_what_must_not_depend_on_the_kernels_defaults_is_set(case: LioCase, discard: bool) -> None:
    volume = case.new_volume()
    volume = replace(volume, device=replace(volume.device, discard=discard))
    run(case.driver.plan(Export(volume, True)))
    driver = case.driver
    assert isinstance(driver, LioDriver)
    store, tpg = driver.names_of(volume).backstore, f"iscsi/{volume.target_name}/tpgt_1/attrib"
    read = case.kernel.read
    assert read(f"{store}/attrib/emulate_tpu") == ("1" if discard else "0")
    assert read(f"{store}/attrib/emulate_3pc") == "0"
    assert read(f"{store}/attrib/emulate_write_cache") == "0"
    assert (read(f"{tpg}/authentication"), read(f"{tpg}/generate_node_acls")) == ("1", "0")


def test_a_device_that_lio_opened_instead_is_an_error(case: LioCase) -> None:
    case.kernel.opens = lambda path: path + "x"
    with pytest.raises(DriverError, match=r"LIO opened '.*x' instead"):
        run(case.driver.plan(Export(case.new_volume(), True)))


def test_a_value_that_the_kernel_does_not_keep_is_an_error_that_tells_no_secret(case: LioCase) -> None:
    """Each that is written, but ``control``: it cannot be read, and what it says is looked at in ``info``."""
    grant = new_grant(HOST_A)
    want = Export(case.new_volume(), True, (grant,))
    written = [step.subject.partition(" = ")[0] for step in case.driver.plan(want) if step.action == "write"]
    assert len(written) > 12
    for path in [path for path in written if not path.endswith("/control")]:
        case.kernel.keeps = lambda at, value, path=path: "cut" if at == path else value  # type: ignore[misc]
        with pytest.raises(DriverError, match=r"did not keep|as its serial") as raised:
            run(case.driver.plan(want))
        assert grant.secret.password not in raised.value.message
        case.kernel.keeps = lambda at, value: value
        run(case.driver.plan(replace(want, exported=False)))


def test_a_device_that_is_not_there_is_told_in_the_kernels_words(case: LioCase) -> None:
    volume = case.new_volume()
    os.unlink(volume.path)
    with pytest.raises(DriverError, match=r"cannot write core/.*/enable = 1: .*\(ENOENT\)"):
        run(case.driver.plan(Export(volume, True)))


@pytest.mark.parametrize("what", ["serial", "path"])
def test_what_cannot_be_changed_while_exported_is_built_anew(case: LioCase, what: str) -> None:
    volume, grant = case.new_volume(), new_grant()
    run(case.driver.plan(Export(volume, True, (grant,))))
    driver = case.driver
    assert isinstance(driver, LioDriver)
    store = driver.names_of(volume).backstore
    attribute = {"serial": "wwn/vpd_unit_serial", "path": "info"}[what]
    Path(case.kernel._path(f"{store}/{attribute}")).write_text("File: /other  Size: 1  Mode: x\n")
    run(driver.plan(Export(volume, True, (grant,))))
    assert driver.plan(Export(volume, True, (grant,))) == []
    assert case.identity(volume, grant)[0] == volume.serial
    assert case.login(volume, grant)
    assert case.read(volume, grant, 0)


# What is not ours.


@pytest.mark.parametrize("name", [FOREIGN, "x", "", IQN_PREFIX, f"{IQN_PREFIX}.sub:x", f"x{IQN_PREFIX}:x"])
def test_a_target_without_our_prefix_is_never_removed(case: LioCase, name: str) -> None:
    with pytest.raises(DriverError, match="it is not ours"):
        case.driver.plan_removal(name)


@pytest.mark.parametrize("hba", ["fileio_0", "iblock_1", f"fileio_{(1 << 30) - 1}"])
def test_an_hba_below_our_range_is_not_ours_whatever_is_in_it(case: LioCase, hba: str) -> None:
    case.kernel.make_dir(f"core/{hba}")
    case.kernel.make_dir(f"core/{hba}/volattach-x")
    assert case.driver.list_exports() == []
    assert case.driver.plan_removal(f"{IQN_PREFIX}:x") == []


def test_a_backstore_without_a_target_is_listed_and_removed(case: LioCase) -> None:
    """A crash between the two."""
    case.kernel.make_dir(f"core/fileio_{1 << 30}")
    case.kernel.make_dir(f"core/fileio_{1 << 30}/volattach-x")
    assert case.driver.list_exports() == [f"{IQN_PREFIX}:x"]
    run(case.driver.plan_removal(f"{IQN_PREFIX}:x"))
    assert case.kernel.list_dirs("core") == []


def test_a_session_tells_its_address_and_one_that_is_ending_is_none(case: LioCase) -> None:
    volume, grant = case.new_volume(), new_grant()
    run(case.driver.plan(Export(volume, True, (grant,))))
    assert case.login(volume, grant)
    (session,) = case.driver.list_sessions(volume.target_name)
    assert (session.initiator, session.address) == (grant.initiator, "192.0.2.9")
    info = Path(case.kernel._path(f"iscsi/{volume.target_name}/tpgt_1/acls/{grant.initiator}/info"))
    info.write_text(info.read_text().replace("LOGGED_IN", "IN_LOGOUT"))
    assert case.driver.list_sessions(volume.target_name) == []
    assert case.driver.list_sessions(f"{IQN_PREFIX}:none") == []


# Revocations, and logins that are under way.


def shown(case: LioCase, volume: Volume, steps: list[Step]) -> list[str]:
    """The steps, with what all of a portal group's paths begin with left out."""
    return [str(step).replace(f"iscsi/{volume.target_name}/tpgt_1/", "") for step in steps]


@pytest.fixture
def turn() -> PortalTurn:
    return PortalTurn(patience=0.05)


def test_the_last_grant_goes_behind_a_closed_door_and_its_acl_after_the_portals(case: LioCase) -> None:
    volume = case.new_volume()
    run(case.driver.plan(Export(volume, True, grants(HOST_A))))
    assert shown(case, volume, case.driver.plan_revocation(Export(volume, True))) == [
        "write enable = 0",
        f"unlink acls/{HOST_A}/lun_0/lun",
        f"rmdir acls/{HOST_A}/lun_0",
        *(f"rmdir np/{portal}" for portal in sorted(map(str, PORTALS))),
        f"rmdir acls/{HOST_A}",
    ]


def test_one_grant_of_two_goes_alone_and_the_portals_come_back_at_once(case: LioCase) -> None:
    volume = case.new_volume()
    first, second = grants(HOST_A, HOST_B)
    run(case.driver.plan(Export(volume, True, (first, second))))
    assert case.login(volume, first)
    assert case.login(volume, second)
    steps = case.driver.plan_revocation(Export(volume, True, (second,)))
    assert shown(case, volume, steps) == [
        f"write acls/{HOST_A}/auth/userid = (secret)",
        f"write acls/{HOST_A}/cmdsn_depth = 1",
        f"unlink acls/{HOST_A}/lun_0/lun",
        f"rmdir acls/{HOST_A}/lun_0",
        *(f"rmdir np/{portal}" for portal in sorted(map(str, PORTALS))),
        f"rmdir acls/{HOST_A}",
        *(f"mkdir np/{portal}" for portal in PORTALS),
    ]
    run(steps[:2])
    assert [session.initiator for session in case.driver.list_sessions(volume.target_name)] == [HOST_B]
    assert not case.login(volume, first), "its user name is nobody's now"
    run(steps[2:])
    assert case.driver.plan(Export(volume, True, (second,))) == []
    assert case.write(volume, second, 0x42), "the other session has noticed nothing"


@pytest.mark.parametrize("stop", range(1, 9))
def test_a_grant_that_was_half_revoked_is_made_anew_where_it_is_wanted_again(case: LioCase, stop: int) -> None:
    """Nothing of the revocation stays in it, the depth of its queue least of all."""
    volume = case.new_volume()
    first, second = grants(HOST_A, HOST_B)
    run(case.driver.plan(Export(volume, True, (first, second))))
    run(case.driver.plan_revocation(Export(volume, True, (second,)))[:stop])
    run(case.restart().plan(Export(volume, True, (first, second))))
    assert case.driver.plan(Export(volume, True, (first, second))) == []
    acl = f"iscsi/{volume.target_name}/tpgt_1/acls/{HOST_A}"
    assert (case.kernel.read(f"{acl}/cmdsn_depth"), case.login(volume, first)) == ("64", True)


def test_a_depth_that_is_what_a_revocation_writes_becomes_another_one(case: LioCase) -> None:
    """The kernel ends no session where the depth stays the same."""
    volume = case.new_volume()
    first, second = grants(HOST_A, HOST_B)
    run(case.driver.plan(Export(volume, True, (first, second))))
    case.kernel.write(f"iscsi/{volume.target_name}/tpgt_1/acls/{HOST_A}/cmdsn_depth", "1")
    assert case.login(volume, first)
    run(case.driver.plan_revocation(Export(volume, True, (second,)))[:2])
    assert case.driver.list_sessions(volume.target_name) == []


def test_an_export_without_a_grant_has_no_portal_and_is_disabled_whoever_enabled_it(case: LioCase) -> None:
    volume = case.new_volume()
    run(case.driver.plan(Export(volume, True)))
    tpg = f"iscsi/{volume.target_name}/tpgt_1"
    case.kernel.write(f"{tpg}/enable", "1")
    case.kernel.make_dir(f"{tpg}/np/{PORTALS[0]}")
    assert shown(case, volume, case.driver.plan(Export(volume, True))) == [
        "write enable = 0",
        f"rmdir np/{PORTALS[0]}",
    ]
    run(case.driver.plan(Export(volume, True)))
    assert (case.kernel.read(f"{tpg}/enable"), case.kernel.list_dirs(f"{tpg}/np")) == ("0", [])


def test_a_portal_that_sleeps_in_the_kernel_is_waited_for_once_and_by_nobody_later(turn: PortalTurn) -> None:
    asleep, awake = threading.Event(), threading.Event()

    def sleep() -> None:
        with turn.taken():
            asleep.set()
            awake.wait(30)

    sleeper = threading.Thread(target=sleep)
    sleeper.start()
    asleep.wait(30)
    try:
        with turn.taken():
            entered = [threading.Event() for _ in range(2)]
            others = [threading.Thread(target=enter, args=(turn, event)) for event in entered]
            for other in others:
                other.start()
    finally:
        awake.set()
    for thread in (sleeper, *others):
        thread.join(30)
    assert all(event.is_set() for event in entered)
    with turn.taken():
        pass


def enter(turn: PortalTurn, entered: threading.Event) -> None:
    with turn.taken():
        entered.set()


def test_portals_are_made_one_at_a_time() -> None:
    turn, busy, most = PortalTurn(patience=30), [], []

    def work() -> None:
        for _ in range(200):
            with turn.taken():
                busy.append(1)
                most.append(len(busy))
                busy.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(most), max(most)) == (800, 1)


# The start.


def test_the_start_makes_the_iscsi_directory_once(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    made: list[str] = []
    kernel.before = lambda action, path: made.append(f"{action} {path}")
    for _ in range(2):
        LioDriver(IQN_PREFIX, PORTALS, kernel).start()
    assert made == ["mkdir iscsi"]


def test_a_start_without_the_module_says_what_to_load(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)

    def refuse(action: str, path: str) -> None:
        raise OSError(errno.ENOENT, "No such file or directory")

    kernel.before = refuse
    with pytest.raises(DriverError, match="cannot use LIO") as caught:
        LioDriver(IQN_PREFIX, PORTALS, kernel).start()
    assert "modprobe" in str(caught.value.correction)


def test_a_module_that_cannot_be_loaded_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(DriverError, match="cannot load the kernel module no_such_module") as caught:
        load_module("no_such_module")
    assert caught.value.correction == "load it yourself: modprobe no_such_module"
