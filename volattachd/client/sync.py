"""The client: every call of the daemon as a method with types, over a connection that is made again where it was lost.

    with Client() as client:                            # or Client("ssh://ops@storage1")
        reserved = client.reserve_volume("vol-1", ttl=60)

What a call answers is a dict with a type of ``client/results.py``; errors are the daemon's own (``volattachd.errors``)
or a ClientError. What is sent again by itself, and what never is, stands in ``client/calls.py``. ``client/aio.py`` has
the same for asyncio. The standard library only.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, ParamSpec, TypeVar

from volattachd.client import calls
from volattachd.client.calls import Call, Tries, new_attachment_id
from volattachd.client.connection import DEFAULT_TIMEOUT, Connection
from volattachd.client.protocol import (
    AccessRefused,
    BadAnswer,
    ClientError,
    NoAnswer,
    Notification,
    RemoteError,
    Unreachable,
)
from volattachd.client.unix import DEFAULT_SOCKET
from volattachd.errors import VolattachError

__all__ = [
    "DEFAULT_SOCKET",
    "DEFAULT_TIMEOUT",
    "AccessRefused",
    "BadAnswer",
    "Client",
    "ClientError",
    "NoAnswer",
    "RemoteError",
    "Unreachable",
    "new_attachment_id",
]

P = ParamSpec("P")
T = TypeVar("T")


class _Method(Generic[P, T]):
    """A call as a method: it takes what the call takes, and gives what that answers."""

    def __init__(self, build: Callable[P, Call[T]]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    def __get__(self, client: Client, owner: type[Client]) -> Callable[P, T]:
        @functools.wraps(self._build)
        def method(*args: P.args, **kwargs: P.kwargs) -> T:
            return client.run(self._build(*args, **kwargs))

        return method


class Client:
    """One daemon. It serves one thread, over one connection at a time.

    ``address`` is a socket's path or ``ssh://[user@]host[:port][/socket]``, and ``timeout`` what one call may take in
    all, sent again or not, in seconds. The connection is made by the first call.
    """

    def __init__(self, address: str = DEFAULT_SOCKET, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.address = address
        self.timeout = timeout
        self._closed = False
        self._known = False
        self._connection = Connection(address, timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection. A closed client stays closed."""
        self._closed = True
        self._connection.close()

    def run(self, call: Call[T], timeout: float | None = None) -> T:
        """The result of a call of ``client/calls.py``, sent again where that is safe; a list comes whole, in pages."""
        requests = call.requests()
        try:
            request = next(requests)
            while True:
                try:
                    result = self._run(request, timeout)
                except VolattachError as error:
                    request = requests.throw(error)
                else:
                    request = requests.send(result)
        except StopIteration as end:
            whole: T = end.value
            return whole

    def _run(self, call: Call[T], timeout: float | None) -> T:
        allowance = self.timeout if timeout is None else timeout
        tries = Tries(call, allowance, self._known or self._connection.opened)
        while True:
            connection = self._live()
            try:
                result: T = connection.call(call.method, call.params, tries.left())
                return result
            except Unreachable as error:
                time.sleep(tries.pause_after(error))

    def call(self, method: str, params: Mapping[str, Any] | None = None, timeout: float | None = None) -> Any:
        """The result of any call by its name, sent once. Raises the daemon's error as its class, or a ClientError."""
        return self._live().call(method, params, timeout)

    def call_many(self, calls: Iterable[tuple[str, Mapping[str, Any] | None]]) -> list[Any]:
        """Many calls, sent without waiting for each answer: see Connection.call_many."""
        return self._live().call_many(calls)

    def notification(self, timeout: float | None = None) -> Notification:
        """The next notification of this connection, after ``subscribe``: see Connection.notification."""
        return self._connection.notification(timeout)

    def _live(self) -> Connection:
        """The connection, or a new one in the place of one that has ended: what is sent over that was not sent."""
        if self._closed:
            raise Unreachable("this client is closed", "open a new one")
        if self._connection.has_ended():
            self._connection.close()
            self._known = self._known or self._connection.opened
            self._connection = Connection(self.address, self.timeout)
        return self._connection

    reserve_volume = _Method(calls.reserve_volume)
    initialize_connection = _Method(calls.initialize_connection)
    attach = _Method(calls.attach)
    begin_detaching = _Method(calls.begin_detaching)
    terminate_connection = _Method(calls.terminate_connection)
    detach = _Method(calls.detach)
    unreserve_volume = _Method(calls.unreserve_volume)
    roll_detaching = _Method(calls.roll_detaching)
    register_volume = _Method(calls.register_volume)
    unregister_volume = _Method(calls.unregister_volume)
    list_volumes = _Method(calls.list_volumes)
    show_volume = _Method(calls.show_volume)
    list_attachments = _Method(calls.list_attachments)
    show_attachment = _Method(calls.show_attachment)
    get_history = _Method(calls.get_history)
    reconcile = _Method(calls.reconcile)
    get_metrics = _Method(calls.get_metrics)
    get_status = _Method(calls.get_status)
    subscribe = _Method(calls.subscribe)
    unsubscribe = _Method(calls.unsubscribe)
    backup_journal = _Method(calls.backup_journal)
    discover = _Method(calls.discover)
