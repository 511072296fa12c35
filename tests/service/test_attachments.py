from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import (
    ADMIN,
    AGENT,
    HOST_A,
    HOST_B,
    OTHER_AGENT,
    PATIENCE,
    FailOnce,
    Gate,
    Rig,
    Service,
    attachment_id,
    connector,
    in_thread,
    insist,
    make_file,
    wait_until,
)
from volattachd.drivers.base import Capabilities, Session
from volattachd.drivers.memory import SimulatedExport
from volattachd.errors import (
    AlreadyExists,
    AttachmentNotFound,
    Busy,
    DriverError,
    InvalidInput,
    InvalidVolume,
    InvalidVolumeAttachMode,
    PermissionDenied,
    SessionActive,
    VolattachError,
    VolumeNotFound,
)
from volattachd.lifecycle import TRANSITIONS, Call, moves
from volattachd.model import Caller, State
from volattachd.service.chap import InitiatorBindings
from volattachd.state.journal import Change

ID = attachment_id(1)

#: Each call of the life cycle on attachment ID of vol-1, as an admin sends it.
CALLS: dict[Call, Callable[[Rig, Caller], Any]] = {
    Call.RESERVE: lambda rig, who: rig.service.reserve_volume(who, "vol-1", ID),
    Call.INITIALIZE: lambda rig, who: rig.service.initialize_connection(who, "vol-1", connector(), ID),
    Call.ATTACH: lambda rig, who: rig.service.attach(
        who, "vol-1", host_name="h", mount_point="/dev/vdb", attachment_id=ID
    ),
    Call.BEGIN_DETACHING: lambda rig, who: rig.service.begin_detaching(who, "vol-1", ID),
    Call.TERMINATE: lambda rig, who: rig.service.terminate_connection(who, "vol-1", connector(), attachment_id=ID),
    Call.FORCE: lambda rig, who: rig.service.terminate_connection(who, "vol-1", connector(), True, ID),
    Call.DETACH: lambda rig, who: rig.service.detach(who, "vol-1", ID),
    Call.UNRESERVE: lambda rig, who: rig.service.unreserve_volume(who, "vol-1", ID),
    Call.ROLL_DETACHING: lambda rig, who: rig.service.roll_detaching(who, "vol-1", ID),
}
LIVE = [state for state in State if state is not State.GONE]
MOVES = [(state, call) for call in Call for state in LIVE if moves(state, call)]
#: The moves that change the target.
TARGET_MOVES = [
    (State.RESERVED, Call.INITIALIZE),
    (State.CONNECTED, Call.TERMINATE),
    (State.CONNECTED, Call.FORCE),
    (State.ATTACHED, Call.FORCE),
    (State.DETACHING, Call.TERMINATE),
    (State.DETACHING, Call.FORCE),
    (State.DISCONNECTED, Call.DETACH),
]


def check_target(rig: Rig) -> None:
    """The target holds what the states ask for, and nothing is left to do."""
    state = rig.state()
    assert rig.granted() == ({HOST_A} if state in (State.CONNECTED, State.ATTACHED, State.DETACHING) else set())
    assert rig.exported() is (state not in (State.GONE, State.RESERVED))
    assert rig.service.reconcile(ADMIN, dry_run=True)["volumes"] == []


@contextmanager
def unchanged(rig: Rig) -> Iterator[None]:
    """Nothing durable, nothing in memory and nothing in the target changes in the block."""

    def everything() -> Any:
        return rig.journal.seq, rig.journal.attachments.all(), list(rig.journal.volumes.values()), rig.driver.ran.copy()

    before = everything()
    yield
    assert everything() == before


# The life cycle.


@pytest.mark.parametrize("state", LIVE)
@pytest.mark.parametrize("call", Call)
def test_every_call_in_every_state_does_what_the_table_says(rig: Rig, state: State, call: Call) -> None:
    rig.register()
    rig.reach(state)
    after = TRANSITIONS[call].get(state)
    if after is None:
        with unchanged(rig), pytest.raises(InvalidVolume) as caught:
            CALLS[call](rig, ADMIN)
        assert caught.value.details["state"] == state.value
    elif (state, call) == (State.RESERVED, Call.ROLL_DETACHING) or not moves(state, call):
        with unchanged(rig):
            CALLS[call](rig, ADMIN)
    else:
        CALLS[call](rig, ADMIN)
    assert rig.state() is (after or state)
    check_target(rig)


@pytest.mark.parametrize(("state", "call"), MOVES)
def test_a_call_that_is_sent_again_gives_the_same_answer_and_has_one_effect(rig: Rig, state: State, call: Call) -> None:
    rig.register()
    rig.reach(state)
    first = CALLS[call](rig, ADMIN)
    for _ in range(2):
        with unchanged(rig):
            again = CALLS[call](rig, ADMIN)
        assert again == first
    check_target(rig)


@pytest.mark.parametrize(("state", "call"), MOVES)
def test_a_call_that_is_sent_again_after_a_restart_gives_the_same_answer(rig: Rig, state: State, call: Call) -> None:
    rig.register()
    rig.reach(state)
    first = CALLS[call](rig, ADMIN)
    rig.restart()
    rig.service.upkeep.start_up()
    with unchanged(rig):
        assert CALLS[call](rig, ADMIN) == first
    assert rig.driver.ran == []


@pytest.mark.parametrize(("state", "call"), MOVES)
def test_a_move_is_one_line_of_history_with_before_and_after(rig: Rig, state: State, call: Call) -> None:
    rig.register()
    rig.reach(state)
    seq = rig.journal.seq
    CALLS[call](rig, ADMIN)
    (line,) = rig.service.get_history(ADMIN, since=seq)
    after = TRANSITIONS[call][state]
    assert line["call"] == call.value
    assert (line["volume"], line["attachment_id"], line["uid"]) == ("vol-1", ID, 0)
    assert line["before"]["state"] == state.value
    assert line["after"] is None if after is State.GONE else line["after"]["state"] == after.value


def test_the_whole_cycle_ends_where_it_began(rig: Rig) -> None:
    rig.register()
    before = rig.service.show_volume(ADMIN, "vol-1")
    rig.reach(State.GONE)
    assert rig.service.show_volume(ADMIN, "vol-1") == before
    assert rig.driver.exports == {}
    assert len(rig.journal.attachments) == 0


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (State.RESERVED, "attaching"),
        (State.CONNECTED, "attaching"),
        (State.ATTACHED, "in-use"),
        (State.DETACHING, "detaching"),
        (State.DISCONNECTED, "detaching"),
        (State.GONE, "available"),
    ],
)
def test_the_status_of_the_volume_follows_its_attachment(rig: Rig, state: State, status: str) -> None:
    rig.register()
    rig.reach(state)
    view = rig.service.show_volume(ADMIN, "vol-1")
    assert view["status"] == status
    assert view["attachments"] == ([] if state is State.GONE else [ID])


@pytest.mark.parametrize("call", [call for call in Call if call is not Call.RESERVE])
def test_a_call_for_a_volume_that_was_never_attached(rig: Rig, call: Call) -> None:
    rig.register()
    service = rig.service
    answers: dict[Call, Callable[[], Any]] = {
        Call.INITIALIZE: lambda: service.initialize_connection(ADMIN, "vol-1", connector()),
        Call.ATTACH: lambda: service.attach(ADMIN, "vol-1", host_name="h"),
        Call.BEGIN_DETACHING: lambda: service.begin_detaching(ADMIN, "vol-1"),
        Call.TERMINATE: lambda: service.terminate_connection(ADMIN, "vol-1", connector()),
        Call.FORCE: lambda: service.terminate_connection(ADMIN, "vol-1", connector(), True),
        Call.DETACH: lambda: service.detach(ADMIN, "vol-1"),
        Call.UNRESERVE: lambda: service.unreserve_volume(ADMIN, "vol-1"),
        Call.ROLL_DETACHING: lambda: service.roll_detaching(ADMIN, "vol-1"),
    }
    with unchanged(rig):
        if call in (Call.DETACH, Call.UNRESERVE):
            assert answers[call]()["status"] == "available"
        elif call in (Call.TERMINATE, Call.FORCE, Call.ROLL_DETACHING):
            with pytest.raises(AttachmentNotFound, match="never had an attachment"):
                answers[call]()
        else:
            with pytest.raises(InvalidVolume, match="is not reserved") as caught:
                answers[call]()
            assert caught.value.correction == "call reserve_volume"


@pytest.mark.parametrize("call", Call)
def test_every_call_for_an_unknown_volume_says_so(rig: Rig, call: Call) -> None:
    with unchanged(rig), pytest.raises(VolumeNotFound, match="'vol-1'"):
        CALLS[call](rig, ADMIN)


