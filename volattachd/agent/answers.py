"""The daemon's answers as the agent uses them: every value is checked against its grammar, here and nowhere else.

The storage host may be hostile to this host. Invariants:

1. No value of an answer reaches a command, a path, a file, XML or a log line except as a member of a class of this
   module, and none of these classes can be made of a value that does not fit.
2. A value that does not fit raises UntrustedAnswer, which names the member and shows the value in ASCII, cut. A secret
   is not shown.
3. Names that were asked for must come back: an answer about another volume, attachment or target is refused.
4. What only the world can prove (that a disk is the volume) is not proven here: see ``disks.verify``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any, ClassVar

from volattachd.agent.errors import UntrustedAnswer
from volattachd.errors import InvalidInput
from volattachd.model import INITIATOR, INITIATOR_MAX_BYTES, LOCAL, UUID, VOLUME_ID, Mode, State

#: Portals of one connection. Each may cost a login's time, so their number is bounded.
MAX_PORTALS = 32

#: SAM-5 section 4.6: with flat addressing a unit number has 14 bits.
MAX_LUN = (1 << 14) - 1

_UID_MAX = (1 << 32) - 1
_MAX_DEPTH = 8
_SHOWN = 80

#: A word of a CHAP login. A space, a quote or a line's end would mean something in a record of open-iscsi.
_CHAP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+=-]{0,254}")
_PATH = re.compile(r"/[^\x00-\x1f\x7f-\x9f\u2028\u2029]{0,4094}")
_TEXT = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,255}")
_LONG_TEXT = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{0,4096}")
_WORD = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_PORT = re.compile(r"[1-9][0-9]{0,4}")


@dataclass(frozen=True)
class VolumeInfo:
    """A volume, as far as an agent needs it."""

    name: str
    path: str
    size: int
    status: str
    multiattach: bool
    target_name: str
    serial: str

    def __post_init__(self) -> None:
        _need_match("volume", self.name, VOLUME_ID, "a volume's name")
        _need_match("path", self.path, _PATH, "an absolute path without control characters")
        _need_integer("size", self.size, (1 << 63) - 1)
        _need_match("status", self.status, _WORD, "a status")
        _need_boolean("multiattach", self.multiattach)
        _need_target_name("target_name", self.target_name)
        _need_match("serial", self.serial, UUID, "a lower-case UUID")


@dataclass(frozen=True)
class AttachmentInfo:
    """An attachment, as far as an agent needs it. ``connector`` is only ever sent back to the daemon as it came."""

    id: str
    volume: str
    state: str
    mode: str
    owner: int
    connector: Mapping[str, Any] | None = None
    instance_uuid: str | None = None
    host_name: str | None = None

    def __post_init__(self) -> None:
        _need_match("attachment_id", self.id, UUID, "a lower-case UUID")
        _need_match("volume", self.volume, VOLUME_ID, "a volume's name")
        _need_one_of("state", self.state, {state.value for state in State})
        _need_one_of("mode", self.mode, {mode.value for mode in Mode})
        _need_integer("owner", self.owner, _UID_MAX)
        if self.connector is not None and not isinstance(self.connector, dict):
            raise _refusal("connector", self.connector, "an object or null")
        for name in ("instance_uuid", "host_name"):
            if getattr(self, name) is not None:
                _need_match(name, getattr(self, name), _TEXT, "at most 255 characters without control characters")

    def label(self, member: str, pattern: re.Pattern[str] = _TEXT) -> str | None:
        """A member of the connector for people to read, or None. Whoever made the attachment chose it freely."""
        value = (self.connector or {}).get(member)
        return value if isinstance(value, str) and pattern.fullmatch(value) else None

    @property
    def host(self) -> str:
        """The host that the attachment says it is for."""
        return self.label("host") or self.host_name or "another host"

    def connector_name(self, member: str) -> str | None:
        """The agent's connector that made the device."""
        return self.label(member, _WORD)


@dataclass(frozen=True)
class IscsiInfo:
    """Where and how to log in for one attachment."""

    target_name: str
    portals: tuple[str, ...]
    lun: int
    username: str
    password: str = field(repr=False)
    volume_type: ClassVar[str] = "iscsi"

    def __post_init__(self) -> None:
        _need_target_name("target_iqn", self.target_name)
        if not isinstance(self.portals, tuple) or not 0 < len(self.portals) <= MAX_PORTALS:
            raise _refusal("target_portals", self.portals, f"a list of 1 to {MAX_PORTALS} portals")
        for portal in self.portals:
            _need_portal("target_portal", portal)
        _need_integer("target_lun", self.lun, MAX_LUN)
        _need_match("auth_username", self.username, _CHAP, "1 to 255 of A-Z a-z 0-9 . _ : @ + = -")
        if not isinstance(self.password, str) or not _CHAP.fullmatch(self.password):
            raise _refusal("auth_password", "(not shown)", "1 to 255 of A-Z a-z 0-9 . _ : @ + = -")


