from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support import HOST_A, HOST_B, connector, new_attachment, new_volume
from volattachd.errors import InvalidInput, InvalidVolume, InvalidVolumeAttachMode, VolattachError
from volattachd.lifecycle import TRANSITIONS, Call
from volattachd.model import Mode, State
from volattachd.service.decisions import (
    Decision,
    decide_attach,
    decide_initialize,
    decide_move,
    decide_reserve,
    decide_terminate,
)

LIVE = [state for state in State if state is not State.GONE]
PLAIN = [Call.BEGIN_DETACHING, Call.DETACH, Call.UNRESERVE, Call.ROLL_DETACHING]


@pytest.mark.parametrize("state", LIVE)
@pytest.mark.parametrize("call", PLAIN)
def test_a_plain_call_leads_where_the_table_says_and_changes_nothing_else(state: State, call: Call) -> None:
    row = new_attachment(state=state)
    after = TRANSITIONS[call].get(state)
    if after is None:
        with pytest.raises(InvalidVolume):
            decide_move(row, call, 9.0)
        return
    decision = decide_move(row, call, 9.0)
    if after is state:
        assert decision == Decision(call, row, row)
        assert not decision.changes
    elif after is State.GONE:
        assert decision == Decision(call, row, None)
    else:
        assert decision.after == replace(row, state=after, updated_at=9.0)


@pytest.mark.parametrize("call", [Call.TERMINATE, Call.FORCE])
@pytest.mark.parametrize("state", [State.CONNECTED, State.DETACHING])
def test_terminate_is_for_the_initiator_that_is_connected_and_ends_its_secret(state: State, call: Call) -> None:
    row = new_attachment(state=state)
    with pytest.raises(InvalidInput, match="host-b"):
        decide_terminate(row, call, HOST_B, 9.0)
    with pytest.raises(InvalidInput, match="this host itself"):
        decide_terminate(row, call, None, 9.0)
    after = decide_terminate(row, call, HOST_A, 9.0).after
    assert after is None if state is State.CONNECTED else after is not None and after.secret is None


def test_an_attachment_that_is_connected_answers_its_own_initiator_again_and_no_other() -> None:
    row = new_attachment(state=State.CONNECTED)
    decision = decide_initialize(new_volume(), row, connector(), HOST_A, [row], 9.0)
    assert decision == Decision(Call.INITIALIZE, row, row)
    with pytest.raises(InvalidVolume, match="host-a"):
        decide_initialize(new_volume(), row, connector(HOST_B), HOST_B, [row], 9.0)


def test_a_reservation_is_connected_with_a_secret_of_its_own() -> None:
    row = new_attachment()
    after = decide_initialize(new_volume(), row, connector(), HOST_A, [row], 9.0).after
    assert after is not None
    assert after.secret is not None
    assert (after.state, after.initiator, after.updated_at) == (State.CONNECTED, HOST_A, 9.0)


def test_this_host_itself_needs_no_secret_and_stands_alone() -> None:
    row, other = new_attachment(), new_attachment(2, state=State.CONNECTED)
    after = decide_initialize(new_volume(), row, {}, None, [row], 9.0).after
    assert after is not None
    assert (after.local, after.secret) == (True, None)
    with pytest.raises(InvalidVolume, match="stands alone"):
        decide_initialize(new_volume(multiattach=True), row, {}, None, [row, other], 9.0)


def test_a_volume_takes_one_attachment_unless_it_is_multiattach() -> None:
    wanted, other = new_attachment(2), new_attachment(1)
    with pytest.raises(InvalidVolume) as caught:
        decide_reserve(new_volume(), wanted, [other])
    assert caught.value.details == {"attachments": [other.id]}
    assert decide_reserve(new_volume(multiattach=True), wanted, [other]).after == wanted


def test_nobody_writes_to_a_read_only_volume() -> None:
    with pytest.raises(InvalidVolumeAttachMode, match="read-only"):
        decide_reserve(new_volume(read_only=True), new_attachment(), [])
    assert decide_reserve(new_volume(read_only=True), new_attachment(mode=Mode.RO), []).changes


@pytest.mark.parametrize(
    ("instance", "host", "mode", "error"),
    [
        (None, "other", None, InvalidVolume),
        ("other", "h", None, InvalidVolume),
        (None, "h", "ro", InvalidVolumeAttachMode),
        (None, "h", None, None),
        ("i", "h", "rw", None),
    ],
)
def test_attach_that_is_sent_again_is_of_the_same_user_and_mode(
    instance: str | None, host: str, mode: str | None, error: type[VolattachError] | None
) -> None:
    row = new_attachment(state=State.ATTACHED, instance_uuid="i", host_name="h")
    if error is not None:
        with pytest.raises(error):
            decide_attach(row, instance, host, None, mode, 9.0)
    else:
        assert not decide_attach(row, instance, host, None, mode, 9.0).changes


def test_attach_keeps_the_instance_that_the_reservation_named() -> None:
    row = new_attachment(state=State.CONNECTED, instance_uuid="i")
    after = decide_attach(row, None, "h", "/dev/vdb", None, 9.0).after
    assert after == replace(row, state=State.ATTACHED, host_name="h", mount_point="/dev/vdb", updated_at=9.0)
