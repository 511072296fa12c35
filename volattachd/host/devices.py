"""What a volume's path leads to: whether it may be taken, what identifies it, and whether it is still the same.

Rules:

1. A path is followed through symbolic links only under /dev, which udev and root keep. Anywhere else a link, or
   a directory that others can write to, would let them exchange the file behind our back. In a directory where
   everybody may make files (a sticky one) what belongs to somebody else is refused. So nobody but root, or the daemon's
   own user, can change where a path that passed leads.
2. An object is opened once, with O_PATH, which waits for nothing and does nothing, and then looked at. Whatever else is
   needed of it is opened through that descriptor and not by its name: what was checked is what is used.
3. What is in use is refused. The kernel's own claim (O_EXCL on a block device) shows mounts, holders like LVM and MD,
   and other targets. A loop device makes no claim on what lies below it, so each of them is asked what that is, and
   so is each mount and each swap area: what lies anywhere below one of these is in use. Locks and leases show a
   file that a process, or the kernel, has open for writing.
4. The daemon's own files are refused by their inodes, before they are opened: closing a descriptor of the journal's
   file would end SQLite's locks on it.
5. The name of a device is not its identity. What the medium itself says (dm uuid, WWID, partition UUID, inode and
   generation) is recorded when the volume is registered, and compared before each export.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import re
import signal
import stat
import struct
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from volattachd.errors import AlreadyExists, InvalidInput
from volattachd.model import Condition, Device, Volume, now

#: _IOR('v', 1, long) and _IOR(0x12, 114, size_t): linux/fs.h
_FS_IOC_GETVERSION = 0x80087601
_BLKGETSIZE64 = 0x80081272
#: linux/loop.h: the first members of struct loop_info64 (device, inode, device of a device), and what comes after them
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_INFO64 = struct.Struct("@QQQ")
_LOOP_NAMES = 232 - _LOOP_INFO64.size
_SECTOR = 512

#: linux/dm-ioctl.h: the head of struct dm_ioctl, struct dm_target_spec, and room for a table of some 100 parts
_DM_IOCTL = struct.Struct("@3I3IiIIIQ")
_DM_TARGET = struct.Struct("@QQiI16s")
_DM_HEADER, _DM_BYTES = 312, 16384
_DM_TABLE_STATUS = 0xC138FD0C
_DM_STATUS_TABLE, _DM_NOFLUSH = 1 << 4, 1 << 11

#: The part of a file system that is still free when a sparse file on it has a condition.
_SPACE_LOW = 0.05

#: The member of a volume's identity that says to which size its device was cut, once that was seen.
CUT_TO = "cut_to"

_USE_A_DEVICE = "give the path of a block device or of a regular file"


@dataclass(frozen=True)
class Place:
    """A block device (``kind`` "block", its number) or a file (``kind`` "file", filesystem and inode)."""

    kind: str
    number: tuple[int, ...]


@dataclass(frozen=True)
class Opened:
    """What a path leads to, held by a descriptor that was opened with O_PATH; ``found`` is what fstat says of it."""

    path: str
    fd: int
    found: os.stat_result

    @property
    def itself(self) -> str:
        """A name for the object that no rename and no link changes."""
        return f"/proc/self/fd/{self.fd}"

    @property
    def place(self) -> Place:
        """Which device or file it is."""
        return _place(self.found)


@contextmanager
def open_device(path: str, own: Path | None = None) -> Iterator[Opened]:
    """The block device or file that a path leads to, for the length of a ``with``.

    ``own`` is the daemon's own directory, whose files are refused. Raises InvalidInput, saying why, where the path
    leads nowhere, or somewhere that could not be a volume.
    """
    fd, found = _open_path(path, own)
    try:
        yield Opened(path, fd, found)
    finally:
        os.close(fd)


def inspect_device(path: str) -> Device:
    """What the path leads to now.

    Raises InvalidInput, saying why, where it is missing or could not be a volume.
    """
    with open_device(path) as opened:
        return _describe(opened)


def take_device(path: str, read_only: bool, others: Iterable[Volume], own: Path | None = None) -> Device:
    """What a path leads to, for a new volume: one look at one object, which nothing else uses.

    Raises as ``inspect_device`` and ``check_unused`` do.
    """
    with open_device(path, own) as opened:
        device = _describe(opened)
        _check_unused(opened, read_only, others)
        return device


def check_unused(path: str, read_only: bool, others: Iterable[Volume]) -> None:
    """Raise where something else uses the device: a mount, another holder, or a registered volume.

    InvalidInput for what the host does with it; AlreadyExists for a volume that is, contains or lies on it.
    """
    with open_device(path) as opened:
        _check_unused(opened, read_only, others)


def _describe(opened: Opened) -> Device:
    try:
        if stat.S_ISBLK(opened.found.st_mode):
            return _inspect_block(opened)
        return _inspect_file(opened)
    except OSError as error:  # it cannot be read, or goes away while it is looked at
        raise InvalidInput(f"cannot use {opened.path}: {error.strerror}", _USE_A_DEVICE) from error


def _check_unused(opened: Opened, read_only: bool, others: Iterable[Volume]) -> None:
    own, path = opened.place, opened.path
    below = set(_closure(own))
    for other in others:
        theirs = _place_or_none(other.path)
        if theirs is not None and (theirs in below or own in set(_closure(theirs))):
            raise AlreadyExists(f"cannot use {path}: it shares a device with volume {other.id!r} ({other.path})")
    for user, correction, place in _users():
        if own in set(_closure(place)):
            raise InvalidInput(f"cannot use {path}: {user}", correction)
    if own.kind == "block":
        _check_block_free(opened)
    else:
        _check_file_free(opened, read_only)


@dataclass(frozen=True)
class Finding:
    """What a look at a volume's device found: what is wrong with it, and the size in bytes that it has now."""

    condition: Condition | None
    size: int = 0
    warnings: tuple[Condition, ...] = ()  # what will fail, or fails already, while the export stays as it is
    cut_to: int | None = None  # the size of a device that has become smaller than the volume


