from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import (
    ADMIN,
    AGENT,
    HOST_A,
    HOST_B,
    PATIENCE,
    Gate,
    Rig,
    attachment_id,
    connector,
    full_disk,
    in_thread,
    insist,
    make_file,
    new_volume,
    wait_until,
)
from volattachd.drivers.memory import SimulatedExport
from volattachd.errors import Busy, DriverError
from volattachd.model import Device, State
from volattachd.reconcile.reconciler import Conditions
from volattachd.state.journal import Change
from volattachd.telemetry.messages import CONDITION_OVER, CONDITIONS, PASS_FAILED, Told


def refuse(step: str) -> None:
    raise DriverError(f"cannot {step}: the kernel said no")


# Conditions.


def test_a_condition_keeps_the_time_at_which_it_began() -> None:
    conditions = Conditions()
    conditions.set("vol-1", "TargetError", "first")
    (first,) = conditions.of("vol-1")
    conditions.set("vol-1", "TargetError", "second")
    (second,) = conditions.of("vol-1")
    assert (second.message, second.since) == ("second", first.since)


def test_conditions_end_by_kind_or_all_together() -> None:
    conditions = Conditions()
    for kind in ("DeviceMissing", "TargetError", "Pending"):
        conditions.set("vol-1", kind, "why")
        conditions.set("vol-2", kind, "why")
    conditions.clear("vol-1", "Pending", "DeviceChanged")
    assert [c.kind for c in conditions.of("vol-1")] == ["DeviceMissing", "TargetError"]
    conditions.clear("vol-1")
    assert conditions.of("vol-1") == []
    assert list(conditions.all()) == ["vol-2"]
    conditions.clear("vol-3", "Pending")
    assert len(conditions.of("vol-2")) == 3


