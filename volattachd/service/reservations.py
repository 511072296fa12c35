"""Reservations end by themselves.

A reservation that is not connected in time is undone as unreserve_volume would undo it. Time is counted on the
monotonic clock, from the reservation or from the start of the daemon: a restart makes a reservation live longer, never
shorter.
"""

from __future__ import annotations

from functools import partial

from volattachd.concurrency.locks import Deadline
from volattachd.lifecycle import Call
from volattachd.model import DAEMON, Attachment, Caller, State, now
from volattachd.service.core import Core
from volattachd.service.decisions import decide_move
from volattachd.state.journal import Journal
from volattachd.telemetry import messages


class ReservationDeadlines:
    """When each reservation ends."""

    def __init__(self, journal: Journal, ttl: float) -> None:
        """``ttl`` is the life of a reservation that names none, in seconds."""
        self._ttl = ttl
        self._by_id: dict[str, Deadline] = {}
        for row in journal.attachments.all():
            self.note_transition(DAEMON, "", None, row)

    def note_transition(self, caller: Caller, call: str, before: Attachment | None, after: Attachment | None) -> None:
        """Follow a transition: only a reservation has a deadline, also one that could not be connected."""
        if after is not None and after.state is State.RESERVED:
            self._by_id[after.id] = Deadline(after.ttl or self._ttl)
        elif before is not None:
            self._by_id.pop(before.id, None)

    def over(self) -> list[str]:
        """The reservations whose time is over."""
        return [name for name, deadline in list(self._by_id.items()) if deadline.left() == 0]


class Reservations:
    """Ends the reservations whose time is over."""

    def __init__(self, core: Core, deadlines: ReservationDeadlines) -> None:
        self._core = core
        self._deadlines = deadlines

    def expire(self) -> None:
        """Undo them. If a call works on the volume now, the next pass looks again."""
        for name in self._deadlines.over():
            row = self._core.journal.attachments.get(name)
            if row is not None:
                self._core.exclusive.try_run(row.volume, partial(self._expire, name))

    def _expire(self, attachment_id: str) -> None:
        row = self._core.journal.attachments.get(attachment_id)
        if row is None or row.state is not State.RESERVED:
            return  # a call was faster
        volume = self._core.lookup.volume(row.volume)
        self._core.transitions.execute(DAEMON, volume, decide_move(row, Call.UNRESERVE, now()))
        messages.RESERVATION_EXPIRED.tell(
            volume=row.volume, attachment=attachment_id, before=State.RESERVED.value, after=State.GONE.value
        )
