"""The client's side of one connection, without I/O: calls become bytes, bytes become outcomes and notifications.

    ClientError
    ├── Unreachable        the call was not sent: see that the daemon runs, then send it
    │   ├── AccessRefused  the socket may not be opened by this user: ask for membership of its group
    │   └── NoAnswer       the call was sent and may have had its effect: send it again, calls are idempotent
    ├── BadAnswer          what came back is not an answer to the call: is something else listening there?
    └── RemoteError        the daemon answered with a JSON-RPC error that has no class of its own

What the daemon itself answers in place of a result is raised as its class out of ``volattachd.errors``.

Laws:

1. An answer belongs to the call whose id it carries, or the connection is not used again.
2. A notification that comes before an answer is kept for who asks for notifications, in order.
3. What is raised here ends the connection; an error that answers one call is an outcome and is not raised.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from volattachd.errors import VolattachError, by_code
from volattachd.rpc import strictjson

#: Bytes of one answer, and commas and opening brackets in it: lists that are longer come in pages.
MAX_ANSWER, _MAX_PARTS = 8 * 1024 * 1024, 1024 * 1024

#: An answer repeats what its request nested to the limit, a few levels further down.
_MAX_DEPTH = 2 * strictjson.MAX_DEPTH


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


class Outcome(NamedTuple):
    """What one call came to: a result, or the error that the daemon answered."""

    result: Any
    error: Exception | None = None

    def unwrap(self) -> Any:
        """The result; raises the error."""
        if self.error is not None:
            raise self.error
        return self.result


class Notification(NamedTuple):
    """What the daemon tells without having been asked."""

    method: str
    params: dict[str, Any]


class Exchange:
    """One connection's conversation. ``daemon`` is how errors call the other side."""

    def __init__(self, daemon: str, max_answer: int = MAX_ANSWER) -> None:
        self._daemon = daemon
        self._max_answer = max_answer
        self._last_id = 0
        self._received = bytearray()
        self._searched = 0
        self._notifications: deque[Notification] = deque()

    def ask(self, method: str, params: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        """The id of a new call, and the bytes to send."""
        self._last_id += 1
        message = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": dict(params or {})}
        return self._last_id, strictjson.dumps(message) + b"\n"

    def feed(self, data: bytes) -> None:
        """Takes what was read; no bytes are the end of the stream. Raises NoAnswer at the end."""
        if not data:
            raise self.lost("it closed the connection")
        self._received += data

    def outcome(self, call_id: int) -> Outcome | None:
        """What the call came to, or None where more has to be read. Calls are answered in their order."""
        while (message := self._message()) is not None:
            if not self._keep(message):
                return self._outcome(message, call_id)
        return None

    def notification(self) -> Notification | None:
        """The next notification, or None where more has to be read."""
        while not self._notifications:
            message = self._message()
            if message is None:
                return None
            if not self._keep(message):
                self._outcome(message, 0)
                raise self._bad_answer("an answer came where a notification was due")
        return self._notifications.popleft()

    def lost(self, why: str) -> NoAnswer:
        """The error for a call that was sent and is not answered."""
        return self._no_answer(f"no answer: {why}")

    def late(self, seconds: float) -> NoAnswer:
        """The error for a call whose time is over."""
        return self._no_answer(f"no answer within {seconds:.3g} s")

    def _no_answer(self, what: str) -> NoAnswer:
        return NoAnswer(f"the daemon at {self._daemon} gave {what}", "send the call again: every call is idempotent")

    def _message(self) -> dict[str, Any] | None:
        """The next whole message. No byte is looked at twice for the end of a line."""
        end = self._received.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._received)
            if self._searched > self._max_answer:
                raise self._bad_answer(f"an answer is longer than {self._max_answer} bytes")
            return None
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        self._searched = 0
        return self._parsed(line)

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            message = strictjson.loads(line, _MAX_DEPTH, _MAX_PARTS)
        except strictjson.Refused as error:
            raise self._bad_answer(error.reason) from error
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            raise self._bad_answer("the answer is not JSON-RPC 2.0")
        return message

    def _keep(self, message: dict[str, Any]) -> bool:
        """Whether it is a notification; it is kept then."""
        if "id" in message or "method" not in message:
            return False
        params = message.get("params")
        self._notifications.append(Notification(str(message["method"]), params if isinstance(params, dict) else {}))
        return True

    def _outcome(self, answer: dict[str, Any], call_id: int) -> Outcome:
        theirs, error = answer.get("id"), answer.get("error")
        if theirs is None and error is not None:
            raise self._error(error)  # said of the connection and not of a call; the daemon hangs up after it
        if type(theirs) is not int or theirs != call_id:
            raise self._bad_answer(f"the answer to call {call_id} carries the id {theirs!r}")
        if error is not None:
            return Outcome(None, self._error(error))
        if "result" not in answer:
            raise self._bad_answer("the answer has neither a result nor an error")
        return Outcome(answer["result"])

    def _error(self, error: Any) -> Exception:
        code = error.get("code") if isinstance(error, dict) else None
        if type(code) is not int or not isinstance(error.get("message"), str):
            raise self._bad_answer("the error has no code and message")
        kind = by_code(code)
        if kind is None:
            return RemoteError(code, error["message"], error.get("data"))
        return _typed(kind, error["message"], error.get("data"))

    def _bad_answer(self, reason: str) -> BadAnswer:
        return BadAnswer(
            f"what listens at {self._daemon} does not answer as volattachd: {reason}",
            "see that the socket is volattachd's and that both sides have the same version",
        )


def _typed(kind: type[VolattachError], message: str, data: Any) -> VolattachError:
    """The daemon's error as it was raised there; what else ``data`` holds is its details."""
    members = dict(data) if isinstance(data, dict) else {}
    correction = members.pop("correction", None)
    error = kind(message, correction if isinstance(correction, str) else None)
    error.details = {name: value for name, value in members.items() if name not in ("kind", "retriable")}
    return error
