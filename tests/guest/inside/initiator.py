"""A real initiator, open-iscsi: one host's name, its logins, and the disks that appear."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

BLOCK = 4096


def run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A command; its words and its complaints show in a failure."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)
    assert not check or done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


class Initiator:
    """One host as targets see it. Each has an interface record of its own, with its own name."""

    def __init__(self, name: str, patience: int = 3) -> None:
        self.name = name
        self.patience = patience
        self.iface = name.rpartition(":")[2]
        run("iscsiadm", "-m", "iface", "-I", self.iface, "-o", "new")
        self._update_iface("iface.initiatorname", name)
        self._update_iface("iface.transport_name", "tcp")

    def _update_iface(self, key: str, value: str) -> None:
        run("iscsiadm", "-m", "iface", "-I", self.iface, "-o", "update", "-n", key, "-v", value)

    def login(self, info: dict[str, Any], portal: str | None = None, **changes: str) -> bool:
        """Log in with connection info; ``changes`` replace fields of it. Says whether the target let it in."""
        data = {**info["data"], **changes}
        node = ["iscsiadm", "-m", "node", "-T", data["target_iqn"], "-p", portal or data["target_portal"]]
        node += ["-I", self.iface]
        run(*node, "-o", "new")
        settings = {
            "node.session.auth.authmethod": "CHAP",
            "node.session.auth.username": data["auth_username"],
            "node.session.auth.password": data["auth_password"],
            "node.session.initial_login_retry_max": "1",
            # How long I/O waits for a lost session to come back, in seconds; open-iscsi's own is 120.
            "node.session.timeo.replacement_timeout": str(self.patience),
            "node.startup": "manual",
        }
        run(*node, "-o", "update", *[word for k, v in settings.items() for word in ("-n", k, "-v", v)])
        done = run(*node, "--login", check=False)
        if done.returncode != 0:
            run(*node, "-o", "delete")
        else:
            run("udevadm", "settle", "--timeout=30")
        return done.returncode == 0

    def logout(self, info: dict[str, Any], portal: str | None = None) -> None:
        """Log out of the target and forget it."""
        data = info["data"]
        node = ["iscsiadm", "-m", "node", "-T", data["target_iqn"], "-I", self.iface]
        node += ["-p", portal or data["target_portal"]]
        run(*node, "--logout", check=False)
        run(*node, "-o", "delete", check=False)

    def sessions(self, target_name: str) -> list[str]:
        """The ids of this host's sessions with a target."""
        found = []
        for session in Path("/sys/class/iscsi_session").glob("session*"):
            if _text(session / "targetname") == target_name and _text(session / "initiatorname") == self.name:
                found.append(session.name)
        return sorted(found)

    def disk(self, info: dict[str, Any]) -> Path:
        """The device of the LUN in this host's session, waiting a bounded time for udev."""
        data = info["data"]
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for session in self.sessions(data["target_iqn"]):
                base = Path("/sys/class/iscsi_session", session, "device")
                for block in base.glob(f"target*/*:{data['target_lun']}/block/*"):
                    if Path("/dev", block.name).exists():
                        return Path("/dev", block.name)
            time.sleep(0.1)
        raise AssertionError(f"no disk of {data['target_iqn']} appeared for {self.name}")


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def write_pattern(disk: Path, seed: int, blocks: int = 64) -> bytes:
    """Write and sync a pattern past every cache; the answer is what was written."""
    data = bytes((seed + i) % 251 for i in range(BLOCK)) * blocks
    fd = os.open(disk, os.O_WRONLY | os.O_SYNC)
    try:
        assert os.write(fd, data) == len(data)
        os.fsync(fd)
    finally:
        os.close(fd)
    return data


def read_back(disk: Path, size: int) -> bytes:
    """Read from the medium, not from the page cache."""
    run("blockdev", "--flushbufs", str(disk))
    with disk.open("rb") as device:
        return device.read(size)


def wwid(disk: Path) -> str:
    """The WWID as the initiator's kernel knows it."""
    return _text(Path("/sys/block", disk.name, "device/wwid"))
