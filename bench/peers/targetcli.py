"""targetcli-fb: one process for an attach and one for a detach, each ending with its saveconfig."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import ClassVar

from bench.peers.base import ADDRESS, INITIATOR, PASSWORD, PORT, USER, Peer, Piece

PREFIX = "iqn.2026-11.com.example.targetcli"


class Targetcli(Peer):
    """The shell that administrators type into."""

    name: ClassVar[str] = "targetcli-fb"

    def __init__(self) -> None:
        self._bus: subprocess.Popen[bytes] | None = None

    def open(self, piece: Piece) -> None:
        """It does not start without a system bus."""
        Path("/etc/target").mkdir(exist_ok=True)
        Path("/run/dbus").mkdir(exist_ok=True)
        words = ["dbus-daemon", "--system", "--nofork", "--nopidfile", "--print-address"]
        self._bus = subprocess.Popen(words, stdout=subprocess.PIPE)
        assert self._bus.stdout is not None
        self._bus.stdout.readline()
        _run("/ set global auto_add_default_portal=false auto_save_on_exit=false")

    def close(self) -> None:
        if self._bus is not None:
            self._bus.terminate()
            self._bus.wait(10)

    def target_name(self, piece: Piece) -> str:
        return f"{PREFIX}:{piece.name}"

    def attach(self, piece: Piece) -> None:
        tpg = f"/iscsi/{self.target_name(piece)}/tpg1"
        _run(
            f"/backstores/fileio create name={piece.name} file_or_dev={piece.path} write_back=false",
            f"/iscsi create {self.target_name(piece)}",
            f"{tpg} set attribute authentication=1",
            f"{tpg}/luns create /backstores/fileio/{piece.name}",
            f"{tpg}/portals create {ADDRESS} {PORT}",
            f"{tpg}/acls create {INITIATOR}",
            f"{tpg}/acls/{INITIATOR} set auth userid={USER} password={PASSWORD}",
            "/ saveconfig",
        )

    def detach(self, piece: Piece) -> None:
        _run(
            f"/iscsi delete {self.target_name(piece)}",
            f"/backstores/fileio delete {piece.name}",
            "/ saveconfig",
        )


def _run(*lines: str) -> None:
    done = subprocess.run(["targetcli"], input="\n".join(lines) + "\n", text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"targetcli ended with {done.returncode}: {done.stdout}{done.stderr}")
