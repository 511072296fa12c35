"""The client: one connection to the daemon, blocking calls, typed errors. The standard library only.

    ClientError
    ├── Unreachable        the call was not sent: see that the daemon runs, then send it
    │   ├── AccessRefused  the socket may not be opened by this user: ask for membership of its group
    │   └── NoAnswer       the call was sent and may have had its effect: send it again, calls are idempotent
    ├── BadAnswer          what came back is not an answer to the call: is something else listening there?
    └── RemoteError        the daemon answered with a JSON-RPC error that has no class of its own

What the daemon itself answers in place of a result is raised as its class out of ``volattachd.errors``.

Laws:

1. An answer belongs to the call whose id it carries, or the connection is not used again.
2. After anything but a whole answer the connection is closed: a late answer can never meet a later call.
3. A notification that comes before an answer is kept for who asks for notifications, in order.
4. Of what was sent without having been answered there is never more than fits into the socket's buffer, so a
   client that sends and a daemon that answers never wait for each other.
"""

from __future__ import annotations

import grp
import os
import socket
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from volattachd.errors import VolattachError, by_code
from volattachd.rpc import strictjson

DEFAULT_SOCKET = "/run/volattachd/volattachd.sock"
DEFAULT_TIMEOUT = 60.0

#: Bytes of one answer. A list of a hundred thousand volumes fits.
MAX_ANSWER = 64 * 1024 * 1024

#: An answer repeats what its request nested to the limit, a few levels further down.
_MAX_DEPTH = 2 * strictjson.MAX_DEPTH

_WINDOW = 32 * 1024
_CHUNK = 64 * 1024
_BACKLOG_PAUSE = 0.02
_DAEMONS_GROUP = "volattach"


