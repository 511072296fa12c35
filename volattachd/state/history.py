"""History has readers who follow it, and it does not grow for ever.

What is older or more than the configuration keeps is taken away, bit by bit.
Age is counted in hours that the daemon has run, by the monotonic clock, and noted in the journal. A clock on the wall
that jumps by years takes nothing away. Hours in which the daemon did not run, and the begun hour that a restart
ends, do not count: history lives a little longer for them, never shorter.
"""

from __future__ import annotations

from typing import Protocol

from volattachd.concurrency.locks import Deadline
from volattachd.state.journal import Journal

_HOUR = 3600.0
#: Rows of one transaction, and transactions of one look: calls wait for one, and a pass for all of them.
_BATCH, _BATCHES = 200, 50


class Trimmer:
    """Keeps the newest ``rows`` of ``days``, and of those ``max_bytes``. For the periodic pass."""

    def __init__(
        self, journal: Journal, days: int, rows: int, hour: float = _HOUR, max_bytes: int | None = None
    ) -> None:
        self._journal = journal
        self._hours = days * 24
        self._rows = rows
        self._max_bytes = max_bytes
        self._hour = hour
        self._due = Deadline(hour)

    def look(self) -> None:
        """Count the hour where one is over, and trim some of what is due. Raises JournalFailed."""
        if self._due.left() == 0:
            self._due = Deadline(self._hour)
            self._journal.count_hour()
        for _ in range(_BATCHES):
            if self._journal.trim(self._hours, self._rows, _BATCH, self._max_bytes) < _BATCH:
                return


class Feed(Protocol):
    """A connection of a caller that rows of the journal can be sent over."""

    def follow(self, journal: Journal, since: int) -> None:
        """Send the rows after ``since`` once the present call is answered, in place of what was followed before.

        Raises Busy where that cannot be done now.
        """

    def unfollow(self) -> bool:
        """Send none any more; whether any were to be sent."""
