"""One guest: a disk, a kernel that can be cut off at any moment, commands that run in it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from .channel import Channel, Command, Completed, Process, shown
from .errors import GuestDied, GuestError, GuestHung
from .image import ensure_image
from .link import End, Link
from .recipe import KERNEL

HERE = Path(__file__).parent
REPO = HERE.parents[2]
BOOT_LIMIT = {"plain": 60.0, "systemd": 240.0}
END_LIMIT = 30.0
POWEROFF_LIMIT = {"plain": END_LIMIT, "systemd": 120.0}
SERIAL = "/dev/ttyS1"
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
Disk: TypeAlias = str | Path
BOOTS: list[float] = []  # how long each boot of this process took, in seconds


class Processors:
    """Which processor each running guest is kept on: the one with the fewest.

    A system call in User-Mode Linux is a hand-over between two processes of the host. Left to the scheduler they sit on
    two processors, each waiting for the other one to wake up; on one, everything in the guest takes less than half.
    """

    def __init__(self, allowed: Collection[int]) -> None:
        self._guests = dict.fromkeys(sorted(allowed), 0)
        self._lock = threading.Lock()

    def take(self) -> int:
        """A processor for one more guest."""
        with self._lock:
            chosen = min(self._guests, key=lambda number: self._guests[number])
            self._guests[chosen] += 1
            return chosen

    def give_back(self, number: int) -> None:
        """A guest on it has ended."""
        with self._lock:
            self._guests[number] -= 1


PROCESSORS = Processors(os.sched_getaffinity(0))


def size_bytes(text: str) -> int | None:
    """The bytes of a size like 64M; None if the text is no size."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    return int(match[1]) * UNITS[match[2]] if match else None