@pytest.mark.parametrize("call", [call for call in Call if call is not Call.RESERVE])
def test_every_call_for_an_attachment_that_never_was_says_so(rig: Rig, call: Call) -> None:
    rig.register()
    rig.reach(State.ATTACHED, number=2)
    with unchanged(rig), pytest.raises(AttachmentNotFound, match=ID):
        CALLS[call](rig, ADMIN)


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("call", Call)
def test_every_call_for_an_attachment_of_another_volume_is_refused(rig: Rig, call: Call, ended: bool) -> None:
    rig.register()
    rig.register("vol-2")
    rig.reach(State.GONE if ended else State.ATTACHED, "vol-2")
    with unchanged(rig), pytest.raises(InvalidInput):
        CALLS[call](rig, ADMIN)


# What has ended.


@pytest.mark.parametrize("call", [Call.TERMINATE, Call.FORCE, Call.ROLL_DETACHING])
@pytest.mark.parametrize("named", [True, False])
def test_what_has_ended_is_shown_as_gone(rig: Rig, call: Call, named: bool) -> None:
    rig.register()
    rig.reach(State.DISCONNECTED)
    before = rig.service.show_attachment(ADMIN, ID)
    rig.service.detach(ADMIN, "vol-1", ID)
    name = ID if named else None
    with unchanged(rig):
        if call is Call.ROLL_DETACHING:
            view = rig.service.roll_detaching(ADMIN, "vol-1", name)
        else:
            view = rig.service.terminate_connection(ADMIN, "vol-1", connector(), call is Call.FORCE, name)
    assert view == {**before, "state": "gone"}
    assert rig.service.show_attachment(ADMIN, ID) == view


def test_an_id_that_has_ended_is_never_reserved_again(rig: Rig) -> None:
    rig.register()
    rig.register("vol-2")
    rig.reach(State.GONE)
    rig.restart()
    for volume in ("vol-1", "vol-2"):
        with unchanged(rig), pytest.raises(InvalidInput, match="has ended"):
            rig.service.reserve_volume(ADMIN, volume, ID)


@pytest.mark.parametrize("call", [Call.INITIALIZE, Call.ATTACH, Call.BEGIN_DETACHING])
def test_a_call_for_an_attachment_that_has_ended_does_not_bring_it_back(rig: Rig, call: Call) -> None:
    rig.register()
    rig.reach(State.GONE)
    with unchanged(rig), pytest.raises(InvalidVolume, match="is not reserved"):
        CALLS[call](rig, ADMIN)


# reserve_volume.


def test_a_reservation_shows_what_it_was_given(rig: Rig) -> None:
    rig.register()
    view = rig.service.reserve_volume(AGENT, "vol-1", ID, "ro", "instance-1", 60)
    at = view.pop("created_at")
    assert view == {
        "attachment_id": ID, "volume": "vol-1", "state": "reserved", "mode": "ro", "owner": 1000, "connector": None,
        "instance_uuid": "instance-1", "host_name": None, "mount_point": None, "updated_at": at,
    }  # fmt: skip


def test_a_reservation_without_an_id_gets_one(rig: Rig) -> None:
    rig.register()
    name = rig.service.reserve_volume(AGENT, "vol-1")["attachment_id"]
    assert str(uuid.UUID(name)) == name


@pytest.mark.parametrize("state", LIVE)
@pytest.mark.parametrize("named", [True, False])
def test_a_volume_takes_one_attachment(rig: Rig, state: State, named: bool) -> None:
    rig.register()
    rig.reach(state)
    with unchanged(rig), pytest.raises(InvalidVolume, match=state.value) as caught:
        rig.service.reserve_volume(ADMIN, "vol-1", attachment_id(2) if named else None)
    assert caught.value.details == {"attachments": [ID]}


def test_of_many_who_reserve_at_once_one_gets_the_volume(rig: Rig) -> None:
    rig.register()
    count = 16
    start = threading.Barrier(count)

    def reserve(number: int) -> str | None:
        start.wait(10)
        try:
            return str(rig.service.reserve_volume(AGENT, "vol-1", attachment_id(number))["attachment_id"])
        except InvalidVolume:
            return None

    results = [in_thread(lambda n=n: reserve(n)) for n in range(count)]  # type: ignore[misc]
    taken = [name for name in (result() for result in results) if name is not None]
    assert [row.id for row in rig.journal.attachments.all()] == taken
    assert len(taken) == 1


def test_an_id_that_is_reserved_on_many_volumes_at_once_is_taken_by_one(rig: Rig) -> None:
    count = 8
    names = [rig.register(f"vol-{n}") for n in range(count)]
    start = threading.Barrier(count)

    def reserve(volume: str) -> bool:
        start.wait(10)
        try:
            rig.service.reserve_volume(AGENT, volume, ID)
        except InvalidInput:
            return False
        return True

    results = [in_thread(lambda n=n: reserve(n)) for n in names]  # type: ignore[misc]
    assert [result() for result in results].count(True) == 1
    assert len(rig.journal.attachments) == 1


@pytest.mark.parametrize("call", ["reserve", "show"])
def test_a_volume_can_be_reserved_by_many_at_once_where_it_allows_that(rig: Rig, call: str) -> None:
    rig.register(multiattach=True)
    for number in range(3):
        rig.reach(State.RESERVED, number=number)
    assert rig.service.show_volume(ADMIN, "vol-1")["attachments"] == [attachment_id(n) for n in range(3)]


# Modes.


def test_a_read_only_volume_takes_read_only_attachments_alone(rig: Rig) -> None:
    rig.register(read_only=True)
    with unchanged(rig), pytest.raises(InvalidVolumeAttachMode, match="read-only") as caught:
        rig.service.reserve_volume(AGENT, "vol-1", ID)
    assert caught.value.correction == "reserve it with mode ro"
    rig.service.reserve_volume(AGENT, "vol-1", ID, "ro")


@pytest.mark.parametrize("mode", ["rw", "ro"])
def test_the_mode_goes_to_the_target_and_to_the_initiator(rig: Rig, mode: str) -> None:
    rig.register()
    rig.service.reserve_volume(AGENT, "vol-1", ID, mode)
    data = rig.service.initialize_connection(AGENT, "vol-1", connector(), ID)["data"]
    assert data["access_mode"] == mode
    reached = rig.driver.login(data["target_iqn"], HOST_A, data["auth_username"], data["auth_password"])
    assert reached.value == mode


@pytest.mark.parametrize("reserved", ["rw", "ro"])
@pytest.mark.parametrize("asked", ["rw", "ro", None])
def test_attach_takes_the_mode_that_was_reserved_and_no_other(rig: Rig, reserved: str, asked: str | None) -> None:
    rig.register()
    rig.service.reserve_volume(AGENT, "vol-1", ID, reserved)
    rig.service.initialize_connection(AGENT, "vol-1", connector(), ID)
    if asked in (reserved, None):
        assert rig.service.attach(AGENT, "vol-1", host_name="h", mode=asked)["mode"] == reserved
    else:
        with unchanged(rig), pytest.raises(InvalidVolumeAttachMode, match=f"reserved as {reserved}"):
            rig.service.attach(AGENT, "vol-1", host_name="h", mode=asked)


def test_a_driver_that_cannot_do_read_only_by_attachment_says_so(rig: Rig) -> None:
    class Simple(type(rig.driver)):  # type: ignore[misc]
        capabilities = Capabilities(per_grant_mode=False, ends_sessions=False, grows=False)

    rig.register()
    rig.driver = Simple()
    rig.service = Service(rig.config, rig.journal, rig.driver)
    with unchanged(rig), pytest.raises(InvalidVolumeAttachMode, match="memory driver cannot"):
        rig.service.reserve_volume(AGENT, "vol-1", ID, "ro")
    rig.service.reserve_volume(AGENT, "vol-1", ID, "rw")


# initialize_connection.


def test_the_connection_info_is_what_os_brick_takes(rig: Rig) -> None:
    rig.register()
    rig.reach(State.RESERVED)
    info = rig.service.initialize_connection(AGENT, "vol-1", connector(), ID)
    row, secret = rig.journal.volumes["vol-1"], rig.journal.attachments.all()[0].secret
    assert secret is not None
    assert info == {
        "driver_volume_type": "iscsi",
        "attachment_id": ID,
        "data": {
            "target_discovered": False,
            "target_portal": "127.0.0.1:3260",
            "target_iqn": row.target_name,
            "target_lun": 0,
            "volume_id": "vol-1",
            "auth_method": "CHAP",
            "auth_username": secret.username,
            "auth_password": secret.password,
            "encrypted": False,
            "qos_specs": None,
            "access_mode": "rw",
            "discard": True,
        },
    }
    assert not secret.password.upper().startswith("NULL")
    assert secret.password.isalnum()
    assert 12 <= len(secret.password) <= 100


