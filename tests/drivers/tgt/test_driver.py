"""Debian's tgt passes the suite, with real initiators on the loopback, and keeps what its driver's rules promise."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import socket
import socketserver
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.drivers.contract import *  # noqa: F403 - the suite
from tests.drivers.contract import HOST_A, HOST_B, IQN_PREFIX, Breakage, converge, initiators, new_grant, run
from tests.drivers.initiator import Login, LoginRefused, Session, inquire
from tests.support import wait_until
from volattachd.drivers.base import Portal, TargetDriver, TargetSilent
from volattachd.drivers.tgt import driver as tgt
from volattachd.drivers.tgt import tgtadm
from volattachd.drivers.tgt.driver import GUARD, TgtDriver
from volattachd.drivers.tgt.tgtadm import Mode, Op, Request
from volattachd.errors import DriverError, InvalidInput
from volattachd.host.devices import inspect_device, verify_opened
from volattachd.model import Device, Export, Grant, Secret, Volume
from volattachd.model import Mode as AccessMode
from volattachd.reconcile.applier import Converger, DeviceUnusable

SEARCH_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
MISSING = [tool for tool in ("tgtd", "iscsi-inq") if shutil.which(tool, path=SEARCH_PATH) is None]

#: In CI a missing tool is a failure: a suite that skips itself proves nothing.
pytestmark = pytest.mark.skipif(
    bool(MISSING) and os.environ.get("CI") != "true", reason=f"not installed: {', '.join(MISSING)}"
)


def free_port(address: str = "127.0.0.1") -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def loopback(address: str = "127.0.0.1") -> Portal:
    return Portal(ip_address(address), free_port(address))


class TgtCase:
    """A tgtd on a socket of its own, and initiators that log in to it."""

    def __init__(self, directory: Path, portals: list[Portal] | None = None) -> None:
        self.directory = directory
        self.portals = portals or [loopback()]
        self.prefix = str(directory / "run" / "tgt")
        self.sessions: dict[tuple[str, str], Session] = {}
        self.driver: TargetDriver = self.restart()
        self.breakages: Mapping[str, Breakage] = {
            "no LUN": self._delete_lun,
            "LUN without identity": self._remake_lun,
            "LUN of another device": self._swap_lun,
            "account not bound": partial(self._account, Op.UNBIND),
            "account deleted": partial(self._account, Op.DELETE),
            "ACL entry gone": self._close,
            "record gone": self._forget,
            "no guard": self._unguard,
            "target gone, account left": self._delete_target,
            "an ACL entry more": self._let_in,
            "an account more": self._add_account,
            "tgtd killed": self._kill,
        }

    # The driver's world

    def ask(self, request: Request, parameters: str = "") -> str:
        return tgtadm.ask(self.prefix + ".0", request, parameters)

    def restart(self) -> TargetDriver:
        self.driver = TgtDriver(IQN_PREFIX, self.portals, self.prefix)
        self.driver.start()
        return self.driver

    def pid(self) -> int:
        """Of the process that listens on the control socket."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(self.prefix + ".0")
            pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            probe.sendall(Request(Mode.SYSTEM, Op.SHOW).encode())
            while probe.recv(65536):
                pass
        return int(pid)

    def listening_pid(self) -> int:
        """The same of a tgtd that need not answer: the kernel connects without it."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(self.prefix + ".0")
            return int(struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])

    def opened(self) -> set[int]:
        """The inodes of the files of volumes that tgtd has open."""
        found = set()
        for entry in os.scandir(f"/proc/{self.listening_pid()}/fd"):
            with contextlib.suppress(FileNotFoundError):  # a connection that ends meanwhile
                if Path(os.readlink(entry.path)).parent == self.directory:
                    found.add(entry.stat().st_ino)
        return found

    def kill(self) -> None:
        """kill -9 of our tgtd; returns when it is gone."""
        handle = os.pidfd_open(self.pid())
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            assert select.select([handle], [], [], 10)[0]
        finally:
            os.close(handle)

    def close(self) -> None:
        for session in self.sessions.values():
            session.logout()
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            self.kill()

    def tid(self, volume: Volume) -> int:
        return tgtadm.parse_target_ids(self.ask(Request(Mode.DRIVER, Op.SHOW)))[volume.target_name]

    def target(self, volume: Volume) -> tgtadm.Target:
        ids = tgtadm.parse_target_ids(self.ask(Request(Mode.DRIVER, Op.SHOW)))
        texts = tgtadm.split_targets(self.ask(Request(Mode.TARGET, Op.SHOW)), ids)
        return tgtadm.parse_target(volume.target_name, ids[volume.target_name], texts[volume.target_name])

    # Initiators

    def new_volume(self, read_only: bool = False) -> Volume:
        path = self.directory / str(uuid.uuid4())
        with open(path, "xb") as store:
            store.truncate(1024 * 1024)
        return Volume(
            id=path.name,
            path=str(path),
            device=Device("file", 1024 * 1024, {}, True),
            multiattach=True,
            read_only=read_only,
            target_name=f"{IQN_PREFIX}:{path.name}",
            serial=path.name,
            created_at=0.0,
        )

    def login(self, volume: Volume, grant: Grant) -> bool:
        portal = str(self.portals[0])
        try:
            session = Session(portal, volume.target_name, tgt.TgtDriver.lun, grant.initiator, grant.secret)
        except LoginRefused:
            return False
        former = self.sessions.pop((volume.id, grant.initiator), None)
        if former is not None:
            former.logout()
        self.sessions[volume.id, grant.initiator] = session
        return True

    def logout(self, volume: Volume, grant: Grant) -> None:
        self.sessions.pop((volume.id, grant.initiator)).logout()

    def write(self, volume: Volume, grant: Grant, pattern: int) -> bool:
        return self.sessions[volume.id, grant.initiator].write(bytes([pattern]) * 4096)

    def read(self, volume: Volume, grant: Grant, pattern: int) -> bool:
        return self.sessions[volume.id, grant.initiator].read(4096) == bytes([pattern]) * 4096

    def stored(self, volume: Volume, pattern: int) -> bool:
        with open(volume.path, "rb") as store:
            return store.read(4096) == bytes([pattern]) * 4096

    def identity(self, volume: Volume, grant: Grant) -> tuple[str, str]:
        return inquire(str(self.portals[0]), volume.target_name, 1, grant.initiator, grant.secret)

    def make_foreign(self) -> str:
        name = "iqn.2001-04.com.example:foreign"
        self.ask(Request(Mode.TARGET, Op.NEW, 7), f"targetname={name}")
        self.ask(Request(Mode.TARGET, Op.BIND, 7), "initiator-address=ALL")
        self.ask(Request(Mode.ACCOUNT, Op.NEW), "user=foreigner,password=foreign-secret")
        self.ask(Request(Mode.ACCOUNT, Op.BIND, 7), "user=foreigner")
        return name

    def describe_foreign(self, name: str) -> str:
        ids = tgtadm.parse_target_ids(self.ask(Request(Mode.DRIVER, Op.SHOW)))
        return tgtadm.split_targets(self.ask(Request(Mode.TARGET, Op.SHOW)), ids)[name]

    # What breaks

    def _delete_lun(self, volume: Volume, grant: Grant) -> None:
        self.ask(Request(Mode.DEVICE, Op.DELETE, self.tid(volume), lun=1))

    def _remake_lun(self, volume: Volume, grant: Grant) -> None:
        self._delete_lun(volume, grant)
        new = Request(Mode.DEVICE, Op.NEW, self.tid(volume), lun=1)
        self.ask(new, f"path={volume.path},bstype=rdwr,bsoflags=sync")

    def _swap_lun(self, volume: Volume, grant: Grant) -> None:
        self._delete_lun(volume, grant)
        other = replace(self.new_volume(), serial=volume.serial)
        new = Request(Mode.DEVICE, Op.NEW, self.tid(volume), lun=1)
        self.ask(new, f"path={other.path},bstype=rdwr,bsoflags=sync")
        identity = f"scsi_id={tgt.wwid_of(volume.serial)},scsi_sn={volume.serial}"
        self.ask(Request(Mode.DEVICE, Op.UPDATE, self.tid(volume), lun=1), identity)

    def _account(self, op: Op, volume: Volume, grant: Grant) -> None:
        self.ask(Request(Mode.ACCOUNT, op, self.tid(volume)), f"user={grant.secret.username}")

    def _close(self, volume: Volume, grant: Grant) -> None:
        self.ask(Request(Mode.TARGET, Op.UNBIND, self.tid(volume)), f"initiator-name={grant.initiator}")

    def _forget(self, volume: Volume, grant: Grant) -> None:
        record = tgt.record_of(volume.target_name, grant)
        self.ask(Request(Mode.TARGET, Op.UNBIND, self.tid(volume)), f"initiator-name={record}")

    def _unguard(self, volume: Volume, grant: Grant) -> None:
        self._account(Op.UNBIND, volume, grant)
        self.ask(Request(Mode.ACCOUNT, Op.UNBIND, self.tid(volume)), f"user={GUARD}")

    def _delete_target(self, volume: Volume, grant: Grant) -> None:
        self.ask(Request(Mode.TARGET, Op.DELETE, self.tid(volume)))

    def _let_in(self, volume: Volume, grant: Grant) -> None:
        self.ask(Request(Mode.TARGET, Op.BIND, self.tid(volume)), f"initiator-name={HOST_B}")

    def _add_account(self, volume: Volume, grant: Grant) -> None:
        user = f"user={uuid.uuid4()}"
        self.ask(Request(Mode.ACCOUNT, Op.NEW), f"{user},password=somebodys-password")
        self.ask(Request(Mode.ACCOUNT, Op.BIND, self.tid(volume)), user)

    def _kill(self, volume: Volume, grant: Grant) -> None:
        self.kill()


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short enough for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="volattachd-tgt-") as path:
        yield Path(path)


@pytest.fixture
def case(directory: Path) -> Iterator[TgtCase]:
    tgt_case = TgtCase(directory)
    with contextlib.closing(tgt_case):
        yield tgt_case


def login_at(case: TgtCase, volume: Volume, grant: Grant, alias: str = "none") -> Login:
    """A login that has passed CHAP and is not yet a session."""
    portal = case.portals[0]
    login = Login((str(portal.address), portal.port), grant.initiator, volume.target_name, alias)
    assert login.authenticate(grant.secret)
    return login


# What tgtd does by itself, and the driver must not let happen


def test_a_login_begun_before_the_last_grant_went_ends_nowhere(case: TgtCase) -> None:
    volume, grant = case.new_volume(), new_grant()
    converge(case, volume, grant)
    with contextlib.closing(login_at(case, volume, grant)) as login:
        assert initiators(case, volume) == []
        converge(case, volume)
        assert not login.finish()
    assert initiators(case, volume) == []


def test_a_login_begun_before_removal_never_reaches_the_next_export(case: TgtCase) -> None:
    volume, grant, other = case.new_volume(), new_grant(), case.new_volume()
    converge(case, volume, grant)
    with contextlib.closing(login_at(case, volume, grant)) as login:
        converge(case, volume, exported=False)
        converge(case, other, new_grant())
        assert not login.finish()


def test_a_login_begun_before_one_of_two_grants_went_is_ended_by_the_next_plan(case: TgtCase) -> None:
    volume, leaving, kept = case.new_volume(), new_grant(HOST_A), new_grant(HOST_B)
    converge(case, volume, leaving, kept)
    assert case.login(volume, kept)
    with contextlib.closing(login_at(case, volume, leaving)) as login:
        converge(case, volume, kept)
        assert login.finish()
        assert HOST_A in initiators(case, volume)
        converge(case, volume, kept)
        assert initiators(case, volume) == [HOST_B]
        with pytest.raises((EOFError, ConnectionError)):
            login.command(1, bytes(6))


def test_an_initiators_alias_cannot_forge_a_description(case: TgtCase) -> None:
    """tgtd prints the alias, newlines and all, in the middle of what the driver reads."""
    others = [(case.new_volume(), new_grant()) for _ in range(6)]
    for other, held in others:
        converge(case, other, held)
    volume, grant = case.new_volume(), new_grant()
    converge(case, volume, grant)
    own = f"Target {case.tid(volume)}: {volume.target_name}\n    System information:\n"
    sections = "    LUN information:\n    Account information:\n    ACL information:\n        iqn.2026-11.x:evil\n"
    alias = f"x\n{sections}{own}{sections}Target 2147483647: {IQN_PREFIX}:forged\n{sections}"
    with contextlib.closing(login_at(case, volume, grant, alias)) as login:
        assert login.finish()
        assert "forged" in case.ask(Request(Mode.TARGET, Op.SHOW))
        for each, held in [*others, (volume, grant)]:
            assert case.driver.plan(Export(each, True, (held,))) == []
        assert len(case.driver.list_exports()) == 7
        assert initiators(case, volume) == [grant.initiator]


def test_accounts_behind_one_that_goes_keep_their_logins_and_tgtd_lives(case: TgtCase) -> None:
    volume = case.new_volume()
    grants = [new_grant(f"iqn.2026-11.org.example:host-{number}") for number in range(20)]
    pid = case.pid()
    converge(case, volume, *grants)
    for gone in (7, 0, 17):
        leaving = grants.pop(gone)
        converge(case, volume, *grants)
        assert not case.login(volume, leaving)
    assert case.target(volume).accounts[0] == GUARD
    assert all(case.login(volume, grant) for grant in grants)
    assert case.pid() == pid


def test_unbinding_that_died_midway_is_mended_without_ending_a_session(case: TgtCase) -> None:
    volume, leaving, kept = case.new_volume(), new_grant(HOST_A), new_grant(HOST_B)
    converge(case, volume, leaving, kept)
    assert case.login(volume, kept)
    unbind = Request(Mode.ACCOUNT, Op.UNBIND, case.tid(volume))
    case.ask(unbind, f"user={kept.secret.username}")
    converge(case, volume, kept)
    assert initiators(case, volume) == [HOST_B]
    assert case.write(volume, kept, 0x31)


def test_the_write_cache_is_off_and_cannot_be_turned_on(case: TgtCase) -> None:
    volume, grant = case.new_volume(), new_grant()
    converge(case, volume, grant)
    with contextlib.closing(login_at(case, volume, grant)) as login:
        assert login.finish()
        login.command(1, bytes(6))  # test unit ready, for the unit attention after a login
        for control, expected in ((0, 0), (1, 0)):  # the current values, then which of them can be changed
            status, page = login.command(1, bytes([0x1A, 8, control << 6 | 8, 0, 255, 0]), 255)
            assert status == 0
            assert page[4] & 0x3F == 8
            assert page[6] & 4 == expected
    lun = next(lun for lun in case.target(volume).luns if lun.number == 1)
    assert (lun.store, lun.flags) == ("rdwr", "sync")


# Grants that tgt cannot give


def test_read_only_access_to_a_writable_volume_is_refused(case: TgtCase) -> None:
    with pytest.raises(DriverError, match="protects a whole volume"):
        case.driver.plan(Export(case.new_volume(), True, (new_grant(mode=AccessMode.RO),)))


@pytest.mark.parametrize("user", ["", "a,b", "a b", "a\nb", GUARD])
def test_a_user_name_that_tgtd_would_read_otherwise_is_refused(case: TgtCase, user: str) -> None:
    grant = replace(new_grant(), secret=Secret(user, "password"))
    with pytest.raises(DriverError, match="CHAP user"):
        case.driver.plan(Export(case.new_volume(), True, (grant,)))


@pytest.mark.parametrize("change", [{"path": "/a,b"}, {"path": "/a\nb"}, {"target_name": "iqn.2026-11.x:a b"}])
def test_a_volume_that_tgtd_would_read_otherwise_is_refused(case: TgtCase, change: dict[str, str]) -> None:
    volume = case.new_volume()
    case.driver.check_volume(volume)
    with pytest.raises(InvalidInput):
        case.driver.check_volume(Volume(**{**vars(volume), **change}))


def test_a_missing_device_is_told_in_tgtds_words_and_can_be_planned_again(case: TgtCase) -> None:
    volume, grant = case.new_volume(), new_grant()
    os.rename(volume.path, volume.path + ".away")
    with pytest.raises(DriverError, match="No such file"):
        run(case.driver.plan(Export(volume, True, (grant,))))
    assert not case.driver.holds_device(volume)
    os.rename(volume.path + ".away", volume.path)
    converge(case, volume, grant)
    assert case.login(volume, grant)


def test_a_path_with_a_space_is_exported(case: TgtCase) -> None:
    volume, grant = case.new_volume(), new_grant()
    spaced = replace(volume, path=volume.path + " with = and % signs")
    os.rename(volume.path, spaced.path)
    converge(case, spaced, grant)
    assert case.driver.holds_device(spaced)
    assert case.login(spaced, grant)


@contextlib.contextmanager
def exchanging(name: str, *files: str) -> Iterator[None]:
    """A thread that makes the name lead to one file after the other."""
    over = threading.Event()

    def exchange() -> None:
        while not over.is_set():
            for file in files:
                os.link(file, f"{name}.next")
                os.rename(f"{name}.next", name)
                Path(f"{name}.next").unlink(missing_ok=True)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)


def test_a_disk_that_is_exchanged_while_tgtd_opens_it_is_never_exported(case: TgtCase) -> None:
    """The path is right when it is checked, and again afterwards; what tgtd has opened decides."""
    made, grant = case.new_volume(), new_grant()
    right, wrong = f"{made.path}.right", f"{made.path}.wrong"
    os.link(made.path, right)
    shutil.copy(made.path, wrong)
    volume = replace(made, device=inspect_device(made.path))
    converger = Converger(case.driver, lambda volume: None, verify_opened)
    exported = refused = 0
    with exchanging(volume.path, wrong, right):
        for _ in range(200):
            try:
                converger.converge(Export(volume, True, (grant,)))
                exported += 1
                assert case.opened() == {os.stat(right).st_ino}
            except DeviceUnusable:
                refused += 1
            converger.converge(Export(volume, False))
            assert case.opened() == set()
    assert exported > 0
    assert refused > 0


# Secrets


def test_a_password_is_in_no_command_line_and_in_no_log(case: TgtCase) -> None:
    volume, grant = case.new_volume(), new_grant()
    converge(case, volume, grant)
    assert case.login(volume, grant)
    password = grant.secret.password.encode()
    seen = [path.read_bytes() for path in (case.directory / "run").glob("*.log")]
    seen += [Path(f"/proc/{case.pid()}/{name}").read_bytes() for name in ("cmdline", "environ")]
    assert len(seen) == 3
    assert not any(password in text for text in seen)
    assert password.decode() not in case.ask(Request(Mode.TARGET, Op.SHOW))


def test_the_sockets_directory_is_private(case: TgtCase) -> None:
    assert stat.S_IMODE(os.stat(case.directory / "run").st_mode) == 0o700
    assert os.stat(case.prefix + ".0").st_mode & 0o077 == 0


def test_a_directory_that_others_can_enter_is_refused(directory: Path) -> None:
    os.chmod(directory, 0o755)
    with pytest.raises(DriverError, match="this user's alone"):
        TgtDriver(IQN_PREFIX, [], str(directory / "tgt")).start()


def test_the_systems_tgtd_is_never_spoken_to() -> None:
    for directory in tgt.SYSTEM_DIRECTORIES:
        with pytest.raises(DriverError, match="cannot be"):
            TgtDriver(IQN_PREFIX, [], f"{directory}/socket").start()


# The process


def test_tgtd_and_its_sessions_outlive_a_killed_daemon(directory: Path) -> None:
    """The exporting process dies by SIGKILL in its own process group, as a daemon would."""
    case = TgtCase.__new__(TgtCase)
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.drivers.contract import converge, new_grant\n"
        "from tests.drivers.tgt.test_driver import TgtCase\n"
        "from ipaddress import ip_address\n"
        "from volattachd.drivers.base import Portal\n"
        "case = TgtCase(Path(sys.argv[1]), [Portal(ip_address('127.0.0.1'), int(sys.argv[2]))])\n"
        "print(case.pid(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    portal = loopback()
    daemon = subprocess.Popen(
        [sys.executable, "-c", program, str(directory), str(portal.port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert daemon.stdout is not None
    pid = int(daemon.stdout.readline())
    case = TgtCase(directory, [portal])
    with contextlib.closing(case):
        volume, grant = case.new_volume(), new_grant()
        converge(case, volume, grant)
        assert case.login(volume, grant)
        os.killpg(daemon.pid, signal.SIGKILL)
        daemon.communicate(timeout=10)
        assert case.restart().plan(Export(volume, True, (grant,))) == []
        assert case.write(volume, grant, 0x71)
        assert case.pid() == pid


def test_tgtd_has_a_session_of_its_own_and_none_of_our_files(directory: Path) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    with contextlib.closing(TgtCase(directory)) as case:
        pid = case.pid()
        assert os.getsid(pid) == pid or os.getsid(pid) != os.getsid(0)
        os.close(writing)
        assert select.select([reading], [], [], 1)[0], "tgtd holds the other end"
        os.close(reading)
        streams = {os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)}
        assert streams == {os.devnull, str(directory / "run" / "tgtd.log")}
        assert os.readlink(f"/proc/{pid}/cwd") == "/"


def test_a_tgtd_that_was_killed_comes_back_with_the_next_plan(case: TgtCase) -> None:
    volumes = [(case.new_volume(), new_grant()) for _ in range(3)]
    for volume, grant in volumes:
        converge(case, volume, grant)
    case.kill()
    for volume, grant in volumes:
        converge(case, volume, grant)
        assert case.login(volume, grant)


def test_a_missing_tgtd_is_told_with_the_package_to_install(directory: Path) -> None:
    daemon = tgt.Tgtd(str(directory / "tgt"), search_path=str(directory))
    with pytest.raises(DriverError, match="not installed") as caught:
        daemon.start([])
    assert caught.value.correction == "install Debian's package tgt"


def test_a_tgtd_that_dies_at_once_is_told_in_its_own_words(directory: Path) -> None:
    with open(directory / "tgt.0.lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        with pytest.raises(DriverError, match="another tgtd is using"):
            tgt.Tgtd(str(directory / "tgt")).start([])


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", struct.pack("II", 0, 12) + b"Sys\0"])
def test_a_stranger_on_the_socket_is_told(directory: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "tgt.0"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        stranger = threading.Thread(target=serve)
        stranger.start()
        with pytest.raises(DriverError, match="cannot use the tgtd"):
            tgt.Tgtd(str(directory / "tgt")).start([])
        stranger.join(10)


# A tgtd that does not answer


@pytest.fixture
def stopped(directory: Path) -> Iterator[TgtCase]:
    """A tgtd that was stopped by a signal, and a driver with little patience."""
    with contextlib.closing(TgtCase(directory)) as case:
        case.driver = TgtDriver(IQN_PREFIX, case.portals, case.prefix, answer_seconds=0.3)
        pid = case.pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            yield case
        finally:
            os.kill(pid, signal.SIGCONT)


def test_a_stopped_tgtd_is_told_as_silent_and_the_start_is_finished_once_it_answers(stopped: TgtCase) -> None:
    volume, grant = stopped.new_volume(), new_grant()
    for attempt in (stopped.driver.start, stopped.driver.list_exports, lambda: stopped.driver.holds_device(volume)):
        with pytest.raises(TargetSilent, match="gives no answer"):
            attempt()
    os.kill(stopped.listening_pid(), signal.SIGCONT)
    wait_until(lambda: converges(stopped, volume, grant))
    assert stopped.login(volume, grant)
    assert stopped.target(volume).accounts[0] == GUARD


def converges(case: TgtCase, volume: Volume, grant: Grant) -> bool:
    try:
        converge(case, volume, grant)
    except TargetSilent:
        return False
    return True


def test_a_stopped_tgtd_costs_one_request_its_time_and_not_each_request(stopped: TgtCase) -> None:
    """Threads that all wait for it would end one after the other."""
    asked: list[float] = []

    class Counting(tgt.Tgtd):
        def _allowed_seconds(self) -> float:
            seconds = super()._allowed_seconds()
            asked.append(seconds)
            return seconds

    daemon = Counting(stopped.prefix, answer_seconds=0.3)
    for _ in range(200):
        with pytest.raises(TargetSilent):
            daemon.answers()
    assert asked == [0.3]


# Portals


def test_an_ipv6_portal_lets_in(directory: Path) -> None:
    with contextlib.closing(TgtCase(directory, [loopback("::1")])) as case:
        volume, grant = case.new_volume(), new_grant()
        converge(case, volume, grant)
        assert case.login(volume, grant)


def test_wildcard_portals_of_both_families_share_a_port(directory: Path) -> None:
    port = free_port()
    portals = [Portal(ip_address("0.0.0.0"), port), Portal(ip_address("::"), port)]
    with contextlib.closing(TgtCase(directory, portals)) as case:
        listed = tgtadm.parse_portals(case.ask(Request(Mode.PORTAL, Op.SHOW)))
        assert sorted(listed) == sorted(str(portal) for portal in portals)
        case.restart()
        assert sorted(tgtadm.parse_portals(case.ask(Request(Mode.PORTAL, Op.SHOW)))) == sorted(listed)


def test_the_wildcard_of_ipv6_lets_both_families_in(directory: Path) -> None:
    """As with the kernel's target: it is what the daemon takes where nobody names a portal."""
    port = loopback().port
    with contextlib.closing(TgtCase(directory, [Portal(ip_address("::"), port)])) as case:
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, port), 30):
                pass
        case.restart()
        listed = tgtadm.parse_portals(case.ask(Request(Mode.PORTAL, Op.SHOW)))
        assert sorted(listed) == [f"0.0.0.0:{port}", f"[::]:{port}"]


