"""rtslib-fb as a library in a running process, and the save with which its users make a change outlive a reboot."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from bench.peers.base import ADDRESS, INITIATOR, PASSWORD, PORT, USER, Peer, Piece

PREFIX = "iqn.2026-11.com.example.rtslib"


class Rtslib(Peer):
    """The library that targetcli and Cinder's helper are made with."""

    name: ClassVar[str] = "rtslib-fb with save"

    def open(self, piece: Piece) -> None:
        Path("/etc/target").mkdir(exist_ok=True)

    def target_name(self, piece: Piece) -> str:
        return f"{PREFIX}:{piece.name}"

    def attach(self, piece: Piece) -> None:
        rtslib: Any = __import__("rtslib_fb")
        store = rtslib.FileIOStorageObject(piece.name, dev=piece.path, size=piece.size)
        target = rtslib.Target(rtslib.FabricModule("iscsi"), self.target_name(piece))
        tpg = rtslib.TPG(target, 1)
        tpg.set_attribute("authentication", "1")
        lun = rtslib.LUN(tpg, 0, store)
        rtslib.NetworkPortal(tpg, ADDRESS, PORT)
        acl = rtslib.NodeACL(tpg, INITIATOR)
        acl.chap_userid, acl.chap_password = USER, PASSWORD
        rtslib.MappedLUN(acl, 0, lun)
        tpg.enable = True
        rtslib.RTSRoot().save_to_file()

    def detach(self, piece: Piece) -> None:
        rtslib: Any = __import__("rtslib_fb")
        root = rtslib.RTSRoot()
        rtslib.Target(rtslib.FabricModule("iscsi"), self.target_name(piece), "lookup").delete()
        next(store for store in root.storage_objects if store.name == piece.name).delete()
        root.save_to_file()
