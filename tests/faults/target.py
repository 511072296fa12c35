"""What the target holds, read without a line of the driver; what it should hold, written down from its documentation.

A target is shown as a mapping from path to what is there: every object that somebody made, its links, and the
attributes that decide who gets in and to what. ``doors`` lists who could log in at this moment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.faults.kernel import SimulatedKernel
from volattachd.model import Attachment, Mode, State, Volume

Tree = dict[str, str]

PREFIX = "iqn.2026-11.org.volattachd.faults"
PORTAL = "127.0.0.1:3290"
_GRANTED = (State.CONNECTED, State.ATTACHED, State.DETACHING)
_OBJECT = "object"
_KERNELS_OWN = "alua"  # lists every backstore, ours included
_OUR_HBA = re.compile(r"(iblock|fileio)_1\d{9}")  # 2^30 and the 28 bits above it
_DEVICE = re.compile(r"(?:UDEV PATH|File): (\S+)")
_STORE_ATTRIBUTES = ("emulate_tpu", "emulate_3pc")
_TPG_ATTRIBUTES = {
    "authentication": "1",
    "generate_node_acls": "0",
    "demo_mode_discovery": "0",
    "demo_mode_write_protect": "1",
    "cache_dynamic_acls": "0",
    "prod_mode_write_protect": "0",
}


class Reader(Protocol):
    """The three ways to look at a target."""

    def entries(self, path: str) -> tuple[list[str], list[str]]:
        """The names of the directories and of the links in a directory."""

    def text(self, path: str) -> str:
        """An attribute."""

    def link(self, path: str) -> str:
        """Where a link leads, relative to the root."""


class KernelReader:
    """The real one."""

    def __init__(self, root: str = "/sys/kernel/config/target") -> None:
        self.root = root

    def entries(self, path: str) -> tuple[list[str], list[str]]:
        directories, links = [], []
        with os.scandir(f"{self.root}/{path}") as found:
            for entry in found:
                if entry.is_symlink():
                    links.append(entry.name)
                elif entry.is_dir(follow_symlinks=False):
                    directories.append(entry.name)
        return directories, links

    def text(self, path: str) -> str:
        fd = os.open(f"{self.root}/{path}", os.O_RDONLY)
        try:
            return os.read(fd, 4096).decode().rstrip("\n")
        finally:
            os.close(fd)

    def link(self, path: str) -> str:
        link = f"{self.root}/{path}"
        return os.path.relpath(os.path.join(os.path.dirname(link), os.readlink(link)), self.root)


class SimulatedReader:
    """The simulated one."""

    def __init__(self, kernel: SimulatedKernel) -> None:
        self.kernel = kernel

    def entries(self, path: str) -> tuple[list[str], list[str]]:
        return self.kernel.list_dirs(path), self.kernel.list_links(path)

    def text(self, path: str) -> str:
        return self.kernel.nodes[path]

    def link(self, path: str) -> str:
        return self.kernel.nodes[path].removeprefix("-> ")


# What is.


def read_target(reader: Reader) -> Tree:
    """Everything of ours."""
    tree: Tree = {}
    for hba in reader.entries("core")[0]:
        if _OUR_HBA.fullmatch(hba):
            tree[f"core/{hba}"] = _OBJECT
            for store in reader.entries(f"core/{hba}")[0]:
                tree |= _read_store(reader, f"core/{hba}/{store}")
    for name in reader.entries("iscsi")[0]:
        if name.startswith(PREFIX):
            tree[f"iscsi/{name}"] = _OBJECT
            for tpg in reader.entries(f"iscsi/{name}")[0]:
                if tpg.startswith("tpgt_"):
                    tree |= _read_tpg(reader, f"iscsi/{name}/{tpg}")
    return tree


def _read_store(reader: Reader, store: str) -> Tree:
    device = _DEVICE.search(reader.text(f"{store}/info"))
    names = [*_STORE_ATTRIBUTES, *(["emulate_write_cache"] if "/fileio_" in store else [])]
    return {
        store: _OBJECT,
        f"{store}/enable": reader.text(f"{store}/enable"),
        f"{store}/device": device[1] if device else "",
        f"{store}/serial": reader.text(f"{store}/wwn/vpd_unit_serial").rpartition(": ")[2],
        **{f"{store}/{name}": reader.text(f"{store}/attrib/{name}") for name in names},
    }


def _read_tpg(reader: Reader, tpg: str) -> Tree:
    tree = {tpg: _OBJECT, f"{tpg}/enable": reader.text(f"{tpg}/enable")}
    tree |= {f"{tpg}/{name}": reader.text(f"{tpg}/attrib/{name}") for name in _TPG_ATTRIBUTES}
    for lun in reader.entries(f"{tpg}/lun")[0]:
        tree |= {f"{tpg}/lun/{lun}": _OBJECT, **_read_links(reader, f"{tpg}/lun/{lun}")}
    tree |= {f"{tpg}/np/{portal}": _OBJECT for portal in reader.entries(f"{tpg}/np")[0]}
    for acl in reader.entries(f"{tpg}/acls")[0]:
        tree |= _read_acl(reader, f"{tpg}/acls/{acl}")
    return tree


def _read_acl(reader: Reader, acl: str) -> Tree:
    tree = {acl: _OBJECT}
    tree |= {f"{acl}/{name}": reader.text(f"{acl}/auth/{name}") for name in ("userid", "password")}
    for mapped in reader.entries(acl)[0]:
        if mapped.startswith("lun_"):
            path = f"{acl}/{mapped}"
            tree |= {path: _OBJECT, **_read_links(reader, path)}
            tree[f"{path}/write_protect"] = reader.text(f"{path}/write_protect")
    return tree


def _read_links(reader: Reader, path: str) -> Tree:
    targets = sorted(reader.link(f"{path}/{name}") for name in reader.entries(path)[1])
    return {f"{path} ->": ", ".join(targets)}


def read_foreign(reader: Reader) -> Tree:
    """Everything that is not ours, every attribute that can be read: byte for byte."""
    found: Tree = {}
    for parent in ("core", "iscsi"):
        for name in reader.entries(parent)[0]:
            if not name.startswith(PREFIX) and not _OUR_HBA.fullmatch(name) and name != _KERNELS_OWN:
                found |= _read_whole(reader, f"{parent}/{name}")
    return found


def _read_whole(reader: Reader, top: str) -> Tree:
    if isinstance(reader, SimulatedReader):
        return {path: value for path, value in reader.kernel.nodes.items() if f"{path}/".startswith(f"{top}/")}
    assert isinstance(reader, KernelReader)
    return dict(_walk(os.path.join(reader.root, top)))


def _walk(top: str) -> Iterator[tuple[str, str]]:
    for directory, names, files in os.walk(top):
        names[:] = sorted(name for name in names if "statistics" not in name)  # these move by themselves
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            yield path, os.readlink(path) if os.path.islink(path) else _attribute(path)


def _attribute(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError as error:
        return f"errno {error.errno}"  # a directory, too


# What should be.


def expected_target(volumes: Iterable[Volume], attachments: Iterable[Attachment]) -> Tree:
    """What these rows of the journal ask for, and nothing else."""
    rows = [row for row in attachments if row.state is not State.RESERVED]
    tree: Tree = {}
    for volume in volumes:
        own = [row for row in rows if row.volume == volume.id]
        if own:
            tree |= _expected_export(volume, own)
    return tree


def _expected_export(volume: Volume, rows: Iterable[Attachment]) -> Tree:
    block = volume.device.kind == "block"
    index = (1 << 30) + int(volume.serial[:7], 16)
    hba = f"core/{'iblock' if block else 'fileio'}_{index}"
    store = f"{hba}/volattach-{volume.id}.{volume.serial[:8]}"
    target = f"iscsi/{volume.target_name}"
    tree = {
        hba: _OBJECT,
        store: _OBJECT,
        f"{store}/enable": "1",
        f"{store}/device": volume.path,
        f"{store}/serial": volume.serial,
        f"{store}/emulate_tpu": str(int(volume.device.discard)),
        f"{store}/emulate_3pc": "0",
        target: _OBJECT,
        f"{target}/tpgt_1": _OBJECT,
        f"{target}/tpgt_1/enable": "0",
        **{f"{target}/tpgt_1/{name}": value for name, value in _TPG_ATTRIBUTES.items()},
        f"{target}/tpgt_1/lun/lun_0": _OBJECT,
        f"{target}/tpgt_1/lun/lun_0 ->": store,
    }
    if not block:
        tree[f"{store}/emulate_write_cache"] = "0"
    for row in rows:
        if row.state in _GRANTED:
            tree |= {f"{target}/tpgt_1/enable": "1", f"{target}/tpgt_1/np/{PORTAL}": _OBJECT}
            tree |= _expected_grant(f"{target}/tpgt_1", row)
    return tree


def _expected_grant(tpg: str, row: Attachment) -> Tree:
    assert row.secret is not None
    acl = f"{tpg}/acls/{row.initiator}"
    return {
        acl: _OBJECT,
        f"{acl}/userid": row.secret.username,
        f"{acl}/password": row.secret.password,
        f"{acl}/lun_0": _OBJECT,
        f"{acl}/lun_0 ->": f"{tpg}/lun/lun_0",
        f"{acl}/lun_0/write_protect": "1" if row.mode is Mode.RO else "0",
    }


# Who could log in.


@dataclass(frozen=True)
class Door:
    """An initiator that could log in, and what it would get."""

    initiator: str
    username: str
    password: str
    mapped: bool
    mode: Mode


def doors(tree: Tree) -> list[Door]:
    """The ACLs with a password, in groups that are enabled: what a login needs."""
    found = []
    for path, password in tree.items():
        acl = path.removesuffix("/password")
        tpg, _, initiator = acl.partition("/acls/")
        if acl != path and password and tree[f"{tpg}/enable"] == "1" and not _is_revoked(tree[f"{acl}/userid"]):
            mapped = tree.get(f"{acl}/lun_0 ->") == f"{tpg}/lun/lun_0"
            mode = Mode.RO if tree.get(f"{acl}/lun_0/write_protect") == "1" else Mode.RW
            found.append(Door(initiator, tree[f"{acl}/userid"], password, mapped, mode))
    return found


def unguarded(tree: Tree) -> list[str]:
    """Groups that are enabled before they ask for a secret, or before they lead to a volume."""
    enabled = [path.removesuffix("/enable") for path, value in tree.items() if "/tpgt_" in path and value == "1"]
    tpgs = [path for path in enabled if f"{path}/enable" in tree and tree.get(path) == _OBJECT]
    return [tpg for tpg in tpgs if not _guarded(tree, tpg)]


def _guarded(tree: Mapping[str, str], tpg: str) -> bool:
    attributes = all(tree[f"{tpg}/{name}"] == value for name, value in _TPG_ATTRIBUTES.items())
    return attributes and bool(tree.get(f"{tpg}/lun/lun_0 ->"))


def users(tree: Tree) -> set[str]:
    """The user names of every ACL, complete or not."""
    return {value for path, value in tree.items() if path.endswith("/userid") and value and not _is_revoked(value)}


def _is_revoked(user: str) -> bool:
    """Whether an ACL is on its way out, with a user name that nobody was given."""
    return user.startswith("revoked-")
