"""What every target driver must do, as one suite: ``from tests.drivers.contract import *`` and a fixture ``case``.

A case knows one kind of target and plays its initiators; it says nothing about how the driver does its work.
The suite knows the contract of volattachd/drivers/base.py and no target.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import pytest

from volattachd.drivers.base import Step, TargetDriver
from volattachd.model import Export, Grant, Mode, Secret, Volume

IQN_PREFIX = "iqn.2026-11.org.volattachd.test"

HOST_A = "iqn.2026-11.org.example:host-a"
HOST_B = "iqn.2026-11.org.example:host-b"

#: Breaks one thing of a complete export with this grant, as a crash or a foreign hand might leave it.
Breakage = Callable[[Volume, Grant], None]


class DriverCase(Protocol):
    """One kind of target, with initiators that can reach it. Everything it makes goes when its fixture ends."""

    driver: TargetDriver
    #: By what is broken; empty where the case cannot reach into the target.
    breakages: Mapping[str, Breakage]

    def new_volume(self, read_only: bool = False) -> Volume:
        """A volume over a real backing store that holds zeros, under IQN_PREFIX."""

    def login(self, volume: Volume, grant: Grant) -> bool:
        """Log in with the grant's name and secret and keep the session; False where the target refuses."""

    def logout(self, volume: Volume, grant: Grant) -> None:
        """End the session that login made."""

    def write(self, volume: Volume, grant: Grant, pattern: int) -> bool:
        """Write the first 4 KiB through the live session; False where it fails. Bounded in time."""

    def read(self, volume: Volume, grant: Grant, pattern: int) -> bool:
        """Whether the first 4 KiB, read through the live session, are ``pattern``."""

    def stored(self, volume: Volume, pattern: int) -> bool:
        """Whether the first 4 KiB of the backing store itself are ``pattern``."""

    def identity(self, volume: Volume, grant: Grant) -> tuple[str, str]:
        """Unit serial and WWID as an initiator reads them (it logs in for this, and out again)."""

    def restart(self) -> TargetDriver:
        """Another driver over the same target, started, as after a restart of the daemon. Becomes ``driver``."""

    def make_foreign(self) -> str:
        """Make a target that is not ours, and give its name."""

    def describe_foreign(self, name: str) -> str:
        """The foreign target's whole configuration, to be compared."""


def new_grant(initiator: str = HOST_A, mode: Mode = Mode.RW) -> Grant:
    """A grant with a secret that nothing else has."""
    return Grant(initiator, mode, Secret(f"user-{uuid.uuid4()}", uuid.uuid4().hex))


def run(steps: list[Step]) -> None:
    """Run a whole plan."""
    for step in steps:
        step.run()


def converge(case: DriverCase, volume: Volume, *grants: Grant, exported: bool = True) -> None:
    """Make the target hold exactly this, and check that it says so."""
    want = Export(volume, exported, grants)
    run(case.driver.plan(want))
    left = case.driver.plan(want)
    assert not left, f"a plan that was run leaves {[str(step) for step in left]}"


def initiators(case: DriverCase, volume: Volume) -> list[str]:
    """Who is logged in."""
    return sorted(session.initiator for session in case.driver.list_sessions(volume.target_name))


def check_each_prefix(case: DriverCase, before: tuple[Grant, ...] | None, want: Export) -> None:
    """Stop the plan from ``before`` to ``want`` after each of its steps: planning again goes the rest of the way."""
    volume, stop = want.volume, 0
    while True:
        converge(case, volume, *(before or ()), exported=before is not None)
        steps = case.driver.plan(want)
        run(steps[:stop])
        run(case.restart().plan(want))
        left = case.driver.plan(want)
        assert not left, f"stopped after {steps[:stop]}: {left} is left"
        if stop == len(steps):
            return
        stop += 1


def test_plan_of_a_new_export_creates_it_and_the_next_plan_is_empty(case: DriverCase) -> None:
    volume = case.new_volume()
    assert case.driver.plan(Export(volume, True))
    converge(case, volume)
    assert volume.target_name in case.driver.list_exports()


def test_plan_writes_nothing(case: DriverCase) -> None:
    volume = case.new_volume()
    case.driver.plan(Export(volume, True, (new_grant(),)))
    assert volume.target_name not in case.driver.list_exports()
    assert not case.driver.holds_device(volume)


def test_removal_leaves_nothing_and_the_next_plan_is_empty(case: DriverCase) -> None:
    volume = case.new_volume()
    converge(case, volume, new_grant())
    assert case.driver.holds_device(volume)
    converge(case, volume, exported=False)
    assert volume.target_name not in case.driver.list_exports()
    assert not case.driver.holds_device(volume)


