"""How a decision is carried out: commit, apply, roll back. The only place that does all three.

Invariants:

1. Access is taken away, and access is given, after the commit that says so: a crash is finished by the start.
2. Forgetting comes last. If a call ends an attachment, the target is made as if it had ended, and that is seen in the
   target, before the row goes: no grant outlives its row.
3. If the driver fails, the commit is undone by another commit and the failure is reported: the attachment is where it
   was, and the call can be sent again. If rolling the target back fails too, a condition says so and the controller
   tries again.
"""

from __future__ import annotations

from collections.abc import Callable

from volattachd.api.views import attachment_view
from volattachd.errors import DriverError
from volattachd.lifecycle import EXPORTED, Call
from volattachd.model import Attachment, Caller, Export, Volume
from volattachd.reconcile.applier import DeviceUnusable, export_of
from volattachd.reconcile.reconciler import Repairer
from volattachd.service.decisions import Decision
from volattachd.state.journal import Change, Journal
from volattachd.telemetry import messages

#: Called after each commit with the caller, the name of the call, and the attachment before and after (None: gone).
OnTransition = Callable[[Caller, str, Attachment | None, Attachment | None], None]

#: The calls that close access. They look at the target even if nothing should change: a start may have left a grant.
_REVOKES = frozenset({Call.TERMINATE, Call.FORCE})


class Transitions:
    """Carries out decisions about attachments. Calls for one volume must not overlap."""

    def __init__(self, journal: Journal, reconciler: Repairer, on_transition: OnTransition) -> None:
        self._journal = journal
        self._reconciler = reconciler
        self._on_transition = on_transition

    def execute(self, caller: Caller, volume: Volume, decision: Decision) -> None:
        """Commit the decision and make the target follow. Raises DriverError, and has rolled back then."""
        previous, desired = self._exports(volume, decision)
        if decision.after is None:
            self._end(caller, decision, previous, desired)
            return
        if decision.changes:
            self._commit(caller, decision.call.value, decision.before, decision.after)
        if self._touches_target(decision, previous, desired):
            try:
                self._change_target(decision.call, desired)
            except DriverError:
                if decision.changes:
                    self._undo(caller, decision, previous)
                raise

    def _undo(self, caller: Caller, decision: Decision, previous: Export) -> None:
        self._commit(caller, f"undo {decision.call.value}", decision.after, decision.before)
        self._roll_back(previous)

    def _end(self, caller: Caller, decision: Decision, previous: Export, desired: Export) -> None:
        """Revoke first, even if nothing should change: a start may have left a grant. Then forget."""
        assert decision.before is not None
        if decision.before.state in EXPORTED:
            try:
                self._revoke(desired)
            except DriverError:
                self._roll_back(previous)
                raise
        self._commit(caller, decision.call.value, decision.before, None)

    def _exports(self, volume: Volume, decision: Decision) -> tuple[Export, Export]:
        """What the target should hold before the decision, and after it."""
        rows = self._journal.attachments.of_volume(volume.id)
        others = [row for row in rows if row.id != decision.row.id]
        before = [decision.before] if decision.before is not None else []
        after = [decision.after] if decision.after is not None else []
        return export_of(volume, [*others, *before]), export_of(volume, [*others, *after])

    def _touches_target(self, decision: Decision, previous: Export, desired: Export) -> bool:
        if decision.call is Call.INITIALIZE:  # the export may be away, whatever should be
            return True
        return previous != desired or (decision.call in _REVOKES and not decision.changes)

    def _change_target(self, call: Call, desired: Export) -> None:
        if call is Call.INITIALIZE:
            self._reconciler.converge(desired)
        else:
            self._revoke(desired)

    def _revoke(self, desired: Export) -> None:
        """Take away what ``desired`` does not grant.

        If the device is away, nothing is exported at all and access is gone, whatever other attachments still wait
        for: a volume whose disk has died must not keep its attachments.
        """
        try:
            self._reconciler.revoke(desired)
        except DeviceUnusable as error:
            messages.ACCESS_GONE_WITH_DEVICE.tell(volume=desired.volume.id, reason=error.condition.message)

    def _roll_back(self, previous: Export) -> None:
        try:
            self._reconciler.converge(previous)
        except DriverError as error:
            messages.WAY_BACK_FAILED.tell(volume=previous.volume.id, reason=error.message)

    def _commit(self, caller: Caller, call: str, before: Attachment | None, after: Attachment | None) -> None:
        row = after or before
        assert row is not None
        self._journal.commit(
            Change(
                call,
                caller,
                row.volume,
                row.id,
                before=None if before is None else attachment_view(before),
                after=None if after is None else attachment_view(after),
                put=after,
                drop=before if after is None else None,
            )
        )
        self._on_transition(caller, call, before, after)
