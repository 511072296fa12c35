"""Records that a caller can cause at will: the first few of a while are logged one by one, of the rest their number.

Invariants:

1. What one uid causes of one kind is counted for itself: nobody can hide the records of somebody else behind his own.
2. Nothing is lost without a word: once the while is over, one line says how many there were, and shows the last.
3. Neither the lines nor the memory grow with the number of calls. Past ``_KEYS`` uids and kinds, all others share one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from volattachd.telemetry import messages

#: A while, in seconds.
WHILE = 10.0
_KEYS = 256


@dataclass
class _Window:
    """The records of one kind that one uid has caused since ``began``."""

    uid: int | str
    began: float
    count: int = 0
    kept_back: int = 0
    last: str = ""


class Throttle:
    """May be used by any thread."""

    def __init__(
        self,
        burst: int,
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], None] | None = None,
    ) -> None:
        """``later`` calls a function after so many seconds."""
        self._burst = burst
        self._clock = clock
        self._later = later or _by_timer
        self._lock = threading.Lock()
        self._windows: dict[object, _Window] = {}
        self._is_awaited = False

    def tell(self, kind: messages.Kind, uid: int, **members: Any) -> None:
        """Log the record, or count it."""
        if not kind.is_told:
            return
        self.flush()
        if self._admits(kind, uid, members):
            kind.tell(uid=uid, **members)

    def flush(self) -> None:
        """Log what was counted in each while that is over."""
        with self._lock:
            now = self._clock()
            over = {key: window for key, window in self._windows.items() if now - window.began >= WHILE}
            for key in over:
                del self._windows[key]
        for window in over.values():
            if window.kept_back:
                messages.REFUSALS_COUNTED.tell(
                    uid=window.uid, count=window.kept_back, seconds=now - window.began, last=window.last
                )

    def _admits(self, kind: messages.Kind, uid: int, members: dict[str, Any]) -> bool:
        with self._lock:
            window = self._window(kind, uid)
            window.count += 1
            if window.count <= self._burst:
                return True
            window.kept_back += 1
            window.last = str(messages.Told(kind, {"uid": uid, **members}))
            awaits, self._is_awaited = not self._is_awaited, True
        if awaits:
            self._later(WHILE, self._time_is_over)
        return False

    def _window(self, kind: messages.Kind, uid: int) -> _Window:
        key = (kind.id, uid)
        if key not in self._windows and len(self._windows) >= _KEYS:
            return self._windows.setdefault(None, _Window("(many)", self._clock()))
        return self._windows.setdefault(key, _Window(uid, self._clock()))

    def _time_is_over(self) -> None:
        with self._lock:
            self._is_awaited = False
        self.flush()
        with self._lock:
            awaits = not self._is_awaited and any(window.kept_back for window in self._windows.values())
            self._is_awaited = self._is_awaited or awaits
        if awaits:
            self._later(WHILE, self._time_is_over)


def _by_timer(seconds: float, body: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, body)
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:
        return  # no thread is to be had: the next refusal looks
