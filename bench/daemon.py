"""The shipped daemon as the bench runs it: started, timed until it says READY, and looked at from outside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from bench.peers.base import PORTAL
from volattachd.config import Config
from volattachd.drivers.configfs.tree import ConfigFs
from volattachd.drivers.lio import LioDriver
from volattachd.state.journal import Journal

T = TypeVar("T")

PREFIX = Config().iqn_prefix
_READY_SECONDS = 300.0
_MEBIBYTE = 1024


class Daemon:
    """One daemon with its state directory; it may be started again and again."""

    def __init__(self, directory: Path) -> None:
        self.state_dir = directory / "state"
        self.socket = str(directory / "volattachd.sock")
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._news = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._news.bind(str(directory / "notify"))
        self._news.settimeout(_READY_SECONDS)

    def start(self, interval: float = Config().interval) -> float:
        """Start it; the answer is how long it took until READY, in seconds."""
        config = self._directory / "volattachd.toml"
        config.write_text(
            f'[target]\ndriver = "lio"\nportals = ["{PORTAL}"]\n[reconcile]\ninterval = {interval:g}\n'
            "[reservations]\nttl = 86400\n[limits]\nattachments_per_uid = 10000\n"
        )
        words = [sys.executable, "-m", "volattachd", "--config", str(config), "--state-dir", str(self.state_dir)]
        environment = {**os.environ, "NOTIFY_SOCKET": str(self._directory / "notify")}
        with (self._directory / "volattachd.log").open("ab") as log:
            began = time.perf_counter()
            self._process = subprocess.Popen([*words, "--socket", self.socket], stdout=log, stderr=log, env=environment)
            while b"READY=1" not in self._news.recv(4096):
                pass
            return time.perf_counter() - began

    def stop(self) -> None:
        """End it; its exports stay."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        if self._process.wait(60):
            raise RuntimeError(f"the daemon ended with {self._process.returncode}")
        self._process = None

    def close(self) -> None:
        """End it, and hear no news of it any more: its directory may be on a disk that is to be unmounted."""
        self.stop()
        self._news.close()

    def while_stopped(self, body: Callable[[], T]) -> T:
        """Run something that needs the daemon out of its way."""
        self.stop()
        try:
            return body()
        finally:
            self.start()

    @property
    def _proc(self) -> Path:
        assert self._process is not None
        return Path("/proc", str(self._process.pid))

    def resident_mebibytes(self) -> float:
        """VmRSS."""
        lines = (self._proc / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / _MEBIBYTE

    def watch(self, seconds: float) -> tuple[float, float]:
        """Left alone for so long: wake-ups in a second (of all threads), and the part of a processor that it used."""
        before, used = self._switches(), sum(self.cpu_seconds())
        time.sleep(seconds)
        woken = sum(count - before.get(thread, 0) for thread, count in self._switches().items())
        return woken / seconds, (sum(self.cpu_seconds()) - used) / seconds

    def _switches(self) -> dict[str, int]:
        """Voluntary context switches by thread; one that has ended in between is not counted."""
        found = {}
        for task in (self._proc / "task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # a worker that was idle for long enough
                lines = (task / "status").read_text().splitlines()
                found[task.name] = next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))
        return found

    def cpu_seconds(self) -> tuple[float, float]:
        """Seconds of processors so far, of all threads: in its own code, and in the kernel for it."""
        words = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return int(words[11]) / os.sysconf("SC_CLK_TCK"), int(words[12]) / os.sysconf("SC_CLK_TCK")


def empty_target(state_dir: Path) -> None:
    """The target without our exports, as after a reboot."""
    journal = Journal(state_dir)
    driver = LioDriver(PREFIX, [], ConfigFs())
    for volume in journal.volumes.values():
        for step in driver.plan_removal(volume.target_name):
            step.run()
    journal.close()
