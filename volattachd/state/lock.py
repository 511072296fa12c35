"""One daemon for one state directory: a lock that is held for the life of the process.

Rules:

1. The lock is flock(2) on the file ``lock`` in the state directory; the kernel ends it with the process. The file holds
   the pid, for people.
2. A process that was killed while one of its threads sleeps uninterruptibly in the kernel (removing the access
   rule of a stalled device) stays a zombie, and keeps its lock, until the device answers. Such a process can never run
   a line of its program again: every thread is dead or has SIGKILL pending. Its lock is then passed over, by
   giving the next daemon a new file.
3. Who takes the lock holds flock on the directory meanwhile, so two of them never pass over one lock at a time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from volattachd.errors import JournalUnusable
from volattachd.telemetry import messages

NAME = "lock"
#: The pid is written in place and has always the same length, so that it needs no room on a full disk.
_PID_BYTES = 16


def take_lock(state_dir: Path) -> tuple[int, bool]:
    """Make the directory where it is missing, check that it is ours alone, and lock it.

    The answer is the descriptor that holds the lock, and whether a dead daemon's was passed over.
    Raises JournalUnusable, naming the holder, where another daemon has it.
    """
    _make_directory(state_dir)
    path = state_dir / NAME
    with _directory_locked(state_dir):
        fd = _open(path)
        passed_over = not _try_lock(fd)
        if passed_over:
            holder = _holder(fd)
            os.close(fd)
            if not (holder.isdigit() and is_past_running(int(holder))):
                raise JournalUnusable(f"another volattachd (pid {holder}) works on {state_dir}")
            messages.LOCK_PASSED_OVER.tell(former=holder)
            os.unlink(path)
            fd = _open(path)
            _try_lock(fd)
    _write_pid(fd, state_dir)
    return fd, passed_over


@contextmanager
def lock_to_look(state_dir: Path) -> Iterator[None]:
    """Keep daemons away from a state directory while it is looked at, and change nothing in it.

    Raises JournalUnusable, naming the holder, while a daemon works on it.
    """
    try:
        fd = os.open(state_dir / NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise JournalUnusable(f"{state_dir} is no state directory of volattachd: lock: {error.strerror}") from error
    try:
        if not _try_lock(fd):
            raise JournalUnusable(
                f"volattachd (pid {_holder(fd)}) works on {state_dir}: stop it, then check the journal"
            )
        yield
    finally:
        os.close(fd)


def _holder(fd: int) -> str:
    return os.pread(fd, _PID_BYTES, 0).decode("ascii", "replace").strip()


def release_lock(fd: int) -> None:
    """End the lock now. Closing alone would leave it to a child that was forked a moment ago, until it calls exec."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def _make_directory(state_dir: Path) -> None:
    try:
        os.mkdir(state_dir, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise JournalUnusable(f"cannot make the state directory {state_dir}: {error.strerror}") from error
    found = os.stat(state_dir)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        # Never chmod what somebody else may have made: say so instead.
        raise JournalUnusable(
            f"{state_dir} must be a directory of uid {os.geteuid()} with mode 0700, because it holds secrets:"
            f" it has uid {found.st_uid} and mode {stat.S_IMODE(found.st_mode):04o}"
        )


@contextmanager
def _directory_locked(state_dir: Path) -> Iterator[None]:
    fd = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if path.is_symlink():
            raise JournalUnusable(f"{path} is a symbolic link, which is not followed: remove it") from error
        raise _not_writable(path.parent, error) from error


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_past_running(pid: int) -> bool:
    """Whether every thread of a process is dead or is going to die before it runs again."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        return bool(tasks) and all(_is_dying(f"/proc/{pid}/task/{task}/status") for task in tasks)
    except FileNotFoundError:
        return False  # it went away while we looked: the caller says who had it, and may try again


def _is_dying(status: str) -> bool:
    with open(status, encoding="ascii", errors="replace") as lines:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in lines if ":\t" in line)
    killed = int(fields["SigPnd"], 16) >> (signal.SIGKILL - 1) & 1
    return fields["State"].startswith(("Z", "X")) or bool(killed)


def _write_pid(fd: int, state_dir: Path) -> None:
    try:
        os.pwrite(fd, f"{os.getpid()}\n".rjust(_PID_BYTES).encode(), 0)
    except OSError as error:
        os.close(fd)
        raise _not_writable(state_dir, error) from error


def _not_writable(state_dir: Path, error: OSError) -> JournalUnusable:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    what = "make room" if is_full else "make it writable for the daemon"
    return JournalUnusable(
        f"cannot write to the state directory {state_dir}: {error.strerror}: {what}, and start again"
    )
