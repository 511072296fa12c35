from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import pytest

from tests.support import (
    HOST_A,
    HOST_B,
    FailOnce,
    ObedientDriver,
    connector,
    new_attachment,
    new_volume,
)
from volattachd.drivers.base import Difference, Step
from volattachd.drivers.memory import SimulatedExport
from volattachd.errors import DriverError
from volattachd.model import Attachment, Condition, Export, Grant, Mode, Secret, State, Volume
from volattachd.reconcile.applier import Converger, DeviceUnusable, export_of

VOLUME = new_volume()
LIVE = [state for state in State if state is not State.GONE]


def nothing_wrong(volume: Volume) -> Condition | None:
    return None


def missing(volume: Volume) -> Condition | None:
    return Condition("DeviceMissing", f"cannot use {volume.path}", 1.0)


def grants(*hosts: str) -> tuple[Grant, ...]:
    return tuple(Grant(host, Mode.RW, Secret(host, "password")) for host in hosts)


def words(steps: Iterable[object]) -> list[str]:
    """What was done, as people read it."""
    return [str(step) for step in steps]


def attachment(number: int, state: State, host: str = HOST_A, mode: Mode = Mode.RW) -> Attachment:
    if state in (State.RESERVED, State.GONE):
        return new_attachment(number, state=state, mode=mode)
    secret = None if state is State.DISCONNECTED else Secret(host, "password")
    return new_attachment(number, state=state, connector=connector(host), secret=secret, mode=mode)


@pytest.mark.parametrize("states", [(), *product(State), *product(State, repeat=2), *product(State, repeat=3)])
def test_what_should_be_follows_from_the_states_alone(states: tuple[State, ...]) -> None:
    rows = [attachment(n, state, f"iqn.2026-11.org.example:h{n}") for n, state in enumerate(states)]
    want = export_of(VOLUME, rows)
    granted = [n for n, state in enumerate(states) if state.value in ("connected", "attached", "detaching")]
    assert [grant.initiator for grant in want.grants] == [f"iqn.2026-11.org.example:h{n}" for n in granted]
    assert want.exported is bool(granted or State.DISCONNECTED in states)


def test_attachments_of_one_host_are_one_grant() -> None:
    rows = [attachment(n, state) for n, state in enumerate((State.ATTACHED, State.CONNECTED, State.DETACHING))]
    assert export_of(VOLUME, rows).grants == grants(HOST_A)


@pytest.mark.parametrize("mode", Mode)
def test_a_grant_has_the_mode_and_the_secret_of_its_attachment(mode: Mode) -> None:
    (grant,) = export_of(VOLUME, [attachment(1, State.ATTACHED, HOST_B, mode)]).grants
    assert grant == Grant(HOST_B, mode, Secret(HOST_B, "password"))


WANTS = [
    Export(VOLUME, False),
    Export(VOLUME, True),
    Export(VOLUME, True, grants(HOST_A)),
    Export(VOLUME, True, grants(HOST_B)),
    Export(VOLUME, True, grants(HOST_A, HOST_B)),
]


@pytest.mark.parametrize("before", WANTS)
@pytest.mark.parametrize("after", WANTS)
def test_the_target_becomes_what_it_should_be_and_then_sees_no_write(before: Export, after: Export) -> None:
    driver = ObedientDriver()
    converger = Converger(driver, nothing_wrong)
    converger.converge(before)
    driver.ran.clear()
    steps, condition = converger.converge(after)
    done = words(steps)
    assert done == driver.ran
    assert condition is None
    assert bool(done) is (before != after)
    for _ in range(2):
        assert converger.converge(after) == ([], None)
    assert driver.ran == done
    assert converger.current == {}


@pytest.mark.parametrize("before", WANTS)
@pytest.mark.parametrize("after", WANTS)
def test_whichever_step_fails_converging_again_goes_the_rest_of_the_way(before: Export, after: Export) -> None:
    stop = 0
    while True:
        driver = ObedientDriver()
        converger = Converger(driver, nothing_wrong)
        converger.converge(before)
        failing = driver.before_step = FailOnce(stop)
        if failing_is_done(converger, after, failing):
            return
        assert converger.current == {}
        converger.converge(after)
        assert driver.plan(after) == []
        stop += 1


def failing_is_done(converger: Converger, want: Export, failing: FailOnce) -> bool:
    """Whether there was no step left to fail."""
    try:
        converger.converge(want)
    except DriverError as error:
        assert failing.failed is not None
        assert failing.failed in error.message
        return False
    return True


@pytest.mark.parametrize("want", WANTS)
def test_a_plan_writes_nothing(want: Export) -> None:
    driver = ObedientDriver()
    steps, condition = Converger(driver, nothing_wrong).plan(want)
    assert bool(steps) is want.exported
    assert condition is None
    assert driver.exports == {}


