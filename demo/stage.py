"""What the demo runs on: the shipped daemon in a temporary directory, a target of its own, and a file as volume.

However the demo ends, ``close`` leaves nothing: no export in the kernel, no process, no file.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from demo.initiators import Surprise
from volattachd.client.sync import Client, ClientError
from volattachd.errors import VolattachError

VOLUME = "demo"
VOLUME_BYTES = 64 << 20

#: Under a prefix of its own the demo's daemon never takes another's targets for its own.
IQN_PREFIX = "iqn.2026-11.org.volattachd.demo"

START_SECONDS = 20.0
STOP_SECONDS = 15.0
LOG_LINES = 15

_CONFIGFS = Path("/sys/kernel/config/target")


class Stage:
    """A daemon that serves, from ``open`` to ``close``."""

    def __init__(self, driver: str) -> None:
        self._wanted = driver
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None
        self.driver = driver
        self.left: list[str] = []
        self.portal = ""
        self.directory = Path()

    @property
    def volume(self) -> Path:
        """The file behind the volume."""
        return self.directory / "disk.img"

    @property
    def _log(self) -> Path:
        return self.directory / "volattachd.log"

    @property
    def _tgt_socket(self) -> Path:
        return self.directory / "tgt" / "socket"

    def open(self) -> dict[str, Any]:
        """Make the files, start the daemon and wait until it serves; its status is the answer."""
        if self._wanted in ("auto", "lio"):
            _check_alone()
        self.directory = Path(tempfile.mkdtemp(prefix="volattachd-demo-"))  # 0700, as the volume's directory must be
        # Every process from here on carries this mark: an interrupt may come before we hold a child just forked.
        os.environ["TGT_IPC_SOCKET"] = str(self._tgt_socket)
        with self.volume.open("wb") as file:
            file.truncate(VOLUME_BYTES)
        self.portal = f"127.0.0.1:{_free_port()}"
        config = f'[target]\niqn_prefix = "{IQN_PREFIX}"\nportals = ["{self.portal}"]\n'
        (self.directory / "volattachd.toml").write_text(config)
        status = self._start()
        self.driver = status["driver"]
        return status

    def call(self, method: str, params: Mapping[str, Any]) -> Any:
        """One call. Raises the daemon's error as its class, or ClientError."""
        if self._client is None:
            self._client = Client(str(self.directory / "volattachd.sock"))
        return self._client.call(method, params)

    def log_tail(self) -> str:
        """The last that the daemon said."""
        try:
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        except OSError:
            return ""

    def left_in_target(self) -> list[str]:
        """What of ours is in the target, by another way than the daemon's: tgtadm, or configfs."""
        if self.driver == "lio":
            paths = [*_CONFIGFS.glob(f"iscsi/{IQN_PREFIX}*"), *_CONFIGFS.glob(f"core/*/volattach-{VOLUME}.*")]
            return [str(path) for path in paths]
        words = [_tgtadm(), "--lld", "iscsi", "--mode", "target", "--op", "show"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
        if done.returncode:
            raise Surprise(f"tgtadm cannot ask the demo's tgtd: {done.stderr.strip()}")
        return [line for line in done.stdout.splitlines() if line.startswith("Target ")]

    def stop(self) -> int:
        """End the daemon as an operator would; the answer is its exit code."""
        assert self._process is not None
        self._forget_client()
        self._process.terminate()
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Surprise(f"the daemon did not end within {STOP_SECONDS:g} s after SIGTERM") from error

    def close(self) -> None:
        """Leave nothing, whatever happened; what could not be removed is in ``left`` then."""
        if self._process is not None:
            if self.driver == "lio":
                self._empty_target()
            self._forget_client()
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            self._process = None
        if self.directory.name:
            _end_all(lambda: _processes_with(f"TGT_IPC_SOCKET={self._tgt_socket}"))
            shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self) -> dict[str, Any]:
        words = [sys.executable, "-m", "volattachd", "--config", str(self.directory / "volattachd.toml")]
        words += ["--state-dir", str(self.directory / "state"), "--socket", str(self.directory / "volattachd.sock")]
        words += ["--driver", self._wanted]
        supervisor = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "JOURNAL_STREAM")
        environment = {name: value for name, value in os.environ.items() if name not in supervisor}
        with self._log.open("ab") as log:
            # A session of its own: Ctrl-C is for the demo, which then ends the daemon in order.
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=Path(__file__).parent.parent,
                start_new_session=True,
            )
        return self._await_status()

    def _await_status(self) -> dict[str, Any]:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise Surprise(f"the daemon ended with {self._process.returncode} before it served")
            try:
                status: dict[str, Any] = self.call("get_status", {})
            except ClientError:
                self._forget_client()
                time.sleep(0.02)
                continue
            if status["ready"]:
                return status
        raise Surprise(f"the daemon did not serve within {START_SECONDS:g} s")

    def _empty_target(self) -> None:
        """LIO is in the kernel and outlives the daemon: end what is left by calls, after a new start if need be."""
        with suppress(OSError, Surprise, ClientError, VolattachError):
            if not self.left_in_target():
                return
            assert self._process is not None
            if self._process.poll() is not None:
                self._forget_client()
                self._start()
            for row in self.call("list_attachments", {}):
                _end_attachment(self.call, row)
        self.left = self.left_in_target()

    def _forget_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def _end_attachment(call: Callable[[str, Mapping[str, Any]], Any], row: dict[str, Any]) -> None:
    which = {"volume": row["volume"], "attachment_id": row["attachment_id"]}
    if row["connector"] is None:
        call("unreserve_volume", which)
        return
    ended = call("terminate_connection", {**which, "connector": row["connector"], "force": True})
    if ended["state"] != "gone":
        call("detach", which)


def _check_alone() -> None:
    """The kernel's target is one for all: another volattachd's backstores would be leftovers to the demo's."""
    for path in _CONFIGFS.glob("core/*/volattach-*"):
        raise Surprise(f"another volattachd serves volumes on this host ({path}): try --driver tgt, or another host")


def _free_port() -> int:
    """A port that nobody has now; whoever takes it in the next moment makes the daemon's start fail, and say so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tgtadm() -> str:
    found = shutil.which("tgtadm", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        raise Surprise("tgtadm is not there to look at the target: install Debian's package tgt")
    return found


def _processes_with(variable: str) -> list[int]:
    """The processes with this variable in their environment, children of ours or not (tgtd is none)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def _end_all(find: Callable[[], list[int]]) -> None:
    """Kill until none is found: one that is about to fork has a child with the same mark."""
    deadline = time.monotonic() + STOP_SECONDS
    while (found := find()) and time.monotonic() < deadline:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
