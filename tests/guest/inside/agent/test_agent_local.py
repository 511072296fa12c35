"""Local attachments on a real host: block devices as they are, files through loop devices, nothing in the target."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest.inside.agent.compute import Compute, leftovers
from tests.guest.inside.conftest import remove_volume
from tests.guest.inside.initiator import run
from tests.guest.inside.program import Program, configfs, connector

GUEST = {"together": "agent"}

PLACE = Path("/mnt")
LOCAL = {"do_local_attach": True, "host": socket.gethostname()}


@pytest.fixture(scope="module")
def compute(program: Program) -> Compute:
    return Compute(program)


@pytest.fixture(autouse=True)
def nothing_left(compute: Compute) -> Iterator[None]:
    yield
    assert leftovers() == []


@pytest.fixture
def block(program: Program, new_device: Callable[[str], str]) -> Iterator[str]:
    """A registered block device; its name."""
    program.call("register_volume", volume="block", path=new_device("block"))
    yield "block"
    remove_volume(program, "block")


@pytest.fixture
def shared(program: Program, new_device: Callable[[str], str]) -> Iterator[str]:
    """A registered block device that several may have; its name."""
    program.call("register_volume", volume="shared", path=new_device("block"), multiattach=True)
    yield "shared"
    remove_volume(program, "shared")


def path_of(program: Program, volume: str) -> str:
    return str(program.call("show_volume", volume=volume)["path"])


def test_a_block_device_is_handed_out_as_it_is_and_the_target_knows_nothing(
    program: Program, compute: Compute, block: str
) -> None:
    before = configfs()
    device = compute.attach(block, "--connector", "local")["device"]
    assert device == path_of(program, block)
    assert configfs() == before
    run("mkfs.ext4", "-q", device)
    run("mount", device, str(PLACE))
    refused = compute.volattach("detach", block)
    assert refused.returncode == 4 and f"{device} is mounted at {PLACE}" in refused.stderr
    assert compute.status(block) == "in-use"
    run("umount", str(PLACE))
    assert compute.detach(block)["status"] == "available"


def test_a_file_gets_a_loop_device_that_goes_again(program: Program, compute: Compute, volume: str) -> None:
    device = compute.attach(volume, "--connector", "local")["device"]
    assert device.startswith("/dev/loop")
    assert compute.attach(volume, "--connector", "local")["device"] == device
    with open(device, "r+b", buffering=0) as disk:
        disk.write(b"x" * 4096)
    compute.detach(volume)
    assert Path(path_of(program, volume)).read_bytes()[:4096] == b"x" * 4096
    assert run("losetup", "-j", path_of(program, volume)).stdout == ""


@pytest.mark.parametrize("kind", ["block", "file"])
def test_read_only_is_refused_by_the_kernel_even_where_root_asks_for_more(
    kind: str, program: Program, compute: Compute, new_device: Callable[[str], str]
) -> None:
    program.call("register_volume", volume="once", path=new_device(kind))
    device = compute.attach("once", "--connector", "local", "--mode", "ro")["device"]
    assert device.startswith("/dev/loop") and device != path_of(program, "once")
    run("blockdev", "--setrw", device)
    with open(device, "wb", buffering=0) as disk, pytest.raises(PermissionError):
        disk.write(b"x" * 4096)
    compute.detach("once")
    program.call("unregister_volume", volume="once")


def test_the_daemon_itself_refuses_to_end_it_while_the_device_is_mounted(program: Program, block: str) -> None:
    """Whatever client asks: this is not the agent's rule alone."""
    program.call("reserve_volume", volume=block)
    info = program.call("initialize_connection", volume=block, connector=LOCAL)
    assert info["driver_volume_type"] == "local"
    assert info["data"] == {
        "device_path": path_of(program, block),
        "volume_id": block,
        "encrypted": False,
        "qos_specs": None,
        "access_mode": "rw",
        "discard": info["data"]["discard"],
    }
    run("mkfs.ext4", "-q", path_of(program, block))
    run("mount", path_of(program, block), str(PLACE))
    error = program.refused("terminate_connection", volume=block, connector=LOCAL)
    assert error.kind == "SessionActive" and "mounted on /mnt" in error.message
    run("umount", str(PLACE))
    assert program.call("terminate_connection", volume=block, connector=LOCAL)["state"] == "gone"


@pytest.mark.parametrize("first", [LOCAL, connector("iqn.2026-11.com.example:far")], ids=["local", "far"])
def test_a_local_attachment_stands_alone(first: dict[str, object], program: Program, shared: str) -> None:
    """Of a multiattach volume too: the target would read and write past this host's cache."""
    second = connector("iqn.2026-11.com.example:far") if first is LOCAL else LOCAL
    one = program.call("reserve_volume", volume=shared)["attachment_id"]
    two = program.call("reserve_volume", volume=shared)["attachment_id"]
    program.call("initialize_connection", volume=shared, connector=first, attachment_id=one)
    error = program.refused("initialize_connection", volume=shared, connector=second, attachment_id=two)
    assert error.kind == "InvalidVolume" and error.details["attachments"] == [one]
    program.call("unreserve_volume", volume=shared, attachment_id=two)
    program.call("terminate_connection", volume=shared, connector=first, attachment_id=one)


def test_another_host_that_asks_for_it_gets_a_network_connection(program: Program, block: str) -> None:
    far = connector("iqn.2026-11.com.example:far", do_local_attach=True, host="elsewhere", driver_volume_type="local")
    program.call("reserve_volume", volume=block)
    info = program.call("initialize_connection", volume=block, connector=far)
    assert info["driver_volume_type"] == "iscsi"
    kept = program.call("show_attachment", attachment_id=info["attachment_id"])["connector"]
    assert "driver_volume_type" not in kept, "what a client claims of itself is not kept for the daemon's word"
    program.call("terminate_connection", volume=block, connector=kept)


def test_a_restart_of_the_daemon_leaves_it_as_it_is(program: Program, compute: Compute, block: str) -> None:
    device = compute.attach(block, "--connector", "local")["device"]
    with open(device, "rb") as held:
        before = configfs()
        program.restart(9)
        assert configfs() == before
        assert program.call("reconcile", dry_run=True)["volumes"] == []
        assert compute.status(block) == "in-use"
        assert len(held.read(4096)) == 4096
    compute.detach(block)


def test_the_device_of_a_volume_that_was_exchanged_is_not_handed_out(
    program: Program, compute: Compute, new_device: Callable[[str], str]
) -> None:
    path = Path(new_device("file"))
    program.call("register_volume", volume="swapped", path=str(path))
    os.rename(path, f"{path}.kept")
    path.write_bytes(b"\0" * (16 << 20))
    refused = compute.volattach("attach", "swapped", "--connector", "local")
    assert refused.returncode == 7 and "another device" in refused.stderr
    assert compute.status("swapped") == "available"
    os.replace(f"{path}.kept", path)
    program.call("unregister_volume", volume="swapped")