def told(log: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Which conditions have begun and ended, by the kind of the record and that of the condition."""
    messages = [record.msg for record in log.records if isinstance(record.msg, Told)]
    begun = {id(kind): "begins" for kind in CONDITIONS.values()}
    words = {**begun, id(CONDITION_OVER): "is over"}
    return [(words[id(m.kind)], m.members["condition"]) for m in messages if id(m.kind) in words]


def delete(rig: Rig) -> None:
    (rig.directory / "vol-1.img").unlink()


def exchange(rig: Rig) -> None:
    make_file(rig.directory / "new.img")
    os.rename(rig.directory / "new.img", rig.directory / "vol-1.img")


def cut(rig: Rig) -> None:
    os.truncate(rig.directory / "vol-1.img", 512)


def break_target(rig: Rig) -> None:
    rig.driver.exports.clear()
    rig.driver.before_step = refuse


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log, with what is over as well."""
    caplog.set_level(logging.INFO, "volattachd")
    return caplog


STANDING = [(delete, "DeviceMissing"), (exchange, "DeviceChanged"), (cut, "DeviceChanged")]


@pytest.mark.parametrize(
    ("state", "spoil", "kind"),
    [
        *((state, *row) for state in (State.GONE, State.RESERVED, State.ATTACHED) for row in STANDING),
        (State.ATTACHED, break_target, "TargetError"),
    ],
)
def test_a_condition_that_stands_is_told_once_and_keeps_its_time(
    rig: Rig, log: pytest.LogCaptureFixture, spoil: Callable[[Rig], None], kind: str, state: State
) -> None:
    rig.register(multiattach=True)
    if state is not State.GONE:
        rig.reach(state)
    spoil(rig)
    rig.service.reconcile(ADMIN)
    (first,) = rig.service.show_volume(ADMIN, "vol-1")["conditions"]
    for number in range(10, 15):
        rig.service.reconcile(ADMIN)
        rig.reach(State.RESERVED, number=number)
        rig.service.upkeep.make_round()
    assert rig.service.show_volume(ADMIN, "vol-1")["conditions"] == [first]
    assert first["kind"] == kind
    assert told(log) == [("begins", kind)]


def test_a_condition_that_is_over_is_told_once(rig: Rig, log: pytest.LogCaptureFixture) -> None:
    rig.register()
    rig.reach(State.ATTACHED)
    image = rig.directory / "vol-1.img"
    image.rename(rig.directory / "away.img")
    rig.service.reconcile(ADMIN)
    (rig.directory / "away.img").rename(image)
    for _ in range(3):
        rig.service.reconcile(ADMIN)
    assert told(log) == [("begins", "DeviceMissing"), ("is over", "DeviceMissing")]


def test_a_call_that_does_not_look_at_the_device_ends_no_condition_of_it(
    rig: Rig, log: pytest.LogCaptureFixture
) -> None:
    """The target holds the device, so a second attachment needs no look at it."""
    rig.register(multiattach=True)
    rig.reach(State.ATTACHED)
    delete(rig)
    rig.service.reconcile(ADMIN)
    rig.reach(State.GONE, number=2, initiator=HOST_B)
    assert rig.conditions() == ["DeviceMissing"]
    assert told(log) == [("begins", "DeviceMissing")]


def test_one_condition_takes_the_place_of_another_without_a_moment_of_neither(
    rig: Rig, log: pytest.LogCaptureFixture
) -> None:
    rig.register()
    delete(rig)
    rig.service.reconcile(ADMIN)
    make_file(rig.directory / "other.img")
    make_file(rig.directory / "vol-1.img")
    rig.service.reconcile(ADMIN)
    assert rig.conditions() == ["DeviceChanged"]
    assert told(log) == [
        ("begins", "DeviceMissing"),
        ("is over", "DeviceMissing"),
        ("begins", "DeviceChanged"),
    ]


# A start.


@pytest.mark.parametrize("state", [state for state in State if state is not State.GONE])
def test_a_start_over_a_healthy_target_writes_nothing_and_cuts_nobody_off(rig: Rig, state: State) -> None:
    rig.register()
    rig.reach(state)
    row = rig.journal.attachments.all()[0]
    name = rig.journal.volumes["vol-1"].target_name
    if rig.granted() and row.secret is not None:
        rig.driver.login(name, HOST_A, row.secret.username, row.secret.password)
    sessions = rig.driver.list_sessions(name)
    rig.restart()
    rig.service.upkeep.start_up()
    assert rig.driver.ran == []
    assert rig.driver.list_sessions(name) == sessions
    assert rig.service.get_status(ADMIN)["degraded"] == []


@pytest.mark.parametrize("state", [state for state in State if state is not State.GONE])
def test_a_start_over_an_empty_target_makes_what_the_journal_says(rig: Rig, state: State) -> None:
    """The host was rebooted."""
    rig.register()
    rig.reach(state)
    granted, exported = rig.granted(), rig.exported()
    rig.driver.exports.clear()
    rig.restart()
    rig.service.upkeep.start_up()
    assert (rig.granted(), rig.exported()) == (granted, exported)


def test_a_start_takes_away_what_the_journal_does_not_know(rig: Rig) -> None:
    rig.register()
    rig.driver.exports[f"{rig.driver.iqn_prefix}:orphan"] = SimulatedExport("/x", "x")
    rig.driver.exports["iqn.2001-04.com.example:foreign"] = SimulatedExport("/y", "y")
    rig.restart()
    rig.service.upkeep.start_up()
    assert list(rig.driver.exports) == ["iqn.2001-04.com.example:foreign"]


def test_one_volume_without_its_device_holds_up_no_other(rig: Rig) -> None:
    for number in range(10):
        rig.reach(State.ATTACHED, rig.register(f"vol-{number}"), number)
    (rig.directory / "vol-3.img").unlink()
    rig.driver.exports.clear()
    rig.restart()
    rig.service.upkeep.start_up()
    assert [name for name in rig.journal.volumes if not rig.exported(name)] == ["vol-3"]
    assert rig.conditions("vol-3") == ["DeviceMissing"]
    (told,) = rig.service.get_status(ADMIN)["degraded"]
    assert told.startswith("vol-3: DeviceMissing: cannot use ")
    assert rig.service.list_volumes(ADMIN)[4]["conditions"] == []


def test_a_volume_that_hangs_holds_up_neither_the_start_nor_the_others(quick_path: Path) -> None:
    rig = Rig(quick_path)
    for number in range(20):
        rig.reach(State.ATTACHED, rig.register(f"vol-{number}"), number)
    rig.driver.exports.clear()
    rig.journal.close()
    rig = Rig(quick_path, call_seconds=0.3)
    gate = rig.driver.before_step = Gate(":vol-3.")
    rig.service.upkeep.start_up()
    wait_until(lambda: [name for name in rig.journal.volumes if not rig.granted(name)] == ["vol-3"])
    assert "Pending" in rig.conditions("vol-3")
    assert "vol-3" in rig.service.get_status(ADMIN)["pending"]
    gate.open()
    wait_until(lambda: rig.granted("vol-3") and rig.conditions("vol-3") == [])
    rig.journal.close()


def test_an_orphan_that_hangs_holds_up_neither_the_start_nor_the_others(quick_path: Path) -> None:
    rig = Rig(quick_path, call_seconds=0.2)
    rig.driver.exports[f"{rig.driver.iqn_prefix}:orphan"] = SimulatedExport("/x", "x")
    gate = rig.driver.before_step = Gate(":orphan")
    ended = threading.Event()

    def start() -> None:
        rig.service.upkeep.start_up()
        ended.set()

    done = in_thread(start)
    assert gate.reached.wait(PATIENCE)
    try:
        assert ended.wait(3)
    finally:
        gate.open()
        done()
        rig.journal.close()


# A target that answers nothing.


@pytest.fixture
def stuck(quick_path: Path) -> Iterator[tuple[Rig, Gate]]:
    """Forty volumes, and a target at which every look waits until the gate is opened."""
    rig = Rig(quick_path, call_seconds=0.5)
    for number in range(40):
        rig.register(f"vol-{number}")
    rig.reach(State.ATTACHED, "vol-7", 7)
    gate = Gate()
    yield rig, gate
    gate.open()
    rig.journal.close()


def test_a_target_that_answers_nothing_does_not_hold_up_the_start(stuck: tuple[Rig, Gate]) -> None:
    rig, gate = stuck
    rig.driver.before_plan = rig.driver.before_list = gate
    in_thread(rig.service.upkeep.start_up)()
    assert rig.service.get_status(ADMIN)["pending"] == sorted(rig.journal.volumes)
    gate.open()
    rig.driver.before_plan = rig.driver.before_list = lambda: None
    wait_until(lambda: rig.service.reconcile(ADMIN)["volumes"] == [])
    wait_until(lambda: rig.service.reconcile(ADMIN) and rig.service.get_status(ADMIN)["pending"] == [])


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_reconcile_at_a_target_that_answers_nothing_names_what_waits(stuck: tuple[Rig, Gate], dry_run: bool) -> None:
    rig, gate = stuck
    rig.driver.before_plan = rig.driver.before_list = gate
    *lines, last = in_thread(lambda: rig.service.reconcile(ADMIN, dry_run))()["volumes"]
    assert [line["volume"] for line in lines] == list(rig.journal.volumes)
    assert all(line["error"].startswith("waits for") for line in lines)
    assert (last["volume"], last["target_name"]) == (None, f"{rig.driver.iqn_prefix}:*")
    assert last["error"].startswith("cannot list the targets now")


def test_a_target_that_cannot_be_listed_does_not_hold_up_the_start_and_is_told_once(
    rig: Rig, log: pytest.LogCaptureFixture
) -> None:
    rig.driver.before_list = lambda: refuse("list the targets")
    rig.service.upkeep.start_up()
    for _ in range(3):
        with pytest.raises(DriverError, match="cannot list the targets"):
            rig.service.upkeep.make_round()
    (line,) = rig.service.reconcile(ADMIN)["volumes"]
    assert "the kernel said no" in line["error"]
    assert sum(isinstance(r.msg, Told) and r.msg.kind is PASS_FAILED for r in log.records) == 1


def test_a_listing_that_hangs_is_not_begun_again_and_again(stuck: tuple[Rig, Gate]) -> None:
    rig, gate = stuck
    listings = []

    def hang() -> None:
        listings.append(threading.get_ident())
        gate()

    rig.driver.before_list = hang
    for _ in range(3):
        assert "cannot list" in rig.service.reconcile(ADMIN)["volumes"][-1]["error"]
    assert len(listings) == 1


def test_a_call_that_needs_no_target_does_not_wait_for_a_look_that_does(stuck: tuple[Rig, Gate]) -> None:
    rig, gate = stuck
    rig.driver.before_plan = gate
    looking = in_thread(lambda: rig.service.reconcile(ADMIN))
    assert gate.reached.wait(PATIENCE)
    for volume in ("vol-0", "vol-8"):
        number = int(volume[4:])
        rig.service.reserve_volume(AGENT, volume, attachment_id(number))
        assert rig.service.show_attachment(ADMIN, attachment_id(number))["state"] == "reserved"
        assert rig.service.unreserve_volume(AGENT, volume, attachment_id(number))["status"] == "available"
    assert rig.service.begin_detaching(AGENT, "vol-7", attachment_id(7))["state"] == "detaching"
    assert rig.service.roll_detaching(AGENT, "vol-7", attachment_id(7))["state"] == "attached"
    looking()


def test_a_call_that_needs_the_target_waits_for_the_look_until_its_deadline(stuck: tuple[Rig, Gate]) -> None:
    rig, gate = stuck
    rig.driver.before_plan = gate
    looking = in_thread(lambda: rig.service.reconcile(ADMIN))
    assert gate.reached.wait(PATIENCE)
    rig.service.reserve_volume(AGENT, "vol-0", attachment_id(1))
    with pytest.raises(Busy, match="cannot initialize_connection volume 'vol-0' now"):
        rig.service.initialize_connection(AGENT, "vol-0", connector(), attachment_id(1))
    looking()
    gate.open()
    info = insist(lambda: rig.service.initialize_connection(AGENT, "vol-0", connector(), attachment_id(1)))
    assert info["attachment_id"] == attachment_id(1)


# Passes.


def test_a_pass_leaves_a_volume_alone_that_a_call_is_working_on(rig: Rig) -> None:
    rig.register()
    rig.reach(State.RESERVED)
    gate = rig.driver.before_step = Gate()
    call = in_thread(lambda: rig.service.initialize_connection(AGENT, "vol-1", connector()))
    assert gate.reached.wait(PATIENCE)
    assert rig.service.reconcile(ADMIN)["volumes"] == []
    gate.open()
    call()
    assert rig.driver.ran.count(f"create target {rig.journal.volumes['vol-1'].target_name}") == 1


def test_what_cannot_be_mended_is_told_with_its_reason_and_tried_again(rig: Rig) -> None:
    rig.register()
    rig.reach(State.ATTACHED)
    rig.driver.exports.clear()
    rig.driver.before_step = refuse
    (line,) = rig.service.reconcile(ADMIN)["volumes"]
    assert line["steps"] == []
    assert "the kernel said no" in line["error"]
    assert rig.conditions() == ["TargetError"]
    rig.driver.before_step = lambda step: None
    (line,) = rig.service.reconcile(ADMIN)["volumes"]
    assert line["error"] is None
    assert len(line["steps"]) == 3
    assert rig.conditions() == []


def test_a_volume_that_failed_is_put_off_by_the_periodic_pass_and_not_by_an_admin(rig: Rig) -> None:
    rig.register()
    rig.reach(State.ATTACHED)
    rig.driver.exports.clear()
    tried: list[str] = []

    def fail(step: str) -> None:
        tried.append(step)
        refuse(step)

    rig.driver.before_step = fail
    upkeep = rig.service.upkeep
    for _ in range(8):  # each failure doubles the pause: 1, 2, 4 … seconds
        upkeep.reconcile(dry_run=False)
    assert len(tried) == 8
    upkeep.make_round()
    assert len(tried) == 8


def test_an_orphan_that_cannot_be_removed_is_told_and_tried_again(rig: Rig) -> None:
    rig.driver.exports[f"{rig.driver.iqn_prefix}:orphan"] = SimulatedExport("/x", "x")
    rig.driver.before_step = refuse
    (line,) = rig.service.reconcile(ADMIN)["volumes"]
    assert (line["volume"], line["target_name"]) == (None, f"{rig.driver.iqn_prefix}:orphan")
    assert "the kernel said no" in line["error"]
    rig.driver.before_step = lambda step: None
    rig.service.reconcile(ADMIN)
    assert rig.driver.exports == {}


@pytest.mark.parametrize("what", ["missing", "plan"])
def test_a_dry_run_tells_why_something_cannot_be_mended(rig: Rig, what: str) -> None:
    rig.register()
    rig.reach(State.ATTACHED)
    rig.driver.exports.clear()
    if what == "missing":
        (rig.directory / "vol-1.img").unlink()
    else:
        rig.driver.before_plan = lambda: refuse("read")
    (line,) = rig.service.reconcile(ADMIN, dry_run=True)["volumes"]
    assert line["error"]
    assert line["steps"] == []
    assert rig.conditions() == []


def test_the_periodic_pass_mends_by_itself_and_ends_reservations(quick_path: Path) -> None:
    rig = Rig(quick_path, interval=0.01)
    rig.register(multiattach=True)
    rig.reach(State.ATTACHED)
    rig.service.reserve_volume(AGENT, "vol-1", attachment_id(2), ttl=1e-9)
    rig.driver.exports.clear()
    running = in_thread(rig.service.upkeep.run)
    wait_until(lambda: rig.granted() == {HOST_A} and rig.state(2) is State.GONE)
    rig.service.upkeep.stop()
    running()
    rig.journal.close()


def test_a_long_round_rests_nine_times_as_long_as_it_works_and_looks_at_news_meanwhile(quick_path: Path) -> None:
    rig = Rig(quick_path, interval=0.01)
    disk = replace(new_volume("disk"), path="/dev/disk-of-the-test", device=Device("block", 1 << 20, {}, True))
    rig.journal.commit(Change("register_volume", ADMIN, disk.id, put=disk))
    for number in range(30):
        rig.register(f"vol-{number}")
    looked_by: list[int] = []

    def look_slowly() -> None:
        looked_by.append(threading.get_ident())
        time.sleep(0.01)

    def has_looked_at_news() -> bool:
        rig.service.upkeep.note_device({disk.path}, 0)
        return len(set(looked_by)) > 1  # the round's own worker sleeps

    rig.driver.before_plan = look_slowly
    began = time.monotonic()
    running = in_thread(rig.service.upkeep.run)
    wait_until(has_looked_at_news)
    assert rig.service.upkeep.passes == 0, "the round is not over"
    wait_until(lambda: rig.service.upkeep.passes == 1)
    assert time.monotonic() - began > 9 * 0.1, "it has rested after a slice of work, at least once to the end"
    rig.service.upkeep.stop()
    running()
    rig.journal.close()


def test_the_periodic_pass_survives_a_target_that_cannot_be_read(quick_path: Path) -> None:
    rig = Rig(quick_path, interval=0.01)
    rig.register()
    rig.reach(State.ATTACHED)
    rig.driver.before_list = lambda: refuse("list the targets")
    running = in_thread(rig.service.upkeep.run)
    failed = threading.Event()

    def refuse_and_tell() -> None:
        failed.set()
        refuse("list the targets")

    rig.driver.before_list = refuse_and_tell
    assert failed.wait(PATIENCE)
    rig.driver.before_list = lambda: None
    rig.driver.exports.clear()
    try:
        wait_until(lambda: rig.granted() == {HOST_A})
    finally:
        rig.service.upkeep.stop()
        running()
        rig.journal.close()


def test_the_periodic_pass_ends_with_the_journal(quick_path: Path) -> None:
    rig = Rig(quick_path, interval=0.01)
    rig.register()
    rig.service.reserve_volume(AGENT, "vol-1", ttl=1e-9)
    with full_disk():
        in_thread(rig.service.upkeep.run)()
    rig.journal.close()


def test_passes_and_calls_side_by_side_never_make_two_of_anything(quick_path: Path) -> None:
    rig = Rig(quick_path, interval=0.001)
    names = [rig.register(f"vol-{n}") for n in range(4)]
    running = in_thread(rig.service.upkeep.run)

    def live(number: int) -> None:
        for again in range(5):
            rig.reach(State.GONE, names[number], number * 5 + again)

    for life in [in_thread(lambda n=n: live(n)) for n in range(4)]:  # type: ignore[misc]
        life()
    rig.service.upkeep.stop()
    running()
    assert rig.driver.exports == {}
    assert insist(lambda: rig.service.get_status(ADMIN))["degraded"] == []
    rig.journal.close()
