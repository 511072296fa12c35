"""The life of an attachment, as one table and the pure functions over it. No I/O.

Rules:

1. ``TRANSITIONS`` is the only place that says which call leads from which state to which. A pair that is
   not in it raises InvalidVolume and changes nothing.
2. A call that is sent again finds its own result: for each call, the state that it leads to is also one
   that it may start from. That is what makes a lost reply harmless.
3. There is no error state. From every state a path of documented calls leads to GONE.

The picture in docs/states.md and the method reference are generated from this table.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from volattachd.errors import InvalidVolume
from volattachd.model import Attachment, State, Status


class Call(str, Enum):
    """The eight calls that move an attachment; ``FORCE`` is terminate_connection with force=true."""

    RESERVE = "reserve_volume"
    INITIALIZE = "initialize_connection"
    ATTACH = "attach"
    BEGIN_DETACHING = "begin_detaching"
    TERMINATE = "terminate_connection"
    FORCE = "terminate_connection (force)"
    DETACH = "detach"
    UNRESERVE = "unreserve_volume"
    ROLL_DETACHING = "roll_detaching"


_RESERVED, _CONNECTED, _ATTACHED = State.RESERVED, State.CONNECTED, State.ATTACHED
_DETACHING, _DISCONNECTED, _GONE = State.DETACHING, State.DISCONNECTED, State.GONE

TRANSITIONS: dict[Call, dict[State, State]] = {
    Call.RESERVE: {
        _GONE: _RESERVED,
        # An id that exists gives that attachment as it stands.
        _RESERVED: _RESERVED,
        _CONNECTED: _CONNECTED,
        _ATTACHED: _ATTACHED,
        _DETACHING: _DETACHING,
        _DISCONNECTED: _DISCONNECTED,
    },
    Call.INITIALIZE: {
        _RESERVED: _CONNECTED,
        _CONNECTED: _CONNECTED,
        # A host that lost its connection info (a reboot of the compute side) may ask for it again.
        _ATTACHED: _ATTACHED,
    },
    Call.ATTACH: {_CONNECTED: _ATTACHED, _ATTACHED: _ATTACHED},
    Call.BEGIN_DETACHING: {_ATTACHED: _DETACHING, _DETACHING: _DETACHING},
    Call.TERMINATE: {
        _CONNECTED: _GONE,  # Cinder: terminating what was never attached also runs unreserve
        _DETACHING: _DISCONNECTED,
        _DISCONNECTED: _DISCONNECTED,
        _GONE: _GONE,
    },
    Call.FORCE: {
        _CONNECTED: _GONE,
        _ATTACHED: _DISCONNECTED,  # an admin's way to cut off a host that is dead
        _DETACHING: _DISCONNECTED,
        _DISCONNECTED: _DISCONNECTED,
        _GONE: _GONE,
    },
    Call.DETACH: {_DISCONNECTED: _GONE, _GONE: _GONE},
    # The two undo calls do nothing where there is nothing to undo.
    Call.UNRESERVE: {
        _RESERVED: _GONE,
        _CONNECTED: _CONNECTED,
        _ATTACHED: _ATTACHED,
        _DETACHING: _DETACHING,
        _DISCONNECTED: _DISCONNECTED,
        _GONE: _GONE,
    },
    Call.ROLL_DETACHING: {
        _DETACHING: _ATTACHED,
        _RESERVED: _RESERVED,
        _CONNECTED: _CONNECTED,
        _ATTACHED: _ATTACHED,
        _DISCONNECTED: _DISCONNECTED,
        _GONE: _GONE,
    },
}

#: The target grants the initiator access in these states.
GRANTED = frozenset({State.CONNECTED, State.ATTACHED, State.DETACHING})

#: The volume is exported while an attachment is in one of these: detach is what removes the export.
EXPORTED = GRANTED | {State.DISCONNECTED}

#: What an operator would call next, shown when a call comes too early or too late.
NEXT_CALL: dict[State, Call] = {
    State.GONE: Call.RESERVE,
    State.RESERVED: Call.INITIALIZE,
    State.CONNECTED: Call.ATTACH,
    State.ATTACHED: Call.BEGIN_DETACHING,
    State.DETACHING: Call.TERMINATE,
    State.DISCONNECTED: Call.DETACH,
}


def next_state(state: State, call: Call, volume: str) -> State:
    """Where ``call`` leads from ``state``; the same state where it has nothing to do.

    Raises InvalidVolume, naming the state and the call to make instead, where the table has no such pair.
    """
    after = TRANSITIONS[call].get(state)
    if after is None:
        instead = NEXT_CALL[state].value
        where = "is not reserved" if state is State.GONE else f"is {state.value}"
        raise InvalidVolume(
            f"cannot {call.value} volume {volume!r}: the attachment {where}",
            f"call {instead}",
            state=state.value,
        )
    return after


def moves(state: State, call: Call) -> bool:
    """Whether ``call`` would change an attachment that is in ``state``."""
    return TRANSITIONS[call].get(state, state) is not state


def status_of(attachments: Iterable[Attachment]) -> Status:
    """The status of a volume with these attachments."""
    states = {a.state for a in attachments}
    if not states:
        return Status.AVAILABLE
    if states & {State.RESERVED, State.CONNECTED}:
        return Status.ATTACHING
    if states & {State.DETACHING, State.DISCONNECTED}:
        return Status.DETACHING
    return Status.IN_USE
