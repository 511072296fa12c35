"""The harness's end of the line to the agent in the guest."""

from __future__ import annotations

import itertools
import shlex
import signal as signals
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import TypeVar

from . import wire
from .errors import GuestDied, GuestError, GuestHung

Command = str | Sequence[str]
Result = TypeVar("Result")
Completed = subprocess.CompletedProcess[str]
SEND_LIMIT = 30
ANSWER_LIMIT = 30.0


@dataclass
class Process:
    """A command in the guest."""

    command: Command
    ident: int
    channel: Channel
    timeout: float | None
    output: dict[str, bytearray] = field(default_factory=lambda: {"stdout": bytearray(), "stderr": bytearray()})
    started: Future[int] = field(default_factory=Future)
    ended: Future[wire.Message] = field(default_factory=Future)

    @property
    def pid(self) -> int:
        """Its process id in the guest, which is also its process group."""
        return self.channel.result(self.started, ANSWER_LIMIT, f"start of {self.command!r}")

    def running(self) -> bool:
        """Whether its end has not been reported yet."""
        return not self.ended.done()

    def kill(self, number: int = signals.SIGKILL) -> None:
        """Signal its whole process group."""
        self.channel.send({"id": 0, "op": "signal", "target": self.ident, "signal": int(number)})

    def wait(self, timeout: float) -> Completed:
        """Its end and its output; subprocess.TimeoutExpired if the guest had to kill it for its own time limit."""
        end = self.channel.result(self.ended, timeout, f"end of {self.command!r}")
        out, err = (bytes(self.output[name]).decode(errors="backslashreplace") for name in ("stdout", "stderr"))
        if end.get("error"):
            raise GuestError(f"cannot run {self.command!r} in the guest: {end['error']}")
        if end["timed_out"]:
            raise subprocess.TimeoutExpired(self.command, self.timeout or 0, out, err)
        return subprocess.CompletedProcess(self.command, end["returncode"], out, err)


class Channel:
    """Sends requests; a thread of its own hands the answers to those that wait. Ends with the guest."""

    def __init__(self, sock: socket.socket, console: Callable[[], str]) -> None:
        self._sock = sock
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_LIMIT, 0))
        self._console = console
        self._lock = threading.Lock()
        self._idents = itertools.count(1)
        self._waiting: dict[int, Process] = {}
        self._error: str | None = None
        self.ready: Future[None] = Future()
        self._reader = threading.Thread(target=self._read, name="guest channel", daemon=True)
        self._reader.start()

    def start(
        self, command: Command, *, timeout: float | None, env: Mapping[str, str], cwd: str, terminal: str | None
    ) -> Process:
        """Have the agent start a command; `timeout` is counted in the guest."""
        with self._lock:
            if self._error is not None:
                raise GuestDied(self._error)
            process = Process(command, next(self._idents), self, timeout)
            self._waiting[process.ident] = process
        words = command if isinstance(command, str) else [str(word) for word in command]
        request: wire.Message = {"id": process.ident, "op": "run", "command": words, "timeout": timeout}
        self.send(request | {"env": dict(env), "cwd": cwd, "terminal": terminal})
        return process

    def send(self, message: wire.Message) -> None:
        """One request, whole."""
        try:
            with self._lock:
                self._sock.sendall(wire.encode(message))
        except BlockingIOError as error:
            raise GuestHung(self.explain(f"the guest reads nothing for {SEND_LIMIT} s")) from error
        except OSError as error:
            raise GuestDied(self.explain(f"the guest is gone: {error}")) from error

    def result(self, future: Future[Result], timeout: float, what: str) -> Result:
        """The value, or GuestHung when it takes longer."""
        try:
            return future.result(timeout)
        except FutureTimeout as error:
            raise GuestHung(self.explain(f"no {what} within {timeout:g} s")) from error

    def explain(self, what: str) -> str:
        """A message with what the guest's console said last."""
        return f"{what}; the guest's console:\n{self._console()[-4000:] or '(nothing)'}"

    def close(self) -> None:
        """Ends the reader too. For a guest that is already gone."""
        self._sock.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._sock.close()

    def _read(self) -> None:
        decoder, why = wire.Decoder(), "the guest ended"
        try:
            while data := self._sock.recv(65536):
                for message in decoder.feed(data):
                    self._answer(message)
        except (OSError, ValueError, KeyError) as error:
            why = f"the line to the guest broke: {error!r}"
        self._fail(self.explain(why))

    def _answer(self, message: wire.Message) -> None:
        event = message["event"]
        if event == "ready" and self.ready.done():
            raise ValueError("the guest restarted by itself")
        if event == "ready":
            self.ready.set_result(None)
            return
        process = self._waiting[message["id"]]
        if event == "started":
            process.started.set_result(message["pid"])
        elif event == "data":
            process.output[message["stream"]] += wire.piece_bytes(message)
        elif event == "exit":
            del self._waiting[message["id"]]
            if not process.started.done():
                process.started.set_exception(GuestError(f"cannot run {process.command!r}: {message['error']}"))
            process.ended.set_result(message)

    def _fail(self, error: str) -> None:
        """Whoever waits is told; whoever comes later too."""
        with self._lock:
            self._error = error
            waiting = list(self._waiting.values())
        for future in [self.ready, *(f for process in waiting for f in (process.started, process.ended))]:
            if not future.done():
                future.set_exception(GuestDied(error))


def shown(command: Command) -> str:
    """A command as one would type it."""
    return command if isinstance(command, str) else shlex.join(str(word) for word in command)