def test_a_multipath_connector_gets_the_lists(rig: Rig) -> None:
    rig.register()
    rig.reach(State.RESERVED)
    data = rig.service.initialize_connection(AGENT, "vol-1", connector(multipath=True), ID)["data"]
    assert data["target_portals"] == ["127.0.0.1:3260"]
    assert data["target_iqns"] == [data["target_iqn"]]
    assert data["target_luns"] == [0]


def test_the_initiators_name_is_taken_in_lower_case_and_unknown_keys_are_kept(rig: Rig) -> None:
    rig.register()
    rig.reach(State.RESERVED)
    rig.service.initialize_connection(AGENT, "vol-1", connector(HOST_A.upper(), extra=[1]), ID)
    assert rig.granted() == {HOST_A}
    assert rig.service.show_attachment(AGENT, ID)["connector"] == connector(HOST_A, extra=[1])
    rig.service.attach(AGENT, "vol-1", host_name="h")
    rig.service.begin_detaching(AGENT, "vol-1")
    assert rig.service.terminate_connection(AGENT, "vol-1", connector(HOST_A.upper()))["state"] == "disconnected"


@pytest.mark.parametrize("state", [State.CONNECTED, State.ATTACHED])
def test_a_connected_attachment_is_not_given_to_another_initiator(rig: Rig, state: State) -> None:
    rig.register()
    rig.reach(state)
    with unchanged(rig), pytest.raises(InvalidVolume, match=HOST_A):
        rig.service.initialize_connection(AGENT, "vol-1", connector(HOST_B), ID)
    assert rig.granted() == {HOST_A}


@pytest.mark.parametrize("bad", [{}, {"initiator": None}, {"initiator": "x"}, {"initiator": HOST_A, "ip": "x"}])
def test_a_connector_that_cannot_be_used_changes_nothing(rig: Rig, bad: dict[str, Any]) -> None:
    rig.register()
    rig.reach(State.RESERVED)
    with unchanged(rig), pytest.raises(InvalidInput):
        rig.service.initialize_connection(AGENT, "vol-1", bad, ID)


def test_a_connector_that_no_portal_can_be_reached_from_changes_nothing(rig: Rig) -> None:
    rig.register()
    rig.reach(State.RESERVED)
    with unchanged(rig), pytest.raises(DriverError, match="no portal can be reached"):
        rig.service.initialize_connection(AGENT, "vol-1", connector(ip="203.0.113.1"), ID)


def test_a_secret_belongs_to_one_attachment_and_dies_with_its_connection(rig: Rig) -> None:
    rig.register()
    seen = []
    for number in range(3):
        name = rig.reach(State.CONNECTED, number=number)
        info = rig.service.initialize_connection(AGENT, "vol-1", connector(), name)
        seen.append(info["data"]["auth_password"])
        rig.service.terminate_connection(AGENT, "vol-1", connector(), attachment_id=name)
        with pytest.raises(DriverError, match="refused"):
            rig.driver.login(info["data"]["target_iqn"], HOST_A, info["data"]["auth_username"], seen[-1])
    assert len(set(seen)) == 3


def test_a_secret_is_shown_by_initialize_connection_alone(rig: Rig) -> None:
    rig.register(multiattach=True)
    rig.reach(State.ATTACHED)
    password = rig.service.initialize_connection(AGENT, "vol-1", connector(), ID)["data"]["auth_password"]
    service = rig.service
    shown = [
        service.reserve_volume(AGENT, "vol-1", ID),
        service.attach(AGENT, "vol-1", host_name="h", attachment_id=ID),
        service.show_volume(AGENT, "vol-1"),
        service.list_volumes(AGENT),
        service.list_attachments(AGENT),
        service.list_attachments(AGENT, "vol-1"),
        service.show_attachment(AGENT, ID),
        service.get_history(AGENT),
        service.get_status(AGENT),
        service.begin_detaching(AGENT, "vol-1", ID),
        service.reconcile(ADMIN, dry_run=True),
        service.terminate_connection(AGENT, "vol-1", connector(), attachment_id=ID),
        service.detach(AGENT, "vol-1", ID),
        service.get_history(AGENT),
    ]
    assert password not in json.dumps(shown, default=list)


# attach.


@pytest.mark.parametrize(
    ("instance", "host", "fits"),
    [
        ("i", "h", True),
        ("j", "h", False),
        ("i", "g", False),
        (None, "h", True),
        ("i", None, False),
        (None, "g", False),
    ],
)
def test_attach_sent_again_is_for_the_same_instance_and_host_or_refused(
    rig: Rig, instance: str | None, host: str | None, fits: bool
) -> None:
    rig.register()
    rig.reach(State.CONNECTED)
    first = rig.service.attach(AGENT, "vol-1", "i", "h", "/dev/vdb")
    with unchanged(rig):
        if fits:
            assert rig.service.attach(AGENT, "vol-1", instance, host, "/dev/vdb") == first
        else:
            with pytest.raises(InvalidVolume, match="is attached to instance"):
                rig.service.attach(AGENT, "vol-1", instance, host)


def test_attach_keeps_the_instance_that_the_reservation_named(rig: Rig) -> None:
    rig.register()
    rig.service.reserve_volume(AGENT, "vol-1", ID, instance_uuid="i")
    rig.service.initialize_connection(AGENT, "vol-1", connector())
    first = rig.service.attach(AGENT, "vol-1", host_name="h")
    assert first["instance_uuid"] == "i"
    assert rig.service.attach(AGENT, "vol-1", host_name="h") == first


def test_attach_needs_to_know_who_uses_the_volume(rig: Rig) -> None:
    rig.register()
    rig.reach(State.CONNECTED)
    with unchanged(rig), pytest.raises(InvalidInput, match="instance_uuid or host_name"):
        rig.service.attach(AGENT, "vol-1", mount_point="/dev/vdb")


# terminate_connection.


@pytest.mark.parametrize("state", [State.CONNECTED, State.DETACHING])
def test_a_live_session_is_not_cut_without_force(rig: Rig, state: State) -> None:
    rig.register()
    rig.reach(State.CONNECTED)
    data = rig.service.initialize_connection(AGENT, "vol-1", connector(), ID)["data"]
    rig.driver.login(data["target_iqn"], HOST_A, data["auth_username"], data["auth_password"])
    if state is State.DETACHING:
        rig.service.attach(AGENT, "vol-1", host_name="h")
        rig.service.begin_detaching(AGENT, "vol-1")
    with unchanged(rig), pytest.raises(SessionActive, match=HOST_A):
        CALLS[Call.TERMINATE](rig, AGENT)
    assert rig.granted() == {HOST_A}
    rig.driver.logout(data["target_iqn"], HOST_A)
    CALLS[Call.TERMINATE](rig, AGENT)
    assert rig.granted() == set()


@pytest.mark.parametrize("state", [State.CONNECTED, State.ATTACHED, State.DETACHING])
def test_force_cuts_a_live_session(rig: Rig, state: State) -> None:
    rig.register()
    rig.reach(state)
    row = rig.journal.attachments.all()[0]
    name = rig.journal.volumes["vol-1"].target_name
    assert row.secret is not None
    rig.driver.login(name, HOST_A, row.secret.username, row.secret.password)
    CALLS[Call.FORCE](rig, ADMIN)
    assert rig.driver.list_sessions(name) == []
    assert rig.granted() == set()


@pytest.mark.parametrize("state", State)
def test_force_is_for_admins(rig: Rig, state: State) -> None:
    rig.register()
    rig.reach(state)
    with unchanged(rig), pytest.raises(PermissionDenied, match="for admins"):
        CALLS[Call.FORCE](rig, AGENT)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("state", [State.CONNECTED, State.DETACHING, State.DISCONNECTED])
def test_a_connection_is_terminated_for_its_own_initiator_alone(rig: Rig, state: State, force: bool) -> None:
    rig.register()
    rig.reach(state)
    with unchanged(rig), pytest.raises(InvalidInput, match=HOST_A):
        rig.service.terminate_connection(ADMIN, "vol-1", connector(HOST_B), force, ID)


# Who may.


