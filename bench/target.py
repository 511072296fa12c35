"""What the kernel's target holds, read without anybody's code: the check of every result."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path("/sys/kernel/config/target")
#: What differs between two targets that are made alike: names, and what the kernel counts.
_OWN = (
    *("statistics", "fabric_statistics", "info", "hba_info", "dynamic_sessions", "members", "alias", "alua_lu_gp"),
    *("unit_serial", "vpd_", "udev_path", "userid", "password"),
)


def is_granted(target: str, initiator: str) -> bool:
    """Whether the target is enabled and has a LUN mapped for the initiator."""
    tpg = ROOT / "iscsi" / target / "tpgt_1"
    if not tpg.exists() or (tpg / "enable").read_text().strip() != "1":
        return False
    mapped = tpg / "acls" / initiator / "lun_0"
    return mapped.is_dir() and any(path.is_symlink() for path in mapped.iterdir()) and any((tpg / "np").iterdir())


def is_gone(target: str) -> bool:
    """Whether there is no such target."""
    return not (ROOT / "iscsi" / target).exists()


def count_targets() -> int:
    """How many there are."""
    return sum(path.is_dir() for path in (ROOT / "iscsi").glob("iqn.*"))


def shape_of(target: str) -> dict[str, str]:
    """A target and its backstore: objects and attributes, but for what is each one's own."""
    top = ROOT / "iscsi" / target
    store = (top / "tpgt_1/lun/lun_0").glob("*")
    backstore = next(path.resolve() for path in store if path.is_symlink())
    return {**_walk(top, "target"), **_walk(backstore, "backstore")}


def _walk(top: Path, name: str) -> dict[str, str]:
    found = {}
    for directory, names, files in os.walk(top):
        names[:] = [entry for entry in names if entry not in _OWN and not entry.startswith(_OWN)]
        for entry in [*names, *files]:
            path = Path(directory, entry)
            if not entry.startswith(_OWN):
                found[f"{name}/{_neutral(path, top)}"] = _value(path)
    return found


def _neutral(path: Path, top: Path) -> str:
    """The path below the top; a link has whatever name its maker gave it."""
    return str(path.parent.relative_to(top) / "LINK") if path.is_symlink() else str(path.relative_to(top))


def _value(path: Path) -> str:
    if path.is_symlink() or path.is_dir():
        return "object"
    try:
        return path.read_text().strip()
    except OSError as error:
        return f"errno {error.errno}"
