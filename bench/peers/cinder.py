"""Cinder's LIO helper: the processes that its volume service starts for one attach and one detach.

As cinder/volume/targets/lio.py runs them: create, get-targets, save, add-initiator, save; then delete-initiator, save,
delete, save. The helper is run by Python directly, without the rootwrap that costs Cinder another process each time.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import ClassVar

from bench.peers.base import ADDRESS, INITIATOR, PASSWORD, PORT, USER, Peer, Piece

PREFIX = "iqn.2010-10.org.openstack"
TOOL = "cinder-rtstool"


class Cinder(Peer):
    """What a volume service with ``target_helper = lioadm`` does."""

    name: ClassVar[str] = "Cinder's LIO helper"
    block: ClassVar[bool] = True

    def open(self, piece: Piece) -> None:
        Path("/etc/target").mkdir(exist_ok=True)
        _run("verify")

    def target_name(self, piece: Piece) -> str:
        return f"{PREFIX}:{piece.name}"

    def attach(self, piece: Piece) -> None:
        name = self.target_name(piece)
        _run("create", piece.path, name, USER, PASSWORD, "False", f"-p{PORT}", f"-a{ADDRESS}")
        _run("get-targets")
        _run("save")
        _run("add-initiator", name, USER, PASSWORD, INITIATOR)
        _run("save")

    def detach(self, piece: Piece) -> None:
        name = self.target_name(piece)
        _run("delete-initiator", name, INITIATOR)
        _run("save")
        _run("delete", name)
        _run("save")


def _run(*words: str) -> None:
    done = subprocess.run([TOOL, *words], text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{TOOL} {words[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
