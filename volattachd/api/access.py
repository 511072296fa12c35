"""Who may call: the kernel's word about the peer (SO_PEERCRED, SO_PEERGROUPS), and roles from the configuration."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from volattachd.api.methods import Role
from volattachd.config import Config
from volattachd.errors import ConfigError
from volattachd.host.users import find_uid

#: asm-generic/socket.h; the socket module does not have it. The peer's supplementary groups, since Linux 4.13.
_SO_PEERGROUPS = 59
_ROOM = 1024  # bytes: what socket.getsockopt takes at most, enough for 256 groups


@dataclass(frozen=True)
class Peer:
    """The process at the other end, as it was when it connected."""

    pid: int
    uid: int
    gids: frozenset[int]


def peer_of(connection: socket.socket) -> Peer:
    """The peer's credentials, from the kernel."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    pid, uid, gid = struct.unpack("iII", raw)
    return Peer(pid, uid, frozenset({gid, *_groups_of(connection, uid, gid)}))


def _groups_of(connection: socket.socket, uid: int, gid: int) -> Iterable[int]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _ROOM)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        try:
            return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)  # more groups than fit: ask the user database
        except KeyError:
            return ()  # which does not know the user
    return struct.unpack(f"{len(raw) // 4}I", raw)


class Access:
    """The roles of users and groups. Names are looked up once, at start and at reload."""

    def __init__(self, config: Config) -> None:
        """Look up every name. Raises ConfigError for a user that does not exist.

        A group may be missing (nobody is in it then): the package makes ``volattach``, a source tree does not.
        """
        self._users: dict[int, Role] = {0: Role.ADMIN}
        self._groups: dict[int, Role] = {}
        roles = (
            (Role.READER, config.reader),
            (Role.AGENT, config.agent),
            (Role.PROVISIONER, config.provisioner),
            (Role.ADMIN, config.admin),
        )
        for role, names in roles:
            for name in names:
                self._grant(name, role)

    def _grant(self, name: str, role: Role) -> None:
        if name.startswith("%"):
            gid = _find_gid(name[1:])
            if gid is not None:
                self._groups[gid] = max(role, self._groups.get(gid, Role.NOBODY))
            return
        uid = find_uid(name)
        if uid is None:
            raise ConfigError(f"access.{role.name.lower()}: there is no user {name!r} (groups are written %{name})")
        self._users[uid] = max(role, self._users.get(uid, Role.NOBODY))

    def role_of(self, peer: Peer) -> Role:
        """The highest role that the peer has by its uid or one of its groups."""
        by_group = (role for gid, role in self._groups.items() if gid in peer.gids)
        return max(self._users.get(peer.uid, Role.NOBODY), *by_group, Role.NOBODY)


def _find_gid(name: str) -> int | None:
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
