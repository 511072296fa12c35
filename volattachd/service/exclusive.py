"""One call at a time for each volume, and Busy at the caller's deadline.

Invariants:

1. A call holds its volume's lock from its first look-up to its last commit: what it has decided on still holds when
   it acts.
2. A call that touches the target runs in a worker, which also holds the lock that keeps the controller away. The
   caller waits until its deadline and then gets Busy. The worker goes on, keeps both locks until it is done, and the
   volume shows the condition Pending meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any, Protocol, TypeVar, cast

from volattachd.concurrency.locks import Deadline, Task, Turns, Workers, target_of
from volattachd.errors import Busy
from volattachd.model import Caller
from volattachd.reconcile.reconciler import Conditions

T = TypeVar("T")


class Exclusive:
    """Runs the calls of one volume one after the other, and the calls of different volumes side by side."""

    def __init__(
        self,
        locks: Turns,
        workers: Workers,
        conditions: Conditions,
        current_steps: Mapping[str, str],
        timeout: float,
    ) -> None:
        """``current_steps`` names the step that each volume is at; ``timeout`` is the deadline of a call in seconds."""
        self._locks = locks
        self._workers = workers
        self._conditions = conditions
        self._current_steps = current_steps
        self._timeout = timeout

    def run(self, volume: str, call: str, body: Callable[[], T]) -> T:
        """Run ``body`` while the volume has no other call. Raises Busy if the lock is not free in time."""
        self._acquire(volume, volume, call, Deadline(self._timeout))
        try:
            return body()
        finally:
            self._locks.give_back(volume)

    def run_in_worker(self, volume: str, call: str, body: Callable[[], T]) -> T:
        """The same in a worker that has the target too. Raises Busy at the deadline; the worker goes on."""
        deadline = Deadline(self._timeout)
        self._acquire(volume, volume, call, deadline)
        task = self._submit(volume, call, body, deadline)
        if not task.wait(deadline.left()):
            raise self._pending(volume, call)
        return task.result()

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Keep others out of something that is no volume. Raises Busy if it is not free in time."""
        with self._locks.hold(name, self._timeout):
            yield

    def try_run(self, volume: str, body: Callable[[], None]) -> None:
        """Run ``body`` if no call works on the volume now."""
        if self._locks.take(volume, 0):
            try:
                body()
            finally:
                self._locks.give_back(volume)

    def _acquire(self, lock: str, volume: str, call: str, deadline: Deadline) -> None:
        if not self._locks.take(lock, deadline.left()):
            waits_for = self._current_steps.get(volume, "another call")
            raise Busy(f"cannot {call} volume {volume!r} now: it waits for {waits_for}", "send the call again")

    def _submit(self, volume: str, call: str, body: Callable[[], T], deadline: Deadline) -> Task[T]:
        """Start the worker, which releases both locks. If there is none, the volume's lock is released here."""
        with ExitStack() as held:
            held.callback(self._locks.give_back, volume)
            self._acquire(target_of(volume), volume, call, deadline)
            held.callback(self._locks.give_back, target_of(volume))
            try:
                task = self._workers.submit(partial(self._run_and_release, volume, body))
            except RuntimeError as error:  # the system gives no thread
                raise Busy(f"cannot {call} volume {volume!r} now: {error}", "send the call again") from error
            held.pop_all()
            return task

    def _run_and_release(self, volume: str, body: Callable[[], T]) -> T:
        try:
            return body()
        finally:
            self._conditions.clear(volume, "Pending")
            self._locks.give_back(target_of(volume))
            self._locks.give_back(volume)

    def _pending(self, volume: str, call: str) -> Busy:
        waits_for = self._current_steps.get(volume, "the target")
        self._conditions.set(volume, "Pending", f"{call} waits for: {waits_for}")
        return Busy(
            f"{call} of volume {volume!r} is not done after {self._timeout:g} s: it waits for {waits_for}",
            "it goes on by itself; send the call again for its answer",
        )


class HasExclusive(Protocol):
    """A group of calls that share one Exclusive."""

    @property
    def one_at_a_time(self) -> Exclusive:
        """What keeps two calls of one volume apart."""


F = TypeVar("F", bound=Callable[..., Any])


def exclusive(handler: F) -> F:
    """A handler that reads and commits: it runs in its caller's thread while the volume has no other call."""

    @wraps(handler)
    def run(self: HasExclusive, caller: Caller, volume: str, *args: Any, **kwargs: Any) -> Any:
        body = partial(handler, self, caller, volume, *args, **kwargs)
        return self.one_at_a_time.run(volume, handler.__name__, body)

    return cast(F, run)


def exclusive_in_worker(handler: F) -> F:
    """A handler that touches the target or the device: it runs in a worker, and its caller leaves at the deadline."""

    @wraps(handler)
    def run(self: HasExclusive, caller: Caller, volume: str, *args: Any, **kwargs: Any) -> Any:
        body = partial(handler, self, caller, volume, *args, **kwargs)
        return self.one_at_a_time.run_in_worker(volume, handler.__name__, body)

    return cast(F, run)
