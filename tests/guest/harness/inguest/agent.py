"""Runs commands in the guest for the harness outside. Talks over the first serial line, in raw mode.

Standard output and error go to files in memory and not through pipes: a daemon that a command leaves behind
keeps them open, and must not keep the command's caller waiting.
"""

from __future__ import annotations

import os
import signal
import subprocess
import termios
import threading
import tty

TYPE_CHECKING = False  # the real one is in typing, whose import alone takes 40 ms in a guest
if TYPE_CHECKING:
    from typing import IO

    from tests.guest.harness import wire
else:
    import wire

LINE = "/dev/ttyS0"
GRACE = 5.0


class Agent:
    """One thread for each running command; one lock around the line."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def send(self, message: wire.Message) -> None:
        """One whole line at a time."""
        data = wire.encode(message)
        with self._lock:
            while data:
                data = data[os.write(self._fd, data) :]

    def serve(self) -> None:
        """Until told to power off, or until the line is gone."""
        decoder = wire.Decoder()
        self.send({"id": 0, "event": "ready"})
        while data := os.read(self._fd, 65536):
            for message in decoder.feed(data):
                if message["op"] == "poweroff":
                    return
                self._dispatch(message)

    def _dispatch(self, message: wire.Message) -> None:
        if message["op"] == "run":
            threading.Thread(target=self._run, args=(message,), daemon=True).start()
        elif message["op"] == "signal":
            self._signal(message["target"], message["signal"])
        else:
            raise ValueError(f"unknown op {message['op']!r}")

    def _signal(self, target: int, number: int) -> None:
        """To the command's whole process group. A command that has just ended is no error: its end is on its way."""
        process = self._running.get(target)
        if process is not None and process.returncode is None:
            os.killpg(process.pid, number)

    def _run(self, message: wire.Message) -> None:
        ident = message["id"]
        with open(os.memfd_create("out"), "w+b") as out, open(os.memfd_create("err"), "w+b") as err:
            try:
                process = self._spawn(message, out, err)
            except OSError as error:
                self.send({"id": ident, "event": "exit", "returncode": None, "error": str(error)})
                return
            self._running[ident] = process
            self.send({"id": ident, "event": "started", "pid": process.pid})
            timed_out = self._wait(process, message["timeout"])
            self._send_file(ident, "stdout", out)
            self._send_file(ident, "stderr", err)
            del self._running[ident]
            self.send({"id": ident, "event": "exit", "returncode": process.returncode, "timed_out": timed_out})

    def _spawn(self, message: wire.Message, out: IO[bytes], err: IO[bytes]) -> subprocess.Popen[bytes]:
        """A string is a line for the shell, a list is a command. `terminal` names a line for all three files."""
        command, env = message["command"], {**os.environ, **message["env"]}
        if message["terminal"]:
            with open(message["terminal"], "r+b", buffering=0) as line:
                command = ["setsid", "--ctty", "--wait", *command]
                return subprocess.Popen(command, stdin=line, stdout=line, stderr=line, env=env, cwd=message["cwd"])
        return subprocess.Popen(
            command, shell=isinstance(command, str), stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env,
            cwd=message["cwd"], start_new_session=True,
        )  # fmt: skip

    def _wait(self, process: subprocess.Popen[bytes], timeout: float | None) -> bool:
        """True if the command had to be killed. One that sleeps uninterruptibly even then keeps returncode None."""
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                print(f"agent: process {process.pid} does not die", flush=True)
            return True
        return False

    def _send_file(self, ident: int, stream: str, file: IO[bytes]) -> None:
        file.seek(0)
        for piece in wire.pieces(ident, stream, file.read()):
            self.send(piece)


def open_line(path: str) -> int:
    """The serial line, with no echo, no editing, no translation of bytes."""
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    tty.setraw(fd, termios.TCSANOW)
    return fd


if __name__ == "__main__":
    Agent(open_line(LINE)).serve()
