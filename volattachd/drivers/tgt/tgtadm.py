"""The management protocol of tgtd, and the text that tgtd answers.

One request a connection, on tgtd's Unix socket, as tgtadm(8) sends it: a fixed header in the machine's own
layout, then parameters as one string. The answer is a code, then text made for people.

Why not run tgtadm: it takes passwords as arguments, which every user of the host can read in /proc; and a process
for each step costs more than the step. The header has not changed since tgt 1.0.30 (2012); a tgtd that
expects another one is found by ``check_answer`` before anything is configured.

An initiator chooses a text of its own (its alias) that tgtd prints, newlines and all, in the middle of a target's
description. So descriptions are cut with the list of targets at hand, which holds no initiator's text, and a section
is the *last* one of its title: everything after an initiator's text is tgtd's own.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from operator import itemgetter
from typing import Final

#: struct tgtadm_req: mode, op, lld, len, tid, sid, lun, cid, host_no, device_type, ac_dir, pack, force.
REQUEST: Final = struct.Struct("@II64sIiQQIIIIII")

#: struct tgtadm_rsp: err, len (of header and text).
RESPONSE: Final = struct.Struct("@II")

#: struct ucred: pid, uid, gid.
_UCRED: Final = struct.Struct("@3i")

#: What tgtd accepts after the header.
MAX_PARAMETERS: Final = 8 * 1024

#: More than any description of a host's targets; a length beyond it is another protocol's bytes.
MAX_ANSWER: Final = 256 * 1024 * 1024

#: A request about no target in particular.
NO_TARGET_ID: Final = -1

#: Target identifiers are positive int32.
MAX_TARGET_ID: Final = 2**31 - 1


class Mode(IntEnum):
    """What a request is about (enum tgtadm_mode)."""

    SYSTEM = 0
    TARGET = 1
    DEVICE = 2
    PORTAL = 3
    DRIVER = 4
    CONNECTION = 6
    ACCOUNT = 7


class Op(IntEnum):
    """What a request does (enum tgtadm_op)."""

    NEW = 0
    DELETE = 1
    SHOW = 2
    BIND = 3
    UNBIND = 4
    UPDATE = 5


class Code(IntEnum):
    """Why tgtd refused (enum tgtadm_errno)."""

    UNKNOWN_ERROR = 1
    OUT_OF_MEMORY = 2
    NO_DRIVER = 3
    NO_TARGET = 4
    NO_LUN = 5
    NO_SESSION = 6
    NO_CONNECTION = 7
    NO_BINDING = 8
    TARGET_EXISTS = 9
    LUN_EXISTS = 10
    BINDING_EXISTS = 11
    ACL_EXISTS = 12
    NO_ACL = 13
    USER_EXISTS = 14
    NO_USER = 15
    TOO_MANY_USERS = 16
    INVALID_REQUEST = 17
    OUTGOING_ACCOUNT_EXISTS = 18
    TARGET_ACTIVE = 19
    LUN_ACTIVE = 20
    DRIVER_ACTIVE = 21
    UNSUPPORTED_OPERATION = 22
    UNKNOWN_PARAMETER = 23
    PREVENT_REMOVAL = 24


class Refusal(Exception):
    """tgtd understood the request and said no."""

    def __init__(self, code: int) -> None:
        known = code in Code._value2member_map_
        super().__init__(Code(code).name.lower().replace("_", " ") if known else f"error {code}")
        self.code = code


class NotRunning(Exception):
    """Nobody listens on the socket."""


class ProtocolFailed(Exception):
    """tgtd did not answer as this protocol says: it hangs, died over the request, or is of another version."""


class Silent(ProtocolFailed):
    """tgtd is there and gives no answer in time: it is stopped, or waits for a device."""


@dataclass(frozen=True)
class Request:
    """One request. Its parameters may hold a password: they are in neither its repr nor any message."""

    mode: Mode
    op: Op
    tid: int = NO_TARGET_ID
    lun: int = 0
    session: int = 0
    connection: int = 0

    def encode(self, parameters: str = "") -> bytes:
        """The bytes of the request; parameters end with NUL, and their length counts into the header's."""
        tail = parameters.encode("utf-8", "surrogateescape") + b"\0" if parameters else b""
        if len(tail) > MAX_PARAMETERS or b"\0" in tail[:-1]:
            raise ValueError("tgtd takes no such parameters")
        length = REQUEST.size + len(tail)
        ids = (self.tid, self.session, self.lun, self.connection)
        return REQUEST.pack(self.mode, self.op, b"iscsi", length, *ids, 0, 0, 0, 0, 0) + tail


@dataclass(frozen=True)
class Lun:
    """A logical unit as tgtd describes it."""

    number: int
    scsi_id: str
    serial: str
    read_only: bool
    store: str
    path: str
    flags: str


@dataclass(frozen=True)
class Target:
    """A target as tgtd describes it, less what it prints before an initiator's text: that could be forged.

    ``accounts`` are in the order of tgtd's slots.
    """

    tid: int
    name: str
    luns: tuple[Lun, ...]
    accounts: tuple[str, ...]
    acl: tuple[str, ...]


@dataclass(frozen=True)
class Connection:
    """A connection of a session that is in full feature phase."""

    session: int
    connection: int
    initiator: str
    address: str | None


def ask(path: str, request: Request, parameters: str = "", timeout: float = 5.0) -> str:
    """Send one request and give the text of the answer, within ``timeout`` seconds for all of it.

    Raises Refusal, NotRunning, Silent or ProtocolFailed.
    """
    message = request.encode(parameters)
    with _Conversation(path, timeout) as conversation:
        conversation.send(message)
        return conversation.receive_answer()


