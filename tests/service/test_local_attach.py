"""Local attachments through the service, over a target that must see nothing of them."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support import ADMIN, AGENT, HOST_A, Rig, attachment_id, connector
from volattachd.errors import InvalidInput, InvalidVolume, PermissionDenied, SessionActive
from volattachd.model import State
from volattachd.reconcile.applier import DeviceUnusable
from volattachd.service.local_attach import is_local, was_local

HERE: dict[str, Any] = {"do_local_attach": True, "host": socket.gethostname()}
ID = attachment_id(1)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path)
    made.register("vol-1")
    made.service.reserve_volume(AGENT, "vol-1", ID)
    return made


def test_it_goes_through_the_life_of_any_attachment_and_the_target_sees_nothing(rig: Rig) -> None:
    info = rig.service.initialize_connection(AGENT, "vol-1", HERE, ID)
    assert (info["driver_volume_type"], info["data"]["device_path"]) == ("local", rig.journal.volumes["vol-1"].path)
    assert rig.service.initialize_connection(AGENT, "vol-1", HERE, ID) == info
    rig.service.attach(AGENT, "vol-1", host_name="here", attachment_id=ID)
    rig.service.begin_detaching(AGENT, "vol-1", ID)
    assert rig.service.terminate_connection(AGENT, "vol-1", HERE, attachment_id=ID)["state"] == "disconnected"
    assert rig.service.detach(AGENT, "vol-1", ID)["status"] == "available"
    assert rig.driver.ran == []


def test_a_start_finds_it_and_leaves_the_target_alone(rig: Rig) -> None:
    rig.service.initialize_connection(AGENT, "vol-1", HERE, ID)
    rig.restart()
    assert rig.service.reconcile(ADMIN)["volumes"] == [] and rig.driver.ran == []
    assert rig.state() is State.CONNECTED


def test_a_host_that_is_renamed_keeps_what_it_has_and_can_end_it(rig: Rig) -> None:
    rig.service.initialize_connection(AGENT, "vol-1", HERE, ID)
    kept = rig.service.show_attachment(AGENT, ID)["connector"]
    elsewhere = {**kept, "host": "its-old-name"}
    assert not is_local(elsewhere) and was_local(elsewhere)
    assert rig.service.terminate_connection(AGENT, "vol-1", elsewhere, attachment_id=ID)["state"] == "gone"


def test_another_host_is_granted_access_over_the_network_whatever_it_claims(rig: Rig) -> None:
    claims = connector(HOST_A, do_local_attach=True, host="elsewhere", driver_volume_type="local")
    info = rig.service.initialize_connection(AGENT, "vol-1", claims, ID)
    assert info["driver_volume_type"] == "iscsi" and rig.granted() == {HOST_A}
    rig.restart()
    assert rig.service.reconcile(ADMIN)["volumes"] == [] and rig.granted() == {HOST_A}


def test_a_host_elsewhere_needs_an_initiator(rig: Rig) -> None:
    with pytest.raises(InvalidInput, match="no initiator"):
        rig.service.initialize_connection(AGENT, "vol-1", {"do_local_attach": True, "host": "elsewhere"}, ID)


@pytest.mark.parametrize(("first", "second"), [(HERE, connector()), (connector(), HERE), (HERE, HERE)])
def test_it_stands_alone_of_a_multiattach_volume_too(first: Any, second: Any, rig: Rig) -> None:
    rig.register("shared", multiattach=True)
    one, two = attachment_id(2), attachment_id(3)
    rig.service.reserve_volume(AGENT, "shared", one)
    rig.service.reserve_volume(AGENT, "shared", two)
    rig.service.initialize_connection(AGENT, "shared", first, one)
    with pytest.raises(InvalidVolume, match="stands alone") as refused:
        rig.service.initialize_connection(AGENT, "shared", second, two)
    assert refused.value.details == {"attachments": [one]}
    assert rig.state(3) is State.RESERVED


def test_a_device_in_use_is_let_go_by_force_alone(rig: Rig) -> None:
    """A file that somebody has locked, as QEMU does."""
    rig.service.initialize_connection(AGENT, "vol-1", HERE, ID)
    child = os.fork()
    if child == 0:
        with open(rig.journal.volumes["vol-1"].path, "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            os.kill(os.getpid(), 19)  # SIGSTOP: the parent sees it by waitpid
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    try:
        with pytest.raises(SessionActive, match="holds a lock"):
            rig.service.terminate_connection(AGENT, "vol-1", HERE, attachment_id=ID)
        with pytest.raises(PermissionDenied):
            rig.service.terminate_connection(AGENT, "vol-1", HERE, force=True, attachment_id=ID)
        assert rig.service.terminate_connection(ADMIN, "vol-1", HERE, force=True, attachment_id=ID)["state"] == "gone"
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_device_that_is_away_or_exchanged_is_not_handed_out_and_does_not_hold_the_attachment(rig: Rig) -> None:
    path = Path(rig.journal.volumes["vol-1"].path)
    rig.service.initialize_connection(AGENT, "vol-1", HERE, ID)
    path.unlink()
    with pytest.raises(DeviceUnusable):
        rig.service.initialize_connection(AGENT, "vol-1", HERE, ID)
    assert rig.service.terminate_connection(AGENT, "vol-1", HERE, attachment_id=ID)["state"] == "gone"


def test_one_connector_cannot_end_the_others_attachment(rig: Rig) -> None:
    rig.service.initialize_connection(AGENT, "vol-1", HERE, ID)
    with pytest.raises(InvalidInput, match="connected to this host itself, not to"):
        rig.service.terminate_connection(AGENT, "vol-1", connector(), attachment_id=ID)
    with pytest.raises(InvalidVolume, match="connected to this host itself"):
        rig.service.initialize_connection(AGENT, "vol-1", connector(), ID)


def test_a_local_connector_ends_no_attachment_of_an_initiator(rig: Rig) -> None:
    rig.service.initialize_connection(AGENT, "vol-1", connector(HOST_A), ID)
    for told in (HERE, {"driver_volume_type": "local"}):
        with pytest.raises(InvalidInput, match=f"connected to {HOST_A}, not to this host itself"):
            rig.service.terminate_connection(AGENT, "vol-1", told, attachment_id=ID)
    assert rig.state() is State.CONNECTED and rig.granted() == {HOST_A}


def test_an_initiator_ends_no_local_attachment(rig: Rig) -> None:
    rig.service.initialize_connection(AGENT, "vol-1", HERE, ID)
    with pytest.raises(InvalidInput, match=f"connected to this host itself, not to {HOST_A}"):
        rig.service.terminate_connection(AGENT, "vol-1", connector(HOST_A), attachment_id=ID)
    with pytest.raises(InvalidVolume, match="connected to this host itself"):
        rig.service.initialize_connection(AGENT, "vol-1", connector(HOST_A), ID)
    assert rig.state() is State.CONNECTED


def test_a_connector_of_this_host_that_asks_for_no_local_attachment_gets_none(rig: Rig) -> None:
    told = connector(HOST_A, host=socket.gethostname())
    assert rig.service.initialize_connection(AGENT, "vol-1", told, ID)["driver_volume_type"] == "iscsi"
