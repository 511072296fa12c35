"""A simulated configfs, as far as the lio driver can tell: for sweeps on hosts without LIO. It proves nothing of LIO.

The objects' default children and the refusals (ENOTEMPTY, EBUSY) are those of Linux 6.1. Everything is one mapping
from path to a directory, a link or an attribute.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Mapping

from volattachd.drivers.configfs.tree import ConfigFs

_DIRECTORY, _ARROW = "directory", "-> "
_STORE = {
    "enable": "0",
    "control": "",
    "udev_path": "",
    "info": "",
    "wwn": _DIRECTORY,
    "wwn/vpd_unit_serial": "",
    "attrib": _DIRECTORY,
    "attrib/emulate_tpu": "0",
    "attrib/emulate_3pc": "1",
    "attrib/emulate_write_cache": "0",
}
_TPG = {
    "enable": "0",
    "attrib": _DIRECTORY,
    "attrib/authentication": "1",
    "attrib/generate_node_acls": "0",
    "attrib/demo_mode_discovery": "1",
    "attrib/demo_mode_write_protect": "1",
    "attrib/cache_dynamic_acls": "0",
    "attrib/prod_mode_write_protect": "0",
    "lun": _DIRECTORY,
    "np": _DIRECTORY,
    "acls": _DIRECTORY,
}
_ACL = {
    "info": "No active iSCSI Session",
    "cmdsn_depth": "64",
    "auth": _DIRECTORY,
    "auth/userid": "",
    "auth/password": "",
}
#: What mkdir puts into a new object, by where it is.
_DEFAULTS: list[tuple[str, Mapping[str, str]]] = [
    (r"core/[^/]+/[^/]+", _STORE),
    (r"iscsi/[^/]+/tpgt_\d+", _TPG),
    (r"iscsi/[^/]+/tpgt_\d+/acls/[^/]+", _ACL),
    (r"iscsi/[^/]+/tpgt_\d+/acls/[^/]+/lun_\d+", {"write_protect": "0"}),
]


class SimulatedKernel(ConfigFs):
    """The tree; one of it is what one kernel holds, whatever daemons come and go."""

    def __init__(self) -> None:
        super().__init__("/nonexistent")
        self.nodes: dict[str, str] = {".": _DIRECTORY, "core": _DIRECTORY, "iscsi": _DIRECTORY}
        self._lock = threading.Lock()

    def _children(self, path: str) -> dict[str, str]:
        start = path + "/"
        return {p[len(start) :]: v for p, v in self.nodes.items() if p.startswith(start) and "/" not in p[len(start) :]}

    def _made_by_hand(self, path: str) -> list[str]:
        """What keeps an object from being removed: its children but for the default ones."""
        defaults = self._defaults(path)
        below = [p.removeprefix(path + "/") for p in self.nodes if p.startswith(path + "/")]
        return [p for p in below if p not in defaults]

    @staticmethod
    def _defaults(path: str) -> Mapping[str, str]:
        return next((found for pattern, found in _DEFAULTS if re.fullmatch(pattern, path)), {})

    def is_dir(self, path: str) -> bool:
        return self.nodes.get(path) == _DIRECTORY

    def list_dir(self, path: str) -> list[str]:
        return sorted(self._children(path))

    def list_links(self, path: str) -> list[str]:
        return sorted(name for name, value in self._children(path).items() if value.startswith(_ARROW))

    def list_dirs(self, path: str) -> list[str]:
        return sorted(name for name, value in self._children(path).items() if value == _DIRECTORY)

    def read(self, path: str) -> str:
        if path not in self.nodes:
            raise _error(errno.ENOENT, path)
        return self.nodes[path]

    def read_link(self, path: str) -> str | None:
        value = self.nodes.get(path)
        return value.removeprefix(_ARROW) if value is not None and value.startswith(_ARROW) else None

    def make_dir(self, path: str) -> None:
        with self._lock:
            if path in self.nodes:
                raise _error(errno.EEXIST, path)
            if self.nodes.get(path.rpartition("/")[0] or ".") != _DIRECTORY:
                raise _error(errno.ENOENT, path)
            self.nodes[path] = _DIRECTORY
            self.nodes |= {f"{path}/{name}": value for name, value in self._defaults(path).items()}

    def remove_dir(self, path: str) -> None:
        with self._lock:
            if path not in self.nodes:
                raise _error(errno.ENOENT, path)
            if self._made_by_hand(path):
                raise _error(errno.ENOTEMPTY, path)
            self._refuse_if_linked(path)
            for gone in [p for p in self.nodes if p == path or p.startswith(path + "/")]:
                del self.nodes[gone]

    def write(self, path: str, value: str) -> None:
        if path not in self.nodes:
            raise _error(errno.ENOENT, path)
        store = path.removesuffix("/enable")
        if store != path and store.startswith("core/"):
            self.nodes[f"{store}/info"] = _info(self.nodes[f"{store}/control"])
        if path.endswith("/vpd_unit_serial"):
            value = f"T10 VPD Unit Serial Number: {value}"
        self.nodes[path] = value

    def write_and_read(self, path: str, value: str) -> str:
        self.write(path, value)
        return self.read(path)

    def make_link(self, path: str, target: str) -> None:
        with self._lock:
            if self.nodes.get(path.rpartition("/")[0]) != _DIRECTORY or target not in self.nodes:
                raise _error(errno.ENOENT, path)
            self.nodes[path] = _ARROW + target

    def remove_link(self, path: str) -> None:
        with self._lock:
            if path not in self.nodes:
                raise _error(errno.ENOENT, path)
            if not path.endswith("/lun"):
                self._refuse_if_linked(path.rpartition("/")[0])
            del self.nodes[path]

    def _refuse_if_linked(self, path: str) -> None:
        if _ARROW + path in self.nodes.values():
            raise _error(errno.EBUSY, path)


def _info(control: str) -> str:
    """What a configured backstore tells of itself."""
    settings = dict(word.split("=", 1) for word in control.split(","))
    return f"File: {settings['fd_dev_name']}  Size: {settings['fd_dev_size']}  Mode: O_DSYNC"


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