@pytest.mark.parametrize("state", LIVE)
@pytest.mark.parametrize("call", [call for call in Call if call is not Call.FORCE])
@pytest.mark.parametrize("named", [True, False])
def test_an_agent_acts_on_its_own_attachments_alone(rig: Rig, state: State, call: Call, named: bool) -> None:
    rig.register()
    rig.reach(state)
    service = rig.service
    unnamed: dict[Call, Callable[[], Any]] = {
        Call.INITIALIZE: lambda: service.initialize_connection(OTHER_AGENT, "vol-1", connector()),
        Call.ATTACH: lambda: service.attach(OTHER_AGENT, "vol-1", host_name="h"),
        Call.BEGIN_DETACHING: lambda: service.begin_detaching(OTHER_AGENT, "vol-1"),
        Call.TERMINATE: lambda: service.terminate_connection(OTHER_AGENT, "vol-1", connector()),
        Call.DETACH: lambda: service.detach(OTHER_AGENT, "vol-1"),
        Call.UNRESERVE: lambda: service.unreserve_volume(OTHER_AGENT, "vol-1"),
        Call.ROLL_DETACHING: lambda: service.roll_detaching(OTHER_AGENT, "vol-1"),
    }
    if not named and call is Call.RESERVE:
        return  # a new attachment, which the volume has no room for
    with unchanged(rig), pytest.raises(PermissionDenied, match="uid 1000, not to uid 1001"):
        CALLS[call](rig, OTHER_AGENT) if named else unnamed[call]()


@pytest.mark.parametrize(("state", "call"), MOVES)
def test_the_owner_makes_every_move_but_force(rig: Rig, state: State, call: Call) -> None:
    rig.register()
    rig.reach(state)
    if call is Call.FORCE:
        with pytest.raises(PermissionDenied):
            CALLS[call](rig, AGENT)
    else:
        CALLS[call](rig, AGENT)
        assert rig.state() is TRANSITIONS[call][state]


@pytest.mark.parametrize("state", [State.CONNECTED, State.ATTACHED, State.DETACHING])
def test_the_initiator_of_another_owner_cannot_be_used_on_the_same_volume(rig: Rig, state: State) -> None:
    rig.register(multiattach=True)
    rig.reach(state)
    rig.reach(State.RESERVED, number=2, caller=OTHER_AGENT)
    for told in (connector(), connector(HOST_A.upper())):
        with unchanged(rig), pytest.raises(PermissionDenied, match="belongs to uid 1000"):
            rig.service.initialize_connection(OTHER_AGENT, "vol-1", told, attachment_id(2))
    rig.service.initialize_connection(OTHER_AGENT, "vol-1", connector(HOST_B), attachment_id(2))


def test_an_admin_that_acts_for_an_owner_shares_the_owners_access_and_no_other(rig: Rig) -> None:
    rig.register(multiattach=True)
    rig.reach(State.ATTACHED)
    rig.reach(State.RESERVED, number=2)
    rig.reach(State.RESERVED, number=3, caller=ADMIN)
    rig.service.initialize_connection(ADMIN, "vol-1", connector(), attachment_id(2))
    with unchanged(rig), pytest.raises(PermissionDenied, match="belongs to uid 1000"):
        rig.service.initialize_connection(ADMIN, "vol-1", connector(), attachment_id(3))


def test_the_secret_of_the_owner_before_is_dead_for_the_next_owner_of_the_initiator(rig: Rig) -> None:
    rig.register(multiattach=True)
    rig.reach(State.CONNECTED)
    old = rig.service.initialize_connection(AGENT, "vol-1", connector(), ID)["data"]
    rig.service.terminate_connection(AGENT, "vol-1", connector(), attachment_id=ID)
    rig.reach(State.CONNECTED, number=2, caller=OTHER_AGENT)
    new = rig.service.initialize_connection(OTHER_AGENT, "vol-1", connector(), attachment_id(2))["data"]
    assert not {old["auth_username"], old["auth_password"]} & {new["auth_username"], new["auth_password"]}
    with pytest.raises(DriverError, match="refused"):
        rig.driver.login(old["target_iqn"], HOST_A, old["auth_username"], old["auth_password"])
    rig.driver.login(new["target_iqn"], HOST_A, new["auth_username"], new["auth_password"])


@pytest.mark.parametrize("state", [State.RESERVED, State.CONNECTED])
def test_a_bound_initiator_is_used_by_its_users_alone_also_while_it_is_free(rig: Rig, state: State) -> None:
    rig.register(multiattach=True)
    rig.reach(state)
    rig.service.bind_initiators(InitiatorBindings([(HOST_A, ("1001",))]))
    with unchanged(rig), pytest.raises(PermissionDenied, match="bound to other users"):
        rig.service.initialize_connection(AGENT, "vol-1", connector(), ID)


# Several attachments.


def test_with_several_candidates_the_call_asks_which_and_lists_them(rig: Rig) -> None:
    rig.register(multiattach=True)
    names = [rig.reach(State.ATTACHED, number=n, initiator=host) for n, host in ((1, HOST_A), (2, HOST_B))]
    for call in (rig.service.begin_detaching, rig.service.detach, rig.service.unreserve_volume):
        with unchanged(rig), pytest.raises(InvalidVolume, match="2 attachments") as caught:
            call(ADMIN, "vol-1")
        assert caught.value.details["attachments"] == names
        assert caught.value.correction == "say which one with attachment_id"


@pytest.mark.parametrize("chosen", [0, 1])
def test_the_one_attachment_that_a_call_would_move_is_its_candidate(rig: Rig, chosen: int) -> None:
    rig.register(multiattach=True)
    states = [State.ATTACHED, State.ATTACHED]
    states[chosen] = State.DISCONNECTED
    for number, (state, host) in enumerate(zip(states, (HOST_A, HOST_B), strict=True)):
        rig.reach(state, number=number, initiator=host)
    rig.service.detach(ADMIN, "vol-1")
    assert [row.id for row in rig.journal.attachments.all()] == [attachment_id(1 - chosen)]


def test_the_connector_tells_which_attachment_is_terminated(rig: Rig) -> None:
    rig.register(multiattach=True)
    for number, host in ((1, HOST_A), (2, HOST_B)):
        rig.reach(State.DETACHING, number=number, initiator=host)
    assert rig.service.terminate_connection(ADMIN, "vol-1", connector(HOST_B))["attachment_id"] == attachment_id(2)
    assert rig.granted() == {HOST_A}


def test_a_call_without_an_id_is_about_the_callers_own_attachment_and_may_be_sent_again(rig: Rig) -> None:
    """Two agents share a volume: neither meets the other's attachment, and each call gives its answer again."""
    rig.register(multiattach=True)
    rig.reach(State.ATTACHED, number=1, caller=AGENT, initiator=HOST_A)
    rig.reach(State.ATTACHED, number=2, caller=OTHER_AGENT, initiator=HOST_B)
    service = rig.service
    calls: list[Callable[[], Any]] = [
        lambda: service.attach(AGENT, "vol-1", host_name="h"),
        lambda: service.begin_detaching(AGENT, "vol-1"),
        lambda: service.roll_detaching(AGENT, "vol-1"),
        lambda: service.begin_detaching(AGENT, "vol-1"),
        lambda: service.terminate_connection(AGENT, "vol-1", connector(HOST_A)),
    ]
    for call in calls:
        first = call()
        assert first["attachment_id"] == ID
        with unchanged(rig):
            assert call() == first
    assert rig.state(2) is State.ATTACHED


def test_a_second_host_joins_and_leaves_without_touching_the_first(rig: Rig) -> None:
    rig.register(multiattach=True)
    rig.reach(State.ATTACHED)
    row = rig.journal.attachments.all()[0]
    name = rig.journal.volumes["vol-1"].target_name
    assert row.secret is not None
    rig.driver.login(name, HOST_A, row.secret.username, row.secret.password)
    rig.reach(State.GONE, number=2, initiator=HOST_B)
    assert [session.initiator for session in rig.driver.list_sessions(name)] == [HOST_A]
    assert rig.granted() == {HOST_A}


def test_attachments_of_one_host_share_its_access_and_the_last_to_leave_takes_it_away(rig: Rig) -> None:
    rig.register(multiattach=True)
    infos = []
    for number in (1, 2):
        rig.reach(State.RESERVED, number=number)
        infos.append(rig.service.initialize_connection(AGENT, "vol-1", connector(), attachment_id(number))["data"])
    assert infos[0]["auth_password"] == infos[1]["auth_password"]
    data = infos[0]
    rig.driver.login(data["target_iqn"], HOST_A, data["auth_username"], data["auth_password"])
    rig.service.terminate_connection(AGENT, "vol-1", connector(), attachment_id=ID)
    assert [session.initiator for session in rig.driver.list_sessions(data["target_iqn"])] == [HOST_A]
    with pytest.raises(SessionActive):
        rig.service.terminate_connection(AGENT, "vol-1", connector())
    rig.driver.logout(data["target_iqn"], HOST_A)
    rig.service.terminate_connection(AGENT, "vol-1", connector())
    assert rig.driver.exports == {}