def verify_device(volume: Volume) -> Condition | None:
    """None where the volume's path leads to what was registered; else what is wrong."""
    return examine_device(volume).condition


def examine_device(volume: Volume) -> Finding:
    """Whether the volume's path leads to what was registered, and how large that is now."""
    try:
        with open_device(volume.path) as opened:
            found = _compare(volume, _describe(opened))
            return found if found.condition else replace(found, warnings=tuple(_warnings(volume, opened)))
    except InvalidInput as error:
        return Finding(Condition("DeviceMissing", error.message, now()))


def verify_opened(volume: Volume, path: str) -> Condition | None:
    """The same of an object that somebody has open, by a path that leads to that object itself (in /proc)."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        return Condition("DeviceMissing", f"cannot look at what is open as {path}: {error.strerror}", now())
    try:
        actual = _describe(Opened(volume.path, fd, os.fstat(fd)))
    except InvalidInput as error:
        return Condition("DeviceMissing", error.message, now())
    finally:
        os.close(fd)
    return _compare(volume, actual).condition


def _compare(volume: Volume, actual: Device) -> Finding:
    """What was registered, and what is there."""
    recorded = volume.device.identity
    unknown = [key for key in recorded if key not in (*actual.identity, CUT_TO)]
    if unknown and actual.kind == volume.device.kind:
        why = f"{volume.path} does not tell its {', '.join(unknown)} yet"
        return Finding(Condition("DeviceMissing", why, now()))
    changed = [key for key, value in recorded.items() if key != CUT_TO and actual.identity.get(key) != value]
    if changed:
        told = ", ".join(f"{key} was {recorded[key]} and is {actual.identity.get(key)}" for key in changed)
        return Finding(Condition("DeviceChanged", f"{volume.path} is another device now: {told}", now()))
    if actual.size < volume.size:
        why = f"{volume.path} has shrunk from {volume.size} to {actual.size} bytes"
        return Finding(Condition("DeviceChanged", why, now()), cut_to=actual.size)
    if CUT_TO in recorded:
        why = f"{volume.path} was cut to {recorded[CUT_TO]} bytes and has grown again: what was behind that is lost"
        return Finding(Condition("DeviceChanged", why, now()))
    return Finding(None, actual.size)


def concerns(volume: Volume, names: Container[str], number: int) -> bool:
    """Whether news of a block device, known by these names and this number, is about the volume's device."""
    if volume.device.kind != "block":
        return False
    if volume.path in names:
        return True
    try:
        return os.stat(volume.path).st_rdev == number
    except OSError:
        return False


