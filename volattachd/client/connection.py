"""One connection to the daemon, blocking. The standard library only.

Laws:

1. After anything but a whole answer the connection is closed: a late answer can never meet a later call.
2. Of what was sent without having been answered there is never more than fits into the socket's buffer, so a
   client that sends and a daemon that answers never wait for each other.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from volattachd.client.protocol import MAX_ANSWER, ClientError, Exchange, Notification, Outcome, Unreachable
from volattachd.client.transport import dial
from volattachd.client.unix import DEFAULT_SOCKET, Link, wait_for, words
from volattachd.errors import VolattachError

DEFAULT_TIMEOUT = 60.0

_WINDOW = 32 * 1024
_CHUNK = 64 * 1024


class Connection:
    """It serves one thread; calls are answered in their order. Once it has ended, it stays so.

    ``timeout`` is what one call may take in all, in seconds. The connection is made by the first call.
    """

    def __init__(
        self, address: str = DEFAULT_SOCKET, timeout: float = DEFAULT_TIMEOUT, max_answer: int = MAX_ANSWER
    ) -> None:
        self.address = address
        self.timeout = timeout
        self.opened = self.closed = False
        self._exchange = Exchange(address, max_answer)
        self._link: Link | None = None

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self.closed = True
        if self._link is not None:
            self._link.close()
            self._link = None

    def has_ended(self) -> bool:
        """Whether it is over, by either side."""
        return self.closed or (self._link is not None and self._link.has_ended())

    def open(self, timeout: float | None = None) -> None:
        """Makes the connection where there is none yet. Raises Unreachable."""
        if self.closed:
            raise Unreachable("this connection is closed", "open a new one")
        if self._link is None:
            self._link = dial(self.address, self.timeout if timeout is None else timeout)
            self._link.socket.setblocking(False)
            self.opened = True

    def call(self, method: str, params: Mapping[str, Any] | None = None, timeout: float | None = None) -> Any:
        """The result of one call. Raises the daemon's error as its class, or a ClientError."""
        allowance = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + allowance
        self.open(allowance)
        call_id, request = self._exchange.ask(method, params)
        self._send(request, deadline, allowance)
        return self._receive(call_id, deadline, allowance).unwrap()

    def call_many(self, calls: Iterable[tuple[str, Mapping[str, Any] | None]]) -> list[Any]:
        """Sends calls without waiting for each answer. Gives one outcome for each, in order.

        An outcome is the result or, not raised, the error that the daemon answered. An error that ends the
        connection is raised: which calls had an effect is then unknown, and all may be sent again.
        """
        waiting: deque[tuple[int, int]] = deque()  # (id, bytes) of what is sent and not answered
        outcomes: list[Outcome] = []
        for method, params in calls:
            self.open()
            call_id, request = self._exchange.ask(method, params)
            while waiting and len(request) + sum(size for _, size in waiting) > _WINDOW:
                outcomes.append(self._receive_next(waiting.popleft()[0]))
            self._send(request, time.monotonic() + self.timeout, self.timeout)
            waiting.append((call_id, len(request)))
        outcomes.extend(self._receive_next(call_id) for call_id, _ in waiting)
        return [outcome.result if outcome.error is None else outcome.error for outcome in outcomes]

    def notification(self, timeout: float | None = None) -> Notification:
        """The next notification: its method and its parameters. Without a time-out it is waited for.

        Raises NoAnswer where none came in time, or the connection has ended.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while (told := self._exchange.notification()) is None:
                self._read(deadline, timeout or 0)
        except (ClientError, VolattachError):
            self.close()
            raise
        return told

    def _send(self, request: bytes, deadline: float, allowance: float) -> None:
        connection, left = self._opened().socket, memoryview(request)
        try:
            while left:
                try:
                    left = left[connection.send(left) :]
                except BlockingIOError:
                    wait_for(connection, select.POLLOUT, deadline - time.monotonic())
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon hung up, and may have said why: the answer is still there to read
        except OSError as error:
            raise self._ended(error, allowance) from error

    def _receive_next(self, call_id: int) -> Outcome:
        return self._receive(call_id, time.monotonic() + self.timeout, self.timeout)

    def _receive(self, call_id: int, deadline: float, allowance: float) -> Outcome:
        try:
            while (outcome := self._exchange.outcome(call_id)) is None:
                self._read(deadline, allowance)
        except (ClientError, VolattachError):
            self.close()
            raise
        return outcome

    def _read(self, deadline: float | None, allowance: float) -> None:
        connection = self._opened().socket
        remaining = None if deadline is None else deadline - time.monotonic()
        try:
            wait_for(connection, select.POLLIN, remaining)
            data = connection.recv(_CHUNK)
        except OSError as error:
            raise self._ended(error, allowance) from error
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        if not data and (said := self._opened().last_words()):
            raise self._exchange.lost(said)
        self._exchange.feed(data)

    def _opened(self) -> Link:
        self.open()
        assert self._link is not None
        return self._link

    def _ended(self, error: OSError, allowance: float) -> ClientError:
        self.close()
        if isinstance(error, TimeoutError):
            return self._exchange.late(allowance)
        return self._exchange.lost(words(error))
