"""Why a portal cannot be had: who listens on its port already, by the kernel's own tables.

A target answers a taken port and a wrong address with the same error. /proc/net shows which of them it is, and
/proc/PID/fd whose socket it is, as far as this process may look into others.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

_LISTENING = "0A"

Address = IPv4Address | IPv6Address


@dataclass(frozen=True)
class Listener:
    """A TCP socket that listens. ``inode`` is 0 for one that the kernel itself made."""

    address: Address
    port: int
    inode: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


def why_refused(portal: str) -> str:
    """Why nobody can listen on ``address:port`` now, for the end of an error message."""
    taken = _find_listener(portal)
    if taken is None:
        return "the port is free, so the address cannot be used: is it one of this host, and not a link-local one?"
    where = "the port is in use" if str(taken) == portal else f"the port is in use on {taken}"
    return f"{where} by {_owner_of(taken)}"


def is_taken(portal: str) -> bool:
    """Whether somebody listens where ``address:port`` would."""
    return _find_listener(portal) is not None


def _find_listener(portal: str) -> Listener | None:
    host, _, port = portal.rpartition(":")
    address = ip_address(host.strip("[]"))
    found = [each for each in _listeners() if each.port == int(port) and _overlap(each.address, address)]
    return min(found, key=lambda each: each.address != address, default=None)


def _overlap(one: Address, other: Address) -> bool:
    """The wildcard of IPv6 takes both families, unless the host keeps them apart."""
    if one.version != other.version:
        six = one if one.version == 6 else other
        return six.is_unspecified and not _families_apart()
    return one == other or one.is_unspecified or other.is_unspecified


def _families_apart() -> bool:
    try:
        return Path("/proc/sys/net/ipv6/bindv6only").read_text(encoding="ascii").strip() == "1"
    except OSError:
        return True


def _listeners() -> Iterator[Listener]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:  # a host without IPv6
            continue
        for words in (line.split() for line in lines):
            if words[3] == _LISTENING:
                address, _, port = words[1].partition(":")
                yield Listener(_parse_address(address), int(port, 16), int(words[9]))


def _parse_address(digits: str) -> Address:
    """An address as the kernel prints it: words of 32 bits, each in the machine's own byte order."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    packed = struct.pack(f"@{len(words)}I", *words)
    return ip_address(socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed))


def _owner_of(listener: Listener) -> str:
    wanted = f"socket:[{listener.inode}]"
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and listener.inode and wanted in _files_of(process):
            return f"process {process.name} ({_name_of(process)})"
    return "the kernel, or a process that volattachd cannot see (try: ss -ltnp)"


def _name_of(process: Path) -> str:
    try:
        return (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "it has just ended"


def _files_of(process: Path) -> set[str]:
    """What a process has open; nothing where it has ended or may not be looked at."""
    found = set()
    try:
        for entry in os.scandir(process / "fd"):
            found.add(os.readlink(entry.path))
    except OSError:
        pass
    return found
