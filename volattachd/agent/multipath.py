"""multipathd: the map over several paths to one volume. Without it there is one path, and none of this is used."""

from __future__ import annotations

import socket
from pathlib import Path

from volattachd.agent.disks import SYS, read
from volattachd.agent.errors import ConnectFailed
from volattachd.agent.open_iscsi import run

#: multipathd's control socket, in the abstract namespace.
_SOCKET = "\0/org/kernel/linux/storage/multipathd"

#: How often a map is tried to be removed; multipath(8) waits a second between two tries.
_TRIES = "10"


def is_running() -> bool:
    """Whether multipathd answers on this host."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
        try:
            asked.connect(_SOCKET)
        except OSError:
            return False
        return True


def ask_for_map(disks: list[str]) -> None:
    """Have multipathd take these paths, even where its settings make it wait for a second one before."""
    for disk in disks:
        run("multipath", "-a", f"/dev/{disk}")
    for disk in disks:
        run("multipathd", "add", "path", disk)


def map_over(disks: list[str], sys: Path = SYS) -> str | None:
    """The kernel's name of the one map over all these disks."""
    maps = [set(_maps(disk, sys)) for disk in disks]
    common = set.intersection(*maps) if maps else set()
    return min(common) if common else None


def maps_over_any(disks: list[str], sys: Path = SYS) -> list[str]:
    """The kernel's names of the maps over any of these disks."""
    return sorted({name for disk in disks for name in _maps(disk, sys)})


def foreign_paths(disks: list[str], own: set[str], sys: Path = SYS) -> list[str]:
    """What lies below the maps over these disks and is none of our own: multipathd goes by what a disk says it is."""
    maps = maps_over_any(disks, sys)
    below = {path.name for name in maps for path in (sys / "block" / name / "slaves").glob("*")}
    return sorted(below - own)


def _maps(disk: str, sys: Path) -> list[str]:
    holders = (sys / "block" / disk / "holders").glob("dm-*")
    return [holder.name for holder in holders if read(holder / "dm/uuid").startswith("mpath-")]


def name_of(mapped: str, sys: Path = SYS) -> str:
    """The name that the map has in /dev/mapper."""
    return read(sys / "block" / mapped / "dm/name")


def remove_map(mapped: str, disks: list[str], sys: Path = SYS) -> None:
    """Remove a map that nobody uses, and the paths' entry in multipath's list of WWIDs (a struck-out line stays).

    udev looks at a map that somebody has just had open; that is what the tries are for.
    """
    name = name_of(mapped, sys)
    done = run("multipath", "-R", _TRIES, "-f", name)
    if done.returncode and (sys / "block" / mapped).exists():
        raise ConnectFailed(f"cannot remove the multipath map {name}: {' '.join(done.stdout.split())}")
    for disk in disks[:1]:
        run("multipath", "-w", f"/dev/{disk}")
