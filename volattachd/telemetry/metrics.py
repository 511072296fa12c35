"""What happens, counted where it happens, by functions that are handed in there: calls, commits, repairs.

Counting is a few additions, since every call pays for it. How the numbers look to a monitor is for ``exposition``,
which is imported when somebody asks.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from volattachd.drivers.base import Difference

#: Upper bounds in seconds: a call commits in less than a millisecond and may wait for half a minute.
_CALL_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_COMMIT_BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


#: The outcomes of calls that alerts ask for (docs/monitoring.md).
ALERTING = ("DriverError", "Busy", "InternalError")


class Durations:
    """How many of the seconds that were measured lie below each bound, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last is of those beyond every bound
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.seconds += seconds


class Metrics:
    """The numbers of one daemon, since it started.

    A series that appears with its first event has no increase that an alert could see. So every call of ``calls`` has
    "ok" and each alerting outcome at 0 from the start; the names are those of a table, and so is their number.
    """

    def __init__(self, calls: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        #: Answered calls by the name of the call and "ok" or the kind of its error, and how long calls took.
        self.calls: Counter[tuple[str, str]] = Counter(
            {(call, outcome): 0 for call in calls for outcome in ("ok", *ALERTING)}
        )
        self.call_seconds: defaultdict[str, Durations] = defaultdict(lambda: Durations(_CALL_BOUNDS))
        self.commit_seconds = Durations(_COMMIT_BOUNDS)
        #: What passes mended, by kind of difference.
        self.repairs: Counter[str] = Counter({difference.value: 0 for difference in Difference})

    def count_call(self, call: str, outcome: str, seconds: float) -> None:
        """A call was answered: "ok", or the kind of its error."""
        with self._lock:
            self.calls[call, outcome] += 1
            self.call_seconds[call].add(seconds)

    def measure_commit(self, seconds: float) -> None:
        """The journal has committed; it does so for one at a time."""
        self.commit_seconds.add(seconds)

    def count_repairs(self, differences: Iterable[str]) -> None:
        """A pass has mended a target that differed in these ways."""
        with self._lock:
            self.repairs.update(differences)