def find_listener(path: str) -> int:
    """The process that listens on a control socket. It need not answer: the kernel connects without it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        probe.connect(path)
        return int(_UCRED.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[0])


class _Conversation:
    """A connection to tgtd for one request. The deadline is of the whole, however the answer dribbles in."""

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._ends = time.monotonic() + timeout
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> _Conversation:
        try:
            self._limit_time()
            self._socket.connect(self._path)
        except BaseException as error:
            self._socket.close()
            self._translate(error)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._socket.close()
        self._translate(error)

    def _translate(self, error: BaseException | None) -> None:
        if isinstance(error, (TimeoutError, BlockingIOError)):  # the latter: its queue of connections is full
            raise Silent(f"tgtd on {self._path} gives no answer") from None
        if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            raise NotRunning(f"no tgtd listens on {self._path}") from error
        if isinstance(error, OSError):
            raise ProtocolFailed(f"tgtd on {self._path} broke the connection: {error.strerror}") from error

    def _limit_time(self) -> None:
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)

    def send(self, message: bytes) -> None:
        self._limit_time()
        self._socket.sendall(message)

    def receive_answer(self) -> str:
        code, length = RESPONSE.unpack(self._receive(RESPONSE.size))
        if not RESPONSE.size <= length <= MAX_ANSWER:
            raise ProtocolFailed("the answer's header makes no sense: this tgtd speaks another protocol")
        text = self._receive(length - RESPONSE.size)
        if code:
            raise Refusal(code)
        return text.rstrip(b"\0").decode("utf-8", "surrogateescape")

    def _receive(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            self._limit_time()
            part = self._socket.recv(size - len(received))
            if not part:
                raise ProtocolFailed("tgtd closed the connection without a whole answer: it died or refuses this user")
            received += part
        return bytes(received)


def check_answer(system: str) -> None:
    """Raise ProtocolFailed unless ``system`` (SYSTEM, SHOW) is of a tgtd that serves iSCSI as we know it."""
    if not system.startswith("System:\n"):
        raise ProtocolFailed("tgtd describes itself in an unknown way: use tgt 1.0.30 or later")
    if "\n    iscsi: ready\n" not in system:
        raise ProtocolFailed("this tgtd does not serve iSCSI")


def parse_target_ids(drivers: str) -> dict[str, int]:
    """Target names and identifiers from (DRIVER, SHOW): no text of an initiator is in it."""
    found = re.findall(r"^ {8}Target (\d+): (\S+)$", drivers, re.MULTILINE)
    return {name: int(tid) for tid, name in found}


def split_targets(descriptions: str, ids: Mapping[str, int]) -> dict[str, str]:
    """Each target's own description out of (TARGET, SHOW), which goes by rising identifier.

    An initiator knows the identifiers of no targets but its own, and its text lies inside those. The first
    occurrence of a header after the one before it is thus the true one, except between targets that one initiator
    shares: with a forged header it can spoil the view of those, and of no others.
    """
    text = "\n" + descriptions
    found: list[tuple[str, int]] = []
    start = 0
    for name, tid in sorted(ids.items(), key=itemgetter(1)):
        here = text.find(f"\nTarget {tid}: {name}\n", start)
        if here >= 0:
            found.append((name, here))
            start = here + 1
    ends = [here for _, here in found] + [len(text)]
    return {name: text[here + 1 : end + 1] for (name, here), end in zip(found, ends[1:], strict=True)}


def parse_target(name: str, tid: int, description: str) -> Target:
    """One target out of its description."""
    rest, acl = _cut_last(description, "    ACL information:\n")
    rest, accounts = _cut_last(rest, "    Account information:\n")
    _, luns = _cut_last(rest, "    LUN information:\n")
    return Target(
        tid=tid,
        name=name,
        luns=tuple(_parse_luns(luns)),
        accounts=_entries(accounts),
        acl=_entries(acl),
    )


def _cut_last(text: str, title: str) -> tuple[str, str]:
    before, _, after = text.rpartition(title)
    return before, after


def _entries(section: str) -> tuple[str, ...]:
    return tuple(line[8:] for line in section.split("\n") if line.startswith(" " * 8))


def _parse_luns(section: str) -> Iterator[Lun]:
    for part in re.split(r"^ {8}LUN: ", section, flags=re.MULTILINE)[1:]:
        number, _, lines = part.partition("\n")
        values = dict(re.findall(r"^ {12}([A-Za-z -]+): (.*)$", lines, re.MULTILINE))
        yield Lun(
            number=int(number),
            scsi_id=values["SCSI ID"],
            serial=values["SCSI SN"],
            read_only=values["Readonly"] == "Yes",
            store=values["Backing store type"],
            path=values["Backing store path"],
            flags=values["Backing store flags"],
        )


def parse_connections(text: str) -> list[Connection]:
    """The connections of one target from (CONNECTION, SHOW)."""
    pattern = r"^Session: (\d+)\n {4}Connection: (\d+)\n {8}Initiator: (.*)\n {8}(?:IP Address: (.*))?$"
    return [
        Connection(int(session), int(connection), initiator, address or None)
        for session, connection, initiator, address in re.findall(pattern, text, re.MULTILINE)
    ]


def parse_accounts(text: str) -> list[str]:
    """The names of all accounts from (ACCOUNT, SHOW)."""
    return [line[4:] for line in text.split("\n") if line.startswith("    ")]


def parse_portals(text: str) -> list[str]:
    """The portals that tgtd listens on, as it writes them, from (PORTAL, SHOW)."""
    return re.findall(r"^Portal: (\S+),\d+$", text, re.MULTILINE)
