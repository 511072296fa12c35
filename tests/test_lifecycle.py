from __future__ import annotations

from itertools import combinations_with_replacement

import pytest

from tests.support import new_attachment
from volattachd.errors import InvalidVolume
from volattachd.lifecycle import EXPORTED, GRANTED, NEXT_CALL, TRANSITIONS, Call, moves, next_state, status_of
from volattachd.model import State, Status

#: The table of DESIGN, written out by hand: for each call, the state that it leads to from each state; "." is
#: a pair that the call refuses, "=" one in which it changes nothing.
STATES = [State.GONE, State.RESERVED, State.CONNECTED, State.ATTACHED, State.DETACHING, State.DISCONNECTED]
DRAWN = {
    #                       gone      reserved   connected  attached      detaching     disconnected
    Call.RESERVE: "         reserved  =          =          =             =             =",
    Call.INITIALIZE: "      .         connected  =          =             .             .",
    Call.ATTACH: "          .         .          attached   =             .             .",
    Call.BEGIN_DETACHING: " .         .          .          detaching     =             .",
    Call.TERMINATE: "       =         .          gone       .             disconnected  =",
    Call.FORCE: "           =         .          gone       disconnected  disconnected  =",
    Call.DETACH: "          =         .          .          .             .             gone",
    Call.UNRESERVE: "       =         gone       =          =             =             =",
    Call.ROLL_DETACHING: "  =         =          =          =             attached      =",
}


def expected(state: State, call: Call) -> State | None:
    word = DRAWN[call].split()[STATES.index(state)]
    return None if word == "." else state if word == "=" else State(word)


PAIRS = [(state, call) for call in Call for state in State]


def test_the_drawn_table_has_every_call_and_every_state() -> None:
    assert set(DRAWN) == set(Call) == set(TRANSITIONS)
    assert set(STATES) == set(State)
    assert all(len(row.split()) == len(STATES) for row in DRAWN.values())


@pytest.mark.parametrize(("state", "call"), PAIRS)
def test_every_call_leads_from_every_state_where_the_design_says(state: State, call: Call) -> None:
    after = expected(state, call)
    if after is not None:
        assert next_state(state, call, "vol-1") is after
        assert moves(state, call) is (after is not state)
        return
    assert not moves(state, call)
    with pytest.raises(InvalidVolume) as caught:
        next_state(state, call, "vol-1")
    told = caught.value
    assert call.value in told.message
    assert "'vol-1'" in told.message
    assert ("is not reserved" if state is State.GONE else state.value) in told.message
    assert told.details == {"state": state.value}
    assert told.correction == f"call {NEXT_CALL[state].value}"


@pytest.mark.parametrize(("state", "call"), PAIRS)
def test_every_call_may_be_sent_again_from_its_own_result_and_changes_nothing_then(state: State, call: Call) -> None:
    after = expected(state, call)
    if after is not None:
        assert next_state(after, call, "vol-1") is after


@pytest.mark.parametrize("state", State)
def test_the_call_that_a_refusal_names_is_one_that_the_state_allows(state: State) -> None:
    assert moves(state, NEXT_CALL[state])


@pytest.mark.parametrize("forceful", [False, True])
@pytest.mark.parametrize("start", State)
def test_from_every_state_a_path_of_calls_leads_to_gone(start: State, forceful: bool) -> None:
    calls = [call for call in Call if forceful or call is not Call.FORCE]
    reached, waiting = {start}, [start]
    while waiting:
        state = waiting.pop()
        for call in calls:
            after = TRANSITIONS[call].get(state)
            if after is not None and after not in reached:
                reached.add(after)
                waiting.append(after)
    assert State.GONE in reached


@pytest.mark.parametrize("state", [state for state in State if state is not State.GONE])
def test_every_state_can_be_reached_from_gone(state: State) -> None:
    reached = {State.GONE}
    for _ in State:
        reached |= {after for call in Call for before, after in TRANSITIONS[call].items() if before in reached}
    assert state in reached


@pytest.mark.parametrize("state", State)
def test_access_is_granted_from_initialize_until_terminate(state: State) -> None:
    assert (state in GRANTED) is (state in (State.CONNECTED, State.ATTACHED, State.DETACHING))


@pytest.mark.parametrize("state", State)
def test_a_volume_is_exported_from_initialize_until_detach(state: State) -> None:
    assert (state in EXPORTED) is (state not in (State.GONE, State.RESERVED))


LIVE = [state for state in State if state is not State.GONE]
COMBINATIONS = [states for count in range(4) for states in combinations_with_replacement(LIVE, count)]


def drawn_status(states: tuple[State, ...]) -> str:
    """DESIGN, word for word."""
    if not states:
        return "available"
    if any(state.value in ("reserved", "connected") for state in states):
        return "attaching"
    if any(state.value in ("detaching", "disconnected") for state in states):
        return "detaching"
    return "in-use"


@pytest.mark.parametrize("states", COMBINATIONS, ids=lambda states: "+".join(s.value for s in states) or "none")
def test_the_status_of_a_volume_follows_from_the_states_of_its_attachments(states: tuple[State, ...]) -> None:
    rows = [new_attachment(number, state=state) for number, state in enumerate(states)]
    assert status_of(rows) is Status(drawn_status(states))
    assert status_of(reversed(rows)) is Status(drawn_status(states))


def test_states_and_statuses_are_spelt_as_the_design_spells_them() -> None:
    assert [state.value for state in State] == [
        "reserved", "connected", "attached", "detaching", "disconnected", "gone",
    ]  # fmt: skip
    assert {status.value for status in Status} == {"available", "attaching", "in-use", "detaching"}
