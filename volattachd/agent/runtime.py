"""What the agent keeps while it runs and while volumes are attached: one lock file, and secrets for QEMU.

Nothing here is state to recover from: the daemon knows what is attached. The directory is the user's alone.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from volattachd.agent.errors import ConnectorUnusable

#: struct flock of linux/fcntl.h on 64-bit hosts: type, whence, start, length, pid.
_FLOCK = "hhqqi4x"


def runtime_directory() -> Path:
    """The user's own directory, made where it is missing: /run/volattach for root."""
    if os.geteuid() == 0:
        return _private(Path("/run/volattach"))
    base = os.environ.get("XDG_RUNTIME_DIR")
    return _private(Path(base, "volattach") if base else Path.home() / ".cache" / "volattach")


def _private(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConnectorUnusable(f"cannot use {path}: it is not a directory of this user alone", f"remove {path}")
    return path


@contextmanager
def only_one(file: Path, what: str) -> Iterator[None]:
    """One agent of this user at a time for each name; the others wait. It ends with the process, however that ends.

    One byte of the file for each name, so nothing is left behind for each. (Two names that share a byte only wait for
    each other; who takes a second lock takes it of another file.) The lock belongs to the open file and not to the
    process, so threads exclude each other too.
    """
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        byte = zlib.crc32(what.encode())
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
        yield
    finally:
        os.close(fd)
