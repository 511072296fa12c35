"""Which volume and which attachment a call is about, whether it is the caller's, and what is known of those that ended.

An id says it plainly. Without one it is the volume's one candidate: the one that the call could move, of the caller's
own, and with the initiator that was named. Where that is not one alone the call is refused with the candidates.
"""

from __future__ import annotations

from typing import Any

from volattachd.api.views import gone_view
from volattachd.errors import AttachmentNotFound, InvalidInput, InvalidVolume, PermissionDenied, VolumeNotFound
from volattachd.lifecycle import Call, moves, next_state
from volattachd.model import Attachment, Caller, State, Volume
from volattachd.state.journal import Journal

View = dict[str, Any]


class Selection:
    """Finds rows of the journal; raises what the caller is to be told where there is no right one."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def volume(self, volume: str) -> Volume:
        """A registered volume."""
        row = self._journal.volumes.get(volume)
        if row is None:
            raise VolumeNotFound(f"volume {volume!r} is not registered", "see list_volumes")
        return row

    def find(self, volume: Volume, attachment_id: str) -> Attachment | None:
        """An attachment of the volume by its id; None where it has ended or never was."""
        row = self._journal.attachments.get(attachment_id)
        if row is not None and row.volume != volume.id:
            raise InvalidInput(f"attachment {attachment_id} belongs to volume {row.volume!r}, not to {volume.id!r}")
        return row

    def require(self, caller: Caller, volume: Volume, call: Call, attachment_id: str | None) -> Attachment:
        """The attachment that a call is about; one that is not there is the wrong state for the call."""
        row = self.select(caller, volume, call, attachment_id)
        if row is None:
            next_state(State.GONE, call, volume.id)
            raise AssertionError(f"the table lets {call.value} start from gone, but it needs an attachment")
        return row

    def select(
        self,
        caller: Caller,
        volume: Volume,
        call: Call,
        attachment_id: str | None,
        initiator: str | None = None,
    ) -> Attachment | None:
        """The attachment that a call is about; None where it has ended, or where the volume has none."""
        if attachment_id is not None:
            row = self.find(volume, attachment_id)
            if row is None:
                self._check_ended_here(volume, attachment_id)
        else:
            row = self._only_candidate(caller, volume, call, initiator)
        if row is not None:
            self.check_may_act(caller, row)
        return row

    def _only_candidate(self, caller: Caller, volume: Volume, call: Call, initiator: str | None) -> Attachment | None:
        rows = self._journal.attachments.of_volume(volume.id)
        if len(rows) < 2:
            return rows[0] if rows else None
        own = [row for row in rows if self._may_act(caller, row)]
        fitting = [row for row in own if initiator is None or row.initiator == initiator]
        # Without one to move it is the one that was moved: the call is sent again.
        candidates = [row for row in fitting if moves(row.state, call)] or fitting
        if len(candidates) == 1:
            return candidates[0]
        raise InvalidVolume(
            f"cannot {call.value} volume {volume.id!r}: it has {len(rows)} attachments",
            "say which one with attachment_id",
            attachments=[row.id for row in candidates or rows],
        )

    def _check_ended_here(self, volume: Volume, attachment_id: str) -> None:
        last = self._journal.last_of(attachment_id)
        if last is None:
            raise AttachmentNotFound(f"volume {volume.id!r} has no attachment {attachment_id}", "see list_attachments")
        if last["volume"] != volume.id:
            raise InvalidInput(f"attachment {attachment_id} belonged to volume {last['volume']!r}")

    def ended(self, volume: Volume, attachment_id: str | None) -> View:
        """What is shown of the volume's attachment that has ended; without an id, of the last one."""
        if attachment_id is not None:
            return self.last_seen(attachment_id)
        last = self._journal.last_ended(volume.id)
        if last is None:
            raise AttachmentNotFound(f"volume {volume.id!r} has never had an attachment", "call reserve_volume first")
        return gone_view(last["before"])

    def last_seen(self, attachment_id: str) -> View:
        """What is shown of an attachment that has ended."""
        last = self._journal.last_of(attachment_id)
        if last is None:
            raise AttachmentNotFound(f"there is no attachment {attachment_id}", "see list_attachments")
        return gone_view(last["before"] or last["after"])

    def check_may_act(self, caller: Caller, row: Attachment) -> None:
        """Raise PermissionDenied if a caller would touch an attachment of another user."""
        if not self._may_act(caller, row):
            raise PermissionDenied(
                f"attachment {row.id} of volume {row.volume!r} belongs to uid {row.owner}, not to uid {caller.uid}",
                "ask its owner or an admin",
            )

    def _may_act(self, caller: Caller, row: Attachment) -> bool:
        """An attachment is for its owner, for admins, and for the provisioner that reserved it for its owner."""
        return caller.may_see_secret_of(row) or (caller.provisions and self._reserver_of(row) == caller.uid)

    def _reserver_of(self, row: Attachment) -> int | None:
        """The uid that reserved it; None if the history has been trimmed since: its owner and admins remain."""
        first = self._journal.history(attachment_id=row.id, since=0, limit=1)
        began = bool(first) and first[0]["call"] == Call.RESERVE.value and first[0]["before"] is None
        return int(first[0]["uid"]) if began else None
