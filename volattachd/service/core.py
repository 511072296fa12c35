"""The calls: where lifecycle, journal and converge meet.

One call is: take the volume's turn → check the transition → commit what should be → converge → answer. The
laws that make it safe to die anywhere in between:

1. Access is taken away, and access is given, after the commit that says so: a crash is finished by start-up.
2. Forgetting comes last. Where a call ends an attachment (→ gone), the target is made as if it had ended, and seen
   to be so, before the row goes: no grant can outlive its row.
3. A driver's failure commits the way back, and is reported: the attachment is where it was, and the call can be
   sent again. Where even the target's way back fails, a condition says so and the passes go on trying.

Handlers have the names and the parameters of the method table (api/methods.py), which has checked the
values' shapes before they come here. Nothing here knows that JSON exists.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from volattachd import __version__
from volattachd.api.paging import Rows, page_of
from volattachd.api.views import attachment_view, connection_view, gone_view, volume_view
from volattachd.concurrency.locks import Deadline, Turns, Workers, target_of
from volattachd.config import Config
from volattachd.drivers.base import TargetDriver
from volattachd.errors import (
    AlreadyExists,
    Busy,
    DriverError,
    InvalidInput,
    InvalidVolume,
    InvalidVolumeAttachMode,
    PermissionDenied,
    SessionActive,
)
from volattachd.host.devices import examine_device, take_device, verify_device, verify_opened
from volattachd.host.portals import reachable_portals, resolve_portals
from volattachd.host.users import find_uid, has_user
from volattachd.lifecycle import EXPORTED, GRANTED, Call, next_state
from volattachd.model import DAEMON, Attachment, Caller, Condition, Export, Mode, State, Volume, now, parse_initiator
from volattachd.reconcile.applier import Converger, DeviceUnusable, export_of
from volattachd.reconcile.controller import Upkeep
from volattachd.reconcile.reconciler import Conditions, Repairer
from volattachd.service.chap import InitiatorBindings, secret_for
from volattachd.service.holdings import Holdings
from volattachd.service.local_attach import (
    check_alone,
    check_device,
    check_released,
    is_local,
    kept_connector,
    was_local,
)
from volattachd.service.lookup import Selection
from volattachd.state.backup import write_backup
from volattachd.state.history import Feed, Trimmer
from volattachd.state.journal import Change, Journal
from volattachd.telemetry import messages
from volattachd.telemetry.metrics import Metrics

T = TypeVar("T")
View = dict[str, Any]

_REGISTRY = "the registry of volumes"


def _owner_for(caller: Caller, volume: str, owner: int | str | None) -> int:
    """The uid that a reservation is for. Raises PermissionDenied if the caller may not reserve for it."""
    if owner is None:
        return caller.uid
    uid = find_uid(owner) if isinstance(owner, str) else owner
    if uid is None or (uid != caller.uid and not has_user(uid)):
        raise InvalidInput(
            f"cannot reserve_volume {volume!r} for owner {owner!r}: there is no such user on the daemon's host",
            "give the name or the uid of a user that is known there",
        )
    if uid != caller.uid and not caller.provisions:
        raise PermissionDenied(
            f"cannot reserve_volume {volume!r} for uid {uid}: uid {caller.uid} may reserve for itself alone",
            "an admin grants the role provisioner in [access] of the configuration",
        )
    return uid


def _check_same_owner(found: Attachment, owner: int | str | None, uid: int) -> None:
    if owner is not None and found.owner != uid:
        raise InvalidInput(
            f"attachment {found.id} belongs to uid {found.owner}, not to {owner!r}", "reserve with a new attachment_id"
        )


class Service:
    """The calls, over one journal and one target."""

    def __init__(self, config: Config, journal: Journal, driver: TargetDriver, metrics: Metrics | None = None) -> None:
        self.journal = journal
        self.driver = driver
        self._rows = Selection(journal)
        self._patience = config.call_seconds
        self._ttl = config.ttl
        self._bindings = InitiatorBindings(config.initiators)
        self._holdings = Holdings(journal.attachments.all(), config.attachments_per_uid)
        self._page_bytes = config.max_page_bytes
        self._turns = Turns()
        self._workers = Workers()
        self._conditions = Conditions()
        self._own_directory = config.state_dir
        self._converger = Converger(driver, verify_device, verify_opened)
        self._repairer = Repairer(journal, self._converger, self._conditions, examine_device)
        self.upkeep = Upkeep(
            journal,
            self._converger,
            self._repairer,
            self._conditions,
            self._turns,
            self._workers,
            interval=config.interval,
            patience=config.call_seconds,
        )
        self._reserved_until = {
            row.id: Deadline(row.ttl or self._ttl) for row in journal.attachments.all() if row.state is State.RESERVED
        }
        self._trimmer = Trimmer(journal, config.days, config.rows, max_bytes=config.max_bytes)
        self.upkeep.expire = self._clear_up
        self.upkeep.resolve_portals = partial(resolve_portals, config.portals)
        self._metrics = metrics or Metrics()
        self.upkeep.on_repair = self._metrics.count_repairs
        self.ready = False

    def bind_initiators(self, bindings: InitiatorBindings) -> None:
        """Use these bindings from now on; what is connected stays connected."""
        self._bindings = bindings

    # The life cycle.

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
        uid = _owner_for(caller, volume, owner)

        def body() -> View:
            row = self._rows.volume(volume)
            if attachment_id is None:
                return self._reserve(caller, row, str(uuid.uuid4()), Mode(mode), instance_uuid, ttl, uid)
            with self._turns.hold(f"attachment {attachment_id}", self._patience):
                found = self._rows.find(row, attachment_id)
                if found is not None:
                    self._rows.check_may_act(caller, found)
                    _check_same_owner(found, owner, uid)
                    return attachment_view(found)
                if self.journal.last_of(attachment_id) is not None:
                    raise InvalidInput(f"attachment {attachment_id} has ended", "reserve with a new attachment_id")
                return self._reserve(caller, row, attachment_id, Mode(mode), instance_uuid, ttl, uid)

        return self._in_turn(volume, Call.RESERVE.value, body)

    def _reserve(
        self,
        caller: Caller,
        volume: Volume,
        name: str,
        mode: Mode,
        instance_uuid: str | None,
        ttl: float | None,
        owner: int,
    ) -> View:
        self._check_mode(volume, mode)
        others = self.journal.attachments.of_volume(volume.id)
        if others and not volume.multiattach:
            raise InvalidVolume(
                f"cannot reserve_volume {volume.id!r}: attachment {others[0].id} is {others[0].state.value}",
                "detach that attachment first",
                attachments=[other.id for other in others],
            )
        state = next_state(State.GONE, Call.RESERVE, volume.id)
        at = now()
        row = Attachment(name, volume.id, state, mode, owner, at, at, instance_uuid=instance_uuid, ttl=ttl)
        self._holdings.add(row)
        self._commit(Call.RESERVE.value, caller, None, row)
        self._reserved_until[name] = Deadline(ttl or self._ttl)
        return attachment_view(row)

    def initialize_connection(
        self, caller: Caller, volume: str, connector: Mapping[str, Any], attachment_id: str | None = None
    ) -> View:
        """Export the volume if it is not, and grant this connector alone; the answer is the connection info."""
        local = is_local(connector)
        initiator = None if local else parse_initiator(connector.get("initiator"))

        def body() -> View:
            row = self._rows.volume(volume)
            before = self._rows.require(caller, row, Call.INITIALIZE, attachment_id)
            state = next_state(before.state, Call.INITIALIZE, volume)
            if initiator is not None:
                self._bindings.check(before, initiator)
            portals = () if local else reachable_portals(self.driver.portals, connector.get("ip"))
            if local:
                check_device(row)
            after = before
            if state is not before.state:
                neighbours = self.journal.attachments.of_volume(volume)
                check_alone(row, before, local, neighbours)
                secret = None if initiator is None else secret_for(before, initiator, neighbours)
                kept = kept_connector(connector, initiator)
                after = replace(before, state=state, connector=kept, secret=secret, updated_at=now())
                self._move(Call.INITIALIZE, caller, row, before, after)
            elif before.initiator != initiator:
                raise InvalidVolume(
                    f"cannot initialize_connection volume {volume!r}: attachment {before.id} is connected to"
                    f" {before.initiator or 'this host itself'}",
                    "call terminate_connection for that initiator first",
                    state=before.state.value,
                )
            else:
                self._repairer.converge(self._repairer.wanted(row))  # a start may have left it unfinished
            return connection_view(row, after, portals, self.driver.lun, caller.may_see_secret_of(after))

        return self._in_turn(volume, Call.INITIALIZE.value, body, touches_target=True)

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

        def body() -> View:
            row = self._rows.volume(volume)
            before = self._rows.require(caller, row, Call.ATTACH, attachment_id)
            state = next_state(before.state, Call.ATTACH, volume)
            if mode is not None and mode != before.mode.value:
                raise InvalidVolumeAttachMode(
                    f"cannot attach volume {volume!r} as {mode}: attachment {before.id} was reserved as"
                    f" {before.mode.value}"
                )
            if state is before.state:
                self._check_same_user(before, instance_uuid, host_name)
                return attachment_view(before)
            after = replace(
                before,
                state=state,
                instance_uuid=instance_uuid or before.instance_uuid,
                host_name=host_name,
                mount_point=mount_point,
                updated_at=now(),
            )
            return self._move(Call.ATTACH, caller, row, before, after)

        return self._in_turn(volume, Call.ATTACH.value, body)

    def begin_detaching(self, caller: Caller, volume: str, attachment_id: str | None = None) -> View:
        """Say that the client is letting go; access is still granted."""
        return self._in_turn(
            volume,
            Call.BEGIN_DETACHING.value,
            lambda: self._simple_move(caller, volume, Call.BEGIN_DETACHING, attachment_id),
        )

    def roll_detaching(self, caller: Caller, volume: str, attachment_id: str | None = None) -> View:
        """Undo begin_detaching."""
        return self._in_turn(
            volume,
            Call.ROLL_DETACHING.value,
            lambda: self._simple_move(caller, volume, Call.ROLL_DETACHING, attachment_id),
        )

    def unreserve_volume(self, caller: Caller, volume: str, attachment_id: str | None = None) -> View:
        """Undo reserve_volume."""

        def body() -> View:
            self._simple_move(caller, volume, Call.UNRESERVE, attachment_id, gone_is_fine=True)
            return self._view(self._rows.volume(volume))

        return self._in_turn(volume, Call.UNRESERVE.value, body)

    def terminate_connection(
        self,
        caller: Caller,
        volume: str,
        connector: Mapping[str, Any],
        force: bool = False,
        attachment_id: str | None = None,
    ) -> View:
        """Revoke the grant; with ``force`` (admins only) even of an initiator that is logged in."""
        initiator = None if was_local(connector) else parse_initiator(connector.get("initiator"))
        if force and not caller.admin:
            raise PermissionDenied("terminate_connection with force is for admins", "log the initiator out instead")
        call = Call.FORCE if force else Call.TERMINATE

        def body() -> View:
            row = self._rows.volume(volume)
            before = self._rows.select(caller, row, call, attachment_id, initiator)
            if before is None:
                return self._rows.ended(row, attachment_id)
            state = next_state(before.state, call, volume)
            if before.initiator != initiator:
                raise InvalidInput(
                    f"cannot terminate_connection volume {volume!r}: attachment {before.id} is connected to"
                    f" {before.initiator or 'this host itself'}, not to {initiator or 'this host itself'}"
                )
            if state is before.state:
                self._revoke(self._repairer.wanted(row))  # a start may have left it unfinished
                return attachment_view(before)
            if not force:
                check_released(row) if before.local else self._check_no_session(row, before)
            after = replace(before, state=state, secret=None, updated_at=now())
            return self._move(call, caller, row, before, after)

        return self._in_turn(volume, Call.TERMINATE.value, body, touches_target=True)

    def detach(self, caller: Caller, volume: str, attachment_id: str | None = None) -> View:
        """Forget the attachment, after seeing that the target grants it nothing; the answer is the volume."""

        def body() -> View:
            self._simple_move(caller, volume, Call.DETACH, attachment_id, gone_is_fine=True)
            return self._view(self._rows.volume(volume))

        return self._in_turn(volume, Call.DETACH.value, body, touches_target=True)

    # The registry.

    def register_volume(
        self, caller: Caller, volume: str, path: str, multiattach: bool = False, read_only: bool = False
    ) -> View:
        """Take a device into care, after checking that nothing else uses it."""
        with self._turns.hold(_REGISTRY, self._patience):
            found = self.journal.volumes.get(volume)
            if found is not None:
                if (found.path, found.multiattach, found.read_only) == (path, multiattach, read_only):
                    return self._view(found)
                raise AlreadyExists(f"volume {volume!r} is registered already, for {found.path}", "use another name")
            device = take_device(path, read_only, list(self.journal.volumes.values()), self._own_directory)
            serial = self._new_serial()
            target_name = f"{self.driver.iqn_prefix}:{volume}.{serial[:8]}"
            row = Volume(volume, path, device, multiattach, read_only, target_name, serial, now())
            self.driver.check_volume(row)
            self.journal.commit(Change("register_volume", caller, volume, after=volume_view(row, (), ()), put=row))
            return self._view(row)

    def unregister_volume(self, caller: Caller, volume: str) -> View:
        """Forget an available volume; its data stays."""

        def body() -> View:
            row = self.journal.volumes.get(volume)
            if row is None:
                if self.journal.was_unregistered(volume):
                    return {"volume": volume}
                row = self._rows.volume(volume)
            attachments = self.journal.attachments.of_volume(volume)
            if attachments:
                raise InvalidVolume(
                    f"cannot unregister_volume {volume!r}: it has attachments",
                    "detach them first",
                    attachments=[a.id for a in attachments],
                )
            self._repairer.converge(export_of(row, ()))
            self.journal.commit(Change("unregister_volume", caller, volume, before=volume_view(row, (), ()), drop=row))
            self._conditions.clear(volume)
            self.upkeep.sessions.pop(volume, None)
            return {"volume": volume}

        return self._in_turn(volume, "unregister_volume", body, touches_target=True)

    # Looking.

    def list_volumes(self, caller: Caller, limit: int | None = None, marker: str | None = None) -> Rows:
        """Every registered volume; with ``limit`` or ``marker``, a page of them."""
        rows, is_page = list(self.journal.volumes.values()), bool(limit or marker)
        return Rows(page_of(rows, limit, marker) if is_page else rows, self._view, is_page)

    def show_volume(self, caller: Caller, volume: str) -> View:
        """One volume."""
        return self._view(self._rows.volume(volume))

    def list_attachments(
        self, caller: Caller, volume: str | None = None, limit: int | None = None, marker: str | None = None
    ) -> Rows:
        """Every attachment, or those of one volume; with ``limit`` or ``marker``, a page of them."""
        found, is_page = self.journal.attachments, bool(limit or marker)
        rows = found.all() if volume is None else found.of_volume(self._rows.volume(volume).id)
        return Rows(page_of(rows, limit, marker) if is_page else rows, attachment_view, is_page)

    def show_attachment(self, caller: Caller, attachment_id: str) -> View:
        """One attachment; one that has ended has the state ``gone``."""
        row = self.journal.attachments.get(attachment_id)
        if row is not None:
            return attachment_view(row)
        return self._rows.last_seen(attachment_id)

    def get_history(
        self,
        caller: Caller,
        volume: str | None = None,
        attachment_id: str | None = None,
        since: int | None = None,
        limit: int = 100,
        before: int | None = None,
    ) -> Rows:
        """What happened, oldest first."""
        return self.journal.history_page(volume, attachment_id, since, limit, before, self._page_bytes)

    def subscribe(self, caller: Caller, feed: Feed, since: int | None = None) -> View:
        """Send each further row of the journal over this connection; with ``since``, everything after it first."""
        oldest, last = self.journal.kept()
        start = last if since is None else since
        if not oldest - 1 <= start <= last:
            raise InvalidInput(
                f"cannot subscribe since {start}: the journal has the numbers {oldest} to {last}"
                if start < oldest - 1
                else f"cannot subscribe since {start}: the journal's last number is {last}",
                f"call list_volumes, then subscribe since {last}",
                oldest=oldest,
                seq=last,
            )
        feed.follow(self.journal, start)
        return {"since": start, "oldest": oldest, "seq": last}

    def unsubscribe(self, caller: Caller, feed: Feed) -> View:
        """Send no rows over this connection any more; ``subscribed`` tells whether any were sent before."""
        return {"subscribed": feed.unfollow()}

    def backup_journal(self, caller: Caller, path: str) -> View:
        """Write a consistent copy of the journal to a new file."""
        return write_backup(self.journal, Path(path))

    def reconcile(self, caller: Caller, dry_run: bool = False) -> View:
        """What differs between journal and target, as the steps that mend it; without dry_run, mends it."""
        return {"dry_run": dry_run, "volumes": self.upkeep.reconcile(dry_run=dry_run)}

    def get_status(self, caller: Caller) -> View:
        """Whether the daemon is ready, what is degraded and why, and what is pending."""
        degraded = self.degraded()
        return {
            "ready": self.ready,
            "degraded": [f"{name}: {c.kind}: {c.message}" for name, c in degraded],
            "version": __version__,
            "driver": self.driver.name,
            "portals": [str(portal) for portal in self.driver.portals],
            "volumes": len(self.journal.volumes),
            "attachments": len(self.journal.attachments),
            "pending": [name for name, c in degraded if c.kind == "Pending"],
            "seq": self.journal.seq,
            "boot_id": self.journal.boot_id,
            "caller": {"uid": caller.uid, "role": caller.role},
        }

    def get_metrics(self, caller: Caller) -> str:
        """Counts, times and what there is, in Prometheus' text format."""
        from volattachd.telemetry.prometheus import Counted, Present, write_text

        present = Present(self.journal, self._conditions, self.upkeep, self.driver.name)
        return write_text(Counted(self._metrics), present)

    def degraded(self) -> list[tuple[str, Condition]]:
        """Every condition with the name of its volume."""
        return [(name, condition) for name, found in sorted(self._conditions.all().items()) for condition in found]

    def _clear_up(self) -> None:
        """What each periodic pass begins with."""
        self.expire_reservations()
        self._trimmer.look()

    def expire_reservations(self) -> None:
        """End the reservations whose time is over. What has a connection never expires."""
        over = [name for name, deadline in list(self._reserved_until.items()) if deadline.left() == 0]
        for name in over:
            row = self.journal.attachments.get(name)
            if row is None:
                self._reserved_until.pop(name, None)
            elif row.state is State.RESERVED and self._turns.take(row.volume, 0):
                # Where a call has the turn, or the row has a connection by now, the next pass looks again.
                try:
                    self._expire(name)
                finally:
                    self._turns.give_back(row.volume)

    def _expire(self, attachment_id: str) -> None:
        row = self.journal.attachments.get(attachment_id)
        if row is not None and row.state is State.RESERVED:
            self._simple_move(DAEMON, row.volume, Call.UNRESERVE, attachment_id)
            messages.RESERVATION_EXPIRED.tell(
                volume=row.volume, attachment=attachment_id, before=State.RESERVED.value, after=State.GONE.value
            )

    # Moving an attachment.

    def _simple_move(
        self, caller: Caller, volume: str, call: Call, attachment_id: str | None, gone_is_fine: bool = False
    ) -> View:
        """A move that changes nothing but the state."""
        row = self._rows.volume(volume)
        before = self._rows.select(caller, row, call, attachment_id)
        if before is None:
            next_state(State.GONE, call, volume)
            return {} if gone_is_fine else self._rows.ended(row, attachment_id)
        state = next_state(before.state, call, volume)
        if state is before.state:
            return attachment_view(before)
        return self._move(call, caller, row, before, replace(before, state=state, updated_at=now()))

    def _move(self, call: Call, caller: Caller, volume: Volume, before: Attachment, after: Attachment) -> View:
        """Commit and converge, in the order that the laws at the top ask for."""
        rows = self.journal.attachments.of_volume(volume.id)
        others = [row for row in rows if row.id != before.id]
        was = export_of(volume, [*others, before])
        want = export_of(volume, [*others, after])
        if after.state is State.GONE:
            if before.state in EXPORTED:  # even where nothing should change: a start may have left a grant
                self._converge_or(partial(self._revoke, want), lambda: None, was)
            self._commit(call.value, caller, before, None)
            self._reserved_until.pop(before.id, None)
            return gone_view(attachment_view(before))
        self._commit(call.value, caller, before, after)
        undo = partial(self._commit, f"undo {call.value}", caller, after, before)
        if call is Call.INITIALIZE:  # even where nothing should change: another attachment's export may be away
            self._converge_or(partial(self._repairer.converge, want), undo, was)
        elif want != was:
            self._converge_or(partial(self._revoke, want), undo, was)
        return attachment_view(after)

    def _revoke(self, want: Export) -> None:
        """Take away what ``want`` does not grant. Where the device is away nothing is exported at all: access is gone,
        whatever other attachments still wait for, since a volume whose disk has died must not keep its attachments.
        """
        try:
            self._repairer.revoke(want)
        except DeviceUnusable as error:
            messages.ACCESS_GONE_WITH_DEVICE.tell(volume=want.volume.id, reason=error.condition.message)

    def _converge_or(self, converge: Callable[[], object], undo: Callable[[], None], was: Export) -> None:
        """Converge; where the driver fails, undo, converge back to ``was``, and report the failure."""
        try:
            converge()
        except DriverError:
            undo()
            try:
                self._repairer.converge(was)
            except DriverError as error:
                messages.WAY_BACK_FAILED.tell(volume=was.volume.id, reason=error.message)
            raise

    def _commit(self, call: str, caller: Caller, before: Attachment | None, after: Attachment | None) -> None:
        row = after or before
        assert row is not None
        self.journal.commit(
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
        if after is None:
            self._holdings.remove(row)
        caller.moved(before, after)

    def _in_turn(self, volume: str, call: str, body: Callable[[], T], *, touches_target: bool = False) -> T:
        """Run ``body`` while the volume has no other call; Busy where the caller's deadline comes first."""
        deadline = Deadline(self._patience)
        self._take_turn(volume, volume, call, deadline)
        if touches_target:
            return self._in_target(volume, call, body, deadline)
        try:
            return body()
        finally:
            self._turns.give_back(volume)

    def _in_target(self, volume: str, call: str, body: Callable[[], T], deadline: Deadline) -> T:
        """Run ``body`` in a worker, which goes on without the caller; the volume's turn is taken already."""

        def turn() -> T:
            try:
                return body()
            finally:
                self._conditions.clear(volume, "Pending")
                self._turns.give_back(target_of(volume))
                self._turns.give_back(volume)

        try:
            self._take_turn(target_of(volume), volume, call, deadline)
        except Busy:
            self._turns.give_back(volume)
            raise
        try:
            task = self._workers.submit(turn)
        except RuntimeError as error:  # no thread is to be had
            self._turns.give_back(target_of(volume))
            self._turns.give_back(volume)
            raise Busy(f"cannot {call} volume {volume!r} now: {error}", "send the call again") from error
        if not task.wait(deadline.left()):
            waits_for = self._converger.current.get(volume, "the target")
            self._conditions.set(volume, "Pending", f"{call} waits for: {waits_for}")
            raise Busy(
                f"{call} of volume {volume!r} is not done after {self._patience:g} s: it waits for {waits_for}",
                "it goes on by itself; send the call again for its answer",
            )
        return task.result()

    def _take_turn(self, turn: str, volume: str, call: str, deadline: Deadline) -> None:
        if not self._turns.take(turn, deadline.left()):
            waits_for = self._converger.current.get(volume, "another call")
            raise Busy(f"cannot {call} volume {volume!r} now: it waits for {waits_for}", "send the call again")

    def _view(self, volume: Volume) -> View:
        rows = self.journal.attachments.of_volume(volume.id)
        return volume_view(volume, rows, self._conditions.of(volume.id))

    # Checking.

    def _check_mode(self, volume: Volume, mode: Mode) -> None:
        if mode is Mode.RW and volume.read_only:
            raise InvalidVolumeAttachMode(f"volume {volume.id!r} is read-only", "reserve it with mode ro")
        if mode is Mode.RO and not volume.read_only and not self.driver.capabilities.per_grant_mode:
            raise InvalidVolumeAttachMode(
                f"the {self.driver.name} driver cannot give one attachment of volume {volume.id!r} read-only access",
                "register the volume as read-only, or use the lio driver",
            )

    def _check_same_user(self, row: Attachment, instance_uuid: str | None, host_name: str | None) -> None:
        if row.host_name != host_name or instance_uuid not in (None, row.instance_uuid):
            raise InvalidVolume(
                f"cannot attach volume {row.volume!r}: attachment {row.id} is attached to instance"
                f" {row.instance_uuid} on host {row.host_name}",
                "detach it first",
                state=row.state.value,
            )

    def _check_no_session(self, volume: Volume, row: Attachment) -> None:
        """Raise SessionActive where revoking would cut an initiator off that is still logged in."""
        rows = self.journal.attachments.of_volume(volume.id)
        if any(r.id != row.id and r.initiator == row.initiator and r.state in GRANTED for r in rows):
            return  # the host keeps its access, and its session, through another attachment
        session = self.driver.find_session(volume.target_name, row.initiator) if row.initiator else None
        if session is not None:
            at = f" from {session.address}" if session.address else ""
            raise SessionActive(
                f"cannot terminate_connection volume {volume.id!r}: {session.initiator} is still logged in{at}",
                "log the initiator out first; an admin may use force",
            )

    def _new_serial(self) -> str:
        """A serial whose first 25 and first 7 digits no other volume has: WWID and HBA are made from them."""
        taken = {row.serial[:7] for row in list(self.journal.volumes.values())}
        while True:
            serial = str(uuid.uuid4())
            if serial[:7] not in taken:
                return serial
