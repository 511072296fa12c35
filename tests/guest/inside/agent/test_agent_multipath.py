"""Two portals and multipathd: the map is handed out, a portal that goes away costs no I/O, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest.inside.agent.compute import Compute, leftovers, rename_initiator
from tests.guest.inside.initiator import run
from tests.guest.inside.program import Program

GUEST = {"timeout": 600.0}

PORTALS = ("192.0.2.10", "192.0.2.11")
SECONDS = 120.0


@pytest.fixture(scope="module")
def program(base: Path) -> Iterator[Program]:
    """The daemon on two addresses, each of which can be taken away."""
    run("ip", "link", "add", "portals", "type", "dummy")
    run("ip", "link", "set", "portals", "up")
    for address in PORTALS:
        run("ip", "addr", "add", f"{address}/32", "dev", "portals")
    words = ", ".join(f'"{address}"' for address in PORTALS)
    made = Program(base, f'[target]\ndriver = "lio"\nportals = [{words}]\n')
    made.start()
    yield made
    assert made.stop() == 0


@pytest.fixture(scope="module")
def compute(program: Program) -> Iterator[Compute]:
    """A host with multipathd as Debian sets it up."""
    run("modprobe", "-a", "dm-multipath", "dm-service-time")
    rename_initiator("iqn.2026-11.com.example:multipath")
    run("multipathd")
    wait_until(lambda: run("multipathd", "show", "daemon", check=False).returncode == 0)
    yield Compute(program)
    os.kill(int(Path("/run/multipathd.pid").read_text()), signal.SIGTERM)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.1)


def failed_paths() -> int:
    return run("multipathd", "show", "paths", "raw", "format", "%t").stdout.split().count("failed")


def test_a_map_over_both_portals_is_handed_out(compute: Compute, volume: str) -> None:
    found = compute.attach(volume)
    assert found["device"].startswith("/dev/mapper/")
    assert len(found["paths"]) == 2
    assert len(list(Path("/sys/class/iscsi_session").iterdir())) == 2
    assert compute.attach(volume) == found
    run("mkfs.ext4", "-q", found["device"])
    run("mount", found["device"], "/mnt")
    refused = compute.volattach("detach", volume)
    assert refused.returncode == 4 and "is mounted at /mnt" in refused.stderr
    run("umount", "/mnt")
    compute.detach(volume)
    assert leftovers() == []


def test_a_portal_that_goes_away_costs_no_io(compute: Compute, volume: str) -> None:
    """fio verifies what it reads back; an error of one write would end it."""
    device = compute.attach(volume)["device"]
    number = os.stat(device).st_rdev
    mapped = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat")
    words = f"fio --name=io --filename={device} --rw=randwrite --bs=4k --size=8M --direct=1 --rate=400k --verify=crc32c"
    with subprocess.Popen(words.split(), stdout=subprocess.PIPE, text=True) as fio:
        wait_until(lambda: int(mapped.read_text().split()[4]) > 100)
        run("ip", "addr", "del", f"{PORTALS[0]}/32", "dev", "portals")
        try:
            wait_until(failed_paths)
            assert fio.poll() is None, "the path failed under I/O, not after it"
            said, _ = fio.communicate(timeout=SECONDS)
        finally:
            run("ip", "addr", "add", f"{PORTALS[0]}/32", "dev", "portals")
    assert fio.returncode == 0, said
    wait_until(lambda: not failed_paths())
    compute.detach(volume)
    assert leftovers() == []


def test_a_detach_with_a_dead_path_ends_with_a_volume_that_is_available(compute: Compute, volume: str) -> None:
    """The target counts the session of the dead path until its own time-out; nobody here could log it out there."""
    compute.attach(volume)
    run("ip", "addr", "del", f"{PORTALS[0]}/32", "dev", "portals")
    try:
        done = compute.volattach("detach", volume)
    finally:
        run("ip", "addr", "add", f"{PORTALS[0]}/32", "dev", "portals")
    assert done.returncode == 0, done.stderr
    assert compute.status(volume) == "available"
    assert all("no session is left on this host" in line for line in done.stderr.splitlines()), done.stderr
    assert leftovers() == []


def test_a_detach_that_stopped_waiting_for_a_dead_path_goes_on_when_it_is_sent_again(
    compute: Compute, volume: str
) -> None:
    compute.attach(volume)
    run("ip", "addr", "del", f"{PORTALS[0]}/32", "dev", "portals")
    try:
        short = compute.volattach("--timeout", "2", "detach", volume)
        if short.returncode:  # the target has not seen it yet
            assert short.returncode == 4 and f"volattach detach {volume}" in short.stderr, short.stderr
            assert "log the initiator out" not in short.stderr
            assert compute.status(volume) == "detaching"
            assert compute.detach(volume)["status"] == "available"
    finally:
        run("ip", "addr", "add", f"{PORTALS[0]}/32", "dev", "portals")
    assert leftovers() == []


def test_one_portal_of_two_is_enough_to_attach(compute: Compute, volume: str) -> None:
    run("ip", "addr", "del", f"{PORTALS[1]}/32", "dev", "portals")
    try:
        found = compute.attach(volume)
        assert found["device"].startswith("/dev/mapper/") and len(found["paths"]) == 1
    finally:
        run("ip", "addr", "add", f"{PORTALS[1]}/32", "dev", "portals")
    compute.detach(volume)
    assert leftovers() == []