def _warnings(volume: Volume, opened: Opened) -> Iterator[Condition]:
    """What is wrong with the right device. The messages have no numbers that move: each new one would be logged."""
    if opened.place.kind == "file":
        if _is_short_of_space(opened):
            why = f"the file system of {volume.path} is nearly full and the file is sparse: writes will fail"
            yield Condition("SpaceLow", why, now())
        return
    number = ":".join(map(str, opened.place.number))
    if not volume.read_only and _read_or_empty(f"/sys/dev/block/{number}/ro") == "1":
        yield Condition("DeviceFailed", f"{volume.path} is write-protected and the volume is not: writes fail", now())
    elif any(_has_error_table(place) for place in _closure(opened.place)):
        why = f"{volume.path} lies on device-mapper's error target: reads and writes fail"
        yield Condition("DeviceFailed", why, now())


def _is_short_of_space(opened: Opened) -> bool:
    """Whether the holes of a file need more than there is, and little is left: an overcommitted host alone is fine."""
    holes = opened.found.st_size - opened.found.st_blocks * _SECTOR
    space = os.statvfs(opened.itself)
    return holes > space.f_bavail * space.f_frsize and space.f_bavail < space.f_blocks * _SPACE_LOW


def _has_error_table(place: Place) -> bool:
    """Whether a part of a device is mapped to device-mapper's error target (DM_TABLE_STATUS, linux/dm-ioctl.h).

    False also where device-mapper's control device is not there, or closed to us.
    """
    if place.kind != "block" or not os.path.exists(f"/sys/dev/block/{place.number[0]}:{place.number[1]}/dm"):
        return False
    number = os.makedev(place.number[0], place.number[1])
    flags = _DM_STATUS_TABLE | _DM_NOFLUSH
    table = bytearray(_DM_BYTES)
    _DM_IOCTL.pack_into(table, 0, 4, 0, 0, _DM_BYTES, _DM_HEADER, 0, 0, flags, 0, 0, number)
    try:
        fd = os.open("/dev/mapper/control", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _DM_TABLE_STATUS, table)
        finally:
            os.close(fd)
    except OSError:
        return False
    start, count, at = _DM_IOCTL.unpack_from(table)[4], _DM_IOCTL.unpack_from(table)[5], 0
    for _ in range(count):
        _, _, _, following, kind = _DM_TARGET.unpack_from(table, start + at)
        if kind.rstrip(b"\0") == b"error":
            return True
        at = following
    return False


# Following the path.


def _open_path(path: str, own: Path | None) -> tuple[int, os.stat_result]:
    """A descriptor (O_PATH) of what the path leads to, and what that is: a block device or a regular file."""
    resolved, way = _resolve(path)
    _check_directories(path, way)
    found = way[resolved]
    if own is not None:
        _check_not_own(path, own, way)
    if not (stat.S_ISBLK(found.st_mode) or stat.S_ISREG(found.st_mode)):
        raise InvalidInput(f"cannot use {path}: it is neither a block device nor a regular file", _USE_A_DEVICE)
    try:
        fd = os.open(resolved, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidInput(f"cannot use {path}: {error.strerror}", _USE_A_DEVICE) from error
    opened = os.fstat(fd)
    if (opened.st_dev, opened.st_ino, opened.st_rdev) != (found.st_dev, found.st_ino, found.st_rdev):
        os.close(fd)
        raise InvalidInput(f"cannot use {path}: it was exchanged while it was looked at", _USE_A_DEVICE)
    return fd, opened


def _resolve(path: str) -> tuple[str, Mapping[str, os.stat_result]]:
    """Where the path leads, and every directory on the way there with what is at its end."""
    try:
        way = _way(path)
        if way is not None:
            return path, way
        resolved = os.path.realpath(path, strict=True)
        is_in_dev = path.startswith("/dev/") and resolved.startswith("/dev/") and os.path.normpath(path) == path
        way = _way(resolved) if is_in_dev else None
        if way is not None:
            return resolved, {**_links(path), **way}
    except OSError as error:
        why = "a loop of symbolic links" if error.errno == errno.ELOOP else error.strerror
        raise InvalidInput(f"cannot use {path}: {why}", _USE_A_DEVICE) from error
    raise InvalidInput(
        f"cannot use {path}: it leads through a symbolic link or '..' to {resolved}",
        f"give {resolved} itself (links are followed under /dev only)",
    )


def _links(path: str) -> dict[str, os.stat_result]:
    """What stands on the way under /dev, each link as itself, and each directory in which one stands."""
    parts = path.split("/")
    return {place: os.lstat(place) for place in ("/".join(parts[:end]) for end in range(2, len(parts) + 1))}


def _check_not_own(path: str, own: Path, way: Mapping[str, os.stat_result]) -> None:
    """By inode: whatever a file is called, and however many names it has."""
    refused = InvalidInput(f"cannot use {path}: it belongs to volattachd itself", "keep volumes out of its state_dir")
    kept = {_inode(os.stat(own)), *(_inode(entry) for entry in _files_below(own))}
    if any(_inode(found) in kept for found in way.values()):
        raise refused


def _files_below(directory: Path) -> Iterator[os.stat_result]:
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):
                yield os.lstat(os.path.join(folder, name))


