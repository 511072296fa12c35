"""The client for asyncio: the same calls, types, errors and rules for sending again as ``client/sync.py``.

    async with Client() as client:
        reserved = await client.reserve_volume("vol-1", ttl=60)

Laws:

1. One call at a time on a connection, in the order in which they were asked for, and the time of each begins with
   its turn: who wants calls side by side opens more clients, as the daemon has it.
2. A call that is cancelled, or fails in any way, ends the connection: its late answer can never meet a later call.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Generic, ParamSpec, TypeVar

from volattachd.client import calls
from volattachd.client.calls import Call, Tries
from volattachd.client.connection import DEFAULT_TIMEOUT
from volattachd.client.protocol import MAX_ANSWER, Exchange, Notification, Unreachable
from volattachd.client.transport import dial
from volattachd.client.unix import DEFAULT_SOCKET, Link, words
from volattachd.errors import VolattachError

P = ParamSpec("P")
T = TypeVar("T")

_CHUNK = 64 * 1024


class Connection:
    """It serves one task. Once it has ended, it stays so."""

    def __init__(self, address: str, max_answer: int = MAX_ANSWER) -> None:
        self.address = address
        self.opened = self.closed = False
        self._exchange = Exchange(address, max_answer)
        self._link: Link | None = None

    def has_ended(self) -> bool:
        """Whether it is over, by either side."""
        return self.closed or (self._link is not None and self._link.has_ended())

    async def close(self) -> None:
        """Ends the connection."""
        self.closed = True
        link, self._link = self._link, None
        if link is not None:
            await asyncio.to_thread(link.close)

    async def call(self, method: str, params: Mapping[str, Any] | None, timeout: float) -> Any:
        """The result of one call. Raises the daemon's error as its class, or a ClientError."""
        deadline = time.monotonic() + timeout
        link = await self._open(timeout)
        call_id, request = self._exchange.ask(method, params)
        async with self._ending(timeout):
            await self._send(link, request, deadline)
            while (outcome := self._exchange.outcome(call_id)) is None:
                await self._read(link, deadline)
        return outcome.unwrap()

    async def notification(self, timeout: float | None) -> Notification:
        """The next notification. Raises NoAnswer where none came in time, or the connection has ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        link = await self._open(0)
        async with self._ending(timeout or 0):
            while (told := self._exchange.notification()) is None:
                await self._read(link, deadline)
        return told

    @asynccontextmanager
    async def _ending(self, timeout: float) -> AsyncIterator[None]:
        """Whatever goes wrong inside, a cancellation too, ends the connection."""
        try:
            yield
        except BaseException as error:
            await self.close()
            if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
                raise self._exchange.late(timeout) from None
            if isinstance(error, OSError):
                raise self._exchange.lost(words(error)) from error
            raise

    async def _open(self, timeout: float) -> Link:
        if self.closed:
            raise Unreachable("this connection is closed", "open a new one")
        if self._link is None:
            self._link = await _dialled(self.address, timeout)
            self._link.socket.setblocking(False)
            self.opened = True
        return self._link

    async def _send(self, link: Link, request: bytes, deadline: float) -> None:
        sending = asyncio.get_running_loop().sock_sendall(link.socket, request)
        try:
            await asyncio.wait_for(sending, deadline - time.monotonic())
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon hung up, and may have said why: the answer is still there to read

    async def _read(self, link: Link, deadline: float | None) -> None:
        reading = asyncio.get_running_loop().sock_recv(link.socket, _CHUNK)
        data = await asyncio.wait_for(reading, None if deadline is None else deadline - time.monotonic())
        if not data and (said := await asyncio.to_thread(link.last_words)):
            raise self._exchange.lost(said)
        self._exchange.feed(data)


async def _dialled(address: str, timeout: float) -> Link:
    """A link, opened by a thread because that may block; one that comes too late is closed again."""
    dialling = asyncio.ensure_future(asyncio.to_thread(dial, address, timeout))
    try:
        return await asyncio.shield(dialling)
    except asyncio.CancelledError:
        dialling.add_done_callback(_drop)
        raise


def _drop(dialling: asyncio.Future[Link]) -> None:
    if not dialling.cancelled() and dialling.exception() is None:
        dialling.result().close()


class _Method(Generic[P, T]):
    """A call as a method: it takes what the call takes, and gives what that answers to who awaits it."""

    def __init__(self, build: Callable[P, Call[T]]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    def __get__(self, client: Client, owner: type[Client]) -> Callable[P, Awaitable[T]]:
        @functools.wraps(self._build)
        def method(*args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
            return client.run(self._build(*args, **kwargs))

        return method


class Client:
    """One daemon, over one connection at a time: see ``client/sync.py``."""

    def __init__(self, address: str = DEFAULT_SOCKET, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.address = address
        self.timeout = timeout
        self._closed = False
        self._known = False
        self._turn = asyncio.Lock()
        self._connection = Connection(address)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection. A closed client stays closed."""
        self._closed = True
        await self._connection.close()

    async def run(self, call: Call[T], timeout: float | None = None) -> T:
        """The result of a call of ``client/calls.py``, sent again where that is safe; a list comes whole, in pages."""
        requests = call.requests()
        try:
            request = next(requests)
            while True:
                try:
                    result = await self._run(request, timeout)
                except VolattachError as error:
                    request = requests.throw(error)
                else:
                    request = requests.send(result)
        except StopIteration as end:
            whole: T = end.value
            return whole

    async def _run(self, call: Call[T], timeout: float | None) -> T:
        async with self._turn:
            allowance = self.timeout if timeout is None else timeout
            tries = Tries(call, allowance, self._known or self._connection.opened)
            while True:
                connection = await self._live()
                try:
                    result: T = await connection.call(call.method, call.params, tries.left())
                    return result
                except Unreachable as error:
                    await asyncio.sleep(tries.pause_after(error))

    async def call(self, method: str, params: Mapping[str, Any] | None = None, timeout: float | None = None) -> Any:
        """The result of any call by its name, sent once."""
        async with self._turn:
            connection = await self._live()
            return await connection.call(method, params, self.timeout if timeout is None else timeout)

    async def notification(self, timeout: float | None = None) -> Notification:
        """The next notification of this connection, after ``subscribe``: see the blocking client's."""
        async with self._turn:
            return await self._connection.notification(timeout)

    async def _live(self) -> Connection:
        """The connection, or a new one in the place of one that has ended: what is sent over that was not sent."""
        if self._closed:
            raise Unreachable("this client is closed", "open a new one")
        if self._connection.has_ended():
            await self._connection.close()
            self._known = self._known or self._connection.opened
            self._connection = Connection(self.address)
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