class ClientError(Exception):
    """The root of what can go wrong between a client and the daemon."""

    def __init__(self, message: str, correction: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.correction = correction


class Unreachable(ClientError):
    """There is no connection to the daemon, and the call was not sent."""


class AccessRefused(Unreachable):
    """The file permissions of the socket keep this user out."""


class NoAnswer(Unreachable):
    """The call was sent, and no answer came: it may or may not have had its effect. Send it again."""


class BadAnswer(ClientError):
    """What came back is not JSON-RPC 2.0, or answers something else."""


class RemoteError(ClientError):
    """A JSON-RPC error that has no class in ``volattachd.errors``."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.data = data


class Client:
    """One connection. It serves one thread; calls are answered in their order.

    ``timeout`` is what one call may take in all, in seconds. The connection is made by the first call.
    """

    def __init__(
        self, socket_path: str = DEFAULT_SOCKET, timeout: float = DEFAULT_TIMEOUT, max_answer: int = MAX_ANSWER
    ) -> None:
        self.socket_path = socket_path
        self.timeout = timeout
        self._max_answer = max_answer
        self._socket: socket.socket | None = None
        self._closed = False
        self._last_id = 0
        self._received = bytearray()
        self._notifications: deque[tuple[str, dict[str, Any]]] = deque()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection. A closed client stays closed."""
        self._closed = True
        self._received.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def call(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """The result of one call. Raises the daemon's error as its class, or a ClientError."""
        (outcome,) = self.call_many([(method, params)])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def call_many(self, calls: Iterable[tuple[str, Mapping[str, Any] | None]]) -> list[Any]:
        """Sends calls without waiting for each answer. Gives one outcome for each, in order.

        An outcome is the result or, not raised, the error that the daemon answered. An error that ends the
        connection is raised: which calls had an effect is then unknown, and all may be sent again.
        """
        waiting: deque[tuple[int, int]] = deque()  # (id, bytes) of what is sent and not answered
        outcomes: list[Any] = []
        for method, params in calls:
            self._last_id += 1
            request = _request(self._last_id, method, params)
            while waiting and len(request) + sum(size for _, size in waiting) > _WINDOW:
                outcomes.append(self._receive(waiting.popleft()[0]))
            self._send(request)
            waiting.append((self._last_id, len(request)))
        outcomes.extend(self._receive(call_id) for call_id, _ in waiting)
        return outcomes

    def notification(self, timeout: float | None = None) -> tuple[str, dict[str, Any]]:
        """The next notification: its method and its parameters. Without a time-out it is waited for.

        Raises NoAnswer where none came in time, or the connection has ended.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._notifications:
            message = self._parse(self._line(deadline))
            if not self._is_notification(message):
                self._outcome(message, 0)
                raise self._bad_answer("an answer came where a notification was due")
        return self._notifications.popleft()

    def _is_notification(self, message: dict[str, Any]) -> bool:
        """Whether it is one; it is kept then."""
        if "id" in message or "method" not in message:
            return False
        params = message.get("params")
        self._notifications.append((str(message["method"]), params if isinstance(params, dict) else {}))
        return True

    def _send(self, request: bytes) -> None:
        connection = self._connected()
        connection.settimeout(self.timeout)
        try:
            connection.sendall(request)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon hung up, and may have said why: the answer is still there to read
        except OSError as error:
            raise self._no_answer(error) from error

    def _connected(self) -> socket.socket:
        if self._closed:
            raise Unreachable("this client is closed", "open a new one")
        if self._socket is None:
            self._socket = _connect(self.socket_path, self.timeout)
        return self._socket

    def _receive(self, call_id: int) -> Any:
        """The outcome of the call ``call_id``. Notifications on the way to it are kept."""
        deadline = time.monotonic() + self.timeout
        while True:
            answer = self._parse(self._line(deadline))
            if not self._is_notification(answer):
                return self._outcome(answer, call_id)

    def _line(self, deadline: float | None) -> bytes:
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if searched > self._max_answer:
                raise self._bad_answer(f"an answer is longer than {self._max_answer} bytes")
            self._received += self._read(deadline)
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def _read(self, deadline: float | None) -> bytes:
        connection = self._connected()
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            raise self._no_answer(TimeoutError())
        connection.settimeout(remaining)
        try:
            data = connection.recv(_CHUNK)
        except OSError as error:
            raise self._no_answer(error) from error
        if not data:
            raise self._no_answer(ConnectionResetError("it closed the connection"))
        return data

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            answer = strictjson.loads(line, _MAX_DEPTH)
        except strictjson.Refused as error:
            raise self._bad_answer(error.reason) from error
        if not isinstance(answer, dict) or answer.get("jsonrpc") != "2.0":
            raise self._bad_answer("the answer is not JSON-RPC 2.0")
        return answer

    def _outcome(self, answer: dict[str, Any], call_id: int) -> Any:
        theirs, error = answer.get("id"), answer.get("error")
        if theirs is None and error is not None:
            self.close()
            raise self._error(error)  # said of the connection and not of a call; the daemon hangs up after it
        if type(theirs) is not int or theirs != call_id:
            raise self._bad_answer(f"the answer to call {call_id} carries the id {theirs!r}")
        if error is not None:
            return self._error(error)
        if "result" not in answer:
            raise self._bad_answer("the answer has neither a result nor an error")
        return answer["result"]

    def _error(self, error: Any) -> Exception:
        code = error.get("code") if isinstance(error, dict) else None
        if type(code) is not int or not isinstance(error.get("message"), str):
            raise self._bad_answer("the error has no code and message")
        kind = by_code(code)
        if kind is None:
            return RemoteError(code, error["message"], error.get("data"))
        return _typed(kind, error["message"], error.get("data"))

    def _no_answer(self, error: OSError) -> NoAnswer:
        self.close()
        within = isinstance(error, TimeoutError)
        why = f"no answer within {self.timeout:g} s" if within else f"no answer: {_words(error)}"
        return NoAnswer(f"the daemon at {self.socket_path} gave {why}", "send the call again: every call is idempotent")

    def _bad_answer(self, reason: str) -> BadAnswer:
        self.close()
        return BadAnswer(
            f"what listens at {self.socket_path} does not answer as volattachd: {reason}",
            "see that the socket is volattachd's and that both sides have the same version",
        )


def _request(call_id: int, method: str, params: Mapping[str, Any] | None) -> bytes:
    message = {"jsonrpc": "2.0", "id": call_id, "method": method, "params": dict(params or {})}
    return strictjson.dumps(message) + b"\n"


def _typed(kind: type[VolattachError], message: str, data: Any) -> VolattachError:
    """The daemon's error as it was raised there; what else ``data`` holds is its details."""
    members = dict(data) if isinstance(data, dict) else {}
    correction = members.pop("correction", None)
    error = kind(message, correction if isinstance(correction, str) else None)
    error.details = {name: value for name, value in members.items() if name not in ("kind", "retriable")}
    return error


def _connect(path: str, timeout: float) -> socket.socket:
    deadline = time.monotonic() + timeout
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout)
        try:
            connection.connect(path)
        except BlockingIOError as error:
            # A full backlog of a Unix socket is told at once, whatever the time-out.
            connection.close()
            if time.monotonic() >= deadline:
                raise Unreachable(f"too many clients wait for {path}", "try again later") from error
            time.sleep(_BACKLOG_PAUSE)
        except (OSError, ValueError) as error:
            connection.close()
            raise _unreachable(path, error) from error
        else:
            return connection


def _unreachable(path: str, error: Exception) -> Unreachable:
    message = f"cannot reach the daemon at {path}: {_words(error)}"
    if isinstance(error, PermissionError):
        return AccessRefused(message, f"become root or a member of the group {_group(path)!r} (then log in again)")
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        return Unreachable(message, "start it: systemctl start volattachd.socket (or name its socket)")
    return Unreachable(message, "name the daemon's socket")


def _group(path: str) -> str:
    """The group that may open the socket, as far as this user can see it."""
    try:
        return grp.getgrgid(os.stat(path).st_gid).gr_name
    except (OSError, KeyError):
        return _DAEMONS_GROUP


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
