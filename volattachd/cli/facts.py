"""What ``volattach doctor`` looks at: what the daemon says, and what this host's files say. Looking changes nothing.

A file that is not there is a fact and no error. Every path lies under a root, so that a test can lay out a host.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from volattachd import __version__
from volattachd.agent import answers
from volattachd.client.connection import Connection
from volattachd.client.protocol import ClientError
from volattachd.errors import VolattachError

_MODULES = ("target_core_mod", "iscsi_target_mod", "iscsi_tcp")
#: Sockets in the abstract namespace that tell who runs.
_SERVICES = {"iscsid": "@ISCSIADM_ABSTRACT_NAMESPACE", "multipathd": "@/org/kernel/linux/storage/multipathd"}
_NAME_FILE = "etc/iscsi/initiatorname.iscsi"
_RECORDS = ("etc/iscsi/nodes", "var/lib/iscsi/nodes")
_COMMANDS = ("usr/sbin", "sbin", "usr/bin", "bin", "usr/local/sbin", "usr/local/bin")
_PATIENCE = 3.0
_PORT = 3260


@dataclass(frozen=True)
class Daemon:
    """What the daemon answered, or why it did not."""

    address: str
    error: VolattachError | ClientError | None = None
    status: Mapping[str, Any] = field(default_factory=dict)
    volumes: tuple[Mapping[str, Any], ...] = ()
    attachments: tuple[Mapping[str, Any], ...] = ()
    role: str = "nobody"
    uid: int | None = None  # who the daemon takes this command's user for

    @property
    def is_local(self) -> bool:
        return not self.address.startswith("ssh://")


@dataclass(frozen=True)
class Session:
    """One iSCSI session of this host."""

    name: str
    target_name: str
    initiator: str


@dataclass(frozen=True)
class Host:
    """This host, as an initiator and (where the daemon is here) as a target."""

    name: str = ""
    version: str = __version__
    loaded: frozenset[str] = frozenset()
    loadable: frozenset[str] = frozenset()
    configfs: bool = False
    initiator: str | None = None
    hidden: bool = False  # whether the initiator's name is kept from this user
    is_root: bool = True
    has_daemon: bool = False
    has_iscsiadm: bool = False
    services: frozenset[str] = frozenset()
    sessions: tuple[Session, ...] = ()
    records: tuple[str, ...] | None = ()  # target names; None where this user may not look
    portals: Mapping[str, str | None] = field(default_factory=dict)  # address → why it cannot be reached


def ask(connection: Connection) -> Daemon:
    """What the daemon says of itself, and what its caller may do."""
    try:
        status = answers.parse_status(connection.call("get_status"))
        return Daemon(
            connection.address,
            status=status,
            volumes=tuple(answers.parse_views(connection.call("list_volumes"), answers.parse_shown_volume)),
            attachments=tuple(answers.parse_views(connection.call("list_attachments"), answers.parse_attachment)),
            role=status["caller"]["role"],
            uid=status["caller"]["uid"],
        )
    except (VolattachError, ClientError) as error:
        return Daemon(connection.address, error)


def look(portals: Mapping[str, str], root: str = "/") -> Host:
    """What this host is like. ``portals`` are the daemon's, each with the address to try (see ``reachable_at``)."""
    return Host(
        name=socket.gethostname(),
        loaded=frozenset(name for name in _MODULES if os.path.isdir(_at(root, "sys/module", name))),
        loadable=frozenset(_loadable(root)),
        configfs=os.path.isdir(_at(root, "sys/kernel/config/target")) or _has_configfs(root),
        initiator=_initiator(root),
        hidden=_is_hidden(_at(root, _NAME_FILE)),
        is_root=os.geteuid() == 0,
        has_daemon=_has(root, "volattachd"),
        has_iscsiadm=_has(root, "iscsiadm"),
        services=frozenset(_services(root)),
        sessions=_sessions(root),
        records=_records(root),
        portals={portal: _try(address) for portal, address in portals.items()},
    )


def reachable_at(portal: str, address: str) -> str:
    """Where to try a portal: one on every address is tried on the host of the daemon's own address."""
    host, _, port = portal.rpartition(":")
    if host not in ("0.0.0.0", "[::]"):  # noqa: S104 - compared, and not listened on
        return portal
    if not address.startswith("ssh://"):
        return f"{'[::1]' if host == '[::]' else '127.0.0.1'}:{port}"
    from volattachd.client import ssh

    name = ssh.resolve(address)
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def _try(address: str) -> str | None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port or _PORT)), _PATIENCE).close()
    except OSError as error:
        return error.strerror or str(error) or "no answer"
    return None


def _at(root: str, *parts: str) -> str:
    return os.path.join(root, *parts)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _names(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _has(root: str, command: str) -> bool:
    return any(os.path.exists(_at(root, directory, command)) for directory in _COMMANDS)


def _loadable(root: str) -> list[str]:
    """The modules that modprobe would find, and those that are built in."""
    directory = _at(root, "lib/modules", os.uname().release)
    known = _read(_at(directory, "modules.dep")) + _read(_at(directory, "modules.builtin"))
    return [name for name in _MODULES if f"/{name}.ko" in known or f"/{name.replace('_', '-')}.ko" in known]


def _has_configfs(root: str) -> bool:
    mounts = (line.split() for line in _read(_at(root, "proc/self/mounts")).splitlines())
    return any(len(words) > 2 and words[2] == "configfs" for words in mounts)


def _initiator(root: str) -> str | None:
    for line in _read(_at(root, _NAME_FILE)).splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "InitiatorName":
            return value.strip() or None
    return None


def _is_hidden(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _services(root: str) -> list[str]:
    bound = {line.split()[-1] for line in _read(_at(root, "proc/net/unix")).splitlines() if line.strip()}
    return [name for name, path in _SERVICES.items() if path in bound]


def _sessions(root: str) -> tuple[Session, ...]:
    base = _at(root, "sys/class/iscsi_session")
    found = ((name, _at(base, name)) for name in _names(base))
    return tuple(
        Session(name, _read(_at(path, "targetname")).strip(), _read(_at(path, "initiatorname")).strip())
        for name, path in found
    )


def _records(root: str) -> tuple[str, ...] | None:
    try:
        return tuple(name for directory in _RECORDS for name in _names(_at(root, directory)))
    except PermissionError:
        return None