def test_adopting_moves_the_portals_and_leaves_sessions_alone(case: TgtCase) -> None:
    volume, grant = case.new_volume(), new_grant()
    converge(case, volume, grant)
    assert case.login(volume, grant)
    case.portals = [loopback("::1"), loopback("127.0.0.1")]
    case.restart()
    listed = tgtadm.parse_portals(case.ask(Request(Mode.PORTAL, Op.SHOW)))
    assert sorted(listed) == sorted(str(portal) for portal in case.portals)
    assert case.write(volume, grant, 0x51)


def test_a_busy_portal_is_told_and_tgtd_does_not_listen_elsewhere(directory: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        portal = Portal(ip_address("127.0.0.1"), taken.getsockname()[1])
        driver = TgtDriver(IQN_PREFIX, [portal], str(directory / "run" / "tgt"))
        with pytest.raises(DriverError, match=rf"{portal}.*in use by process {os.getpid()} "):
            driver.start()
    with contextlib.closing(TgtCase(directory, [portal])) as case:
        assert tgtadm.parse_portals(case.ask(Request(Mode.PORTAL, Op.SHOW))) == [str(portal)]


def test_an_address_that_is_not_of_this_host_is_told_apart_from_a_port_in_use(case: TgtCase) -> None:
    elsewhere = Portal(ip_address("192.0.2.1"), free_port())
    case.portals = [*case.portals, elsewhere]
    with pytest.raises(DriverError, match=f"cannot listen on {elsewhere}.*the port is free"):
        case.restart()


# A session that does not end


@pytest.fixture
def stalled(directory: Path) -> Iterator[str]:
    """A tgtd whose one session stays, whatever is asked: its I/O is outstanding on a device that hangs."""
    target, host = f"{IQN_PREFIX}:stalled", HOST_A
    answers = {
        (Mode.SYSTEM, Op.SHOW): "System:\n    iscsi: ready\n",
        (Mode.DRIVER, Op.SHOW): f"LLDs:\n        Target 5: {target}\n",
        (Mode.TARGET, Op.SHOW): f"Target 5: {target}\n    ACL information:\n        {host}\n",
        (Mode.CONNECTION, Op.SHOW): f"Session: 1\n    Connection: 0\n        Initiator: {host}\n        \n",
    }

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            mode, op, *_ = tgtadm.REQUEST.unpack(self.request.recv(65536)[: tgtadm.REQUEST.size])
            text = answers.get((mode, op), "").encode() + b"\0"
            self.request.sendall(tgtadm.RESPONSE.pack(0, tgtadm.RESPONSE.size + len(text)) + text)

    with socketserver.UnixStreamServer(str(directory / "tgt.0"), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield str(directory / "tgt")
        server.shutdown()
        thread.join(10)


def test_a_session_that_does_not_end_is_told_and_its_grant_is_not_called_removed(stalled: str) -> None:
    driver = TgtDriver(IQN_PREFIX, [], stalled, session_end_seconds=0.05)
    steps = driver.plan_removal(f"{IQN_PREFIX}:stalled")
    assert [step.action for step in steps] == ["close access", "end sessions", "remove target"]
    steps[0].run()
    with pytest.raises(DriverError, match=f"session of {HOST_A} .* is still there"):
        steps[1].run()


# QEMU's own initiator


@pytest.mark.skipif(shutil.which("qemu-io") is None, reason="not installed: qemu-io")
def test_qemu_reads_what_it_wrote_before_the_daemons_restart(case: TgtCase) -> None:
    volume, grant = case.new_volume(), new_grant()
    converge(case, volume, grant)
    secret = case.directory / "secret"
    secret.write_text(grant.secret.password)
    image = (
        f"driver=iscsi,transport=tcp,portal={case.portals[0]},target={volume.target_name},lun={case.driver.lun},"
        f"user={grant.secret.username},password-secret=chap,initiator-name={grant.initiator}"
    )
    command = ["qemu-io", "--object", f"secret,id=chap,file={secret}", "--image-opts", image]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu:
        assert qemu.stdin is not None
        qemu.stdin.write("write -P 0x5a 0 64k\nflush\n")
        qemu.stdin.flush()
        assert case.restart().plan(Export(volume, True, (grant,))) == []
        said, _ = qemu.communicate("read -P 0x5a 0 64k\nquit\n", timeout=30)
    assert qemu.returncode == 0
    assert "read 65536/65536" in said
    assert "verification failed" not in said
    assert case.stored(volume, 0x5A)


# Side by side


def test_volumes_are_converged_side_by_side(case: TgtCase) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                volume, grants = case.new_volume(), [new_grant(HOST_A), new_grant(HOST_B)]
                converge(case, volume, *grants)
                converge(case, volume, grants[1])
                converge(case, volume, exported=False)
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert case.driver.list_exports() == []
    assert tgtadm.parse_accounts(case.ask(Request(Mode.ACCOUNT, Op.SHOW))) == [GUARD]
