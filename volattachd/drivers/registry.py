"""Which drivers there are, and which one ``auto`` means on this host.

Drivers are found through the entry-point group ``volattachd.drivers``; ours are registered there like anybody
else's (pyproject.toml). A source tree that was never installed has no entry points: ours are then found by
their modules' names.
"""

from __future__ import annotations

import os
import shutil
from importlib import import_module

from volattachd.drivers.base import TargetDriver
from volattachd.errors import ConfigError

GROUP = "volattachd.drivers"

#: The same rows as in pyproject.toml; a test compares them.
BUILT_IN = {
    "lio": "volattachd.drivers.lio:LioDriver",
    "tgt": "volattachd.drivers.tgt.driver:TgtDriver",
    "memory": "volattachd.drivers.memory:MemoryDriver",
}


def available() -> dict[str, str]:
    """Every driver's name and where its class is ("module:class"). A third party's may not hide one of ours."""
    from importlib.metadata import entry_points  # slow to load, and to ask: only who looks for others' pays for it

    found = dict(BUILT_IN)
    for entry in entry_points(group=GROUP):
        if BUILT_IN.get(entry.name, entry.value) != entry.value:
            raise ConfigError(f"the driver {entry.name!r} is built in, but {entry.value} claims its name too")
        found[entry.name] = entry.value
    return found


def load(name: str) -> type[TargetDriver]:
    """The driver's class. Raises ConfigError for an unknown name, naming those that exist."""
    if name == "auto":
        name = detect()
    drivers = BUILT_IN if name in BUILT_IN else available()
    if name not in drivers:
        raise ConfigError(f"unknown driver {name!r}: use auto or one of {', '.join(sorted(drivers))}")
    module, _, attribute = drivers[name].partition(":")
    cls = getattr(import_module(module), attribute)
    if not (isinstance(cls, type) and issubclass(cls, TargetDriver)):
        raise ConfigError(f"the driver {name!r} ({drivers[name]}) is not a TargetDriver")
    return cls


def detect() -> str:
    """What ``auto`` means: lio where the kernel has it (or can load it), else tgt where it is installed."""
    if kernel_has_lio():
        return "lio"
    if shutil.which("tgtd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
        return "tgt"
    raise ConfigError("no iSCSI target on this host: load target_core_mod (LIO) or install Debian's package tgt")


def kernel_has_lio() -> bool:
    """Whether LIO's iSCSI target is loaded, or its module is there for this kernel to load."""
    if os.path.isdir("/sys/kernel/config/target") or os.path.isdir("/sys/module/iscsi_target_mod"):
        return True
    release = os.uname().release
    directories = (f"/lib/modules/{release}", f"/usr/lib/modules/{release}")
    return any(_lists_module(directory, "iscsi_target_mod") for directory in directories)


def _lists_module(directory: str, module: str) -> bool:
    for index in ("modules.dep", "modules.builtin"):
        try:
            with open(os.path.join(directory, index), encoding="utf-8") as lines:
                if any(f"/{module}.ko" in line for line in lines):
                    return True
        except FileNotFoundError:
            continue
    return False
