"""Who uses a block device on this host: mounts of every namespace, swap, devices that lie on it, processes.

The kernel's own claim has the last word: ``claim`` takes the device exclusively, so nobody can mount it between the
look and its end. A process that merely has it open can be seen in /proc alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from volattachd.agent.disks import SYS, read
from volattachd.agent.errors import DeviceInUse

PROC = Path("/proc")

#: _IO(0x12, 97) of linux/fs.h: write everything, then drop what is cached.
_BLKFLSBUF = 0x1261

#: They look at every device of the host, and let go by themselves. So does whatever udev starts for an event.
_UDEV = {"systemd-udevd", "udevadm"}
_LOOKERS = {*_UDEV, "scsi_id", "multipathd"}

#: How long a forced end waits for what is still to be written, in seconds.
FLUSH_SECONDS = 10.0


def users_of(disk: str, sys: Path = SYS, proc: Path = PROC) -> list[str]:
    """Who uses the disk or a part of it, in words."""
    parts = _parts(disk, sys)
    found = [f"/dev/{name} is mounted at {place}" for name, place in _mounts(parts, proc)]
    found += [f"/dev/{name} is swap" for name in _swaps(parts, proc)]
    found += [f"/dev/{name} is held by {holder}" for name in parts.values() for holder in _holders(name, sys)]
    return found + _openers(parts, proc)


@contextmanager
def claimed(disk: str) -> Iterator[int]:
    """The disk for us alone, as far as the kernel keeps others off. Raises DeviceInUse, naming who has it."""
    fd = None
    try:
        fd = os.open(f"/dev/{disk}", os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES):
            fd = os.open(f"/dev/{disk}", os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        elif error.errno != errno.EBUSY:
            raise
    try:
        users = users_of(disk)
        if users or fd is None:
            what = "; ".join(users) or f"the kernel says that /dev/{disk} is in use"
            raise DeviceInUse(what, "end that first; with force it is done all the same, and unwritten data is lost")
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def flush(fd: int) -> None:
    """Have everything written that was written to the device. Raises OSError where it could not be."""
    os.fsync(fd)
    fcntl.ioctl(fd, _BLKFLSBUF)


def flush_by_force(disk: str) -> bool:
    """Have written what can be written in a bounded time. A thread that waits longer is left to the kernel."""
    done = threading.Event()

    def body() -> None:
        try:
            fd = os.open(f"/dev/{disk}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                flush(fd)
            finally:
                os.close(fd)
        except OSError:
            return
        done.set()

    threading.Thread(target=body, daemon=True).start()
    return done.wait(FLUSH_SECONDS)


def _parts(disk: str, sys: Path) -> dict[int, str]:
    """The disk and its partitions: device number to name."""
    base = sys / "block" / disk
    names = [disk] + [path.parent.name for path in sorted(base.glob("*/partition"))]
    numbers = {name: read(base / "dev" if name == disk else base / name / "dev") for name in names}
    return {_number(text): name for name, text in numbers.items() if text}


def _number(text: str) -> int:
    major, _, minor = text.partition(":")
    return os.makedev(int(major), int(minor))


def _mounts(parts: dict[int, str], proc: Path) -> list[tuple[str, str]]:
    """Mounts in any mount namespace. Some filesystems (btrfs) show a number of their own: their source is looked at."""
    found: dict[tuple[str, str], None] = {}
    for lines in _mount_tables(proc):
        for line in lines:
            words, _, rest = line.partition(" - ")
            fields, source = words.split(), rest.split()[1:2]
            named = _device_number(source[0]) if source else None
            for number in (_number(fields[2]), named):
                if number in parts:
                    found[parts[number], fields[4].encode().decode("unicode_escape")] = None
    return list(found)


def _mount_tables(proc: Path) -> Iterator[list[str]]:
    """The table of each mount namespace that some process is in."""
    seen = set()
    for process in _processes(proc):
        try:
            namespace = os.readlink(process / "ns/mnt")
            if namespace not in seen:
                seen.add(namespace)
                yield (process / "mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue  # it has just ended, or is another user's


def _device_number(path: str) -> int | None:
    if not path.startswith("/"):
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_rdev if stat.S_ISBLK(found.st_mode) else None


def _swaps(parts: dict[int, str], proc: Path) -> list[str]:
    numbers = [_device_number(line.split()[0]) for line in read(proc / "swaps").splitlines()[1:]]
    return [parts[number] for number in numbers if number in parts]


def _holders(name: str, sys: Path) -> list[str]:
    """What lies on it: device-mapper and MD devices, by the names that people gave them."""
    found = sorted((sys / "class/block" / name / "holders").glob("*"))
    return [read(holder / "dm/name") or holder.name for holder in found]


def _openers(parts: dict[int, str], proc: Path) -> list[str]:
    found = []
    for process in _processes(proc):
        if process.name == str(os.getpid()) or _is_looker(process):
            continue
        opened = {parts[number] for number in _open_devices(process) if number in parts}
        words = read(process / "comm")
        found += [f"/dev/{name} is open in {words} (pid {process.name})" for name in sorted(opened)]
    return found


def _is_looker(process: Path) -> bool:
    return _program(process) in _LOOKERS or _program(_parent(process)) in _UDEV


def _parent(process: Path) -> Path:
    """Who started it: the second word after its name (proc(5), stat); 0, which is nobody, where it has just ended."""
    words = read(process / "stat").rpartition(")")[2].split()
    return process.with_name(words[1] if len(words) > 1 else "0")


def _open_devices(process: Path) -> Iterator[int]:
    try:
        names = os.listdir(process / "fd")
    except OSError:
        return  # it has just ended, or is another user's
    for name in names:
        try:
            found = os.stat(process / "fd" / name)
        except OSError:
            continue
        if stat.S_ISBLK(found.st_mode):
            yield found.st_rdev


def _program(process: Path) -> str:
    try:
        return os.path.basename(os.readlink(process / "exe"))
    except OSError:
        return ""


def _processes(proc: Path) -> list[Path]:
    return [path for path in proc.iterdir() if path.name.isdigit()]
