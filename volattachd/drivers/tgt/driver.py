"""The driver for Debian's ``tgt``: an iSCSI target in user space, on any kernel.

One tgtd of our own, on a control socket of our own; it outlives the daemon, and so do its sessions. A tgtd that
somebody else runs is never spoken to.

What a volume is in tgtd::

    target TARGET_NAME            identifier: random, never used twice
      account volattachd-guard    always in the first slot; nobody knows its password
      LUN 0                       tgtd's controller, made by itself
      LUN 1                       the volume: rdwr, O_SYNC, no write cache, serial and WWID as on LIO
      account USER                for each grant
      ACL "grant INITIATOR USER FINGERPRINT"    for each grant: what we mean; matches no initiator
      ACL INITIATOR               for each grant: this entry opens access

Rules that come from what tgtd does (1.0.85, measured or read in its source):

1. A target with no account asks nobody for a password. The guard account is bound before anything else, so that
   there is no such moment, however grants come and go.
2. A target with no ACL entry lets nobody in. A grant's entry is the last thing made and the first thing removed.
3. Unbinding an account leaves a hole in tgtd's slots. Accounts behind the hole can no longer log in, and tgtd dies by
   a null pointer the next time anyone lists its targets, with every session of the host. So accounts are
   unbound from the last slot down to the one that goes, and those behind it are bound again.
4. A login is checked when it begins and becomes a session when it ends, which an initiator may delay at will;
   until then it is invisible. It remembers the target by its identifier alone. So identifiers are never used
   again, and a target whose last grant goes is removed and made anew: a login that was begun before then
   ends nowhere. Where other grants stay, such a login can still become a session: the next plan ends it.
5. Passwords cannot be read back. The "grant" entry carries a fingerprint of the secret; it is made before the
   account and removed after it, so no account is ever without its entry.
6. An account is not tied to an initiator: two initiators that are granted one volume could use each other's secret.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import select
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar, Final

from volattachd.drivers.base import Capabilities, Difference, Portal, Session, Step, TargetDriver, TargetSilent
from volattachd.drivers.listeners import is_taken, why_refused
from volattachd.drivers.tgt import tgtadm
from volattachd.drivers.tgt.tgtadm import Code, Lun, Mode, NotRunning, Op, Request, Target
from volattachd.errors import DriverError, InvalidInput
from volattachd.model import Export, Grant, Volume
from volattachd.model import Mode as AccessMode

#: Without its own name in the environment (tgtd's own variable) or in the constructor. tgtd appends ".0".
DEFAULT_SOCKET: Final = "/run/volattachd/tgt/socket"

#: Where a tgtd of the system listens; ours never does.
SYSTEM_DIRECTORIES: Final = ("/run/tgtd", "/var/run/tgtd")

#: sizeof(sun_path) less the closing NUL.
SOCKET_PATH_MAX: Final = 107

GUARD: Final = "volattachd-guard"

#: tgtd's caching mode page with WCE clear: every write is on the medium before it is acknowledged.
NO_WRITE_CACHE: Final = "8:0:18:0x10:0:0xff:0xff:0:0:0xff:0xff:0xff:0xff:0x80:0x14:0:0:0:0:0:0"

#: Log lines of tgtd are few; past this size an old log is dropped when the driver starts.
LOG_MAX_BYTES: Final = 1024 * 1024

#: tgtd answers within milliseconds after its start.
START_SECONDS: Final = 10.0

#: tgtd answers within milliseconds, unless it opens a device that does not.
ANSWER_SECONDS: Final = 5.0

#: A tgtd that gave no answer is asked again after this time, and is given so long for its answer.
SILENCE_SECONDS: Final = 2.0
SILENT_ANSWER_SECONDS: Final = 1.0

#: tgtd drops a connection at once, but waits for I/O that is outstanding on the device.
SESSION_END_SECONDS: Final = 10.0


_IS_IT_STOPPED = "see whether tgtd is stopped or waits for a device; it is asked again by itself"


@dataclass(frozen=True)
class Record:
    """A grant as the "grant" entry of the ACL holds it."""

    initiator: str
    user: str
    fingerprint: str

    def __str__(self) -> str:
        return f"grant {self.initiator} {self.user} {self.fingerprint}"


@dataclass(frozen=True)
class Held:
    """What tgtd holds for one volume: its target, every account there is, and the initiators with a session."""

    target: Target
    accounts: frozenset[str]
    sessions: frozenset[str]

    @property
    def records(self) -> list[Record]:
        """The grants that were begun and not wholly removed."""
        words = (entry.split(" ") for entry in self.target.acl if entry.startswith("grant "))
        return [Record(*rest) for _, *rest in words if len(rest) == 3]

    @property
    def initiators(self) -> list[str]:
        """Those that the ACL lets in."""
        return [entry for entry in self.target.acl if " " not in entry]

    @property
    def users(self) -> list[str]:
        """The accounts in the slots behind the guard's, in order."""
        return [user for user in self.target.accounts if user != GUARD]


