"""A device that has grown: the journal first, then the target, and nobody is told a size that initiators cannot see."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import ADMIN, MIB, Rig
from volattachd.drivers.base import Capabilities
from volattachd.errors import DriverError
from volattachd.model import State


@pytest.fixture
def rig(quick_path: Path) -> Rig:
    made = Rig(quick_path)
    made.register()
    return made


def grow(rig: Rig, size: int) -> None:
    os.truncate(rig.directory / "vol-1.img", size)


def size(rig: Rig) -> int:
    shown: int = rig.service.show_volume(ADMIN, "vol-1")["size"]
    return shown


@pytest.mark.parametrize("state", list(State))
def test_a_device_that_has_grown_is_taken_over_by_the_pass(rig: Rig, state: State) -> None:
    rig.reach(state)
    sequence = rig.journal.seq
    grow(rig, 3 * MIB)
    rig.service.upkeep.make_round()
    assert size(rig) == 3 * MIB
    (line,) = rig.service.get_history(ADMIN, since=sequence)
    assert (line["call"], line["volume"], line["uid"]) == ("grow_volume", "vol-1", 0)
    assert (line["before"]["size"], line["after"]["size"]) == (MIB, 3 * MIB)
    rig.service.upkeep.make_round()
    assert rig.journal.seq == sequence + 1, "it is told once"


def test_the_new_size_outlives_the_daemon(rig: Rig) -> None:
    grow(rig, 2 * MIB)
    rig.service.upkeep.make_round()
    rig.restart()
    assert size(rig) == 2 * MIB


def test_a_device_that_has_shrunk_keeps_its_size_and_says_so(rig: Rig) -> None:
    grow(rig, MIB // 2)
    rig.service.upkeep.make_round()
    assert (size(rig), rig.conditions()) == (MIB, ["DeviceChanged"])


def test_a_device_that_was_cut_and_has_grown_again_keeps_its_condition_until_it_is_registered_anew(rig: Rig) -> None:
    path = rig.directory / "vol-1.img"
    grow(rig, MIB // 2)
    rig.service.upkeep.make_round()
    for size_now in (MIB, 3 * MIB):
        grow(rig, size_now)
        rig.restart()
        for _ in range(2):
            rig.service.upkeep.make_round()
            assert (size(rig), rig.conditions()) == (MIB, ["DeviceChanged"])
    history = rig.service.get_history(ADMIN)
    assert [line["call"] for line in (history["rows"] if isinstance(history, dict) else history)][-1] == "cut_volume"
    rig.service.unregister_volume(ADMIN, "vol-1")
    rig.service.register_volume(ADMIN, "vol-1", str(path))
    rig.service.upkeep.make_round()
    assert (size(rig), rig.conditions()) == (3 * MIB, [])


def test_a_cut_that_a_call_sees_first_is_kept_as_well(rig: Rig) -> None:
    rig.reach(State.RESERVED)
    grow(rig, MIB // 2)
    with pytest.raises(DriverError, match="has shrunk"):
        rig.reach(State.CONNECTED)
    grow(rig, MIB)
    rig.service.upkeep.make_round()
    assert rig.conditions() == ["DeviceChanged"]


def test_another_device_that_is_larger_is_no_growth(rig: Rig) -> None:
    path = rig.directory / "vol-1.img"
    path.rename(rig.directory / "away.img")
    path.write_bytes(bytes(2 * MIB))
    rig.service.upkeep.make_round()
    assert (size(rig), rig.conditions()) == (MIB, ["DeviceChanged"])


def test_a_target_that_cannot_grow_keeps_the_size_until_the_export_is_gone(rig: Rig) -> None:
    rig.driver.__class__ = type("Fixed", (type(rig.driver),), {"capabilities": Capabilities(True, True, False)})
    rig.reach(State.ATTACHED)
    grow(rig, 2 * MIB)
    rig.service.upkeep.make_round()
    assert size(rig) == MIB, "what initiators see"
    rig.reach(State.GONE, number=1)
    rig.service.upkeep.make_round()
    assert size(rig) == 2 * MIB


def test_a_dry_run_takes_nothing_over(rig: Rig) -> None:
    grow(rig, 2 * MIB)
    sequence = rig.journal.seq
    rig.service.reconcile(ADMIN, dry_run=True)
    assert (size(rig), rig.journal.seq) == (MIB, sequence)


# A driver that fails in a way of its own.


def break_down(*_: object) -> None:
    raise KeyError("what the driver's author did not think of")


@pytest.mark.parametrize("where", ["before_plan", "before_step", "before_list"])
def test_a_driver_that_breaks_down_stops_neither_the_pass_nor_the_other_volumes(rig: Rig, where: str) -> None:
    rig.reach(State.ATTACHED)
    rig.driver.exports.clear()
    setattr(rig.driver, where, break_down)
    if where == "before_list":
        with pytest.raises(DriverError, match="failed: KeyError"):
            rig.service.upkeep.make_round()
        return
    rig.service.upkeep.make_round()
    assert rig.conditions() == ["TargetError"]
    setattr(rig.driver, where, lambda *_: None)
    rig.service.reconcile(ADMIN)
    assert rig.conditions() == []
    assert rig.exported()


def test_a_call_tells_that_the_driver_broke_down(rig: Rig) -> None:
    rig.reach(State.RESERVED)
    rig.driver.before_step = break_down
    with pytest.raises(DriverError, match="the memory driver failed: KeyError"):
        rig.reach(State.CONNECTED)
    assert rig.state() is State.RESERVED