def test_creation_stopped_after_any_step_is_completed_by_the_next_plan(case: DriverCase) -> None:
    volume = case.new_volume()
    grants = (new_grant(HOST_A), new_grant(HOST_B))
    check_each_prefix(case, None, Export(volume, True, grants))
    for grant in grants:
        assert case.login(volume, grant)


def test_removal_stopped_after_any_step_is_completed_by_the_next_plan(case: DriverCase) -> None:
    volume = case.new_volume()
    grants = (new_grant(HOST_A), new_grant(HOST_B))
    check_each_prefix(case, grants, Export(volume, False))
    assert volume.target_name not in case.driver.list_exports()


def test_creation_stopped_after_any_step_is_removed_by_a_plan_that_wants_nothing(case: DriverCase) -> None:
    volume = case.new_volume()
    want = Export(volume, True, (new_grant(),))
    for stop in range(len(case.driver.plan(want)) + 1):
        run(case.driver.plan(want)[:stop])
        run(case.restart().plan(Export(volume, False)))
        assert volume.target_name not in case.driver.list_exports(), f"after {stop} steps"
        assert not case.driver.holds_device(volume), f"after {stop} steps"


def test_revocation_stopped_after_any_step_is_completed_by_the_next_plan(case: DriverCase) -> None:
    volume = case.new_volume()
    kept, leaving = new_grant(HOST_B), new_grant(HOST_A)
    check_each_prefix(case, (leaving, kept), Export(volume, True, (kept,)))
    assert not case.login(volume, leaving)
    assert case.login(volume, kept)


def test_a_revocation_is_a_part_of_the_plan_and_enough_to_end_access(case: DriverCase) -> None:
    volume, kept, leaving = case.new_volume(), new_grant(HOST_B), new_grant(HOST_A)
    converge(case, volume, kept, leaving)
    assert case.login(volume, kept)
    assert case.login(volume, leaving)
    want = Export(volume, True, (kept,))
    steps, whole = case.driver.plan_revocation(want), iter([str(step) for step in case.driver.plan(want)])
    assert all(str(step) in whole for step in steps)  # in this order
    run(steps)
    assert initiators(case, volume) == [HOST_B]
    assert not case.login(volume, leaving)
    assert case.write(volume, kept, 0x66)
    assert case.driver.plan_revocation(want) == []


def test_a_revocation_of_everything_leaves_no_export(case: DriverCase) -> None:
    volume, grant = case.new_volume(), new_grant()
    assert case.driver.plan_revocation(Export(volume, False)) == []
    converge(case, volume, grant)
    run(case.driver.plan_revocation(Export(volume, False)))
    assert volume.target_name not in case.driver.list_exports()
    assert not case.driver.holds_device(volume)


def test_changed_secret_stopped_after_any_step_is_completed_by_the_next_plan(case: DriverCase) -> None:
    volume = case.new_volume()
    other, old, new = new_grant(HOST_B), new_grant(HOST_A), new_grant(HOST_A)
    check_each_prefix(case, (old, other), Export(volume, True, (new, other)))
    assert not case.login(volume, old)
    assert case.login(volume, new)


def test_a_plan_that_is_not_run_to_its_end_opens_access_to_nobody(case: DriverCase) -> None:
    volume, grant = case.new_volume(), new_grant()
    want = Export(volume, True, (grant,))
    for stop in range(len(case.driver.plan(want))):
        run(case.driver.plan(want)[:stop])
        assert not case.login(volume, grant), f"after {stop} steps"
        assert not case.login(volume, replace(grant, secret=Secret("", ""))), f"after {stop} steps"
        converge(case, volume, exported=False)


def test_a_grant_that_is_added_opens_access_with_its_last_step(case: DriverCase) -> None:
    volume, present, added = case.new_volume(), new_grant(HOST_A), new_grant(HOST_B)
    want = Export(volume, True, (present, added))
    converge(case, volume, present)
    for stop in range(len(case.driver.plan(want))):
        run(case.driver.plan(want)[:stop])
        assert not case.login(volume, added), f"after {stop} steps"
        assert not case.login(volume, replace(added, secret=Secret("", ""))), f"after {stop} steps"
        converge(case, volume, present)


def test_login_with_the_right_secret_reads_and_writes(case: DriverCase) -> None:
    volume, grant = case.new_volume(), new_grant()
    converge(case, volume, grant)
    assert case.login(volume, grant)
    assert case.write(volume, grant, 0xA5)
    assert case.read(volume, grant, 0xA5)
    assert case.stored(volume, 0xA5)


def test_login_with_a_wrong_secret_is_refused(case: DriverCase) -> None:
    volume, grant = case.new_volume(), new_grant()
    converge(case, volume, grant)
    wrong = Secret(grant.secret.username, "not-the-password")
    assert not case.login(volume, replace(grant, secret=wrong))