def _inode(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _way(path: str) -> dict[str, os.stat_result] | None:
    """Every directory on the way, and what is at its end; None where the path is not the way itself: through a link,
    with '..', or not from the root.
    """
    if os.path.normpath(path) != path or not path.startswith("/") or path.startswith("//"):
        return None
    way = {"/": os.lstat("/")}
    place = ""
    for name in path.split("/")[1:]:
        place = f"{place}/{name}"
        way[place] = os.lstat(place)
        if stat.S_ISLNK(way[place].st_mode):
            return None
    return way


def _check_directories(path: str, way: Mapping[str, os.stat_result]) -> None:
    """No directory on the way may be one in which somebody else could exchange the next name."""
    ours = (0, os.geteuid())
    for directory, found in way.items():
        if not stat.S_ISDIR(found.st_mode):
            continue
        shared = found.st_mode & 0o022
        if found.st_uid not in ours or (shared and not found.st_mode & stat.S_ISVTX):
            raise InvalidInput(
                f"cannot use {path}: other users can exchange it, because they can write to {directory}",
                f"make {directory} writable by root only",
            )
        for name, entry in way.items():
            if shared and os.path.dirname(name) == directory and name != directory and entry.st_uid not in ours:
                raise InvalidInput(
                    f"cannot use {path}: {name} belongs to uid {entry.st_uid}, who can exchange it in {directory}",
                    "move it to a directory that only root can write to",
                )


# Identity.


def _inspect_block(opened: Opened) -> Device:
    fd = os.open(opened.itself, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        buffer = array.array("Q", [0])
        fcntl.ioctl(fd, _BLKGETSIZE64, buffer)
    finally:
        os.close(fd)
    size = _checked_size(opened.path, buffer[0])
    device = _udev_device(opened.found.st_rdev)
    return Device("block", size, _block_identity(device), _discards(device))


def _block_identity(device: Any) -> dict[str, str]:
    """What the medium says of itself, strongest first. A partition is named by its own UUID as well."""
    identity = {}
    for name, attribute in (("dm_uuid", "dm/uuid"), ("md_uuid", "md/uuid"), ("wwid", "wwid")):
        value = _attribute(device, attribute)
        if value:
            identity[name] = value
    for name, attribute in (("wwid", "device/wwid"), ("serial", "serial"), ("serial", "device/serial")):
        value = _attribute(device, attribute)
        if value and name not in identity:
            identity[name] = value
    backing = _attribute(device, "loop/backing_file")
    if backing:
        identity.update({f"backing_{k}": v for k, v in _backing_identity(backing).items()})
    if device.device_type == "partition" and device.parent is not None:
        identity.update(_block_identity(device.parent))
        identity["partition"] = device.properties.get("ID_PART_ENTRY_UUID") or (
            f"{_attribute(device, 'start')}+{_attribute(device, 'size')}"
        )
    return identity or {"kernel_name": device.sys_name}


def _backing_identity(path: str) -> dict[str, str]:
    """The identity of a loop device's file; its path alone where the file was deleted."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return {"file": path}
    try:
        found = os.fstat(fd)
        identity = _file_identity(Opened(path, fd, found)) if stat.S_ISREG(found.st_mode) else {}
        return {"file": path, "inode": str(found.st_ino), **identity}
    finally:
        os.close(fd)


def _inspect_file(opened: Opened) -> Device:
    size = _checked_size(opened.path, opened.found.st_size)
    return Device("file", size, _file_identity(opened), discard=True)


def _file_identity(opened: Opened) -> dict[str, str]:
    identity = {"inode": str(opened.found.st_ino)}
    fd = os.open(opened.itself, os.O_RDONLY | os.O_CLOEXEC)
    try:
        buffer = array.array("l", [0])
        fcntl.ioctl(fd, _FS_IOC_GETVERSION, buffer)
        identity["generation"] = str(buffer[0] & 0xFFFFFFFF)
    except OSError:
        pass  # not every filesystem numbers the lives of an inode: then the inode alone must do
    finally:
        os.close(fd)
    return identity


def _checked_size(path: str, size: int) -> int:
    if size == 0 or size % _SECTOR:
        raise InvalidInput(
            f"cannot use {path}: its size of {size} bytes is not a positive multiple of {_SECTOR}",
            "truncate -s SIZE it to whole sectors",
        )
    return size


def _udev_device(number: int) -> Any:
    import pyudev  # loads libudev: only a host with block devices pays for it

    try:
        return pyudev.Devices.from_device_number(pyudev.Context(), "block", number)
    except pyudev.DeviceNotFoundError as error:
        raise InvalidInput(f"cannot use block device {os.major(number)}:{os.minor(number)}: {error}") from error


def _attribute(device: Any, name: str) -> str:
    value = device.attributes.get(name)
    text = value.decode("utf-8", "replace").strip() if value else ""
    return "" if text == "(null)" else text  # what a driver prints that has none


def _discards(device: Any) -> bool:
    disk = device.parent if device.device_type == "partition" and device.parent is not None else device
    return _attribute(disk, "queue/discard_max_bytes") not in ("", "0")


# Use by others.


def _place_of(path: str) -> Place:
    return _place(os.stat(path))


def _place(found: os.stat_result) -> Place:
    if stat.S_ISBLK(found.st_mode):
        return _block(found.st_rdev)
    return Place("file", _inode(found))


def _block(number: int) -> Place:
    return Place("block", (os.major(number), os.minor(number)))


def _place_or_none(path: str) -> Place | None:
    """Where a registered volume is; None while its device is missing."""
    try:
        return _place_of(path)
    except OSError:
        return None


def _closure(place: Place) -> Iterator[Place]:
    """The place itself and everything that it lies on: whole disk, slaves, backing file, filesystem's device."""
    pending, seen = [place], set()
    while pending:
        current = pending.pop()
        if current not in seen:
            seen.add(current)
            yield current
            pending += _below(current)


def _below(place: Place) -> list[Place]:
    if place.kind == "file":
        return [_block(place.number[0]), *_sources_of(place.number[0])]
    base = f"/sys/dev/block/{place.number[0]}:{place.number[1]}"
    lower = [os.path.join(base, "slaves", name, "dev") for name in _list_or_empty(f"{base}/slaves")]
    if os.path.exists(f"{base}/partition"):
        lower.append(f"{base}/../dev")
    places = [Place("block", tuple(int(n) for n in text.split(":"))) for text in map(_read_or_empty, lower) if text]
    backing = _backing_of(base) if os.path.exists(f"{base}/loop") else None
    return places + ([backing] if backing else [])


def _backing_of(base: str) -> Place | None:
    """What a loop device is set up on. The device itself says so by inode, the name in sysfs may lead elsewhere."""
    name = os.path.basename(os.path.realpath(base))
    try:
        fd = os.open(f"/dev/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return _place_or_none(_read_or_empty(f"{base}/loop/backing_file") or "/nonexistent")
    try:
        status = bytearray(_LOOP_INFO64.size + _LOOP_NAMES)
        fcntl.ioctl(fd, _LOOP_GET_STATUS64, status)
    except OSError:  # it is not set up
        return None
    finally:
        os.close(fd)
    device, inode, number = _LOOP_INFO64.unpack_from(status)
    backing = _place_or_none(_read_or_empty(f"{base}/loop/backing_file") or "/nonexistent")
    if backing is not None and backing.kind == "block":
        return _block(number)
    return Place("file", (device, inode))


def _sources_of(device: int) -> list[Place]:
    """The block devices of a file system whose number is none of a device (btrfs)."""
    number = f"{os.major(device)}:{os.minor(device)}"
    if os.major(device) != 0:
        return []
    places = [_place_or_none(mount.source) for mount in _mounts() if mount.number == number]
    return [place for place in places if place is not None and place.kind == "block"]


def _users() -> Iterator[tuple[str, str, Place]]:
    """What the host uses: why that is so, what ends it, and where it is. What lies below is in use too."""
    for mount in _mounts():
        place = _place_or_none(mount.source) if mount.source.startswith("/") else None
        where = f"it is mounted on {mount.point}, or lies below what is"
        if place is not None and place.kind == "block":
            yield where, f"umount {mount.point}", place
        major, minor = (int(part) for part in mount.number.split(":"))
        if major:
            yield where, f"umount {mount.point}", Place("block", (major, minor))
    for swap in _swaps():
        place = _place_or_none(swap)
        if place is not None:
            yield f"it is used as swap, or lies below the swap area {swap}", f"swapoff {swap}", place
    for name in _list_or_empty("/sys/block"):
        backing = _backing_of(f"/sys/block/{name}") if name.startswith("loop") else None
        if backing is not None and _read_or_empty(f"/sys/block/{name}/loop/backing_file"):
            yield f"/dev/{name} is set up on it, or on what lies above it", f"losetup -d /dev/{name}", backing


def _check_block_free(opened: Opened) -> None:
    path, number = opened.path, ":".join(map(str, opened.place.number))
    try:
        os.close(os.open(opened.itself, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        holders = _list_or_empty(f"/sys/dev/block/{number}/holders")
        by = f" by {', '.join(holders)}" if holders else " (a mounted partition, swap, LVM, MD or another target)"
        why = f"it is held{by}" if error.errno == errno.EBUSY else error.strerror
        raise InvalidInput(f"cannot use {path}: {why}", "release it first; lsblk and fuser tell who has it") from error


def _check_file_free(opened: Opened, read_only: bool) -> None:
    path = opened.path
    try:
        fd = os.open(opened.itself, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidInput(f"cannot use {path}: {error.strerror}", _USE_A_DEVICE) from error
    try:
        fcntl.lockf(fd, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        raise InvalidInput(f"cannot use {path}: another process holds a lock on it", f"see: fuser -v {path}") from error
    finally:
        os.close(fd)
    if not read_only and _is_written(opened):
        raise InvalidInput(
            f"cannot use {path}: a process or the kernel has it open for writing",
            f"see: fuser -v {path}, and targetcli ls /backstores",
        )


def _is_written(opened: Opened) -> bool:
    """Whether somebody has the file open for writing: the kernel then gives no read lease on it (fcntl(2)).

    False also where the filesystem, or the file's owner, allows no lease. If somebody opens the file in the moment in
    which we have the lease, the kernel sends a signal: one that is ignored.
    """
    fd = os.open(opened.itself, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(fd)
    return False


@dataclass(frozen=True)
class _Mount:
    """A mount of this mount namespace: the number of its device, where it is, and what was mounted."""

    number: str
    point: str
    source: str


def _mounts() -> list[_Mount]:
    lines = [line.partition(" - ") for line in _read_or_empty("/proc/self/mountinfo").splitlines()]
    rows = [(head.split(" "), tail.split(" ")) for head, _, tail in lines]
    return [_Mount(head[2], _unescaped(head[4]), _unescaped(tail[1])) for head, tail in rows]


def _swaps() -> list[str]:
    return [_unescaped(line.split(" ")[0]) for line in _read_or_empty("/proc/swaps").splitlines()[1:]]


def _unescaped(name: str) -> str:
    """A name as the kernel writes it in its tables, with white space in octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), name)


def _read_or_empty(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _list_or_empty(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []
