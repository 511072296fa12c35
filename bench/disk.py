"""A disk that takes its time, as a rotating one does: dm-delay over a file."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SIZE = 64 << 20
_SECTOR = 512


@contextmanager
def slow_disk(directory: Path, milliseconds: int) -> Iterator[Path]:
    """A mounted ext4 on which each write and each flush takes so long; reading takes no longer than it does."""
    image, mounted = directory / "slow.img", directory / "slow"
    with image.open("wb") as file:
        file.truncate(_SIZE)
    mounted.mkdir()
    loop = _run("losetup", "--find", "--show", str(image)).strip()
    try:
        table = f"0 {_SIZE // _SECTOR} delay {loop} 0 0 {loop} 0 {milliseconds}"
        _run("dmsetup", "create", "slow", "--table", table)
        try:
            _run("mkfs.ext4", "-q", "/dev/mapper/slow")
            _run("mount", "/dev/mapper/slow", str(mounted))
            try:
                yield mounted
            finally:
                _run("umount", str(mounted))
        finally:
            _run("dmsetup", "remove", "--retry", "slow")
    finally:
        _run("losetup", "--detach", loop)


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout
