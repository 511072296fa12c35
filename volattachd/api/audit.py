"""What the world hears of a call beside its answer: one record, and one measurement.

A call that waits for the target is answered Busy and goes on by itself: what it moves after its answer is told by a
record of its own, so that the log misses no move.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from volattachd.api.access import Peer
from volattachd.api.methods import Method, Role
from volattachd.errors import PermissionDenied, VolattachError
from volattachd.model import Attachment, Caller, State
from volattachd.telemetry import messages
from volattachd.telemetry.throttle import Throttle

#: Told of each call that was answered: its name, "ok" or the kind of its error, and the seconds that it took.
Observe = Callable[[str, str, float], None]

#: What the line of a call says it is about: members, and the parameters that they are known by.
_SHOWN = {"volume": "volume", "attachment": "attachment_id"}


def observe_nothing(call: str, outcome: str, seconds: float) -> None:
    """For calls that nobody measures."""


class Audit:
    """The reports of the calls that are at work."""

    def __init__(self, observe: Observe = observe_nothing, throttle: Throttle | None = None) -> None:
        """``throttle`` counts what a caller can repeat at will, in place of logging all of it."""
        self._observe = observe
        self._throttle = throttle
        self._call_ids = itertools.count(1)
        #: A report lives as long as its caller: a worker that goes on after the answer still finds it.
        self._reports: WeakKeyDictionary[Caller, Report] = WeakKeyDictionary()

    def begin(self, method: Method, peer: Peer, role: Role) -> tuple[Caller, Report]:
        """The caller of one new call, and the report of it."""
        caller = Caller(peer.uid, peer.pid, role >= Role.ADMIN, role.name.lower(), next(self._call_ids))
        report = Report(method, peer, self._observe, self._throttle)
        self._reports[caller] = report
        return caller, report

    def note_transition(self, caller: Caller, call: str, before: Attachment | None, after: Attachment | None) -> None:
        """A transition that is durable now. What the daemon does by itself has no report."""
        report = self._reports.get(caller)
        if report is not None:
            report.moved(before, after)


class Report:
    """What is known of one call, until it is told."""

    def __init__(self, method: Method, peer: Peer, observe: Observe, throttle: Throttle | None = None) -> None:
        """``throttle`` counts what a caller can repeat at will, in place of logging all of it."""
        self._method = method
        self._peer = peer
        self._observe = observe
        self._throttle = throttle
        self._began = time.monotonic()
        self._about: dict[str, Any] = {"volume": None, "attachment": None, "before": None, "after": None}
        self._moves: deque[dict[str, Any]] = deque()
        self._told = False

    def is_about(self, params: Mapping[str, Any]) -> None:
        """The checked parameters: no other value that was sent gets into a field."""
        self._about.update(volume=params.get("volume"), attachment=params.get("attachment_id"))

    def moved(self, before: Attachment | None, after: Attachment | None) -> None:
        """A move that is durable now; one more may be its way back."""
        row = after or before
        assert row is not None
        self._moves.append(
            {"volume": row.volume, "attachment": row.id, "before": _state(before), "after": _state(after)}
        )
        if self._told:  # the call itself may be telling of it just now: whoever takes a move tells it
            for move in self._take_moves():
                messages.CALL_LATE.tell(**self._sender(), **move)

    def _take_moves(self) -> Iterator[dict[str, Any]]:
        """The moves that nobody has told of, each once."""
        while self._moves:
            try:
                yield self._moves.popleft()
            except IndexError:
                return

    def tell_done(self, result: Any) -> None:
        """The call is done."""
        self._close()
        if self._about["attachment"] is None and isinstance(result, dict):
            self._about["attachment"] = result.get("attachment_id")
        self._tell("ok", None)

    def tell_error(self, error: VolattachError) -> None:
        """The call was refused, or has failed."""
        self._close()
        self._tell(error.kind, error)

    def tell_bug(self, kind: str) -> None:
        """The call ended with an exception that nobody foresaw: the one that is being handled."""
        self._close()
        messages.BUG.tell(**self._sender(), volume=self._about["volume"], error=kind)
        self._observe(self._method.name, kind, time.monotonic() - self._began)

    def _close(self) -> None:
        """What it has moved until now is told with it; what it moves from here on is told late."""
        self._told = True
        for move in self._take_moves():
            self._about.update(move, before=self._about["before"] or move["before"])

    def _tell(self, outcome: str, error: VolattachError | None) -> None:
        seconds = time.monotonic() - self._began
        kind = _kind_of(self._method, error)
        if kind.is_told:
            self._tell_as(kind, outcome, error, seconds)
        self._observe(self._method.name, outcome, seconds)

    def _tell_as(self, kind: messages.Kind, outcome: str, error: VolattachError | None, seconds: float) -> None:
        about = dict(self._about)
        if about["before"] == about["after"]:
            about.update(before=None, after=None)
        changed = error is None and (about["before"] is not None or self._method.role >= Role.ADMIN)
        tell = kind.tell if self._throttle is None or changed else partial(self._throttle.tell, kind)
        tell(
            **self._sender(),
            **about,
            about="".join(f" {name}={about[key]}" for key, name in _SHOWN.items() if about[key] is not None),
            error=None if error is None else outcome,
            outcome=_line_of(about, error),
            milliseconds=seconds * 1e3,
            microseconds=round(seconds * 1e6),
        )

    def _sender(self) -> dict[str, Any]:
        return {"call": self._method.name, "uid": self._peer.uid, "pid": self._peer.pid}


def _kind_of(method: Method, error: VolattachError | None) -> messages.Kind:
    """Of calls that only look nothing is told at the default level, unless they need an admin, or somebody may not."""
    if isinstance(error, PermissionDenied):
        return messages.CALL_DENIED
    if not method.changes and method.role < Role.ADMIN:
        return messages.LOOKED
    if error is None:
        return messages.CALL_DONE
    return messages.CALL_FAILED if error.retriable else messages.CALL_REFUSED


def _line_of(about: Mapping[str, Any], error: VolattachError | None) -> str:
    """How the line of a call ends."""
    if error is not None:
        return f"{error.kind}: {error.message}"
    return "ok" if about["before"] is None else f"ok, {about['before']} -> {about['after']}"


def _state(row: Attachment | None) -> str:
    return State.GONE.value if row is None else row.state.value
