"""The shipped program in a guest: started as a user would, called over its socket, ended in every way."""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from volattachd.client.sync import Client
from volattachd.errors import VolattachError

OUT = Path("/host/out")
LOG = OUT / "volattachd.log"
TARGET = Path("/sys/kernel/config/target")
START_SECONDS = 60.0

#: Names the unit whose sandbox the daemon is to run in, as installed from the package.
SANDBOX = "VOLATTACHD_SANDBOX"
#: What these tests have their own way with, and what is more than the unit allows: the daemon may write to the test's
#: directory, and gives the socket that it makes itself here to its group, which under the unit is systemd's work.
_SUITE_UNIT = """
[Service]
Type=exec
Restart=no
WatchdogSec=0
ExecStart=
ExecStart={command}
StandardOutput={output}
StandardError={output}
ReadWritePaths={directory}
SystemCallFilter=@chown
CapabilityBoundingSet=CAP_CHOWN
"""
_units = itertools.count(1)

#: As systemd connects a service (StandardError=journal): stderr is a stream of journald's, and JOURNAL_STREAM names it.
_AS_A_SERVICE = """
import os, socket, sys
stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
stream.connect("/run/systemd/journal/stdout")
stream.sendall(b"volattachd\\n\\n6\\n1\\n0\\n0\\n0\\n")
found = os.fstat(stream.fileno())
os.dup2(stream.fileno(), 1)
os.dup2(stream.fileno(), 2)
os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
os.execv(sys.argv[1], sys.argv[1:])
"""


def is_installed() -> bool:
    """Whether the tests are about the installed package, in its unit's sandbox, and not about the tree."""
    return SANDBOX in os.environ


def _sandboxed(words: list[str], directory: Path, output: str) -> list[str]:
    """The command that runs the installed daemon in the unit's sandbox until it ends. Each start is another unit."""
    name = f"volattachd-suite-{os.getpid()}-{next(_units)}.service"
    service = "[Service]\n" + Path(os.environ[SANDBOX]).read_text().partition("[Service]\n")[2]
    more = _SUITE_UNIT.format(command=shlex.join(words), output=output, directory=directory)
    Path("/run/systemd/system", name).write_text(service + more)
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    return ["systemctl", "start", "--wait", name]


class Program:
    """One daemon with a state directory and a socket of its own; it tells what it has to tell a file, or journald."""

    def __init__(
        self, directory: Path, config: str = "", wrapper: tuple[str, ...] = (), journald: bool = False
    ) -> None:
        self.state_dir = directory / "state"
        self.socket = directory / "volattachd.sock"
        self.config = directory / "volattachd.toml"
        self.config.write_text(config)
        self.wrapper = wrapper
        self.journald = journald
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it serves its socket."""
        deadline = time.monotonic() + START_SECONDS
        while self._answers():  # the one before it, which was told to end and has not begun to
            assert time.monotonic() < deadline, f"another daemon still serves after {START_SECONDS:g} s"
            time.sleep(0.05)
        with LOG.open("ab") as log:
            self.process = subprocess.Popen(self._command(), stdout=log, stderr=log, cwd="/host/repo")
        while not self._answers():
            assert self.process.poll() is None, f"the daemon ended with {self.process.returncode}"
            assert time.monotonic() < deadline, f"the daemon did not serve within {START_SECONDS:g} s"
            time.sleep(0.05)

    def _command(self) -> list[str]:
        words = ["--config", str(self.config), "--state-dir", str(self.state_dir), "--socket", str(self.socket)]
        if is_installed():
            output = "journal" if self.journald else f"append:{LOG}"
            return _sandboxed([*self.wrapper, "/usr/sbin/volattachd", *words], self.directory, output)
        service = [sys.executable, "-c", _AS_A_SERVICE] if self.journald else []
        return [*service, *self.wrapper, sys.executable, "-m", "volattachd", *words]

    def _answers(self) -> bool:
        try:
            # A killed daemon that cannot end yet still has its socket open, and answers nobody.
            return bool(self._call("get_status", {}, timeout=3)["ready"])
        except OSError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it with a signal; the answer is its exit code. Under a wrapper, the signal is for the daemon itself."""
        assert self.process is not None
        self.send_signal(number)
        return self.process.wait(30)

    def send_signal(self, number: int) -> None:
        """Send a signal to the daemon, and do not wait for what it does."""
        os.kill(int((self.state_dir / "lock").read_text()), number)

    def restart(self, number: int = signal.SIGTERM) -> None:
        """End it and start it again on the same state."""
        self.stop(number)
        self.start()

    def call(self, method: str, **params: Any) -> Any:
        """One call on a connection of its own."""
        return self._call(method, params, timeout=60)

    def _call(self, method: str, params: dict[str, Any], timeout: float) -> Any:
        try:
            with Client(str(self.socket), timeout) as client:
                return client.call(method, params)
        except Exception as error:
            if type(error).__name__ in ("Unreachable", "NoAnswer"):
                raise ConnectionError(str(error)) from error
            raise

    def refused(self, method: str, **params: Any) -> VolattachError:
        """The error that a call must answer."""
        try:
            result = self.call(method, **params)
        except VolattachError as error:
            return error
        raise AssertionError(f"{method} was not refused: {result}")

    def journal(self) -> list[Any]:
        """Everything that a refused call must leave as it was: rows and history."""
        return [
            self.call("list_volumes"),
            self.call("list_attachments"),
            self.call("get_history", limit=1000),
        ]


def configfs() -> dict[str, str]:
    """Every object of LIO and every attribute that can be read, by path: the target, byte for byte.

    Statistics and sessions' own numbers are left out: they move by themselves.
    """
    found: dict[str, str] = {}
    for directory, names, files in os.walk(TARGET):
        names[:] = sorted(name for name in names if name not in ("statistics", "fabric_statistics"))
        for name in names:
            path = Path(directory, name)
            found[str(path)] = os.readlink(path) if path.is_symlink() else "directory"
        for name in files:
            found[str(Path(directory, name))] = _read(Path(directory, name))
    return found


def _read(path: Path) -> str:
    if path.name in ("info", "dynamic_sessions", "pr_res_aptpl_metadata", "cmd_completion_affinity", "hba_info"):
        return "not compared"
    try:
        return path.read_text()
    except OSError as error:
        return f"errno {error.errno}"


def connector(initiator: str, **more: Any) -> dict[str, Any]:
    """Cinder's connector for an initiator on this host."""
    return {"initiator": initiator, "host": "guest", "ip": "127.0.0.1", "multipath": False, **more}
