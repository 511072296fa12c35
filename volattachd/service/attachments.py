"""The calls of the life cycle. Each parses, looks up, decides, executes and renders, in this order.

Handlers have the names and the parameters of the method table (api/methods.py), which has checked the shapes of the
values before they come here. Nothing here knows that JSON exists. The invariants are in transition.py and exclusive.py.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from volattachd.api.views import attachment_view, connection_view, gone_view
from volattachd.drivers.base import Portal
from volattachd.errors import InvalidInput, InvalidVolumeAttachMode, PermissionDenied, SessionActive
from volattachd.host.portals import reachable_portals
from volattachd.lifecycle import GRANTED, Call
from volattachd.model import Attachment, Caller, Mode, State, Volume, now, parse_initiator
from volattachd.service.chap import InitiatorBindings
from volattachd.service.core import Core, View
from volattachd.service.decisions import (
    Decision,
    decide_attach,
    decide_initialize,
    decide_move,
    decide_reserve,
    decide_terminate,
)
from volattachd.service.exclusive import Exclusive, exclusive, exclusive_in_worker
from volattachd.service.holdings import Holdings
from volattachd.service.local_attach import check_device, check_released, is_local, was_local
from volattachd.service.owners import check_same_owner, find_owner


class AttachmentCalls:
    """The eight calls that move an attachment."""

    def __init__(self, core: Core, holdings: Holdings, bindings: InitiatorBindings) -> None:
        self._core = core
        self._holdings = holdings
        self._bindings = bindings

    def bind_initiators(self, bindings: InitiatorBindings) -> None:
        """Use these bindings from now on; what is connected stays connected."""
        self._bindings = bindings

    @property
    def one_at_a_time(self) -> Exclusive:
        """What keeps two calls of one volume apart."""
        return self._core.exclusive

    @exclusive
    def reserve_volume(
        self,
        caller: Caller,
        volume: str,
        attachment_id: str | None = None,
        mode: str = "rw",
        instance_uuid: str | None = None,
        ttl: float | None = None,
        owner: int | str | None = None,
    ) -> View:
        """Take the volume for one attachment, of the caller or of the ``owner`` that it names."""
        uid = find_owner(caller, volume, owner)
        row = self._core.lookup.volume(volume)
        name = attachment_id or str(uuid.uuid4())
        with self._core.exclusive.hold(f"attachment {name}"):
            found = None if attachment_id is None else self._find_reserved(caller, row, attachment_id)
            if found is not None:
                check_same_owner(found, owner, uid)
                return attachment_view(found)
            self._check_mode(row, Mode(mode))
            at = now()
            wanted = Attachment(
                name, row.id, State.RESERVED, Mode(mode), uid, at, at, instance_uuid=instance_uuid, ttl=ttl
            )
            decision = decide_reserve(row, wanted, self._core.journal.attachments.of_volume(row.id))
            self._holdings.add(wanted)
            return self._execute(caller, row, decision)

    @exclusive_in_worker
    def initialize_connection(
        self, caller: Caller, volume: str, connector: Mapping[str, Any], attachment_id: str | None = None
    ) -> View:
        """Export the volume if it is not exported, and grant this connector alone. Returns the connection info."""
        initiator = None if is_local(connector) else parse_initiator(connector.get("initiator"))
        row = self._core.lookup.volume(volume)
        before = self._core.lookup.require(caller, row, Call.INITIALIZE, attachment_id)
        if initiator is not None:
            self._bindings.check(before, initiator)
        neighbours = self._core.journal.attachments.of_volume(volume)
        decision = decide_initialize(row, before, connector, initiator, neighbours, now())
        portals = self._portals_for(row, connector, initiator)
        self._core.transitions.execute(caller, row, decision)
        may_see = caller.may_see_secret_of(decision.row)
        return connection_view(row, decision.row, portals, self._core.driver.lun, may_see)

    @exclusive
    def attach(
        self,
        caller: Caller,
        volume: str,
        instance_uuid: str | None = None,
        host_name: str | None = None,
        mount_point: str | None = None,
        mode: str | None = None,
        attachment_id: str | None = None,
    ) -> View:
        """Finalise the attachment for an instance or a host."""
        if instance_uuid is None and host_name is None:
            raise InvalidInput("attach needs instance_uuid or host_name", "say who uses the volume")
        row = self._core.lookup.volume(volume)
        before = self._core.lookup.require(caller, row, Call.ATTACH, attachment_id)
        decision = decide_attach(before, instance_uuid, host_name, mount_point, mode, now())
        return self._execute(caller, row, decision)

    @exclusive
    def begin_detaching(self, caller: Caller, volume: str, attachment_id: str | None = None) -> View:
        """Note that the client is letting go; access is still granted."""
        row = self._core.lookup.volume(volume)
        before = self._core.lookup.require(caller, row, Call.BEGIN_DETACHING, attachment_id)
        return self._execute(caller, row, decide_move(before, Call.BEGIN_DETACHING, now()))

    @exclusive
    def roll_detaching(self, caller: Caller, volume: str, attachment_id: str | None = None) -> View:
        """Undo begin_detaching."""
        row = self._core.lookup.volume(volume)
        before = self._core.lookup.select(caller, row, Call.ROLL_DETACHING, attachment_id)
        if before is None:
            return self._core.lookup.ended(row, attachment_id)
        return self._execute(caller, row, decide_move(before, Call.ROLL_DETACHING, now()))

    @exclusive
    def unreserve_volume(self, caller: Caller, volume: str, attachment_id: str | None = None) -> View:
        """Undo reserve_volume."""
        return self._end(caller, volume, Call.UNRESERVE, attachment_id)

    @exclusive_in_worker
    def terminate_connection(
        self,
        caller: Caller,
        volume: str,
        connector: Mapping[str, Any],
        force: bool = False,
        attachment_id: str | None = None,
    ) -> View:
        """Revoke the grant; with ``force`` (admins only) even of an initiator that is logged in."""
        if force and not caller.admin:
            raise PermissionDenied("terminate_connection with force is for admins", "log the initiator out instead")
        call = Call.FORCE if force else Call.TERMINATE
        initiator = None if was_local(connector) else parse_initiator(connector.get("initiator"))
        row = self._core.lookup.volume(volume)
        before = self._core.lookup.select(caller, row, call, attachment_id, initiator)
        if before is None:
            return self._core.lookup.ended(row, attachment_id)
        decision = decide_terminate(before, call, initiator, now())
        if decision.changes and not force:
            check_released(row) if before.local else self._check_no_session(row, before)
        return self._execute(caller, row, decision)

    @exclusive_in_worker
    def detach(self, caller: Caller, volume: str, attachment_id: str | None = None) -> View:
        """Forget the attachment, after seeing that the target grants it nothing. Returns the volume."""
        return self._end(caller, volume, Call.DETACH, attachment_id)

    def _end(self, caller: Caller, volume: str, call: Call, attachment_id: str | None) -> View:
        """A call that answers with the volume, also if the attachment has ended."""
        row = self._core.lookup.volume(volume)
        before = self._core.lookup.select(caller, row, call, attachment_id)
        if before is not None:
            self._core.transitions.execute(caller, row, decide_move(before, call, now()))
        return self._core.view_volume(self._core.lookup.volume(volume))

    def _execute(self, caller: Caller, volume: Volume, decision: Decision) -> View:
        """Carry out a decision, and show the attachment."""
        self._core.transitions.execute(caller, volume, decision)
        view = attachment_view(decision.row)
        return view if decision.after is not None else gone_view(view)

    def _portals_for(self, volume: Volume, connector: Mapping[str, Any], initiator: str | None) -> Sequence[Portal]:
        """Where this connector can log in. This host itself needs no portal, but the device."""
        if initiator is None:
            check_device(volume)
            return ()
        return reachable_portals(self._core.driver.portals, connector.get("ip"))

    def _find_reserved(self, caller: Caller, volume: Volume, attachment_id: str) -> Attachment | None:
        """The attachment that an earlier reserve_volume made; None if the id is new."""
        found = self._core.lookup.find(volume, attachment_id)
        if found is not None:
            self._core.lookup.check_may_act(caller, found)
        elif self._core.journal.last_of(attachment_id) is not None:
            raise InvalidInput(f"attachment {attachment_id} has ended", "reserve with a new attachment_id")
        return found

    def _check_mode(self, volume: Volume, mode: Mode) -> None:
        if mode is Mode.RO and not volume.read_only and not self._core.driver.capabilities.per_grant_mode:
            raise InvalidVolumeAttachMode(
                f"the {self._core.driver.name} driver cannot give one attachment of volume {volume.id!r} read-only"
                " access",
                "register the volume as read-only, or use the lio driver",
            )

    def _check_no_session(self, volume: Volume, row: Attachment) -> None:
        """Raise SessionActive if revoking would cut off an initiator that is still logged in."""
        rows = self._core.journal.attachments.of_volume(volume.id)
        if any(r.id != row.id and r.initiator == row.initiator and r.state in GRANTED for r in rows):
            return  # the host keeps its access, and its session, through another attachment
        session = self._core.driver.find_session(volume.target_name, row.initiator) if row.initiator else None
        if session is not None:
            at = f" from {session.address}" if session.address else ""
            raise SessionActive(
                f"cannot terminate_connection volume {volume.id!r}: {session.initiator} is still logged in{at}",
                "log the initiator out first; an admin may use force",
            )