def test_login_without_a_secret_is_refused(case: DriverCase) -> None:
    volume, grant = case.new_volume(), new_grant()
    converge(case, volume, grant)
    assert not case.login(volume, replace(grant, secret=Secret("", "")))


def test_login_of_an_unlisted_initiator_is_refused_even_with_a_right_secret(case: DriverCase) -> None:
    volume, grant = case.new_volume(), new_grant(HOST_A)
    converge(case, volume, grant)
    assert not case.login(volume, replace(grant, initiator=HOST_B))


def test_login_with_another_volumes_secret_is_refused(case: DriverCase) -> None:
    mine, others = case.new_volume(), case.new_volume()
    grant, other = new_grant(), new_grant()
    converge(case, mine, grant)
    converge(case, others, other)
    assert not case.login(mine, other)
    assert not case.login(others, grant)


def test_an_export_without_grants_lets_nobody_in(case: DriverCase) -> None:
    volume = case.new_volume()
    converge(case, volume)
    assert not case.login(volume, replace(new_grant(), secret=Secret("", "")))
    assert not case.login(volume, new_grant())


def test_a_grant_that_is_added_leaves_the_others_session_alone(case: DriverCase) -> None:
    volume, first, second = case.new_volume(), new_grant(HOST_A), new_grant(HOST_B)
    converge(case, volume, first)
    assert case.login(volume, first)
    converge(case, volume, first, second)
    assert initiators(case, volume) == [HOST_A]
    assert case.write(volume, first, 0x11)
    assert case.login(volume, second)
    assert case.read(volume, second, 0x11)


@pytest.mark.parametrize("gone", [0, 1])
def test_one_of_two_initiators_is_removed_and_the_others_session_goes_on(case: DriverCase, gone: int) -> None:
    volume, grants = case.new_volume(), [new_grant(HOST_A), new_grant(HOST_B)]
    converge(case, volume, *grants)
    assert all(case.login(volume, grant) for grant in grants)
    leaving = grants.pop(gone)
    converge(case, volume, *grants)
    assert initiators(case, volume) == [grants[0].initiator]
    assert case.write(volume, grants[0], 0x22)
    assert not case.write(volume, leaving, 0x33)
    assert case.stored(volume, 0x22)
    case.logout(volume, grants[0])
    assert case.login(volume, grants[0])
    assert not case.login(volume, leaving)


def test_removing_a_grant_ends_its_session_and_its_secret(case: DriverCase) -> None:
    volume, grant = case.new_volume(), new_grant()
    converge(case, volume, grant)
    assert case.login(volume, grant)
    assert case.write(volume, grant, 0x44)
    assert initiators(case, volume) == [grant.initiator]
    converge(case, volume)
    assert not initiators(case, volume)
    assert not case.write(volume, grant, 0x55)
    assert case.stored(volume, 0x44)
    assert not case.login(volume, grant)


def test_removing_an_export_ends_its_sessions(case: DriverCase) -> None:
    volume, grant = case.new_volume(), new_grant()
    converge(case, volume, grant)
    assert case.login(volume, grant)
    converge(case, volume, exported=False)
    assert not initiators(case, volume)
    assert not case.login(volume, grant)


def test_a_changed_secret_ends_the_session_and_the_old_secret(case: DriverCase) -> None:
    volume, old = case.new_volume(), new_grant()
    new = replace(old, secret=Secret(f"user-{uuid.uuid4()}", uuid.uuid4().hex))
    converge(case, volume, old)
    assert case.login(volume, old)
    converge(case, volume, new)
    assert not initiators(case, volume)
    assert not case.login(volume, old)
    assert case.login(volume, new)


def test_a_changed_password_under_the_same_user_name_replaces_the_old_one(case: DriverCase) -> None:
    volume, old = case.new_volume(), new_grant(HOST_A)
    new = replace(old, secret=Secret(old.secret.username, uuid.uuid4().hex))
    other = new_grant(HOST_B)
    converge(case, volume, old, other)
    converge(case, volume, new, other)
    assert not case.login(volume, old)
    assert case.login(volume, new)


def test_a_changed_mode_takes_effect(case: DriverCase) -> None:
    if not case.driver.capabilities.per_grant_mode:
        pytest.skip("this target has one mode for all initiators")
    volume, grant = case.new_volume(), new_grant(mode=Mode.RO)
    converge(case, volume, grant)
    assert case.login(volume, grant)
    assert not case.write(volume, grant, 0x66)
    case.logout(volume, grant)
    converge(case, volume, replace(grant, mode=Mode.RW))
    assert case.login(volume, grant)
    assert case.write(volume, grant, 0x66)
    converge(case, volume, grant)
    assert case.login(volume, grant)
    assert not case.write(volume, grant, 0x77)
    assert case.stored(volume, 0x66)


