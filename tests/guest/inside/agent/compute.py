"""The compute host's side of a test: ``volattach`` as it is shipped, and everything that it could leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.guest.inside.initiator import run
from tests.guest.inside.program import TARGET, Program

NAME_FILE = Path("/etc/iscsi/initiatorname.iscsi")
#: Directories in which iscsiadm, udev, multipath and the agent keep what they know.
KEPT = ("/etc/iscsi", "/var/lib/iscsi", "/etc/multipath", "/run/volattach")


class Compute:
    """``volattach`` on this host."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def volattach(self, *words: str, seconds: float = 180) -> subprocess.CompletedProcess[str]:
        """A command, with --json, whatever comes of it within so many seconds."""
        command = [sys.executable, "-m", "volattachd.cli", "--socket", str(self.program.socket), "--json", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, cwd="/host/repo")

    def succeed(self, *words: str) -> dict[str, Any]:
        """A command that must succeed; its result."""
        done = self.volattach(*words)
        assert done.returncode == 0, f"volattach {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def attach(self, volume: str, *options: str) -> dict[str, Any]:
        return self.succeed("attach", volume, *options)

    def detach(self, volume: str, *options: str) -> dict[str, Any]:
        return self.succeed("detach", volume, *options)

    def status(self, volume: str) -> str:
        return str(self.program.call("show_volume", volume=volume)["status"])


def rename_initiator(name: str) -> None:
    """This host becomes another one for its targets: what a second compute host is."""
    NAME_FILE.write_text(f"InitiatorName={name}\n")
    run("iscsiadm", "-k", "0", check=False)
    run("iscsid")


def leftovers() -> list[str]:
    """What both sides hold of iSCSI, and of us, that is not there on a host that has nothing attached.

    Processes too: of the agent, of iscsiadm, of a shell that one of them left.
    """
    run("udevadm", "settle", "--timeout=30")
    found = [str(path) for path in Path("/sys/class/iscsi_session").iterdir()]
    found += [str(path) for path in Path("/dev").glob("sd*")] + [str(path) for path in Path("/dev").glob("dm-*")]
    found += [str(path) for path in Path("/dev/disk/by-path").glob("*iscsi*")]
    found += [str(path) for base in KEPT for path in Path(base).rglob("*") if path.is_file() and _is_ours(path)]
    found += [str(path) for base in KEPT for path in Path(base).glob("nodes/*")]
    found += [str(path) for pattern in ("iscsi/iqn.*", "core/*/volattach-*") for path in TARGET.glob(pattern)]
    return found + _processes()


def _is_ours(path: Path) -> bool:
    """Settings of the host, locks without content, and lines that multipath has struck out, are no leftovers."""
    settings = {"initiatorname.iscsi", "iscsid.conf", "volumes.lock", "open-iscsi.lock", "wwids", "bindings"}
    return path.name not in settings or (path.name == "wwids" and "\n/" in path.read_text())


def _processes() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if any(word in words for word in ("iscsiadm", "volattachd.cli", "agent_run")) and str(os.getpid()) not in words:
            found.append(words)
    return found
