"""What is to be looked at next, and when: everything in turns, and what there is news of before that."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator

#: News comes in bursts (a device is removed, its links, its holders): this long is waited for the rest, in seconds.
_SETTLING = 0.1


class Agenda:
    """The errands of the thread that keeps the target equal to the journal.

    A round over everything begins ``interval`` seconds after the last one began, or as soon as that one is over.
    Within a round its worker rests again and again (``rest``), and what there is news of is looked at then.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._changed = threading.Condition()
        self._volumes: set[str] = set()
        self._everything = False
        self._ended = False

    def note(self, volumes: Iterable[str]) -> None:
        """There is news of these volumes."""
        with self._changed:
            self._volumes.update(volumes)
            self._changed.notify()

    def note_everything(self) -> None:
        """There is news that may concern every volume."""
        with self._changed:
            self._everything = True
            self._changed.notify()

    def end(self) -> None:
        """No errand any more."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def errands(self) -> Iterator[frozenset[str] | None]:
        """Each errand when it is time for it: the volumes that there is news of, or None for everything."""
        due = time.monotonic() + self._interval
        while self._wait(due):
            began = time.monotonic()
            errand = self._take(began >= due)
            yield errand
            if errand is None:
                due = began + self._interval

    def rest(self, seconds: float) -> frozenset[str]:
        """Wait in the middle of a round; the answer is what there is news of.

        Not for long where there is news of everything, or the end: the next round, or nothing, comes the sooner.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._news(), seconds)
            found = frozenset(self._volumes)
            self._volumes.clear()
            return found

    def _wait(self, due: float) -> bool:
        """Sleep until there is an errand; False at the end."""
        with self._changed:
            while not (self._ended or self._news() or time.monotonic() >= due):
                self._changed.wait(max(0.0, due - time.monotonic()))
            if self._news():
                self._changed.wait_for(lambda: self._ended, _SETTLING)
            return not self._ended

    def _news(self) -> bool:
        return self._everything or bool(self._volumes)

    def _take(self, round_is_due: bool) -> frozenset[str] | None:
        with self._changed:
            errand = None if round_is_due or self._everything else frozenset(self._volumes)
            self._volumes.clear()
            self._everything = False
            return errand