def record_of(target_name: str, grant: Grant) -> Record:
    """The entry for a grant. The fingerprint tells secrets apart and tells nothing about them."""
    secret = grant.secret
    text = "\0".join((target_name, grant.initiator, secret.username, secret.password))
    return Record(grant.initiator, secret.username, hashlib.sha256(text.encode()).hexdigest()[:32])


def wwid_of(serial: str) -> str:
    """The NAA identifier that LIO gives to the same serial: initiators see one volume, whatever serves it."""
    return "6001405" + serial.replace("-", "")[:25]


def lun_of(volume: Volume) -> Lun:
    """The logical unit that the volume should be."""
    wwid = wwid_of(volume.serial)
    return Lun(TgtDriver.lun, wwid, volume.serial, volume.read_only, "rdwr", volume.path, "sync")


class Tgtd:
    """Our tgtd: its process, its control socket, its log. ``prefix`` is the socket's path less tgtd's suffix."""

    def __init__(self, prefix: str, search_path: str | None = None, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._answer_seconds = answer_seconds
        self.prefix = os.path.abspath(prefix)
        self.search_path = search_path or f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        self.directory = os.path.dirname(self.prefix)
        self.socket = self.prefix + ".0"
        self.log = os.path.join(self.directory, "tgtd.log")
        self._lock = threading.Lock()
        self._silent_until: float | None = None  # None while it answers

    def ask(self, request: Request, parameters: str = "") -> str:
        """One request and its answer; raises what tgtadm.ask does.

        A tgtd that gave no answer costs one request its time, and not each one of each volume: until it answers again,
        one request in a while is sent, and the others fail at once.
        """
        timeout = self._allowed_seconds()
        try:
            answer = tgtadm.ask(self.socket, request, parameters, timeout)
        except tgtadm.Silent:
            self._silent_until = time.monotonic() + SILENCE_SECONDS
            raise
        except (tgtadm.Refusal, NotRunning):
            self._silent_until = None
            raise
        self._silent_until = None
        return answer

    def _allowed_seconds(self) -> float:
        with self._lock:
            if self._silent_until is None:
                return self._answer_seconds
            if time.monotonic() < self._silent_until:
                raise tgtadm.Silent(f"tgtd on {self.socket} gives no answer")
            timeout = min(self._answer_seconds, SILENT_ANSWER_SECONDS)
            self._silent_until = time.monotonic() + timeout + SILENCE_SECONDS  # nobody else asks meanwhile
            return timeout

    def list_storage(self) -> frozenset[str]:
        """The files and block devices that tgtd has open, by names that lead to just these (proc(5)).

        Empty where this process may not look into tgtd: without CAP_SYS_PTRACE, tgtd must have no more rights than it.
        """
        try:
            entries = list(os.scandir(f"/proc/{tgtadm.find_listener(self.socket)}/fd"))
        except OSError:
            return frozenset()
        return frozenset(entry.path for entry in entries if _is_storage(entry))

    def answers(self) -> bool:
        """Whether tgtd runs. Raises DriverError where something else, or another version, is there."""
        try:
            tgtadm.check_answer(self.ask(Request(Mode.SYSTEM, Op.SHOW)))
        except NotRunning:
            return False
        except tgtadm.Silent as error:
            raise TargetSilent(f"cannot use tgtd: {error}", _IS_IT_STOPPED) from error
        except (tgtadm.ProtocolFailed, tgtadm.Refusal) as error:
            raise DriverError(f"cannot use the tgtd on {self.socket}: {error}") from error
        return True

    def start(self, portals: Sequence[str]) -> None:
        """Adopt the tgtd that runs, or start one."""
        self._prepare_directory()
        with open(self.log, "ab") as log:
            if log.tell() > LOG_MAX_BYTES:
                log.truncate(0)  # tgtd appends: it goes on at the new end
            if not self.answers():
                self._spawn(portals, log.fileno(), log.seek(0, os.SEEK_END))

    def _prepare_directory(self) -> None:
        """Whoever can write there could stand in for tgtd and would be sent every secret."""
        if self.directory in SYSTEM_DIRECTORIES or len(os.fsencode(self.socket)) > SOCKET_PATH_MAX:
            raise DriverError(f"tgtd's control socket cannot be {self.socket}", "set another in TGT_IPC_SOCKET")
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            found = os.lstat(self.directory)
        except OSError as error:
            raise DriverError(f"cannot make {self.directory} for tgtd's socket: {error.strerror}") from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise DriverError(
                f"cannot put tgtd's socket into {self.directory}: the directory must be this user's alone",
                f"chown and chmod 0700 {self.directory}, or set another in TGT_IPC_SOCKET",
            )

    def _spawn(self, portals: Sequence[str], log: int, log_size: int) -> None:
        """Start a tgtd that this process's end does not touch: its own session, nothing open but its log.

        It inherits one end of a pipe, so that the other end tells when it dies: it is no child of ours.
        """
        alive, inherited = os.pipe()
        try:
            try:
                self._run(self._command(portals), log, inherited)
            finally:
                os.close(inherited)
            self._await_answer(alive, log_size, portals)
        finally:
            os.close(alive)

    def _command(self, portals: Sequence[str]) -> list[str]:
        program = shutil.which("tgtd", path=self.search_path)
        if program is None:
            raise DriverError("cannot start tgtd: it is not installed", "install Debian's package tgt")
        listen = ["--iscsi", ",".join(f"portal={portal}" for portal in portals)] if portals else []
        return ["setsid", "--fork", program, "-f", *listen]

    def _run(self, command: list[str], log: int, inherited: int) -> None:
        """With an environment of its own: NOTIFY_SOCKET, say, is not tgtd's to answer."""
        environment = {"PATH": os.defpath, "LC_ALL": "C", "TGT_IPC_SOCKET": self.prefix}
        try:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(inherited,),
                env=environment,
                cwd="/",
                umask=0o077,
                check=True,
                timeout=START_SECONDS,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise DriverError(f"cannot start tgtd: {error}") from error

    def _await_answer(self, alive: int, log_size: int, portals: Sequence[str]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if select.select([alive], [], [], 0.01)[0]:
                said = f"tgtd ended as soon as it was started; it said: {self._words_since(log_size)}"
                taken = [f"cannot listen on {portal}: {why_refused(portal)}" for portal in portals if is_taken(portal)]
                raise DriverError("; ".join([said, *taken]))
            if time.monotonic() > deadline:
                raise DriverError(f"tgtd does not answer on {self.socket} {START_SECONDS:g} s after its start")

    def _words_since(self, position: int) -> str:
        with open(self.log, encoding="utf-8", errors="replace") as log:
            log.seek(position)
            return " ".join(log.read()[-1000:].split()) or "nothing"

    def last_words(self, about: str) -> str:
        """The last error in tgtd's log that names ``about``, or nothing."""
        try:
            with open(self.log, encoding="utf-8", errors="replace") as log:
                lines = [line.strip() for line in log if about in line and "Could not" in line]
        except OSError:
            return ""
        return lines[-1] if lines else ""


def _is_storage(entry: os.DirEntry[str]) -> bool:
    """Whether a descriptor of a process is of a file or a block device; one that is closed by now is not."""
    try:
        mode = entry.stat().st_mode
    except OSError:
        return False
    return stat.S_ISBLK(mode) or stat.S_ISREG(mode)


#: What a step mends, by its action; the rest of them complete an export.
_DIFFERENCES = {
    "create target": Difference.EXPORT_MISSING,
    "remove target": Difference.EXPORT_UNEXPECTED,
    "record grant": Difference.GRANT_MISSING,
    "create account": Difference.GRANT_MISSING,
    "bind account": Difference.GRANT_MISSING,
    "open access": Difference.GRANT_MISSING,
    "close access": Difference.GRANT_UNEXPECTED,
    "end sessions": Difference.GRANT_UNEXPECTED,
    "unbind account": Difference.GRANT_UNEXPECTED,
    "delete account": Difference.GRANT_UNEXPECTED,
    "forget grant": Difference.GRANT_UNEXPECTED,
}


def _new_step(action: str, subject: str, run: Callable[[], None]) -> Step:
    return Step(action, subject, run, _DIFFERENCES.get(action, Difference.EXPORT_DIFFERS))


def _listeners(portals: Sequence[Portal]) -> set[str]:
    """Portals in tgtd's words. Its ``[::]`` is for IPv6 alone, where a portal's is for both families."""
    every = IPv4Address("0.0.0.0")  # noqa: S104 - initiators are elsewhere
    beside = [replace(portal, address=every) for portal in portals if portal.address == IPv6Address("::")]
    return {str(portal) for portal in [*portals, *beside]}


class TgtDriver(TargetDriver):
    """The user-space target. ``socket`` is a path as tgtd takes it in TGT_IPC_SOCKET."""

    name: ClassVar[str] = "tgt"
    capabilities: ClassVar[Capabilities] = Capabilities(per_grant_mode=False, ends_sessions=True, grows=False)
    lun: ClassVar[int] = 1

    def __init__(
        self,
        iqn_prefix: str,
        portals: Sequence[Portal],
        socket: str | None = None,
        session_end_seconds: float = SESSION_END_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        super().__init__(iqn_prefix, portals)
        self._session_end_seconds = session_end_seconds
        prefix = socket or os.environ.get("TGT_IPC_SOCKET") or DEFAULT_SOCKET
        self._daemon = Tgtd(prefix, answer_seconds=answer_seconds)
        # Held while targets come and go, and while their list and their descriptions are read: the two must agree.
        self._targets = threading.Lock()
        self._starting = threading.Lock()
        self._opening = threading.Lock()
        self._is_started = False

    # Start

    def start(self) -> None:
        with self._starting:
            self._daemon.start(sorted(_listeners(self.portals)))
            self._match_portals()
            password = secrets.token_urlsafe(32)
            account = Request(Mode.ACCOUNT, Op.NEW)
            self._ask("create account", GUARD, account, _account(GUARD, password), Code.USER_EXISTS)
            self._is_started = True

    def _match_portals(self) -> None:
        """Make tgtd listen where it should and nowhere else. Sessions of a portal that goes live on."""
        wanted = _listeners(self.portals)
        if not wanted:
            return  # nobody named one: tgtd's own choice, every address
        present = set(tgtadm.parse_portals(self._ask("list portals of", "tgtd", Request(Mode.PORTAL, Op.SHOW))))
        for portal in sorted(present - wanted):
            self._ask("remove portal", portal, Request(Mode.PORTAL, Op.DELETE), f"portal={portal}")
        for portal in sorted(wanted - present):
            try:
                self._ask("listen on", portal, Request(Mode.PORTAL, Op.NEW), f"portal={portal}")
            except TargetSilent:
                raise
            except DriverError as error:
                raise DriverError(f"{error.message}: {why_refused(portal)}") from error

    # What the daemon asks

    def check_volume(self, volume: Volume) -> None:
        if re.search(r"[,\x00-\x1f\x7f]", volume.path):
            raise InvalidInput(
                f"cannot export {volume.path!r}: tgtd takes no path with a comma or a control character",
                "use another path, a link for instance",
            )
        if not re.fullmatch(r"[A-Za-z0-9.:-]+", volume.target_name):
            raise InvalidInput(f"tgtd takes no target of the name {volume.target_name!r}")

    def plan(self, want: Export) -> list[Step]:
        if not want.exported:
            return self.plan_removal(want.volume.target_name)
        self._check_grants(want)
        name = want.volume.target_name
        held = self._read(name)
        records = [record_of(name, grant) for grant in want.grants]
        if held is None:
            return self._plan_creation(want)
        if not self._is_sound(held, want.volume) or not self._keeps_any(held, records):
            return [*self._plan_teardown(held), *self._plan_creation(want)]
        return [*self._plan_revocations(held, records), *self._plan_grants(held, want)]

    def plan_removal(self, target_name: str) -> list[Step]:
        held = self._read(target_name)
        return [] if held is None else self._plan_teardown(held)

    def holds_device(self, volume: Volume) -> bool:
        line = f"\n            Backing store path: {volume.path}\n"
        return any(line in text.rpartition("LUN information:\n")[2] for text in self._descriptions()[1].values())

    def list_exports(self) -> list[str]:
        return [name for name in self._ids() if name.startswith(self.iqn_prefix + ":")]

    def list_sessions(self, target_name: str) -> list[Session]:
        tid = self._ids().get(target_name)
        if tid is None:
            return []
        connections = {c.session: c for c in self._connections(target_name, tid)}
        return [Session(c.initiator, c.address) for c in connections.values()]

    # Plans

    def _check_grants(self, want: Export) -> None:
        for grant in want.grants:
            if grant.mode is AccessMode.RO and not want.volume.read_only:
                raise DriverError(
                    f"cannot give {grant.initiator} read-only access to {want.volume.id!r}: "
                    "tgt protects a whole volume or nothing of it",
                    "register the volume as read-only",
                )
            user = grant.secret.username
            if user == GUARD or not re.fullmatch(r"[^\s,]+", user):
                raise DriverError(f"tgtd takes no CHAP user of the name {user!r}")

    def _is_sound(self, held: Held, volume: Volume) -> bool:
        """Whether what grants stand on is whole and the volume's. Otherwise the target is made anew."""
        data = [lun for lun in held.target.luns if lun.number != 0]
        return data == [lun_of(volume)] and held.target.accounts[:1] == (GUARD,)

    def _keeps_any(self, held: Held, records: Collection[Record]) -> bool:
        """Whether a grant stays, or there was none to leave: else rule 4 wants a new target."""
        touched = bool(held.records or held.initiators or held.users or held.sessions)
        return not touched or any(record in records for record in held.records)

    def _plan_creation(self, want: Export) -> list[Step]:
        volume, name = want.volume, want.volume.target_name
        tid = secrets.randbelow(tgtadm.MAX_TARGET_ID) + 1
        empty = Held(Target(tid, name, (), (GUARD,), ()), self._accounts(), frozenset())
        return [
            _new_step("create target", name, partial(self._create_target, name, tid)),
            _new_step("create LUN", f"{name} {volume.path}", partial(self._create_lun, want, tid)),
            _new_step("configure LUN", f"{name} {volume.serial}", partial(self._configure_lun, volume, tid)),
            *self._plan_grants(empty, want),
        ]

    def _plan_teardown(self, held: Held) -> list[Step]:
        """The whole target away: access, sessions, then accounts from the last slot, then the rest at once."""
        name, tid = held.target.name, held.target.tid
        unbound = [record.user for record in held.records if record.user not in held.users]
        users = [*reversed(held.users), *(user for user in unbound if user in held.accounts)]
        return [
            *(self._close(held, initiator) for initiator in held.initiators),
            _new_step("end sessions", name, partial(self._end_sessions, name, tid, None)),
            *(self._delete_account(user) for user in users),
            _new_step("remove target", name, partial(self._remove_target, name, tid)),
        ]

    def _plan_revocations(self, held: Held, records: Collection[Record]) -> list[Step]:
        """What no wanted grant accounts for, in the order that never leaves an account without its record."""
        leaving = [record for record in held.records if record not in records]
        kept = [record for record in held.records if record in records]
        initiators = {record.initiator for record in kept}
        users = {record.user for record in kept}
        closing = [initiator for initiator in held.initiators if initiator not in initiators]
        ending = {*closing, *(r.initiator for r in leaving), *held.sessions} - initiators
        going = [user for user in reversed(held.users) if user not in users]
        going += [r.user for r in leaving if r.user in held.accounts - {*going, *users}]
        return [
            *(self._close(held, initiator) for initiator in closing),
            *(self._unbind(held, user) for user in going if user in held.users),
            *(self._end(held, initiator) for initiator in sorted(ending)),
            *(self._delete_account(user) for user in going),
            *(self._forget(held, record) for record in leaving),
        ]

    def _plan_grants(self, held: Held, want: Export) -> list[Step]:
        return [step for grant in want.grants for step in self._plan_grant(held, grant)]

    def _plan_grant(self, held: Held, grant: Grant) -> list[Step]:
        """What the grant still lacks. An account that has no record of this secret may have another password."""
        target, user = held.target, grant.secret.username
        record = record_of(target.name, grant)
        known = record in held.records
        there = user in held.accounts and known
        steps = []
        if not known:
            if user in held.accounts and user not in held.users:
                steps.append(self._delete_account(user))
            steps.append(self._acl("record grant", held, Op.BIND, str(record), grant.initiator))
        if not there:
            account = Request(Mode.ACCOUNT, Op.NEW)
            steps.append(self._step("create account", user, account, _account(user, grant.secret.password)))
        if not there or user not in held.users:
            bind = Request(Mode.ACCOUNT, Op.BIND, target.tid)
            steps.append(self._step("bind account", f"{target.name} {user}", bind, f"user={user}"))
        if not known or grant.initiator not in held.initiators:
            steps.append(self._acl("open access", held, Op.BIND, grant.initiator, grant.initiator))
        return steps

    # Steps

    def _step(self, action: str, subject: str, request: Request, parameters: str = "", *settled: Code) -> Step:
        """One request. ``settled`` are refusals which say that it is so already."""
        return _new_step(action, subject, partial(self._request, action, subject, request, parameters, *settled))

    def _request(self, action: str, subject: str, request: Request, parameters: str, *settled: Code) -> None:
        self._ask(action, subject, request, parameters, *settled)

    def _acl(self, action: str, held: Held, op: Op, entry: str, initiator: str) -> Step:
        settled = Code.ACL_EXISTS if op is Op.BIND else Code.NO_ACL
        subject = f"{held.target.name} {initiator}"
        request = Request(Mode.TARGET, op, held.target.tid)
        return self._step(action, subject, request, f"initiator-name={entry}", settled)

    def _close(self, held: Held, initiator: str) -> Step:
        return self._acl("close access", held, Op.UNBIND, initiator, initiator)

    def _forget(self, held: Held, record: Record) -> Step:
        return self._acl("forget grant", held, Op.UNBIND, str(record), record.initiator)

    def _end(self, held: Held, initiator: str) -> Step:
        name, tid = held.target.name, held.target.tid
        return _new_step("end sessions", f"{name} {initiator}", partial(self._end_sessions, name, tid, initiator))

    def _unbind(self, held: Held, user: str) -> Step:
        return _new_step("unbind account", f"{held.target.name} {user}", partial(self._unbind_account, user))

    def _delete_account(self, user: str) -> Step:
        return _new_step("delete account", user, partial(self._remove_account, user))

    def _create_target(self, name: str, tid: int) -> None:
        """A target that nobody can enter: the guard is the only account, and the ACL is empty."""
        new = Request(Mode.TARGET, Op.NEW, tid)
        with self._targets:
            self._ask("create target", name, new, f"targetname={name}")
        self._ask("guard target", name, Request(Mode.ACCOUNT, Op.BIND, tid), f"user={GUARD}")

    def _create_lun(self, want: Export, tid: int) -> None:
        """tgtd is given a path; what it has opened is checked by its own descriptor, not by that path."""
        volume = want.volume
        new = Request(Mode.DEVICE, Op.NEW, tid, lun=self.lun)
        parameters = f"path={volume.path},bstype=rdwr,bsoflags=sync"
        with self._opening:  # one at a time: the descriptor that is new is this one's
            before = self._daemon.list_storage()
            try:
                self._ask("create LUN", volume.target_name, new, parameters)
            except DriverError as error:
                words = self._daemon.last_words(volume.path)
                raise DriverError(f"{error.message}{words and f' ({words})'}") from error
            opened = self._daemon.list_storage() - before
        try:
            for path in opened or {volume.path}:
                want.check_opened(path)
        except DriverError:
            self._ask("delete LUN", volume.target_name, Request(Mode.DEVICE, Op.DELETE, tid, lun=self.lun))
            raise
        self._check_writable(volume)

    def _check_writable(self, volume: Volume) -> None:
        """tgtd quietly opens for reading only what it cannot open for writing."""
        held = self._read(volume.target_name)
        if not volume.read_only and held is not None and any(lun.read_only for lun in held.target.luns):
            raise DriverError(f"cannot export {volume.path!r}: the device is write-protected and the volume is not")

    def _configure_lun(self, volume: Volume, tid: int) -> None:
        """Identity and protection in one request; the serial is set last, so it stands for all the others."""
        parameters = (
            f"mode_page={NO_WRITE_CACHE},readonly={int(volume.read_only)},"
            f"thin_provisioning={int(volume.device.discard)},"
            f"scsi_id={wwid_of(volume.serial)},scsi_sn={volume.serial}"
        )
        update = Request(Mode.DEVICE, Op.UPDATE, tid, lun=self.lun)
        self._ask("configure LUN", volume.target_name, update, parameters)

    def _remove_target(self, name: str, tid: int) -> None:
        with self._targets:
            self._ask("remove target", name, Request(Mode.TARGET, Op.DELETE, tid), "", Code.NO_TARGET)

    def _remove_account(self, user: str) -> None:
        self._unbind_account(user)
        self._ask("delete account", user, Request(Mode.ACCOUNT, Op.DELETE), f"user={user}", Code.NO_USER)

    def _unbind_account(self, user: str) -> None:
        """Rule 3: last slot first, then bind again what was behind. For that moment those cannot log in anew."""
        for target in self._targets_of(user):
            behind = target.accounts[target.accounts.index(user) :]
            for other in reversed(behind):
                self._bind(Op.UNBIND, target, other)
            for other in behind[1:]:
                self._bind(Op.BIND, target, other)

    def _bind(self, op: Op, target: Target, user: str) -> None:
        settled = Code.USER_EXISTS if op is Op.BIND else Code.NO_USER
        action = f"{op.name.lower()} account"
        self._ask(action, f"{target.name} {user}", Request(Mode.ACCOUNT, op, target.tid), f"user={user}", settled)

    def _targets_of(self, user: str) -> list[Target]:
        """Every target that the account is bound to: deleting an account leaves a hole in each of them."""
        ids, texts = self._descriptions()
        found = [tgtadm.parse_target(name, ids[name], text) for name, text in texts.items() if user in text]
        return [target for target in found if user in target.accounts]

    def _end_sessions(self, name: str, tid: int, initiator: str | None) -> None:
        """Close every connection (of one initiator) and wait until tgtd holds none: then no I/O is outstanding."""
        closed: set[tuple[int, int]] = set()
        deadline = time.monotonic() + self._session_end_seconds
        while found := [c for c in self._connections(name, tid) if initiator in (None, c.initiator)]:
            if time.monotonic() > deadline:
                raise DriverError(f"the session of {found[0].initiator} with {name} is still there: I/O outstanding?")
            for each in found:
                if (each.session, each.connection) not in closed:
                    self._end_connection(name, tid, each)
                    closed.add((each.session, each.connection))
            time.sleep(0.005)

    def _end_connection(self, name: str, tid: int, each: tgtadm.Connection) -> None:
        delete = Request(Mode.CONNECTION, Op.DELETE, tid, session=each.session, connection=each.connection)
        gone = (Code.NO_SESSION, Code.NO_CONNECTION, Code.NO_TARGET)
        self._ask("end session", f"{name} {each.initiator}", delete, "", *gone)

    # Reading

    def _read(self, name: str) -> Held | None:
        ids, texts = self._descriptions()
        if name not in texts:
            return None
        target = tgtadm.parse_target(name, ids[name], texts[name])
        sessions = frozenset(c.initiator for c in self._connections(name, target.tid))
        return Held(target, self._accounts(), sessions)

    def _descriptions(self) -> tuple[dict[str, int], dict[str, str]]:
        with self._targets:
            ids = self._ids()
            text = self._ask("list", "targets", Request(Mode.TARGET, Op.SHOW))
        return ids, tgtadm.split_targets(text, ids)

    def _ids(self) -> dict[str, int]:
        """The targets there are. Where tgtd has died, it is started: all are gone, and new plans bring them back."""
        if not self._is_started or not self._daemon.answers():
            self.start()
        return tgtadm.parse_target_ids(self._ask("list", "targets", Request(Mode.DRIVER, Op.SHOW)))

    def _accounts(self) -> frozenset[str]:
        return frozenset(tgtadm.parse_accounts(self._ask("list", "accounts", Request(Mode.ACCOUNT, Op.SHOW))))

    def _connections(self, name: str, tid: int) -> list[tgtadm.Connection]:
        request = Request(Mode.CONNECTION, Op.SHOW, tid)
        return tgtadm.parse_connections(self._ask("list sessions of", name, request, "", Code.NO_TARGET))

    def _ask(self, action: str, subject: str, request: Request, parameters: str = "", *settled: Code) -> str:
        """One request to tgtd; every failure becomes a DriverError that names the step."""
        try:
            return self._daemon.ask(request, parameters)
        except tgtadm.Refusal as refusal:
            if refusal.code in settled:
                return ""
            raise DriverError(f"cannot {action} {subject}: tgtd says: {refusal}") from refusal
        except tgtadm.Silent as error:
            raise TargetSilent(f"cannot {action} {subject}: {error}", _IS_IT_STOPPED) from error
        except (NotRunning, tgtadm.ProtocolFailed) as error:
            raise DriverError(f"cannot {action} {subject}: {error}") from error


def _account(user: str, password: str) -> str:
    return f"user={user},password={password}"