@pytest.mark.parametrize("want", WANTS)
def test_a_device_that_cannot_be_used_is_not_exported(want: Export) -> None:
    driver = ObedientDriver()
    converger = Converger(driver, missing)
    if not want.exported:
        done, condition = converger.converge(want)
        assert done == []
        assert condition is not None
        assert condition.kind == "DeviceMissing"  # shown before anybody needs the device
        return
    with pytest.raises(DeviceUnusable, match="cannot use /srv/vol-1") as caught:
        converger.converge(want)
    assert caught.value.condition.kind == "DeviceMissing"
    assert (caught.value.kind, caught.value.code) == ("DriverError", DriverError.code)
    assert driver.exports == {}


def test_what_is_half_made_of_a_device_that_cannot_be_used_is_removed() -> None:
    driver = ObedientDriver({VOLUME.target_name: SimulatedExport("/srv/another", "x")})
    with pytest.raises(DeviceUnusable):
        Converger(driver, missing).converge(WANTS[2])
    assert driver.exports == {}


@pytest.mark.parametrize("want", [want for want in WANTS if want.exported])
def test_a_device_that_the_target_has_open_is_not_looked_at_again(want: Export) -> None:
    driver = ObedientDriver()
    Converger(driver, nothing_wrong).converge(WANTS[4])
    Converger(driver, missing).converge(want)
    assert set(driver.exports[VOLUME.target_name].grants) == {grant.initiator for grant in want.grants}


@pytest.mark.parametrize("want", [want for want in WANTS if want.exported])
def test_what_the_target_does_not_keep_is_an_error(want: Export) -> None:
    driver = ObedientDriver()
    plans = 0

    def forget() -> None:
        nonlocal plans
        plans += 1
        if plans == 2:
            driver.exports.clear()

    driver.before_plan = forget
    with pytest.raises(DriverError, match="the target did not keep create target"):
        Converger(driver, nothing_wrong).converge(want)


class Narrow(ObedientDriver):
    """Takes away what is too much, and looks no further."""

    def plan_revocation(self, want: Export) -> list[Step]:
        return [step for step in self.plan(want) if step.difference is Difference.GRANT_UNEXPECTED]


def test_a_revocation_takes_away_what_is_not_wanted_and_leaves_the_rest_to_the_next_pass() -> None:
    driver = Narrow()
    converger = Converger(driver, nothing_wrong)
    converger.converge(WANTS[2])
    steps, condition = converger.revoke(WANTS[3])
    assert words(steps) == [f"remove grant {VOLUME.target_name} {HOST_A}"]
    assert condition is None
    assert driver.exports[VOLUME.target_name].grants == {}
    assert converger.revoke(WANTS[3]) == ([], None)
    assert words(converger.converge(WANTS[3])[0]) == [f"create grant {VOLUME.target_name} {HOST_B}"]


def test_a_revocation_that_the_target_does_not_keep_is_an_error() -> None:
    driver = ObedientDriver()
    converger = Converger(driver, nothing_wrong)
    converger.converge(WANTS[2])
    held = driver.exports[VOLUME.target_name]
    driver.before_plan = lambda: held.grants.update({HOST_A: grants(HOST_A)[0]})
    with pytest.raises(DriverError, match="the target did not keep remove grant"):
        converger.revoke(WANTS[1])


def test_a_revocation_where_the_device_is_away_leaves_no_export() -> None:
    driver = ObedientDriver({VOLUME.target_name: SimulatedExport("/srv/another", "x")})
    with pytest.raises(DeviceUnusable):
        Converger(driver, missing).revoke(WANTS[2])
    assert driver.exports == {}


def test_whoever_waits_can_see_the_step_that_is_running() -> None:
    driver = ObedientDriver()
    converger = Converger(driver, nothing_wrong)
    seen: list[tuple[str, str]] = []
    driver.before_step = lambda step: seen.append((step, converger.current["vol-1"]))
    done = words(converger.converge(WANTS[2])[0])
    assert seen == [(step, step) for step in done]
    assert converger.current == {}


def test_an_orphan_is_removed_by_its_name() -> None:
    driver = ObedientDriver({VOLUME.target_name: SimulatedExport("/x", "x", grants={HOST_A: grants(HOST_A)[0]})})
    converger = Converger(driver, nothing_wrong)
    assert words(converger.remove_orphan(VOLUME.target_name)) == [
        f"remove grant {VOLUME.target_name} {HOST_A}",
        f"remove target {VOLUME.target_name}",
    ]
    assert converger.remove_orphan(VOLUME.target_name) == []


@pytest.mark.parametrize("state", LIVE)
def test_a_secret_is_in_no_step_that_people_read(state: State) -> None:
    driver = ObedientDriver()
    done, _ = Converger(driver, nothing_wrong).converge(export_of(VOLUME, [attachment(1, state)]))
    assert "password" not in " ".join(words(done))
