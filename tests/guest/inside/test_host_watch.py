"""What the host tells of devices and addresses is acted upon at once: the periodic pass is an hour away here."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.inside.initiator import Initiator, read_back, run, write_pattern
from tests.guest.inside.program import TARGET, Program, connector

GUEST = {"together": "host"}

CONFIG = """
[target]
driver = "lio"
portals = ["127.0.0.1", "watched0"]
[reconcile]
interval = 3600
"""
MIB = 1 << 20
SECONDS = 30.0


@pytest.fixture(scope="module")
def program(base: Path) -> Iterator[Program]:
    """A daemon that makes no pass by itself, with portals on an interface that has no address yet."""
    run("ip", "link", "add", "watched0", "type", "dummy")
    run("ip", "link", "set", "watched0", "up")
    made = Program(base, CONFIG)
    made.start()
    yield made
    assert made.stop() == 0


def wait_until(condition: Callable[[], object], what: str) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < SECONDS, what
        time.sleep(0.02)
    print(f"{what}: after {time.monotonic() - began:.2f} s")


def kinds(program: Program, volume: str) -> list[str]:
    return [condition["kind"] for condition in program.call("show_volume", volume=volume)["conditions"]]


# Devices.


def test_a_device_that_goes_and_comes_back(program: Program, new_device: Callable[[str], str]) -> None:
    loop = new_device("block")
    table = f"0 {16 * MIB // 512} linear {loop} 0"
    run("dmsetup", "create", "watched", "--uuid", "watched-1", "--table", table)
    program.call("register_volume", volume="watched", path="/dev/mapper/watched")
    try:
        run("dmsetup", "remove", "--retry", "watched")
        wait_until(lambda: kinds(program, "watched") == ["DeviceMissing"], "a device that is gone is told")
        run("dmsetup", "create", "watched", "--uuid", "another", "--table", table)
        wait_until(lambda: kinds(program, "watched") == ["DeviceChanged"], "another device of that name is told")
        run("dmsetup", "remove", "--retry", "watched")
        run("dmsetup", "create", "watched", "--uuid", "watched-1", "--table", table)
        wait_until(lambda: kinds(program, "watched") == [], "a device that is back is told")
    finally:
        program.call("unregister_volume", volume="watched")
        run("dmsetup", "remove", "--retry", "watched")


def test_a_volume_whose_device_was_missing_at_the_start_is_exported_when_it_comes(
    program: Program, host1: Initiator, new_device: Callable[[str], str]
) -> None:
    """However long it was put off after its failures."""
    loop = new_device("block")
    table = f"0 {16 * MIB // 512} linear {loop} 0"
    run("dmsetup", "create", "late", "--uuid", "late-1", "--table", table)
    program.call("register_volume", volume="late", path="/dev/mapper/late")
    program.call("reserve_volume", volume="late")
    info = program.call("initialize_connection", volume="late", connector=connector(host1.name))
    program.stop()
    clear_target()
    run("dmsetup", "remove", "--retry", "late")
    program.start()
    assert kinds(program, "late") == ["DeviceMissing"]
    for _ in range(3):
        program.call("reconcile")
    run("dmsetup", "create", "late", "--uuid", "late-1", "--table", table)
    wait_until(lambda: (TARGET / "iscsi" / info["data"]["target_iqn"] / "tpgt_1").exists(), "it is exported again")
    wait_until(lambda: kinds(program, "late") == [], "and nothing is wrong any more")
    assert host1.login(info)
    host1.logout(info)
    program.call("terminate_connection", volume="late", connector=connector(host1.name))
    program.call("unregister_volume", volume="late")
    run("dmsetup", "remove", "--retry", "late")


def clear_target() -> None:
    from rtslib_fb import RTSRoot

    RTSRoot().clear_existing(confirm=True)


# Growth.


def grow_loop(device: str) -> None:
    backing = Path("/sys/block", Path(device).name, "loop/backing_file").read_text().strip()
    run("truncate", "-s", str(32 * MIB), backing)
    run("losetup", "-c", device)


def grow_mapping(loop: str) -> None:
    run("dmsetup", "suspend", "grown")
    run("dmsetup", "load", "grown", "--table", f"0 {32 * MIB // 512} linear {loop} 0")
    run("dmsetup", "resume", "grown")


@pytest.fixture(params=["loop", "mapping", "file"])
def growing(
    request: pytest.FixtureRequest, program: Program, new_device: Callable[..., str]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """A device of 16 MiB, and what makes it one of 32."""
    if request.param == "file":
        path = new_device("file")
        yield path, lambda: (run("truncate", "-s", str(32 * MIB), path), program.call("reconcile"))
    elif request.param == "loop":
        loop = new_device("block")
        yield loop, lambda: grow_loop(loop)
    else:
        loop = new_device("block", 32 * MIB)
        run("dmsetup", "create", "grown", "--uuid", "grown-1", "--table", f"0 {16 * MIB // 512} linear {loop} 0")
        yield "/dev/mapper/grown", lambda: grow_mapping(loop)
        run("dmsetup", "remove", "--retry", "grown")


def test_a_volume_grows_under_its_initiator(
    program: Program, host1: Initiator, growing: tuple[str, Callable[[], Any]]
) -> None:
    """The LUN is larger in the same session, under I/O; the initiator sees it when it scans again.

    udev tells of block devices; of files nobody tells, so a pass finds out (here: the one that is asked for).
    """
    path, grow = growing
    program.call("register_volume", volume="growing", path=path)
    program.call("reserve_volume", volume="growing")
    info = program.call("initialize_connection", volume="growing", connector=connector(host1.name))
    assert host1.login(info)
    disk, session = host1.disk(info), host1.sessions(info["data"]["target_iqn"])
    written = write_pattern(disk, 3)
    sequence = program.call("get_status")["seq"]
    words = ["dd", "if=/dev/zero", f"of={disk}", "bs=4k", "seek=1024", "oflag=direct", "count=2000"]
    with subprocess.Popen(words) as load:
        grow()
        wait_until(lambda: program.call("show_volume", volume="growing")["size"] == 32 * MIB, f"{path} has grown")
        run("iscsiadm", "-m", "session", "-R")
        wait_until(lambda: size_of(disk) == 32 * MIB, "the initiator sees the new size")
        assert load.wait(60) == 0, "its I/O went on"
    assert host1.sessions(info["data"]["target_iqn"]) == session
    assert read_back(disk, len(written)) == written
    end = 31 * MIB // 4096
    run("dd", "if=/dev/zero", f"of={disk}", "bs=4k", f"seek={end}", "oflag=direct", "count=8")
    (line,) = program.call("get_history", since=sequence)
    assert (line["call"], line["before"]["size"], line["after"]["size"]) == ("grow_volume", 16 * MIB, 32 * MIB)
    assert program.call("reconcile", dry_run=True)["volumes"] == []
    host1.logout(info)
    program.call("terminate_connection", volume="growing", connector=connector(host1.name))
    program.call("unregister_volume", volume="growing")


def size_of(disk: Path) -> int:
    return int(Path("/sys/block", disk.name, "size").read_text()) * 512


# Addresses.


@pytest.mark.parametrize(
    ("address", "portal"), [("192.0.2.20/24", "192.0.2.20"), ("2001:db8::20/64", "[2001:db8::20]")]
)
def test_a_portal_comes_and_goes_with_its_address(
    address: str, portal: str, program: Program, host1: Initiator, volume: str
) -> None:
    """And the session through another portal lives on."""
    program.call("reserve_volume", volume=volume)
    info = program.call("initialize_connection", volume=volume, connector=connector(host1.name))
    assert host1.login(info)
    target = info["data"]["target_iqn"]
    np, session = TARGET / "iscsi" / target / "tpgt_1/np", host1.sessions(target)
    run("ip", "address", "add", address, "dev", "watched0", *(["nodad"] if ":" in address else []))
    wait_until(lambda: (np / f"{portal}:3260").exists(), f"a portal for {portal}")
    wait_until(lambda: f"{portal}:3260" in program.call("get_status")["portals"], "and it is told")
    ip = portal.strip("[]")
    second = program.call("initialize_connection", volume=volume, connector=connector(host1.name, ip=ip))
    assert second["data"]["target_portal"] == f"{portal}:3260"
    assert host1.login(second)
    host1.logout(second)
    run("ip", "address", "del", address, "dev", "watched0")
    wait_until(lambda: not (np / f"{portal}:3260").exists(), f"no portal for {portal}")
    assert host1.sessions(target) == session
    assert program.call("get_status")["portals"] == ["127.0.0.1:3260"]
    host1.logout(info)
