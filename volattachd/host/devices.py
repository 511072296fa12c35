"""What a volume's path leads to: whether it may be taken, what identifies it, and whether it is still the same.

Rules:

1. A path is followed through symbolic links only under /dev, which udev and root keep. Anywhere else a link, or
   a directory that others can write to, would let them exchange the file behind our back.
2. What is in use is refused: the kernel's own claim (O_EXCL on a block device) tells of mounts, of holders like
   LVM and MD, and of other targets; locks tell of a file that QEMU has open.
3. The name of a device is not its identity. What the medium itself says (dm uuid, WWID, partition UUID, inode and
   generation) is recorded when the volume is registered, and compared before each export.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import stat
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from volattachd.errors import AlreadyExists, InvalidInput
from volattachd.model import Condition, Device, Volume, now

#: _IOR('v', 1, long) and _IOR(0x12, 114, size_t): linux/fs.h
_FS_IOC_GETVERSION = 0x80087601
_BLKGETSIZE64 = 0x80081272
_SECTOR = 512

_USE_A_DEVICE = "give the path of a block device or of a regular file"


@dataclass(frozen=True)
class Place:
    """A block device (``kind`` "block", its number) or a file (``kind`` "file", filesystem and inode)."""

    kind: str
    number: tuple[int, ...]


def inspect_device(path: str) -> Device:
    """What the path leads to now.

    Raises InvalidInput, saying why, where it is missing or could not be a volume.
    """
    resolved, found = _resolve(path)
    try:
        if stat.S_ISBLK(found.st_mode):
            return _inspect_block(resolved, found.st_rdev)
        if stat.S_ISREG(found.st_mode):
            return _inspect_file(resolved, found)
    except OSError as error:  # it cannot be read, or goes away while it is looked at
        raise InvalidInput(f"cannot use {path}: {error.strerror}", _USE_A_DEVICE) from error
    raise InvalidInput(f"cannot use {path}: it is neither a block device nor a regular file", _USE_A_DEVICE)


def check_unused(path: str, read_only: bool, others: Iterable[Volume]) -> None:
    """Raise where something else uses the device: a mount, another holder, or a registered volume.

    InvalidInput for what the host does with it; AlreadyExists for a volume that is, contains or lies on it.
    """
    own = _place_of(path)
    below = set(_closure(own))
    for other in others:
        theirs = _place_or_none(other.path)
        if theirs is not None and (theirs in below or own in set(_closure(theirs))):
            raise AlreadyExists(f"cannot use {path}: it shares a device with volume {other.id!r} ({other.path})")
    if own.kind == "block":
        _check_block_free(path, own)
    else:
        _check_file_free(path, own, read_only)


@dataclass(frozen=True)
class Finding:
    """What a look at a volume's device found: what is wrong with it, and the size in bytes that it has now."""

    condition: Condition | None
    size: int = 0


def verify_device(volume: Volume) -> Condition | None:
    """None where the volume's path leads to what was registered; else what is wrong."""
    return examine_device(volume).condition


def examine_device(volume: Volume) -> Finding:
    """Whether the volume's path leads to what was registered, and how large that is now."""
    try:
        actual = inspect_device(volume.path)
    except InvalidInput as error:
        return Finding(Condition("DeviceMissing", error.message, now()))
    recorded = volume.device.identity
    unknown = [key for key in recorded if key not in actual.identity]
    if unknown and actual.kind == volume.device.kind:
        why = f"{volume.path} does not tell its {', '.join(unknown)} yet"
        return Finding(Condition("DeviceMissing", why, now()))
    changed = [key for key, value in recorded.items() if actual.identity.get(key) != value]
    if changed:
        told = ", ".join(f"{key} was {recorded[key]} and is {actual.identity.get(key)}" for key in changed)
        return Finding(Condition("DeviceChanged", f"{volume.path} is another device now: {told}", now()))
    if actual.size < volume.size:
        why = f"{volume.path} has shrunk from {volume.size} to {actual.size} bytes"
        return Finding(Condition("DeviceChanged", why, now()), actual.size)
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


# Following the path.


