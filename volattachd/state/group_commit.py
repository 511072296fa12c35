"""Group commit: of many callers at once, one does the work for all who wait, and nobody waits for work of others.

Laws:

1. A lone caller does its own work at once: it pays one lock, and no hand-over to another thread.
2. What comes while somebody is at work is done as one piece after it, by the one who came first; so every caller waits
   for two pieces of work at most, however many callers there are.
3. Whose work is done goes on, while the next is at work already.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Caller(Generic[T]):
    """One who waits, at a gate: it opens when its item is done, or when it is this caller's part to go on."""

    def __init__(self, item: T) -> None:
        self.item = item
        self.is_done = False
        self.gate = threading.Lock()


class Group(Generic[T]):
    """Calls ``work``, one at a time, with the items of all who wait."""

    def __init__(self, work: Callable[[list[T]], None]) -> None:
        self._work = work
        #: Held by whoever is at work, and handed on to the next: only where nobody waits is it free.
        self._lead = threading.Lock()
        self._callers: deque[_Caller[T]] = deque()

    def __len__(self) -> int:
        """How many items no work has been begun for."""
        return len(self._callers)

    def do(self, item: T) -> None:
        """Return when ``work`` has been called with this item. What it raises is raised by the one who called it."""
        caller = _Caller(item)
        leads = self._lead.acquire(blocking=False)
        if not leads:
            caller.gate.acquire()
        self._callers.append(caller)
        if not leads and not self._lead.acquire(blocking=False):  # again: who led may have looked before the append
            caller.gate.acquire()
            if caller.is_done:
                return
        try:
            self._work_for_all()
        finally:
            self._hand_over()

    def _work_for_all(self) -> None:
        taken = [self._callers.popleft() for _ in range(len(self._callers))]
        try:
            if taken:  # an earlier one may have done it all
                self._work([caller.item for caller in taken])
        finally:
            for caller in taken:
                caller.is_done = True
                if caller.gate.locked():
                    caller.gate.release()

    def _hand_over(self) -> None:
        """The lead goes to who has waited longest, or is free."""
        while not self._callers:
            self._lead.release()
            if not self._callers or not self._lead.acquire(blocking=False):
                return
        self._callers[0].gate.release()
