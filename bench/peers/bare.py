"""Bare configfs: the fewest system calls that make the same objects with the same attributes. The floor."""

from __future__ import annotations

import os
import threading
import uuid
from typing import ClassVar

from bench.peers.base import INITIATOR, PASSWORD, PORTAL, USER, Peer, Piece
from bench.target import ROOT

PREFIX = "iqn.2026-11.com.example.bare"
#: Made or removed by several threads at once, portals of one address fail with EINVAL: nobody can do without this.
_PORTALS = threading.Lock()
_TPG_ATTRIBUTES = {
    "authentication": "1",
    "generate_node_acls": "0",
    "demo_mode_discovery": "0",
    "demo_mode_write_protect": "1",
    "cache_dynamic_acls": "0",
    "prod_mode_write_protect": "0",
}


def write(path: str, value: str) -> None:
    """One attribute."""
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, value.encode())
    os.close(fd)


def make_target(hba: str, piece: Piece, target: str, serial: str) -> None:
    """Every object of one export with one grant, in order."""
    store = f"{hba}/{piece.name}"
    os.mkdir(hba)
    os.mkdir(store)
    write(f"{store}/control", f"fd_dev_name={piece.path},fd_dev_size={piece.size}")
    write(f"{store}/udev_path", piece.path)
    write(f"{store}/wwn/vpd_unit_serial", serial)
    write(f"{store}/enable", "1")
    for name, value in (("emulate_tpu", "1"), ("emulate_3pc", "0"), ("emulate_write_cache", "0")):
        write(f"{store}/attrib/{name}", value)
    tpg = f"{target}/tpgt_1"
    os.mkdir(target)
    os.mkdir(tpg)
    for name, value in _TPG_ATTRIBUTES.items():
        write(f"{tpg}/attrib/{name}", value)
    os.mkdir(f"{tpg}/lun/lun_0")
    os.symlink(store, f"{tpg}/lun/lun_0/backstore")
    with _PORTALS:
        os.mkdir(f"{tpg}/np/{PORTAL}")
    acl = f"{tpg}/acls/{INITIATOR}"
    os.mkdir(acl)
    os.mkdir(f"{acl}/lun_0")
    os.symlink(f"{tpg}/lun/lun_0", f"{acl}/lun_0/lun")
    write(f"{acl}/lun_0/write_protect", "0")
    write(f"{acl}/auth/userid", USER)
    write(f"{acl}/auth/password", PASSWORD)
    write(f"{tpg}/enable", "1")


def remove_target(hba: str, piece: Piece, target: str) -> None:
    """All of it again."""
    tpg = f"{target}/tpgt_1"
    acl = f"{tpg}/acls/{INITIATOR}"
    os.unlink(f"{acl}/lun_0/lun")
    os.rmdir(f"{acl}/lun_0")
    os.rmdir(acl)
    write(f"{tpg}/enable", "0")
    with _PORTALS:
        os.rmdir(f"{tpg}/np/{PORTAL}")
    os.unlink(f"{tpg}/lun/lun_0/backstore")
    os.rmdir(f"{tpg}/lun/lun_0")
    os.rmdir(tpg)
    os.rmdir(target)
    os.rmdir(f"{hba}/{piece.name}")
    os.rmdir(hba)


class Bare(Peer):
    """The floor."""

    name: ClassVar[str] = "bare configfs"

    def __init__(self, number: int = 0) -> None:
        self._hba = f"{ROOT}/core/fileio_{(1 << 29) + number}"

    def target_name(self, piece: Piece) -> str:
        return f"{PREFIX}:{piece.name}"

    def attach(self, piece: Piece) -> None:
        make_target(self._hba, piece, f"{ROOT}/iscsi/{self.target_name(piece)}", str(uuid.uuid4()))

    def detach(self, piece: Piece) -> None:
        remove_target(self._hba, piece, f"{ROOT}/iscsi/{self.target_name(piece)}")
