"""What a call of the life cycle does to its attachment: pure functions from rows to a decision. No I/O, no clock.

Each raises what the caller gets if the call is not allowed. ``Transitions.execute`` carries out what they return.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from volattachd.errors import InvalidInput, InvalidVolume, InvalidVolumeAttachMode
from volattachd.lifecycle import Call, next_state
from volattachd.model import Attachment, Mode, State, Volume
from volattachd.service.chap import secret_for
from volattachd.service.local_attach import check_alone, kept_connector


@dataclass(frozen=True)
class Decision:
    """One attachment before and after a call; None stands for an attachment that does not exist."""

    call: Call
    before: Attachment | None
    after: Attachment | None

    @property
    def changes(self) -> bool:
        """Whether there is something to commit. A call that is sent again changes nothing."""
        return self.before is not self.after

    @property
    def row(self) -> Attachment:
        """The attachment as it is after the call, or as it was if it is gone."""
        row = self.after or self.before
        assert row is not None
        return row


def decide_reserve(volume: Volume, wanted: Attachment, others: Sequence[Attachment]) -> Decision:
    """Take the volume for ``wanted``."""
    if wanted.mode is Mode.RW and volume.read_only:
        raise InvalidVolumeAttachMode(f"volume {volume.id!r} is read-only", "reserve it with mode ro")
    if others and not volume.multiattach:
        raise InvalidVolume(
            f"cannot reserve_volume {volume.id!r}: attachment {others[0].id} is {others[0].state.value}",
            "detach that attachment first",
            attachments=[other.id for other in others],
        )
    state = next_state(State.GONE, Call.RESERVE, volume.id)
    return Decision(Call.RESERVE, None, replace(wanted, state=state))


def decide_initialize(
    volume: Volume,
    row: Attachment,
    connector: Mapping[str, Any],
    initiator: str | None,
    neighbours: Iterable[Attachment],
    at: float,
) -> Decision:
    """Connect the attachment. Without an ``initiator`` it is of this host itself."""
    state = next_state(row.state, Call.INITIALIZE, volume.id)
    if state is row.state:
        if row.initiator != initiator:
            raise InvalidVolume(
                f"cannot initialize_connection volume {volume.id!r}: attachment {row.id} is connected to"
                f" {_shown(row.initiator)}",
                "call terminate_connection for that initiator first",
                state=row.state.value,
            )
        return Decision(Call.INITIALIZE, row, row)
    neighbours = list(neighbours)
    check_alone(volume, row, initiator is None, neighbours)
    secret = None if initiator is None else secret_for(row, initiator, neighbours)
    kept = kept_connector(connector, initiator)
    after = replace(row, state=state, connector=kept, secret=secret, updated_at=at)
    return Decision(Call.INITIALIZE, row, after)


def decide_attach(
    row: Attachment,
    instance_uuid: str | None,
    host_name: str | None,
    mount_point: str | None,
    mode: str | None,
    at: float,
) -> Decision:
    """Finalise the attachment for an instance or a host."""
    state = next_state(row.state, Call.ATTACH, row.volume)
    if mode is not None and mode != row.mode.value:
        raise InvalidVolumeAttachMode(
            f"cannot attach volume {row.volume!r} as {mode}: attachment {row.id} was reserved as {row.mode.value}"
        )
    if state is row.state:
        _check_same_user(row, instance_uuid, host_name)
        return Decision(Call.ATTACH, row, row)
    after = replace(
        row,
        state=state,
        instance_uuid=instance_uuid or row.instance_uuid,
        host_name=host_name,
        mount_point=mount_point,
        updated_at=at,
    )
    return Decision(Call.ATTACH, row, after)


def decide_terminate(row: Attachment, call: Call, initiator: str | None, at: float) -> Decision:
    """End the access of ``initiator``; None stands for this host itself."""
    state = next_state(row.state, call, row.volume)
    if row.initiator != initiator:
        raise InvalidInput(
            f"cannot terminate_connection volume {row.volume!r}: attachment {row.id} is connected to"
            f" {_shown(row.initiator)}, not to {_shown(initiator)}"
        )
    return _to_state(row, call, state, at)


def decide_move(row: Attachment, call: Call, at: float) -> Decision:
    """A call that changes nothing but the state."""
    return _to_state(row, call, next_state(row.state, call, row.volume), at)


def _to_state(row: Attachment, call: Call, state: State, at: float) -> Decision:
    """The attachment in another state. A secret lives as long as the target may need it."""
    if state is row.state:
        return Decision(call, row, row)
    if state is State.GONE:
        return Decision(call, row, None)
    secret = None if state is State.DISCONNECTED else row.secret
    return Decision(call, row, replace(row, state=state, secret=secret, updated_at=at))


def _check_same_user(row: Attachment, instance_uuid: str | None, host_name: str | None) -> None:
    if row.host_name != host_name or instance_uuid not in (None, row.instance_uuid):
        raise InvalidVolume(
            f"cannot attach volume {row.volume!r}: attachment {row.id} is attached to instance"
            f" {row.instance_uuid} on host {row.host_name}",
            "detach it first",
            state=row.state.value,
        )


def _shown(initiator: str | None) -> str:
    return initiator or "this host itself"