class Guest:
    """Boots on `with` or by boot(); after kill() or poweroff(), boot() again finds the same disks.

    `disk`: the file that keeps what the guest writes to its root disk (made when missing), for a disk that
    outlives this object. `extra_disks`: sizes ("64M") or files; they appear as /dev/ubdb, /dev/ubdc and so on.
    `share`: further directories of the host, each under /host/NAME; /host/repo (read-only) and /host/out
    (`self.out`) are always there. `init`: "plain" starts nothing but what storage needs, "systemd" boots Debian's own.
    """

    def __init__(
        self, image: Path | None = None, *, memory: str = "1024M", disk: Path | None = None,
        extra_disks: Sequence[Disk] = (), network: Link | None = None, share: Mapping[str, Path] | None = None,
        name: str = "guest", init: str = "plain",
    ) -> None:  # fmt: skip
        self._image = image or ensure_image()
        self._memory, self.name, self._init = memory, name, init
        self._work = Path(tempfile.mkdtemp(prefix="volattachd-guest-"))
        self._finalizer = weakref.finalize(self, shutil.rmtree, self._work)
        self.out = self._work / "out"
        self.end: End | None = None
        self.boot_seconds = 0.0
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._processor = 0
        self._channel: Channel | None = None
        self._life = threading.RLock()
        try:
            self._prepare(disk, extra_disks, network, share or {})
        except BaseException:
            self._finalizer()
            raise

    def _prepare(
        self, disk: Path | None, extra_disks: Sequence[Disk], network: Link | None, share: Mapping[str, Path]
    ) -> None:
        """The disks, and what the guest's boot script reads."""
        root = [(disk or self._work / "disk").absolute(), self._image.absolute()]
        extra = [self._disk(extra_disk) for extra_disk in extra_disks]
        self._disks = [",".join(map(str, root)), *map(str, extra)]
        shares = {"repo": REPO, "out": self.out, **share}
        for path in (*root, *extra, *shares.values()):
            if re.search(r"[\s,]", str(path)):
                raise GuestError(f"the kernel's command line and hostfs take no blank and no comma in a path: {path}")
        self.end = network.join() if network else None
        self._write_ctl(shares)

    def _disk(self, disk: Disk) -> Path:
        """A file as it is; a size as a new sparse file that lives as long as this object."""
        size = size_bytes(disk) if isinstance(disk, str) else None
        if size is None:
            return Path(disk).absolute()
        fd, path = tempfile.mkstemp(prefix="extra-", dir=self._work)
        os.truncate(fd, size)
        os.close(fd)
        return Path(path)

    def _write_ctl(self, shares: Mapping[str, Path]) -> None:
        """What the guest's boot script reads."""
        ctl = self._work / "ctl"
        ctl.mkdir()
        self.out.mkdir()
        for file in (HERE / "wire.py", *(HERE / "inguest").iterdir()):
            if file.is_file():
                shutil.copy(file, ctl)
        addresses = f"{self.end.ipv4}/24 {self.end.ipv6}/64" if self.end else ""
        (ctl / "settings").write_text(f"NAME='{self.name}'\nADDRESSES='{addresses}'\nINIT='{self._init}'\n")
        lines = [f"{'ro' if name == 'repo' else 'rw'} {name} {path.absolute()}\n" for name, path in shares.items()]
        (ctl / "shares").write_text("".join(lines))

    # -- life ---------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether its kernel runs, as far as is known."""
        return self._supervisor is not None and self._supervisor.poll() is None

    @property
    def console(self) -> str:
        """What the kernel and the boot script printed, over all boots."""
        path = self._work / "console"
        return path.read_text(errors="backslashreplace") if path.exists() else ""

    def boot(self, terminal: socket.socket | None = None) -> Guest:
        """Start the kernel and wait until commands can be run; boot_seconds says how long that took."""
        if self._supervisor is not None:
            raise GuestError("the guest is already booted")
        started = time.monotonic()
        ours, theirs = socket.socketpair()
        with theirs:
            self._channel = Channel(ours, lambda: self.console)
            self._spawn(theirs, terminal)
        try:
            self._channel.result(self._channel.ready, BOOT_LIMIT[self._init], "sign of life from the guest")
        except BaseException:
            self.kill()
            raise
        self.boot_seconds = time.monotonic() - started
        BOOTS.append(self.boot_seconds)
        return self

    def _spawn(self, line: socket.socket, terminal: socket.socket | None) -> None:
        fds = {"ssl0": line.fileno()} | ({"ssl1": terminal.fileno()} if terminal else {})
        self._processor = PROCESSORS.take()
        argv = ["taskset", "--cpu-list", str(self._processor)]
        argv += [sys.executable, "-I", "-S", str(HERE / "supervise.py"), str(self._work), *self._kernel(fds)]
        passed = [*fds.values(), *([self.end.fd] if self.end else [])]
        with (self._work / "console").open("ab") as console:
            self._supervisor = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=console, stderr=console, pass_fds=passed,
                start_new_session=True, env=os.environ | self._temporary(), bufsize=0,
            )  # fmt: skip

    def _kernel(self, lines: Mapping[str, int]) -> list[str]:
        """The kernel's command line; the kernel passes over the words that it does not know."""
        words = [KERNEL, f"mem={self._memory}", "root=/dev/ubda", "rw", "init=/init", "quiet"]
        # Most of the kernel's own time to boot, for nothing here: 256 old ptys, and a race of RAID-6 implementations.
        words += ["pty.legacy_count=0", "initcall_blacklist=raid6_select_algo"]
        words += [f"ctl={self._work}/ctl"]
        words += [f"ubd{number}={disk}" for number, disk in enumerate(self._disks)]
        words += [f"uml_dir={self._work}", "umid=uml", "con=null", "con0=null,fd:1", "ssl=null"]
        words += [f"{line}=fd:{fd}" for line, fd in lines.items()]
        words += [f"vec0:transport=fd,fd={self.end.fd},mac={self.end.mac}"] if self.end else []
        return words

    def _temporary(self) -> dict[str, str]:
        """The guest's memory is a file. In /dev/shm if it has room, since a full one kills the guest with SIGBUS."""
        shm, needed = Path("/dev/shm"), 2 * (size_bytes(self._memory) or 0)
        roomy = shm.is_dir() and os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > needed
        return {"TMPDIR": str(shm if roomy else self._work)}

    def kill(self) -> None:
        """Power cut: every process of the guest is dead when this returns. The disks stay as they were.

        May be called while another thread waits for the guest: that one gets GuestDied.
        """
        with self._life:
            if self._supervisor is not None:
                self._cut(self._supervisor)
                self._ended()

    @staticmethod
    def _cut(supervisor: subprocess.Popen[bytes]) -> None:
        """A guest that has ended by itself reads nothing any more: what is left to do is the same."""
        assert supervisor.stdin
        with contextlib.suppress(BrokenPipeError):
            supervisor.stdin.write(b"k")

    def poweroff(self) -> None:
        """An orderly end: file systems are synced."""
        if self._channel is None:
            raise GuestDied("the guest is not booted")
        with self._life:
            self._channel.send({"id": 0, "op": "poweroff"})
            self._ended()

    def reboot(self) -> Guest:
        """An orderly end and another boot on the same disks."""
        self.poweroff()
        return self.boot()

    def _ended(self) -> None:
        """Wait for the supervisor, which waits for everything else."""
        supervisor, channel = self._supervisor, self._channel
        assert supervisor and channel and supervisor.stdin
        limit = POWEROFF_LIMIT[self._init]
        try:
            supervisor.wait(limit)
        except subprocess.TimeoutExpired as error:
            self._cut(supervisor)
            supervisor.wait(END_LIMIT)
            raise GuestHung(channel.explain(f"no end within {limit:g} s; killed")) from error
        finally:
            self._supervisor = self._channel = None
            PROCESSORS.give_back(self._processor)
            supervisor.stdin.close()
            channel.close()

    def close(self) -> None:
        """Nothing of the guest remains but a disk that the caller named."""
        self.kill()
        self._finalizer()

    def __enter__(self) -> Guest:
        return self if self.running else self.boot()

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # -- work ---------------------------------------------------------------------------------------

    def start(
        self, command: Command, *, timeout: float | None = None, env: Mapping[str, str] | None = None,
        cwd: str = "/root", terminal: str | None = None,
    ) -> Process:  # fmt: skip
        """Start a command (a list of words, or a line for the shell) and go on."""
        if self._channel is None:
            raise GuestDied("the guest is not booted")
        return self._channel.start(command, timeout=timeout, env=env or {}, cwd=cwd, terminal=terminal)

    def run(
        self, command: Command, timeout: float = 60.0, check: bool = False, env: Mapping[str, str] | None = None,
        cwd: str = "/root",
    ) -> Completed:  # fmt: skip
        """Run a command to its end. Killed after `timeout` (subprocess.TimeoutExpired); `check` as in subprocess."""
        done = self.start(command, timeout=timeout, env=env, cwd=cwd).wait(timeout + END_LIMIT)
        if check and done.returncode:
            raise GuestError(f"{shown(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done
