"""One at a time for each volume, and never for ever: locks by name, and threads that may be left behind.

A step in the kernel may sleep uninterruptibly for as long as a device is stalled. So whatever touches the target
runs in a worker thread that holds the volume's turn; the caller waits for it until its deadline, is told Busy, and
leaves. The worker goes on, finishes when the device does, and only then gives the turn back. Workers are as many
as are needed: one stalled volume costs one sleeping thread and holds up nobody else.

A volume has two turns: its own, for calls, and that of its target (``target_of``), for whoever reads or writes there. A
call takes the second one only if it needs the target, so a look that waits for the target holds up no other call.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from volattachd.errors import Busy

T = TypeVar("T")

#: An idle worker ends after this time, in seconds.
_IDLE_SECONDS = 10.0


class Task(Generic[T]):
    """A piece of work and its outcome."""

    def __init__(self, body: Callable[[], T]) -> None:
        self._body = body
        self._done = threading.Lock()  # of an Event, setting and waiting take a lock more often
        self._done.acquire()
        self._result: T
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self._body()
        except BaseException as error:  # noqa: BLE001 - handed to the caller, who raises it
            self._error = error
        finally:
            self._done.release()

    def wait(self, timeout: float) -> bool:
        """Whether it is done within ``timeout`` seconds."""
        done = self._done.acquire(timeout=timeout)
        if done:
            self._done.release()
        return done

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._result


class Workers:
    """Threads that are reused while there is work and end when idle. They never keep the process alive."""

    def __init__(self) -> None:
        self._idle: list[SimpleQueue[Task[object]]] = []  # each of its methods is atomic: there is no lock

    def submit(self, body: Callable[[], T]) -> Task[T]:
        """Run ``body`` in a thread of its own; the answer tells of its outcome."""
        task: Task[T] = Task(body)
        try:
            inbox = self._idle.pop()
        except IndexError:
            inbox = SimpleQueue()
            threading.Thread(target=self._work, args=(inbox,), name="worker", daemon=True).start()
        inbox.put(task)  # type: ignore[arg-type]
        return task

    def _work(self, inbox: SimpleQueue[Task[object]]) -> None:
        while True:
            try:
                task = inbox.get(timeout=_IDLE_SECONDS)
            except Empty:
                try:
                    self._idle.remove(inbox)
                except ValueError:
                    continue  # somebody took this worker a moment ago: its task is on the way
                return
            task.run()
            self._idle.append(inbox)


class Turns:
    """Locks by name that exist while somebody has them; who waited longest is next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Each turn that is taken, with a gate for each one who waits for it.
        self._turns: dict[str, deque[threading.Lock]] = {}

    def take(self, name: str, timeout: float) -> bool:
        """Take the turn within ``timeout`` seconds; True where it is taken."""
        with self._lock:
            waiting = self._turns.get(name)
            if waiting is None:
                self._turns[name] = deque()
                return True
            if timeout <= 0:
                return False
            gate = threading.Lock()
            gate.acquire()
            waiting.append(gate)
        return gate.acquire(timeout=timeout) or not self._give_up(waiting, gate)

    def _give_up(self, waiting: deque[threading.Lock], gate: threading.Lock) -> bool:
        """Wait no longer; False where the turn came in the last moment."""
        with self._lock:
            if gate not in waiting:
                return False
            waiting.remove(gate)
            return True

    def give_back(self, name: str) -> None:
        """End the turn; any thread may do it."""
        with self._lock:
            waiting = self._turns[name]
            if waiting:
                waiting.popleft().release()
            else:
                del self._turns[name]

    @contextmanager
    def hold(self, name: str, timeout: float) -> Iterator[None]:
        """The turn for a block. Raises Busy where it was not to be had in time."""
        if not self.take(name, timeout):
            raise Busy(f"{name} is busy with another call or a repair", "send the call again")
        try:
            yield
        finally:
            self.give_back(name)


def target_of(volume: str) -> str:
    """The name of the turn for a volume's target. No volume has a name with a space."""
    return f"target of {volume}"


class Deadline:
    """A point in time on the monotonic clock, in seconds from now."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self._at - time.monotonic())
