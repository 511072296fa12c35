"""The file layer under the lio driver: the handful of operations that configfs has, one method each.

It is handed to the driver, so a test can count the operations, or make the N-th of them fail or kill the
process, through the very seam that production uses. Paths are relative to ``root``. Attributes are read and
written with os.open/os.read/os.write: three system calls where ``open()`` in text mode makes seven.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")

#: A configfs attribute is at most one page long.
_PAGE = 4096

ROOT = "/sys/kernel/config/target"


class ConfigFs:
    """LIO's tree in configfs. Every method raises OSError as the kernel gave it."""

    def __init__(self, root: str = ROOT) -> None:
        self.root = root

    def _path(self, path: str) -> str:
        return f"{self.root}/{path}"

    # Reading.

    def is_dir(self, path: str) -> bool:
        """Whether there is such a directory."""
        try:
            return stat.S_ISDIR(os.stat(self._path(path)).st_mode)
        except FileNotFoundError:
            return False

    def list_dir(self, path: str) -> list[str]:
        """The names in a directory, sorted; empty where there is no such directory."""
        try:
            return sorted(os.listdir(self._path(path)))
        except FileNotFoundError:
            return []

    def list_links(self, path: str) -> list[str]:
        """The names of the symbolic links in a directory, sorted; empty where there is no such directory."""
        try:
            with os.scandir(self._path(path)) as entries:
                return sorted(entry.name for entry in entries if entry.is_symlink())
        except FileNotFoundError:
            return []

    def list_dirs(self, path: str) -> list[str]:
        """The names of the directories in a directory, sorted; empty where there is no such directory."""
        try:
            with os.scandir(self._path(path)) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []

    def read(self, path: str) -> str:
        """An attribute's value without the newline that the kernel adds."""
        fd = os.open(self._path(path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _text(os.read(fd, _PAGE))
        finally:
            os.close(fd)

    def read_link(self, path: str) -> str | None:
        """What a link points to, relative to the root; None where it is not there or leads elsewhere."""
        full = self._path(path)
        try:
            # configfs writes links relative to their place; no part of the way is a link itself.
            target = os.path.normpath(os.path.join(os.path.dirname(full), os.readlink(full)))
        except FileNotFoundError:
            return None
        prefix = self.root + "/"
        return target.removeprefix(prefix) if target.startswith(prefix) else None

    # Changing. Each of these is one system call that the kernel performs whole or not at all.

    def make_dir(self, path: str) -> None:
        """mkdir: creates the object."""
        os.mkdir(self._path(path))

    def remove_dir(self, path: str) -> None:
        """rmdir: destroys the object."""
        os.rmdir(self._path(path))

    def write(self, path: str, value: str) -> None:
        """Writes an attribute, without a newline: the kernel would store one as part of a CHAP secret."""
        fd = os.open(self._path(path), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)

    def write_and_read(self, path: str, value: str) -> str:
        """Writes an attribute; the answer is what it reads as now. configfs asks the object anew after each write."""
        fd = os.open(self._path(path), os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
            return _text(os.pread(fd, _PAGE, 0))
        finally:
            os.close(fd)

    def make_link(self, path: str, target: str) -> None:
        """symlink: ties one object to another."""
        os.symlink(self._path(target), self._path(path))

    def remove_link(self, path: str) -> None:
        """unlink: unties it again."""
        os.unlink(self._path(path))


def _text(data: bytes) -> str:
    """A value without the newline that the kernel adds."""
    return data.decode("utf-8", "replace").rstrip("\n")


class Look(ConfigFs):
    """One look at the tree, for the length of one plan: what was read is not read again.

    A change that goes through it ends the look: whatever is read after that is read anew. An object whose attribute
    could be read, or that was listed, is known to be there. What was missing is asked for again. One thread's own.
    """

    def __init__(self, real: ConfigFs) -> None:
        super().__init__(real.root)
        self._real = real
        self._forget()

    def _forget(self) -> None:
        self._dirs: set[str] = set()
        self._seen: dict[tuple[Callable[[str], object], str], object] = {}

    def _once(self, read: Callable[[str], T], path: str) -> T:
        key = (read, path)
        if key not in self._seen:
            self._seen[key] = read(path)
        return cast(T, self._seen[key])

    def _note(self, path: str) -> None:
        """The object is there, and so are those that it lies in."""
        while path and path not in self._dirs:
            self._dirs.add(path)
            path = path.rpartition("/")[0]

    def is_dir(self, path: str) -> bool:
        if path not in self._dirs and self._real.is_dir(path):
            self._note(path)
        return path in self._dirs

    def list_dir(self, path: str) -> list[str]:
        return self._once(self._real.list_dir, path)

    def list_links(self, path: str) -> list[str]:
        return self._once(self._real.list_links, path)

    def list_dirs(self, path: str) -> list[str]:
        found = self._once(self._real.list_dirs, path)
        for name in found:
            self._note(f"{path}/{name}")
        return found

    def read(self, path: str) -> str:
        value = self._once(self._real.read, path)
        self._note(path.rpartition("/")[0])
        return value

    def read_link(self, path: str) -> str | None:
        return self._once(self._real.read_link, path)

    def make_dir(self, path: str) -> None:
        self._forget()
        self._real.make_dir(path)

    def remove_dir(self, path: str) -> None:
        self._forget()
        self._real.remove_dir(path)

    def write(self, path: str, value: str) -> None:
        self._forget()
        self._real.write(path, value)

    def write_and_read(self, path: str, value: str) -> str:
        self._forget()
        return self._real.write_and_read(path, value)

    def make_link(self, path: str, target: str) -> None:
        self._forget()
        self._real.make_link(path, target)

    def remove_link(self, path: str) -> None:
        self._forget()
        self._real.remove_link(path)