def _resolve(path: str) -> tuple[str, os.stat_result]:
    """Where the path leads, and what is there."""
    try:
        way = _way(path)
        if way is not None:
            _check_directories(path, way)
            return path, way[path]
        resolved = os.path.realpath(path, strict=True)
        found = os.stat(resolved)
    except OSError as error:
        why = "a loop of symbolic links" if error.errno == errno.ELOOP else error.strerror
        raise InvalidInput(f"cannot use {path}: {why}", _USE_A_DEVICE) from error
    if not (path.startswith("/dev/") and resolved.startswith("/dev/") and os.path.normpath(path) == path):
        raise InvalidInput(
            f"cannot use {path}: it leads through a symbolic link or '..' to {resolved}",
            f"give {resolved} itself (links are followed under /dev only)",
        )
    return resolved, found


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
    own = os.geteuid()
    for directory, found in way.items():
        sticky = found.st_mode & stat.S_ISVTX
        if directory != path and (found.st_uid not in (0, own) or (found.st_mode & 0o022 and not sticky)):
            raise InvalidInput(
                f"cannot use {path}: other users can exchange it, because they can write to {directory}",
                f"make {directory} writable by root only",
            )


# Identity.


def _inspect_block(path: str, number: int) -> Device:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidInput(f"cannot use {path}: {error.strerror}", _USE_A_DEVICE) from error
    try:
        buffer = array.array("Q", [0])
        fcntl.ioctl(fd, _BLKGETSIZE64, buffer)
    finally:
        os.close(fd)
    size = _checked_size(path, buffer[0])
    device = _udev_device(number)
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
        found = os.stat(path)
        return {"file": path, **_file_identity(path, found)}
    except OSError:
        return {"file": path}


def _inspect_file(path: str, found: os.stat_result) -> Device:
    size = _checked_size(path, found.st_size)
    return Device("file", size, _file_identity(path, found), discard=True)


def _file_identity(path: str, found: os.stat_result) -> dict[str, str]:
    identity = {"inode": str(found.st_ino)}
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
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
    found = os.stat(path)
    if stat.S_ISBLK(found.st_mode):
        return Place("block", (os.major(found.st_rdev), os.minor(found.st_rdev)))
    return Place("file", (found.st_dev, found.st_ino))


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
        device = place.number[0]
        return [Place("block", (os.major(device), os.minor(device)))]
    base = f"/sys/dev/block/{place.number[0]}:{place.number[1]}"
    lower = [os.path.join(base, "slaves", name, "dev") for name in _list_or_empty(f"{base}/slaves")]
    if os.path.exists(f"{base}/partition"):
        lower.append(f"{base}/../dev")
    places = [Place("block", tuple(int(n) for n in text.split(":"))) for text in map(_read_or_empty, lower) if text]
    backing = _place_or_none(_read_or_empty(f"{base}/loop/backing_file") or "/nonexistent")
    return places + ([backing] if backing else [])


def _check_block_free(path: str, place: Place) -> None:
    number = f"{place.number[0]}:{place.number[1]}"
    mounts = [mount for device, mount in _mounts() if device == number]
    if mounts:
        raise InvalidInput(f"cannot use {path}: it is mounted on {mounts[0]}", f"umount {mounts[0]}")
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        holders = _list_or_empty(f"/sys/dev/block/{number}/holders")
        by = f" by {', '.join(holders)}" if holders else " (a mounted partition, swap, LVM, MD or another target)"
        why = f"it is held{by}" if error.errno == errno.EBUSY else error.strerror
        raise InvalidInput(f"cannot use {path}: {why}", "release it first; lsblk and fuser tell who has it") from error


def _check_file_free(path: str, place: Place, read_only: bool) -> None:
    for name in os.listdir("/sys/block"):
        if name.startswith("loop"):
            backing = _read_or_empty(f"/sys/block/{name}/loop/backing_file")
            if backing and _place_or_none(backing) == place:
                raise InvalidInput(f"cannot use {path}: /dev/{name} is set up on it", f"losetup -d /dev/{name}")
    if any(line.split(" ")[0] == path for line in _read_or_empty("/proc/swaps").splitlines()):
        raise InvalidInput(f"cannot use {path}: it is used as swap", f"swapoff {path}")
    try:
        fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise InvalidInput(f"cannot use {path}: {error.strerror}", _USE_A_DEVICE) from error
    try:
        fcntl.lockf(fd, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        raise InvalidInput(f"cannot use {path}: another process holds a lock on it", f"see: fuser -v {path}") from error
    finally:
        os.close(fd)


def _mounts() -> Iterator[tuple[str, str]]:
    """(device number, mount point) of every mount of this mount namespace."""
    for line in _read_or_empty("/proc/self/mountinfo").splitlines():
        words = line.split(" ")
        yield words[2], words[4]


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
