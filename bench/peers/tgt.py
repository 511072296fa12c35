"""tgt: a tgtd of its own, and the tgtadm processes that a script runs. It saves nothing by itself."""

from __future__ import annotations

import os
import subprocess
import time
from typing import ClassVar

from bench.peers.base import ADDRESS, INITIATOR, PASSWORD, USER, Peer, Piece

PREFIX = "iqn.2026-11.com.example.tgt"
_PORT = 3295
_TID = "1"
_START_SECONDS = 10.0


class Tgt(Peer):
    """The user-space target."""

    name: ClassVar[str] = "tgt"

    def __init__(self) -> None:
        self._daemon: subprocess.Popen[bytes] | None = None

    def open(self, piece: Piece) -> None:
        os.environ["TGT_IPC_SOCKET"] = "/run/bench-tgtd"
        self._daemon = subprocess.Popen(["tgtd", "-f", "--iscsi", f"portal={ADDRESS}:{_PORT}"])
        deadline = time.monotonic() + _START_SECONDS
        while subprocess.run(_words("sys", "show"), capture_output=True, check=False).returncode:
            if time.monotonic() > deadline:
                raise RuntimeError("tgtd does not answer")
            time.sleep(0.1)
        _run("account", "new", "--user", USER, "--password", PASSWORD)

    def close(self) -> None:
        if self._daemon is not None:
            _run("sys", "delete")
            self._daemon.wait(10)

    def target_name(self, piece: Piece) -> str:
        return f"{PREFIX}:{piece.name}"

    def attach(self, piece: Piece) -> None:
        _run("target", "new", "--tid", _TID, "-T", self.target_name(piece))
        _run("logicalunit", "new", "--tid", _TID, "--lun", "1", "-b", piece.path)
        _run("account", "bind", "--tid", _TID, "--user", USER)
        _run("target", "bind", "--tid", _TID, "-Q", INITIATOR)

    def detach(self, piece: Piece) -> None:
        _run("target", "unbind", "--tid", _TID, "-Q", INITIATOR)
        _run("target", "delete", "--tid", _TID, "--force")

    def is_attached(self, piece: Piece) -> bool:
        shown = _run("target", "show")
        return all(word in shown for word in (self.target_name(piece), piece.path, INITIATOR, USER))

    def is_detached(self, piece: Piece) -> bool:
        return self.target_name(piece) not in _run("target", "show")


def _words(mode: str, op: str, *more: str) -> list[str]:
    return ["tgtadm", "--lld", "iscsi", "--mode", mode, "--op", op, *more]


def _run(mode: str, op: str, *more: str) -> str:
    done = subprocess.run(_words(mode, op, *more), text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"tgtadm {mode} {op} ended with {done.returncode}: {done.stderr}")
    return done.stdout