def test_a_read_only_volume_refuses_writes(case: DriverCase) -> None:
    volume, grant = case.new_volume(read_only=True), new_grant(mode=Mode.RO)
    converge(case, volume, grant)
    assert case.login(volume, grant)
    assert case.read(volume, grant, 0)
    assert not case.write(volume, grant, 0x88)
    assert case.stored(volume, 0)


def test_a_restart_plans_nothing_and_a_live_session_goes_on(case: DriverCase) -> None:
    volume, grant = case.new_volume(), new_grant()
    converge(case, volume, grant)
    assert case.login(volume, grant)
    assert case.write(volume, grant, 0x99)
    assert case.restart().plan(Export(volume, True, (grant,))) == []
    assert initiators(case, volume) == [grant.initiator]
    assert case.read(volume, grant, 0x99)
    assert case.write(volume, grant, 0x9A)


def test_the_identity_is_the_volumes_own_and_survives_removal(case: DriverCase) -> None:
    volume, other, grant, second = case.new_volume(), case.new_volume(), new_grant(), new_grant()
    converge(case, volume, grant)
    converge(case, other, second)
    serial, wwid = case.identity(volume, grant)
    assert serial == volume.serial
    assert wwid == "6001405" + volume.serial.replace("-", "")[:25]
    assert case.identity(other, second) != (serial, wwid)
    converge(case, volume, exported=False)
    converge(case, volume, grant)
    assert case.identity(volume, grant) == (serial, wwid)


def test_a_foreign_target_is_neither_listed_nor_touched(case: DriverCase) -> None:
    foreign = case.make_foreign()
    before = case.describe_foreign(foreign)
    volume, grant = case.new_volume(), new_grant()
    converge(case, volume, grant)
    case.restart()
    assert foreign not in case.driver.list_exports()
    converge(case, volume, exported=False)
    assert case.describe_foreign(foreign) == before


def test_list_exports_shows_complete_and_half_made_ones(case: DriverCase) -> None:
    complete, half, none = case.new_volume(), case.new_volume(), case.new_volume()
    converge(case, complete, new_grant())
    steps = case.driver.plan(Export(half, True, (new_grant(),)))
    while half.target_name not in case.driver.list_exports():
        steps.pop(0).run()
    assert steps, "the target is complete before it is listed"
    case.driver.plan(Export(none, True))
    assert sorted(case.driver.list_exports()) == sorted([complete.target_name, half.target_name])


def test_list_sessions_tells_who_is_logged_in(case: DriverCase) -> None:
    volume, first, second = case.new_volume(), new_grant(HOST_A), new_grant(HOST_B)
    assert case.driver.list_sessions(volume.target_name) == []
    converge(case, volume, first, second)
    assert initiators(case, volume) == []
    assert case.login(volume, first)
    assert case.login(volume, second)
    assert initiators(case, volume) == [HOST_A, HOST_B]
    case.logout(volume, first)
    assert initiators(case, volume) == [HOST_B]
    assert case.driver.find_session(volume.target_name, HOST_A) is None
    found = case.driver.find_session(volume.target_name, HOST_B)
    assert found is not None
    assert found.initiator == HOST_B


def test_an_orphan_is_removed_by_its_name_alone(case: DriverCase) -> None:
    volume, grant = case.new_volume(), new_grant()
    converge(case, volume, grant)
    assert case.login(volume, grant)
    run(case.restart().plan_removal(volume.target_name))
    assert volume.target_name not in case.driver.list_exports()
    assert not case.driver.holds_device(volume)
    assert case.driver.plan_removal(volume.target_name) == []


def test_no_step_names_a_secret(case: DriverCase) -> None:
    volume, grant, changed = case.new_volume(), new_grant(), new_grant()
    creation = case.driver.plan(Export(volume, True, (grant,)))
    run(creation)
    change = case.driver.plan(Export(volume, True, (changed,)))
    removal = case.driver.plan(Export(volume, False))
    said = " ".join(f"{step} {step!r}" for step in [*creation, *change, *removal])
    for password in (grant.secret.password, changed.secret.password):
        assert password not in said


def test_whatever_is_broken_is_mended_by_planning_again(case: DriverCase) -> None:
    for what, break_it in case.breakages.items():
        volume, grant = case.new_volume(), new_grant()
        converge(case, volume, grant)
        break_it(volume, grant)
        assert case.driver.plan(Export(volume, True, (grant,))), f"nobody sees: {what}"
        converge(case, volume, grant)
        assert case.login(volume, grant), what
        case.logout(volume, grant)
        converge(case, volume, exported=False)


def test_whatever_is_broken_can_be_removed(case: DriverCase) -> None:
    for what, break_it in case.breakages.items():
        volume, grant = case.new_volume(), new_grant()
        converge(case, volume, grant)
        break_it(volume, grant)
        converge(case, volume, exported=False)
        assert volume.target_name not in case.driver.list_exports(), what
