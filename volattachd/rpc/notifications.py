"""What a connection sends: answers, and the notifications of a subscription. Each is one whole line.

Rules:

1. The journal is the queue. A subscription remembers one number, reads a few rows after it, and waits in the journal
   for more: a client that is slow costs the memory of these few, one that is away costs none, and a restart of the
   daemon loses nothing.
2. Rows are sent in the order of their numbers, without a gap: the number of a row is one more than that of the
   row before it, or the subscription ends and says so.
3. Two threads send on one connection, one at a time. After a line that went out in part nothing is sent any more:
   no reader ever sees half a line with another one behind it.
4. A notification begins only where the socket is writable, which a Unix socket is while no more than a quarter
   of its buffer is used. So there is room left for one last short line to a client that does not read.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from volattachd.concurrency.locks import Deadline
from volattachd.errors import Busy, JournalFailed
from volattachd.rpc import strictjson
from volattachd.state.journal import Journal
from volattachd.telemetry import messages

log = logging.getLogger(__name__)

CHANGED, ENDED = "volume_changed", "subscription_ended"
#: Rows that are read at a time, and their bytes: what a subscriber that does not read keeps in memory.
_ROWS, _BYTES = 32, 64 * 1024


class Outlet:
    """The sending half of a connection that does not block."""

    def __init__(self, connection: socket.socket, patience: float) -> None:
        self._connection = connection
        self._patience = patience
        self._lock = threading.Lock()
        self._turnstile = threading.Lock()
        #: Whether a second thread sends: only who answers calls starts one, and only that one waits for its end.
        self.is_shared = False
        self._closed = False

    def send(self, line: bytes) -> None:
        """Send one line. Raises TimeoutError where the client does not take it; nothing is sent after that."""
        with self._turn():
            self._write(line, self._patience)

    def offer(self, line: bytes) -> bool:
        """Send one line once the client has read most of what went before; False where it has not done so in time."""
        with self._turn():
            deadline = Deadline(self._patience)
            if not wait_for(self._connection, select.POLLOUT, deadline):
                return False
            self._write(line, deadline.left())
            return True

    def close_with(self, line: bytes) -> None:
        """Send a last line where there is room for it at once; nothing is sent after it."""
        with self._turn():
            try:
                self._write(line, 0)
            finally:
                self._closed = True

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One line at a time; who waits is next: a long row of notifications does not keep an answer waiting."""
        if not self.is_shared:
            yield
            return
        with self._turnstile:
            self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def _write(self, line: bytes, patience: float) -> None:
        if self._closed:
            raise BrokenPipeError("nothing can be sent any more")
        left, deadline = memoryview(line), None
        self._closed = True  # unless the whole line goes out
        while left:
            try:
                left = left[self._connection.send(left) :]
            except BlockingIOError:
                deadline = deadline or Deadline(patience)
                if not wait_for(self._connection, select.POLLOUT, deadline):
                    raise TimeoutError("the client does not read") from None
        self._closed = False


def wait_for(connection: socket.socket, event: int, deadline: Deadline | None) -> bool:
    """Wait until the connection can be read or written, or has ended; False where the deadline comes first."""
    poll = select.poll()
    poll.register(connection, event)
    return bool(poll.poll(None if deadline is None else deadline.left() * 1000))


class Subscription:
    """Sends the rows of a journal over one connection, in a thread of its own."""

    def __init__(self, journal: Journal, since: int, outlet: Outlet, drop: Callable[[], None]) -> None:
        """``drop`` ends the connection. Raises Busy where no thread is to be had."""
        self._journal = journal
        self._seq = since
        self._outlet = outlet
        self._drop = drop
        self._stopped = False
        self._may_begin = threading.Event()
        self._thread = threading.Thread(target=self._run, name="subscription", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise Busy(f"cannot subscribe now: {error}", "send the call again") from error

    def begin(self) -> None:
        """The call that asked for it is answered: send from here on."""
        self._may_begin.set()

    def stop(self) -> None:
        """Send nothing more; returns when that is so."""
        self._stopped = True
        self._may_begin.set()
        self._journal.wake()
        self._thread.join()

    def _run(self) -> None:
        self._may_begin.wait()
        try:
            self._send_all()
        except (OSError, JournalFailed) as error:
            log.debug("a subscription ended: %s", error)
        finally:
            # Whatever it was: a client whose notifications end without its wish sees the connection end.
            if not self._stopped:
                self._drop()

    def _send_all(self) -> None:
        """Row after row, until somebody ends it."""
        while not self._stopped:
            self._journal.wait_beyond(self._seq, lambda: self._stopped)
            before = self._seq
            for row in self._journal.history_page(since=before, limit=_ROWS, max_bytes=_BYTES):
                if self._stopped:
                    return None
                if row["seq"] != self._seq + 1:
                    break
                if not self._outlet.offer(_notification(CHANGED, row)):
                    return self._say_end("slow", "notifications were not read in time")
                self._seq = row["seq"]
            if self._seq == before and not self._stopped:
                return self._say_end("trimmed", f"the row after {self._seq} is no longer kept")
        return None

    def _say_end(self, reason: str, message: str) -> None:
        """Tell the client, if it can still be told; it begins again from its last number."""
        messages.SUBSCRIBER_DROPPED.tell(seq=self._seq, reason=message)
        self._outlet.close_with(_notification(ENDED, {"reason": reason, "seq": self._seq, "message": message}))


class ConnectionFeed:
    """A connection as a Feed (history.py): at most one subscription, which begins after the answer to the call."""

    def __init__(self, outlet: Outlet, drop: Callable[[], None]) -> None:
        self._outlet = outlet
        self._drop = drop
        self._subscription: Subscription | None = None
        #: Whether a subscription waits for the answer to the message that asked for it.
        self.waits = False

    def follow(self, journal: Journal, since: int) -> None:
        """As Feed says."""
        self.unfollow()
        self._outlet.is_shared = True
        self._subscription = Subscription(journal, since, self._outlet, self._drop)
        self.waits = True

    def unfollow(self) -> bool:
        """As Feed says."""
        subscription, self._subscription, self.waits = self._subscription, None, False
        if subscription is not None:
            subscription.stop()
            self._outlet.is_shared = False
        return subscription is not None

    def answered(self) -> None:
        """The message that may have subscribed is answered as a whole."""
        self.waits = False
        if self._subscription is not None:
            self._subscription.begin()


def _notification(method: str, params: dict[str, Any]) -> bytes:
    return strictjson.dumps({"jsonrpc": "2.0", "method": method, "params": params}) + b"\n"