@dataclass(frozen=True)
class LocalInfo:
    """The device of a volume on the daemon's own host."""

    path: str
    volume_type: ClassVar[str] = LOCAL

    def __post_init__(self) -> None:
        _need_match("device_path", self.path, _PATH, "an absolute path without control characters")


@dataclass(frozen=True)
class OtherInfo:
    """Connection info of a kind that a third party's connector takes: no string in it has control characters.

    A connector checks its members further, by the grammar of what it uses them for.
    """

    volume_type: str
    data: Mapping[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        _need_match("driver_volume_type", self.volume_type, _WORD, "a word")
        _need_plain("data", self.data, _MAX_DEPTH)


ConnectionInfo = IscsiInfo | LocalInfo | OtherInfo


def check_name(volume: str) -> None:
    """A volume's name as this agent's caller gave it: it names files and locks. Raises InvalidInput."""
    if not VOLUME_ID.fullmatch(volume):
        raise InvalidInput(
            f"{volume!a} is not a volume's name",
            "1 to 63 of a-z 0-9 . - that begins and ends with a letter or digit",
        )


def is_portal(value: object) -> bool:
    """Whether the value is an address and a port as iSCSI writes them: ``192.0.2.1:3260``, ``[2001:db8::1]:3260``."""
    if not isinstance(value, str):
        return False
    host, _, port = value.rpartition(":")
    if not _PORT.fullmatch(port) or int(port) > 65535:
        return False
    try:
        if host.startswith("[") and host.endswith("]") and "%" not in host:
            IPv6Address(host[1:-1])
        else:
            IPv4Address(host)
    except AddressValueError:
        return False
    return True


def is_target_name(value: object) -> bool:
    """Whether the value is an iSCSI name as targets have it: nothing in it means anything to a shell or a path."""
    return isinstance(value, str) and len(value) <= INITIATOR_MAX_BYTES and bool(INITIATOR.fullmatch(value))


def parse_uid(answer: object) -> int:
    """The uid that the daemon takes the caller of ``get_status`` for."""
    uid = _members(_members(answer).get("caller"), "caller")["uid"]
    _need_integer("caller.uid", uid, _UID_MAX)
    return int(uid)


def parse_status(answer: object) -> Mapping[str, Any]:
    """A ``get_status`` for people to look at: the very answer, in which what is looked at has its type."""
    found = _members(answer)
    caller = _members(found["caller"], "caller")
    _need_integer("caller.uid", caller["uid"], _UID_MAX)
    _need_match("caller.role", caller["role"], _WORD, "a role")
    _need_boolean("ready", found["ready"])
    for member, check in (("degraded", _need_text), ("portals", _need_portal)):
        if not isinstance(found[member], list):
            raise _refusal(member, found[member], "a list")
        for value in found[member]:
            check(member, value)
    return found


def parse_shown_volume(answer: object) -> VolumeInfo:
    """A volume for people to look at, with its conditions."""
    conditions = _members(answer)["conditions"]
    if not isinstance(conditions, list):
        raise _refusal("conditions", conditions, "a list")
    for condition in conditions:
        for member in ("kind", "message"):
            _need_text(f"conditions.{member}", _members(condition, "a condition")[member])
    return parse_volume(answer)


def parse_views(answer: object, parse: Callable[[object], object]) -> list[Mapping[str, Any]]:
    """The members of a list for people to look at, each as it came, after ``parse`` has taken it."""
    if not isinstance(answer, list):
        raise _refusal("the answer", answer, "a list")
    for view in answer:
        parse(view)
    return answer


def parse_volume(answer: object, name: str | None = None) -> VolumeInfo:
    """A volume; with ``name``, this one."""
    found = _members(answer)
    members = ("volume", "path", "size", "status", "multiattach", "target_name", "serial")
    volume = VolumeInfo(*(found[member] for member in members))
    if name is not None:
        _need_same("volume", volume.name, name)
    return volume


def parse_attachment(answer: object, volume: str | None = None, attachment_id: str | None = None) -> AttachmentInfo:
    """An attachment of the volume; with ``attachment_id``, this one."""
    found = _members(answer)
    members = ("attachment_id", "volume", "state", "mode", "owner", "connector", "instance_uuid", "host_name")
    row = AttachmentInfo(*(found[member] for member in members))
    if volume is not None:
        _need_same("volume", row.volume, volume)
    if attachment_id is not None:
        _need_same("attachment_id", row.id, attachment_id)
    return row


def parse_attachments(answer: object, volume: str) -> list[AttachmentInfo]:
    """The attachments of the volume."""
    if not isinstance(answer, list):
        raise _refusal("the list of attachments", answer, "a list")
    return [parse_attachment(row, volume) for row in answer]


def parse_connection(answer: object, volume: VolumeInfo, attachment_id: str) -> ConnectionInfo:
    """The connection info of an attachment of the volume."""
    found = _members(answer)
    _need_same("attachment_id", found["attachment_id"], attachment_id)
    kind, data = found["driver_volume_type"], _members(found["data"], "data")
    parse = _PARSERS.get(kind) if isinstance(kind, str) else None
    if parse is None:
        return OtherInfo(kind, data)
    return parse(data, volume)


def _parse_iscsi(data: _Members, volume: VolumeInfo) -> IscsiInfo:
    if data["auth_method"] != "CHAP":
        raise _refusal("auth_method", data["auth_method"], "'CHAP'")
    lun, portal, target = data["target_lun"], data["target_portal"], data["target_iqn"]
    _need_portal("target_portal", portal)
    portals = _several(data, "target_portals", portal)
    for name in (target, *_several(data, "target_iqns", target)):
        _need_same("target_iqn", name, volume.target_name)
    for one in _several(data, "target_luns", lun):
        _need_same("target_lun", one, lun)
    return IscsiInfo(volume.target_name, portals, lun, data["auth_username"], data["auth_password"])


def _parse_local(data: _Members, volume: VolumeInfo) -> LocalInfo:
    _need_same("device_path", data["device_path"], volume.path)
    return LocalInfo(volume.path)


_PARSERS: dict[str, Callable[[_Members, VolumeInfo], ConnectionInfo]] = {
    "iscsi": _parse_iscsi,
    LOCAL: _parse_local,
}


def _several(data: _Members, member: str, alone: Any) -> tuple[Any, ...]:
    """The values for several portals, or the value for the only one."""
    values = data[member]
    if values is None:
        return (alone,)
    if not isinstance(values, list) or not 0 < len(values) <= MAX_PORTALS:
        raise _refusal(member, values, f"a list of 1 to {MAX_PORTALS} values")
    return tuple(values)


class _Members(dict[str, Any]):
    """An object's members; one that is missing is null."""

    def __missing__(self, name: str) -> None:
        return None


def _members(value: object, name: str = "the answer") -> _Members:
    if not isinstance(value, dict):
        raise _refusal(name, value, "an object")
    return _Members(value)


def _need_match(member: str, value: object, pattern: re.Pattern[str], what: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _refusal(member, value, what)


def _need_text(member: str, value: object) -> None:
    if not isinstance(value, str):
        raise _refusal(member, value, "text")


def _need_one_of(member: str, value: object, known: set[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise _refusal(member, value, f"one of {', '.join(sorted(known))}")


def _need_integer(member: str, value: object, most: int) -> None:
    if type(value) is not int or not 0 <= value <= most:
        raise _refusal(member, value, f"an integer from 0 to {most}")


def _need_boolean(member: str, value: object) -> None:
    if type(value) is not bool:
        raise _refusal(member, value, "true or false")


def _need_target_name(member: str, value: object) -> None:
    if not is_target_name(value):
        raise _refusal(member, value, "an iSCSI name like iqn.2026-11.com.example:vol-1")


def _need_portal(member: str, value: object) -> None:
    if not is_portal(value):
        raise _refusal(member, value, "an address and a port like 192.0.2.1:3260 or [2001:db8::1]:3260")


def _need_same(member: str, value: object, expected: object) -> None:
    if type(value) is not type(expected) or value != expected:
        raise _refusal(member, value, f"{_shown(expected)}, as elsewhere in the daemon's answers")


def _need_plain(member: str, value: object, depth: int) -> None:
    """Nothing in the value has control characters, however deep it stands."""
    if isinstance(value, str) and not _LONG_TEXT.fullmatch(value):
        raise _refusal(member, "(not shown)", "at most 4096 characters without control characters")
    if isinstance(value, (dict, list)):
        if not depth:
            raise _refusal(member, "(not shown)", f"nested in at most {_MAX_DEPTH} levels")
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _need_plain(member, name, 0)
            _need_plain(f"{member}.{name}", inner, depth - 1)


def _refusal(member: str, value: object, what: str) -> UntrustedAnswer:
    return UntrustedAnswer(
        f"the daemon's answer is refused: {member} is {_shown(value)}, and must be {what}",
        "see that both sides have the same version; if they have, see whether the storage host can still be trusted",
    )


def _shown(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + "..."