def test_one_host_cannot_have_both_modes_of_a_volume(rig: Rig) -> None:
    rig.register(multiattach=True)
    rig.reach(State.CONNECTED)
    rig.service.reserve_volume(AGENT, "vol-1", attachment_id(2), "ro")
    with unchanged(rig), pytest.raises(InvalidVolumeAttachMode, match="already has rw access"):
        rig.service.initialize_connection(AGENT, "vol-1", connector(), attachment_id(2))
    rig.service.initialize_connection(AGENT, "vol-1", connector(HOST_B), attachment_id(2))
    assert rig.granted() == {HOST_A, HOST_B}


# The order of things.


def watch(rig: Rig) -> list[str]:
    """Each step of the target as it is about to run, with the state that the journal has on the disk then."""
    seen: list[str] = []

    def record(step: str) -> None:
        last = rig.journal.last_of(ID)
        assert last is not None
        seen.append(f"{step.split(' iqn')[0]}: {last['after']['state'] if last['after'] else 'gone'}")

    rig.driver.before_step = record
    return seen


def test_access_is_given_after_the_commit_that_says_so(rig: Rig) -> None:
    rig.register()
    rig.reach(State.RESERVED)
    seen = watch(rig)
    CALLS[Call.INITIALIZE](rig, AGENT)
    assert seen == ["create target: connected", "create grant: connected", "enable target: connected"]


@pytest.mark.parametrize(
    ("state", "call"), [(s, c) for s, c in TARGET_MOVES if TRANSITIONS[c][s] is State.DISCONNECTED]
)
def test_access_is_taken_after_the_commit_that_says_so_and_before_the_answer(
    rig: Rig, state: State, call: Call
) -> None:
    rig.register()
    rig.reach(state)
    seen = watch(rig)
    CALLS[call](rig, ADMIN)
    assert seen == ["remove grant: disconnected"]


@pytest.mark.parametrize(
    ("state", "call", "steps"),
    [
        (State.CONNECTED, Call.TERMINATE, ["remove grant: connected", "remove target: connected"]),
        (State.DISCONNECTED, Call.DETACH, ["remove target: disconnected"]),
    ],
)
def test_a_row_is_forgotten_after_the_target_is_seen_to_have_nothing_of_it(
    rig: Rig, state: State, call: Call, steps: list[str]
) -> None:
    rig.register()
    rig.reach(state)
    seen = watch(rig)
    CALLS[call](rig, AGENT)
    assert seen == steps
    assert rig.state() is State.GONE


# A target that says no.


def steps_of(rig: Rig, state: State, call: Call) -> int:
    """How many steps a move takes on a target of its own."""
    trial = Rig(rig.directory / "trial")
    trial.register()
    trial.reach(state)
    before = len(trial.driver.ran)
    CALLS[call](trial, ADMIN)
    trial.journal.close()
    return len(trial.driver.ran) - before


@pytest.mark.parametrize(("state", "call"), TARGET_MOVES)
def test_whichever_step_fails_the_attachment_is_where_it_was_and_the_call_can_be_sent_again(
    rig: Rig, state: State, call: Call
) -> None:
    (rig.directory / "trial").mkdir()
    rig.register()
    rig.reach(state)
    count = steps_of(rig, state, call)
    assert count > 0
    for step in range(count):
        row = rig.journal.attachments.get(ID)
        failing = rig.driver.before_step = FailOnce(step)
        with pytest.raises(DriverError, match="the kernel said no") as caught:
            CALLS[call](rig, ADMIN)
        assert failing.failed is not None
        assert failing.failed in caught.value.message
        assert rig.journal.attachments.get(ID) == row
        assert rig.conditions() == []  # the way back was fine
        check_target(rig)
        last = rig.journal.last_of(ID)
        assert last is not None
        assert last["after"]["state"] == state.value
    CALLS[call](rig, ADMIN)
    assert rig.state() is TRANSITIONS[call][state]
    check_target(rig)


@pytest.mark.parametrize(("state", "call"), TARGET_MOVES)
def test_where_the_way_back_fails_too_a_condition_says_so_until_it_is_over(rig: Rig, state: State, call: Call) -> None:
    (rig.directory / "trial").mkdir()
    rig.register()
    rig.reach(state)
    for failing_from in range(steps_of(rig, state, call)):
        count = 0

        def fail(step: str, first: int = failing_from) -> None:
            nonlocal count
            count += 1
            if count > first:
                raise DriverError(f"cannot {step}: the kernel said no")

        rig.driver.before_step = fail
        with pytest.raises(DriverError):
            CALLS[call](rig, ADMIN)
        assert rig.state() is state
        if rig.conditions():
            assert rig.conditions() == ["TargetError"]
            assert "the kernel said no" in str(rig.service.get_status(ADMIN)["degraded"])
        else:  # a first step that failed left nothing to be undone
            check_target(rig)
        rig.driver.before_step = lambda step: None
        rig.service.reconcile(ADMIN)
        assert rig.conditions() == []
        check_target(rig)
    CALLS[call](rig, ADMIN)
    assert rig.state() is TRANSITIONS[call][state]


