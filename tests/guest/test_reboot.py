"""The storage host loses its power while a compute host writes; the session recovers by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest.harness.guest import Guest
from tests.guest.harness.link import Link
from tests.guest.storage import INITIATOR, SOCKET, StorageHost, login

pytestmark = pytest.mark.guest


def test_exports_and_grants_are_back_before_the_socket_answers_and_the_session_recovers(
    new_guest: Callable[..., Guest], link: Link, tmp_path: Path
) -> None:
    guest = new_guest(disk=tmp_path / "disk", extra_disks=["64M"], network=link, name="storage")
    compute = new_guest(network=link, name="compute")
    assert compute.end is not None
    storage = StorageHost(guest)
    storage.start()
    storage.call("register_volume", volume="vol", path="/dev/ubdb")
    info = storage.attach("vol", ip=compute.end.ipv4)
    disk = login(compute, info, patience=120)
    sessions = compute.run("ls /sys/class/iscsi_session", check=True).stdout
    writer = compute.start(f"dd if=/dev/urandom of={disk} bs=256k count=240 oflag=direct iflag=fullblock")

    written = f"awk '{{exit !($7 > 2048)}}' /sys/block/{Path(disk).name}/stat"  # sectors
    compute.run(f"until {written}; do sleep 0.05; done", timeout=60, check=True)
    guest.kill()
    assert writer.running(), "it was still writing when the power went"
    guest.boot()
    assert guest.run("ls /sys/kernel/config/target/iscsi").stdout.strip() == "", "the kernel came up with no target"
    guest.run(f"rm -f {SOCKET}", check=True)
    storage.start()
    # The first answer is the proof: by then everything is back.
    assert storage.call("reconcile", dry_run=True)["volumes"] == []
    [shown] = storage.call("list_volumes")
    assert (shown["status"], shown["conditions"]) == ("in-use", [])

    done = writer.wait(120)
    assert done.returncode == 0, done.stderr
    assert compute.run("ls /sys/class/iscsi_session", check=True).stdout == sessions, "the same session"
    again = storage.call(
        "initialize_connection",
        volume="vol",
        connector={"initiator": INITIATOR, "ip": compute.end.ipv4},
    )
    assert again == info
    compute.run("iscsiadm -m node --logout", check=True)
    storage.call("begin_detaching", volume="vol")
    storage.call("terminate_connection", volume="vol", connector={"initiator": INITIATOR})
    assert storage.call("detach", volume="vol")["status"] == "available"
