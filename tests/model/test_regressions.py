"""What the walks of test_machine.py have found, as short stories."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import ADMIN, AGENT, HOST_A, HOST_B, Rig, attachment_id, connector
from volattachd.errors import DriverError
from volattachd.lifecycle import GRANTED
from volattachd.model import State


def reboot_without_the_device(rig: Rig) -> Path:
    """The host comes up again, its target empty and the volume's device away; the answer is where the device is."""
    path = rig.directory / "vol-1.img"
    away = path.rename(path.with_suffix(".away"))
    rig.driver.exports.clear()
    rig.restart()
    rig.service.upkeep.start_up()
    assert rig.conditions() == ["DeviceMissing"]
    return away


@pytest.mark.parametrize(
    ("state", "force"), [(State.DETACHING, False), (State.DETACHING, True), (State.ATTACHED, True)]
)
def test_a_volume_whose_device_died_is_let_go_and_forgotten_by_the_documented_calls(
    rig: Rig, state: State, force: bool
) -> None:
    rig.register()
    rig.reach(state)
    reboot_without_the_device(rig)
    for _ in range(2):
        answer = rig.service.terminate_connection(ADMIN, "vol-1", connector(), force, attachment_id(1))
        assert answer["state"] == "disconnected"
    assert rig.conditions() == ["DeviceMissing"]
    assert rig.service.detach(ADMIN, "vol-1", attachment_id(1))["status"] == "available"
    assert rig.service.unregister_volume(ADMIN, "vol-1") == {"volume": "vol-1"}


@pytest.mark.parametrize("state", [State.CONNECTED, State.DETACHING, State.DISCONNECTED])
def test_a_host_leaves_a_volume_whose_device_died_while_another_host_still_waits_for_it(rig: Rig, state: State) -> None:
    rig.register(multiattach=True)
    rig.reach(state, number=1, initiator=HOST_A)
    rig.reach(State.ATTACHED, number=2, initiator=HOST_B)
    away = reboot_without_the_device(rig)
    if state in GRANTED:
        for _ in range(2):
            rig.service.terminate_connection(AGENT, "vol-1", connector(HOST_A), attachment_id=attachment_id(1))
    rig.service.detach(AGENT, "vol-1", attachment_id(1))
    assert (rig.state(1), rig.state(2)) == (State.GONE, State.ATTACHED)
    assert rig.conditions() == ["DeviceMissing"]
    away.rename(rig.directory / "vol-1.img")
    rig.service.reconcile(ADMIN)
    assert rig.granted() == {HOST_B}
    assert rig.conditions() == []


def test_a_second_attachment_of_a_host_gets_no_connection_info_for_an_export_that_is_not_there(rig: Rig) -> None:
    rig.register(multiattach=True)
    rig.reach(State.ATTACHED, number=1)
    away = reboot_without_the_device(rig)
    rig.service.reserve_volume(AGENT, "vol-1", attachment_id(2))
    with pytest.raises(DriverError, match="cannot use"):
        rig.service.initialize_connection(AGENT, "vol-1", connector(), attachment_id(2))
    assert rig.state(2) is State.RESERVED
    away.rename(rig.directory / "vol-1.img")
    info = rig.service.initialize_connection(AGENT, "vol-1", connector(), attachment_id(2))["data"]
    rig.driver.login(info["target_iqn"], HOST_A, info["auth_username"], info["auth_password"])


def test_a_second_attachment_of_a_host_brings_back_the_access_that_somebody_took_from_it(rig: Rig) -> None:
    rig.register(multiattach=True)
    rig.reach(State.ATTACHED, number=1)
    rig.driver.exports.clear()
    rig.service.reserve_volume(AGENT, "vol-1", attachment_id(2))
    rig.service.initialize_connection(AGENT, "vol-1", connector(), attachment_id(2))
    assert rig.granted() == {HOST_A}