@pytest.mark.parametrize(("state", "call"), TARGET_MOVES)
def test_a_crash_at_any_step_is_mended_by_the_next_start_and_the_call_can_be_sent_again(
    rig: Rig, state: State, call: Call
) -> None:
    class Killed(BaseException):
        pass

    (rig.directory / "trial").mkdir()
    rig.register()
    for number, stop in enumerate(range(steps_of(rig, state, call))):
        rig.reach(state) if number == 0 else None
        left = stop

        def die(step: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        rig.driver.before_step = die
        with pytest.raises(Killed):
            CALLS[call](rig, ADMIN)
        rig.restart()
        rig.service.upkeep.start_up()
        assert rig.state() in (state, TRANSITIONS[call][state])
        check_target(rig)
        if rig.state() is not state:
            break  # it was committed: from here on the call is done
    CALLS[call](rig, ADMIN)
    assert rig.state() is TRANSITIONS[call][state]
    check_target(rig)


def leave_a_grant(rig: Rig) -> None:
    """As a crash leaves it: the journal says disconnected, the target still lets HOST_A in, and will not let go."""
    rig.register(multiattach=True)
    rig.reach(State.ATTACHED, number=2, initiator=HOST_B)
    rig.reach(State.DETACHING)
    grants = dict(next(iter(rig.driver.exports.values())).grants)
    CALLS[Call.TERMINATE](rig, ADMIN)
    next(iter(rig.driver.exports.values())).grants.update(grants)
    rig.restart()

    def refuse(step: str) -> None:
        raise DriverError(f"cannot {step}: the kernel said no")

    rig.driver.before_step = refuse
    rig.service.upkeep.start_up()
    assert rig.granted() == {HOST_A, HOST_B}
    assert rig.conditions() == ["TargetError"]


def test_an_attachment_is_not_forgotten_while_the_target_still_grants_it_access(rig: Rig) -> None:
    leave_a_grant(rig)
    with pytest.raises(DriverError, match="the kernel said no"):
        CALLS[Call.DETACH](rig, ADMIN)
    assert rig.state() is State.DISCONNECTED
    rig.driver.before_step = lambda step: None
    CALLS[Call.DETACH](rig, ADMIN)
    assert rig.state() is State.GONE
    assert rig.granted() == {HOST_B}


@pytest.mark.parametrize("call", [Call.TERMINATE, Call.FORCE])
def test_a_connection_is_not_said_to_be_revoked_while_the_target_still_grants_it(rig: Rig, call: Call) -> None:
    leave_a_grant(rig)
    with pytest.raises(DriverError, match="the kernel said no"):
        CALLS[call](rig, ADMIN)
    rig.driver.before_step = lambda step: None
    assert CALLS[call](rig, ADMIN)["state"] == "disconnected"
    assert rig.granted() == {HOST_B}


def test_connection_info_is_not_given_again_for_an_export_that_is_not_there(rig: Rig) -> None:
    rig.register()
    rig.reach(State.CONNECTED)
    rig.restart()
    rig.driver.exports.clear()
    path = rig.directory / "vol-1.img"
    path.rename(path.with_suffix(".away"))
    rig.service.upkeep.start_up()
    assert rig.conditions() == ["DeviceMissing"]
    with pytest.raises(DriverError, match="cannot use"):
        CALLS[Call.INITIALIZE](rig, AGENT)
    path.with_suffix(".away").rename(path)
    assert CALLS[Call.INITIALIZE](rig, AGENT)["data"]["auth_method"] == "CHAP"
    assert rig.granted() == {HOST_A}
    assert rig.conditions() == []


def test_a_target_that_does_not_keep_what_it_was_given_is_an_error(rig: Rig) -> None:
    rig.register()
    rig.reach(State.RESERVED)
    plans = 0

    def forget() -> None:
        nonlocal plans
        plans += 1
        if plans == 2:
            rig.driver.exports.clear()

    rig.driver.before_plan = forget
    with pytest.raises(DriverError, match="did not keep"):
        CALLS[Call.INITIALIZE](rig, AGENT)
    assert rig.state() is State.RESERVED
    assert rig.driver.exports == {}


@pytest.mark.parametrize(
    ("break_it", "kind"),
    [
        (lambda path: path.unlink(), "DeviceMissing"),
        (lambda path: (path.unlink(), make_file(path.with_suffix(".new")), make_file(path)), "DeviceChanged"),
        (lambda path: make_file(path, 512), "DeviceChanged"),
    ],
    ids=["missing", "replaced", "shrunk"],
)
def test_a_device_that_is_not_what_was_registered_is_never_exported(
    rig: Rig, break_it: Callable[[Path], Any], kind: str
) -> None:
    rig.register()
    rig.reach(State.RESERVED)
    break_it(rig.directory / "vol-1.img")
    with pytest.raises(DriverError) as caught:
        CALLS[Call.INITIALIZE](rig, AGENT)
    assert caught.value.kind == "DriverError"
    assert rig.state() is State.RESERVED
    assert rig.driver.ran == []
    assert kind in (rig.conditions() or [kind])


# A target that takes its time.


def held(rig: Rig, word: str) -> Gate:
    gate = Gate(word)
    rig.driver.before_step = gate
    return gate


@pytest.mark.parametrize(("state", "call"), TARGET_MOVES)
def test_a_step_that_hangs_is_told_as_busy_and_goes_on_by_itself(quick_path: Path, state: State, call: Call) -> None:
    rig = Rig(quick_path, call_seconds=0.2)
    rig.register()
    rig.register("vol-2")
    rig.reach(state)
    gate = held(rig, "vol-1")
    with pytest.raises(Busy) as caught:
        CALLS[call](rig, ADMIN)
    assert gate.reached.wait(PATIENCE)
    assert caught.value.retriable
    assert "waits for" in caught.value.message
    assert rig.conditions() == ["Pending"]
    assert rig.service.get_status(ADMIN)["pending"] == ["vol-1"]
    with pytest.raises(Busy):  # the same call again finds the first one at work
        CALLS[call](rig, ADMIN)
    rig.reach(State.GONE, "vol-2", number=2)  # nobody else waits
    gate.open()
    wait_until(lambda: rig.conditions() == [])
    assert rig.state() is TRANSITIONS[call][state]
    seq = rig.journal.seq
    answer = insist(lambda: CALLS[call](rig, ADMIN))
    assert rig.journal.seq == seq
    if call in (Call.TERMINATE, Call.FORCE):
        assert answer["state"] == TRANSITIONS[call][state].value
    check_target(rig)
    rig.journal.close()


def test_a_step_that_hangs_and_then_fails_leaves_the_attachment_where_it_was(quick_path: Path) -> None:
    rig = Rig(quick_path, call_seconds=0.2)
    rig.register()
    rig.reach(State.RESERVED)
    gate = Gate()
    fail = FailOnce(0)

    def hang_and_fail(step: str) -> None:
        gate()
        fail(step)

    rig.driver.before_step = hang_and_fail
    with pytest.raises(Busy):
        CALLS[Call.INITIALIZE](rig, AGENT)
    wait_until(lambda: rig.state() is State.CONNECTED)
    gate.open()
    wait_until(lambda: rig.state() is State.RESERVED and rig.conditions() == [])
    insist(lambda: CALLS[Call.INITIALIZE](rig, AGENT))
    check_target(rig)
    rig.journal.close()


def test_a_call_that_touches_no_target_waits_its_turn_and_is_told_busy_too(quick_path: Path) -> None:
    rig = Rig(quick_path, call_seconds=0.2)
    rig.register()
    rig.reach(State.RESERVED)
    gate = held(rig, "vol-1")
    with pytest.raises(Busy):
        CALLS[Call.INITIALIZE](rig, AGENT)
    assert gate.reached.wait(PATIENCE)
    with pytest.raises(Busy, match="waits for create target"):
        rig.service.unreserve_volume(AGENT, "vol-1")
    assert rig.service.show_volume(AGENT, "vol-1")["status"] == "attaching"  # looking never waits
    gate.open()
    wait_until(lambda: rig.granted() == {HOST_A})
    rig.journal.close()


def test_a_thread_that_cannot_be_had_gives_the_turn_back(rig: Rig) -> None:
    rig.register()
    rig.reach(State.RESERVED)
    before = threading.stack_size(1 << 47)  # more than there is: no thread can be started
    try:
        with pytest.raises((Busy, RuntimeError)):
            CALLS[Call.INITIALIZE](rig, AGENT)
    finally:
        threading.stack_size(before)
    CALLS[Call.INITIALIZE](rig, AGENT)
    check_target(rig)


# Reservations that are over.


def test_a_reservation_ends_after_its_time(rig: Rig) -> None:
    rig.register()
    rig.service.reserve_volume(AGENT, "vol-1", ID, ttl=1e-9)
    rig.service.expire_reservations()
    assert rig.state() is State.GONE
    (line,) = rig.service.get_history(ADMIN, attachment_id=ID, since=2)
    assert (line["call"], line["uid"], line["pid"]) == ("unreserve_volume", 0, 0)
    rig.service.expire_reservations()
    assert rig.journal.seq == line["seq"]


def test_a_reservation_does_not_end_before_its_time(rig: Rig) -> None:
    rig.register()
    rig.reach(State.RESERVED)
    rig.service.expire_reservations()
    assert rig.state() is State.RESERVED


def test_a_reservations_time_begins_again_with_the_daemon(rig: Rig) -> None:
    rig.register(multiattach=True)
    rig.service.reserve_volume(AGENT, "vol-1", ID, ttl=1e-9)
    rig.service.reserve_volume(AGENT, "vol-1", attachment_id(2))
    rig.restart()
    rig.service.expire_reservations()
    assert rig.state(1) is State.GONE
    assert rig.state(2) is State.RESERVED


@pytest.mark.parametrize("state", [state for state in LIVE if state is not State.RESERVED])
def test_what_has_a_connection_never_expires(rig: Rig, state: State) -> None:
    rig.register()
    rig.service.reserve_volume(AGENT, "vol-1", ID, ttl=1e-9)
    rig.reach(state)
    for _ in range(2):
        rig.service.expire_reservations()
        assert rig.state() is state


def test_a_reservation_whose_connection_failed_still_ends_after_its_time(rig: Rig) -> None:
    rig.register()
    rig.service.reserve_volume(AGENT, "vol-1", ID, ttl=1e-9)

    def expire_and_fail(step: str) -> None:
        rig.driver.before_step = lambda step: None
        rig.service.expire_reservations()
        raise DriverError("no")

    rig.driver.before_step = expire_and_fail
    with pytest.raises(DriverError):
        CALLS[Call.INITIALIZE](rig, AGENT)
    assert rig.state() is State.RESERVED
    rig.service.expire_reservations()
    assert rig.state() is State.GONE


# The registry.


def test_a_registered_volume_shows_itself(rig: Rig) -> None:
    path = make_file(rig.directory / "a.img", 4096)
    view = rig.service.register_volume(ADMIN, "vol-1", path)
    serial = view["serial"]
    assert str(uuid.UUID(serial)) == serial
    assert view == {
        "volume": "vol-1", "path": path, "size": 4096, "status": "available", "multiattach": False,
        "read_only": False, "target_name": f"{rig.driver.iqn_prefix}:vol-1.{serial[:8]}", "serial": serial,
        "conditions": [], "attachments": [],
    }  # fmt: skip
    assert rig.service.show_volume(ADMIN, "vol-1") == view
    assert list(rig.service.list_volumes(ADMIN)) == [view]
    assert rig.driver.ran == []


@pytest.mark.parametrize("state", [State.GONE, State.ATTACHED])
def test_register_sent_again_gives_the_volume_as_it_stands(rig: Rig, state: State) -> None:
    rig.register()
    rig.reach(state)
    with unchanged(rig):
        view = rig.service.register_volume(ADMIN, "vol-1", str(rig.directory / "vol-1.img"))
    assert view == rig.service.show_volume(ADMIN, "vol-1")


@pytest.mark.parametrize("other", [{"multiattach": True}, {"read_only": True}, {"path": "other.img"}])
def test_register_with_other_properties_is_another_volume(rig: Rig, other: dict[str, Any]) -> None:
    rig.register()
    make_file(rig.directory / "other.img")
    path = str(rig.directory / other.pop("path", "vol-1.img"))
    with unchanged(rig), pytest.raises(AlreadyExists, match="registered already"):
        rig.service.register_volume(ADMIN, "vol-1", path, **other)


def test_a_device_is_registered_once(rig: Rig) -> None:
    rig.register()
    with unchanged(rig), pytest.raises(AlreadyExists, match="shares a device with volume 'vol-1'"):
        rig.service.register_volume(ADMIN, "vol-2", str(rig.directory / "vol-1.img"))


def test_a_path_that_the_target_cannot_export_is_refused_at_once(rig: Rig) -> None:
    path = make_file(rig.directory / "a,b.img")
    with unchanged(rig), pytest.raises(InvalidInput, match="comma"):
        rig.service.register_volume(ADMIN, "vol-1", path)


def test_what_is_stable_for_life_survives_restarts_and_belongs_to_one_volume(rig: Rig) -> None:
    for number in range(5):
        rig.register(f"vol-{number}")
    before = list(rig.service.list_volumes(ADMIN))
    assert len({view["serial"][:7] for view in before}) == 5
    assert len({view["target_name"] for view in before}) == 5
    rig.restart()
    assert list(rig.service.list_volumes(ADMIN)) == before
    rig.service.unregister_volume(ADMIN, "vol-0")
    again = rig.service.register_volume(ADMIN, "vol-0", str(rig.directory / "vol-0.img"))
    assert again["serial"] not in {view["serial"] for view in before}
    assert again["target_name"] not in {view["target_name"] for view in before}


@pytest.mark.parametrize("state", LIVE)
def test_a_volume_with_an_attachment_is_not_forgotten(rig: Rig, state: State) -> None:
    rig.register()
    rig.reach(state)
    with unchanged(rig), pytest.raises(InvalidVolume, match="has attachments") as caught:
        rig.service.unregister_volume(ADMIN, "vol-1")
    assert caught.value.details == {"attachments": [ID]}


def test_unregister_sent_again_gives_the_same_answer(rig: Rig) -> None:
    rig.register()
    for _ in range(2):
        assert rig.service.unregister_volume(ADMIN, "vol-1") == {"volume": "vol-1"}
    rig.restart()
    with unchanged(rig):
        assert rig.service.unregister_volume(ADMIN, "vol-1") == {"volume": "vol-1"}
    with pytest.raises(VolumeNotFound):
        rig.service.show_volume(ADMIN, "vol-1")
    with pytest.raises(VolumeNotFound):
        rig.service.unregister_volume(ADMIN, "vol-2")
    rig.register()
    assert rig.service.show_volume(ADMIN, "vol-1")["status"] == "available"


def test_a_volume_is_forgotten_after_the_target_is_seen_to_have_nothing_of_it(rig: Rig) -> None:
    rig.register()
    name = rig.journal.volumes["vol-1"].target_name
    rig.driver.exports[name] = SimulatedExport("/x", "x")
    failing = rig.driver.before_step = FailOnce(0)
    with pytest.raises(DriverError):
        rig.service.unregister_volume(ADMIN, "vol-1")
    assert failing.failed is not None
    assert rig.conditions() == ["TargetError"]
    rig.service.unregister_volume(ADMIN, "vol-1")
    assert rig.driver.exports == {}
    assert rig.service.get_status(ADMIN)["degraded"] == []


# Looking.


def test_attachments_are_listed_oldest_first_for_all_or_for_one_volume(rig: Rig) -> None:
    rig.register(multiattach=True)
    rig.register("vol-2")
    for number, volume in ((3, "vol-1"), (1, "vol-2"), (2, "vol-1")):
        rig.reach(State.RESERVED, volume, number)
    rig.reach(State.CONNECTED, "vol-1", 3)

    def ids(volume: str | None = None) -> list[str]:
        return [view["attachment_id"] for view in rig.service.list_attachments(ADMIN, volume)]

    assert ids() == [attachment_id(n) for n in (3, 1, 2)]
    assert ids("vol-1") == [attachment_id(n) for n in (3, 2)]
    assert ids("vol-2") == [attachment_id(1)]
    with pytest.raises(VolumeNotFound):
        ids("vol-3")


def test_an_attachment_that_never_was_is_not_shown(rig: Rig) -> None:
    with pytest.raises(AttachmentNotFound, match=ID):
        rig.service.show_attachment(ADMIN, ID)


def test_the_status_of_the_daemon(rig: Rig) -> None:
    assert rig.service.get_status(ADMIN)["ready"] is False, "the start has not looked at the target"
    rig.service.upkeep.start_up()
    rig.register()
    rig.reach(State.RESERVED)
    status = rig.service.get_status(ADMIN)
    assert status.pop("version")
    assert status.pop("boot_id")
    assert status == {
        "ready": True, "degraded": [], "driver": "memory", "portals": ["127.0.0.1:3260"], "volumes": 1,
        "attachments": 1, "pending": [], "seq": 2, "caller": {"uid": 0, "role": "admin"},
    }  # fmt: skip


@pytest.mark.parametrize("dry_run", [True, False])
def test_reconcile_tells_the_steps_that_mend_and_only_without_dry_run_makes_them(rig: Rig, dry_run: bool) -> None:
    rig.register()
    rig.reach(State.ATTACHED)
    row = rig.journal.volumes["vol-1"]
    rig.driver.exports[row.target_name].grants.clear()
    rig.driver.exports[f"{rig.driver.iqn_prefix}:orphan"] = SimulatedExport("/x", "x")
    rig.driver.exports["iqn.2001-04.com.example:foreign"] = SimulatedExport("/y", "y")
    rig.driver.ran.clear()
    told = rig.service.reconcile(ADMIN, dry_run)
    grant, removal = f"create grant {row.target_name} {HOST_A}", f"remove target {rig.driver.iqn_prefix}:orphan"
    assert told["dry_run"] is dry_run
    members = [[line[key] for key in ("volume", "target_name", "steps", "error")] for line in told["volumes"]]
    assert members == [
        ["vol-1", row.target_name, [grant], None],
        [None, f"{rig.driver.iqn_prefix}:orphan", [removal], None],
    ]
    assert rig.driver.ran == ([] if dry_run else [grant, removal])
    assert "iqn.2001-04.com.example:foreign" in rig.driver.exports
    again = rig.service.reconcile(ADMIN, dry_run)["volumes"]
    assert again == (told["volumes"] if dry_run else [])


def test_many_volumes_go_through_their_lives_side_by_side(rig: Rig) -> None:
    names = [rig.register(f"vol-{n}") for n in range(12)]

    def live(number: int) -> None:
        rig.reach(State.GONE, names[number], number)

    lives = [in_thread(lambda n=n: live(n)) for n in range(12)]  # type: ignore[misc]
    for life in lives:
        life()
    assert rig.driver.exports == {}
    seqs = [line["seq"] for line in rig.service.get_history(ADMIN, since=0, limit=1000)]
    assert seqs == list(range(1, 12 * 7 + 1))


def test_every_refusal_names_its_object_and_has_a_class_of_its_own(rig: Rig) -> None:
    rig.register()
    with pytest.raises(VolattachError) as caught:
        CALLS[Call.ATTACH](rig, ADMIN)
    assert "vol-1" in caught.value.message


def test_a_row_that_only_the_journal_knows_of_is_exported_at_the_next_start(rig: Rig) -> None:
    """A crash between the commit and the first step of the target."""
    rig.register()
    rig.reach(State.CONNECTED)
    row = rig.journal.attachments.all()[0]
    rig.service.terminate_connection(AGENT, "vol-1", connector())
    rig.journal.commit(Change("test", ADMIN, "vol-1", row.id, after={}, put=row))
    rig.restart()
    rig.service.upkeep.start_up()
    assert rig.granted() == {HOST_A}


# What a change could break unnoticed.


def login(rig: Rig, number: int = 1) -> str:
    """Log the initiator of an attachment in; the answer is the target's name."""
    row = rig.journal.attachments.get(attachment_id(number))
    assert row is not None and row.secret is not None and row.initiator is not None
    name = rig.journal.volumes["vol-1"].target_name
    rig.driver.login(name, row.initiator, row.secret.username, row.secret.password)
    return name


@pytest.mark.parametrize("neighbour", [State.RESERVED, State.DISCONNECTED])
def test_a_neighbour_without_access_does_not_spare_the_look_for_a_session(rig: Rig, neighbour: State) -> None:
    """Its host keeps no access through it: ending this attachment would cut the live session."""
    rig.register(multiattach=True)
    rig.reach(neighbour, number=2)
    rig.reach(State.DETACHING)
    name = login(rig)
    with unchanged(rig), pytest.raises(SessionActive, match=HOST_A):
        CALLS[Call.TERMINATE](rig, AGENT)
    assert [session.initiator for session in rig.driver.list_sessions(name)] == [HOST_A]


def test_a_neighbour_of_another_host_does_not_spare_the_look_for_a_session(rig: Rig) -> None:
    rig.register(multiattach=True)
    rig.reach(State.ATTACHED, number=2, initiator=HOST_B)
    rig.reach(State.DETACHING)
    login(rig)
    with unchanged(rig), pytest.raises(SessionActive):
        CALLS[Call.TERMINATE](rig, AGENT)


def test_a_neighbour_through_which_the_host_keeps_its_access_spares_the_look(rig: Rig) -> None:
    rig.register(multiattach=True)
    rig.reach(State.ATTACHED, number=2)
    rig.reach(State.DETACHING)
    name = login(rig)
    CALLS[Call.TERMINATE](rig, AGENT)
    assert [session.initiator for session in rig.driver.list_sessions(name)] == [HOST_A]


def test_a_volume_that_is_forgotten_leaves_no_condition_and_no_sessions_behind(rig: Rig) -> None:
    rig.register()
    rig.service.core.conditions.set("vol-1", "DeviceMissing", "it is away")
    rig.service.upkeep.sessions["vol-1"] = 1
    rig.service.unregister_volume(ADMIN, "vol-1")
    assert rig.service.degraded() == []
    assert "vol-1" not in rig.service.upkeep.sessions


def test_no_two_volumes_share_the_first_seven_digits_of_a_serial(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """WWID and HBA are made from them."""
    rig.register()
    taken = rig.journal.volumes["vol-1"].serial
    near = taken[:7] + ("1" if taken[7] == "0" else "0") + taken[8:]
    free = ("1" if taken[0] == "0" else "0") + taken[1:]
    made = iter([taken, near, free])
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(next(made)))
    rig.register("vol-2")
    assert rig.journal.volumes["vol-2"].serial == free


def test_a_reservation_that_is_sent_again_with_its_id_gives_the_attachment_as_it_stands(rig: Rig) -> None:
    rig.register()
    rig.reach(State.ATTACHED)
    assert rig.service.reserve_volume(AGENT, "vol-1", ID) == rig.service.show_attachment(AGENT, ID)


@pytest.mark.parametrize("call", [Call.TERMINATE, Call.FORCE])
def test_a_secret_is_forgotten_with_the_access(rig: Rig, call: Call) -> None:
    rig.register()
    rig.reach(State.DETACHING)
    CALLS[call](rig, ADMIN)
    (row,) = rig.journal.attachments.all()
    assert row.secret is None


def test_attach_keeps_the_mount_point_and_each_move_its_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.register()
    clock = iter(range(1000, 2000))
    monkeypatch.setattr("volattachd.service.attachments.now", lambda: float(next(clock)))
    times = []
    for method, more in (
        ("reserve_volume", {}),
        ("initialize_connection", {"connector": connector()}),
        ("attach", {"host_name": "h", "mount_point": "/dev/vdb"}),
        ("begin_detaching", {}),
        ("terminate_connection", {"connector": connector()}),
    ):
        getattr(rig.service, method)(AGENT, "vol-1", attachment_id=ID, **more)
        times.append(rig.service.show_attachment(AGENT, ID)["updated_at"])
    assert times == sorted(set(times))
    assert rig.service.show_attachment(AGENT, ID)["mount_point"] == "/dev/vdb"


def test_a_reservation_that_was_connected_meanwhile_does_not_expire(rig: Rig) -> None:
    rig.register()
    rig.service.reserve_volume(AGENT, "vol-1", ID, ttl=1e-9)
    rig.service.initialize_connection(AGENT, "vol-1", connector(), ID)
    rig.service.expire_reservations()
    rig.service.reservations._expire(ID)
    rig.service.reservations._expire(attachment_id(9))
    assert rig.state() is State.CONNECTED


def test_an_expired_reservation_leaves_its_volume_free_for_the_next_call(rig: Rig) -> None:
    ran: list[bool] = []
    rig.register()
    rig.service.reserve_volume(AGENT, "vol-1", ID, ttl=1e-9)
    rig.service.expire_reservations()
    assert rig.service.reservations._deadlines.over() == []
    rig.service.core.exclusive.try_run("vol-1", lambda: ran.append(True))
    assert ran == [True]


def test_a_transition_is_noted_with_its_caller(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.register()
    moves: list[Any] = []
    caller = Caller(1000, 2, call_id=7)

    def note(found: Caller, call: str, before: Any, after: Any) -> None:
        assert found is caller
        moves.append((before, after))

    monkeypatch.setattr(rig.service.audit, "note_transition", note)
    rig.service.reserve_volume(caller, "vol-1", ID)
    rig.service.unreserve_volume(caller, "vol-1", ID)
    assert [(before and before.state, after and after.state) for before, after in moves] == [
        (None, State.RESERVED),
        (State.RESERVED, None),
    ]


def test_only_what_waits_is_pending(rig: Rig) -> None:
    rig.register()
    rig.service.core.conditions.set("vol-1", "DeviceMissing", "it is away")
    assert rig.service.get_status(ADMIN)["pending"] == []


def test_a_daemon_is_not_ready_before_its_start_is_over(rig: Rig) -> None:
    assert Service(rig.config, rig.journal, rig.driver).get_status(ADMIN)["ready"] is False


@pytest.mark.parametrize("address", ["192.0.2.7", None])
def test_a_session_that_is_in_the_way_is_told_with_its_address(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    rig.register()
    rig.reach(State.DETACHING)
    monkeypatch.setattr(rig.driver, "find_session", lambda *about: Session(HOST_A, address))
    with pytest.raises(SessionActive) as caught:
        CALLS[Call.TERMINATE](rig, AGENT)
    assert caught.value.message.endswith("logged in" + (f" from {address}" if address else ""))


# Provisioners.

PROVISIONER = Caller(uid=2000, pid=4, role="provisioner")


def test_a_provisioner_reserves_for_a_user_of_the_host_by_name_or_uid(rig: Rig) -> None:
    rig.register(multiattach=True)
    for owner in ("daemon", 1, "1"):
        assert rig.service.reserve_volume(PROVISIONER, "vol-1", owner=owner)["owner"] == 1
    assert rig.service.reserve_volume(AGENT, "vol-1", owner=AGENT.uid)["owner"] == AGENT.uid
    assert rig.service.reserve_volume(ADMIN, "vol-1", owner=1)["owner"] == 1
    with unchanged(rig), pytest.raises(PermissionDenied, match="may reserve for itself alone"):
        rig.service.reserve_volume(AGENT, "vol-1", owner=1)


def test_a_reservation_that_is_sent_again_is_for_the_same_owner_or_refused(rig: Rig) -> None:
    rig.register()
    first = rig.service.reserve_volume(PROVISIONER, "vol-1", ID, owner=1)
    with unchanged(rig):
        assert rig.service.reserve_volume(PROVISIONER, "vol-1", ID, owner=1) == first
        assert rig.service.reserve_volume(PROVISIONER, "vol-1", ID) == first
        with pytest.raises(InvalidInput, match="belongs to uid 1"):
            rig.service.reserve_volume(PROVISIONER, "vol-1", ID, owner=0)


def test_a_provisioner_has_no_hand_in_what_others_reserved(rig: Rig) -> None:
    rig.register(multiattach=True)
    rig.service.reserve_volume(ADMIN, "vol-1", ID, owner=1)
    other = replace(PROVISIONER, uid=2001)
    rig.service.reserve_volume(other, "vol-1", attachment_id(2), owner=1)
    rig.reach(State.RESERVED, number=3)
    for number in (1, 2, 3):
        with unchanged(rig), pytest.raises(PermissionDenied):
            rig.service.initialize_connection(PROVISIONER, "vol-1", connector(), attachment_id(number))
    rig.service.unreserve_volume(other, "vol-1")
    assert rig.state(2) is State.GONE


def test_who_is_no_provisioner_any_more_has_no_hand_in_what_it_reserved_for_others(rig: Rig) -> None:
    rig.register()
    rig.service.reserve_volume(PROVISIONER, "vol-1", ID, owner=1)
    with unchanged(rig), pytest.raises(PermissionDenied):
        rig.service.unreserve_volume(replace(PROVISIONER, role="agent"), "vol-1", ID)


def test_when_the_history_of_its_beginning_is_trimmed_the_owner_and_admins_remain(rig: Rig) -> None:
    rig.register()
    rig.service.reserve_volume(PROVISIONER, "vol-1", ID, owner=1)
    rig.service.initialize_connection(PROVISIONER, "vol-1", connector(), ID)
    rig.journal.trim(1000, 1, 100)
    with unchanged(rig), pytest.raises(PermissionDenied):
        rig.service.attach(PROVISIONER, "vol-1", host_name="h", attachment_id=ID)
    rig.service.attach(Caller(1, 5), "vol-1", host_name="h", attachment_id=ID)
