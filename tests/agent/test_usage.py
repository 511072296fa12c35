"""Who uses a device, from tables as the kernel writes them. On a real one: tests/guest/inside/agent."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from volattachd.agent.usage import users_of


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    """A disk sdz with one partition."""
    block = tmp_path / "sys/block/sdz"
    (block / "sdz1/holders").mkdir(parents=True)
    (block / "holders").mkdir()
    (block / "dev").write_text("8:400\n")
    (block / "sdz1/dev").write_text("8:401\n")
    (block / "sdz1/partition").write_text("1\n")
    for name, path in (("sdz", block), ("sdz1", block / "sdz1")):
        (tmp_path / "sys/class/block").mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys/class/block" / name).symlink_to(path)
    return tmp_path / "sys"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """Two processes, each in a mount namespace of its own."""
    for pid in ("100", "200"):
        base = tmp_path / "proc" / pid
        (base / "ns").mkdir(parents=True)
        (base / "ns/mnt").symlink_to(f"mnt:[{pid}]")
        (base / "mountinfo").write_text("1 0 0:5 / / rw - ext4 /dev/root rw\n")
    (tmp_path / "proc/swaps").write_text("Filename Type Size Used Priority\n")
    return tmp_path / "proc"


def test_a_device_that_nobody_uses(sys: Path, proc: Path) -> None:
    assert users_of("sdz", sys, proc) == []


def test_a_mount_in_another_namespace_and_of_a_partition_is_seen(sys: Path, proc: Path) -> None:
    (proc / "200/mountinfo").write_text("7 0 8:401 / /data\\040dir rw shared:1 - ext4 /dev/sdz1 rw\n")
    assert users_of("sdz", sys, proc) == ["/dev/sdz1 is mounted at /data dir"]


def test_what_lies_on_a_partition_is_named_as_people_name_it(sys: Path, proc: Path) -> None:
    (sys / "class/block/sdz1/holders/dm-3/dm").mkdir(parents=True)
    (sys / "class/block/sdz1/holders/dm-3/dm/name").write_text("vg-data\n")
    assert users_of("sdz", sys, proc) == ["/dev/sdz1 is held by vg-data"]


def open_by(process: Path, program: str, parent: int) -> None:
    """The process has sdz open."""
    (process / "fd").mkdir()
    os.mknod(process / "fd/5", stat.S_IFBLK | 0o600, os.makedev(8, 400))
    (process / "exe").symlink_to(f"/usr/sbin/{program}")
    (process / "comm").write_text(f"{program}\n")
    (process / "stat").write_text(f"{process.name} ({program} ) x) S {parent} 1 1 0 -1\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a device node")
@pytest.mark.parametrize(
    ("program", "parent", "is_user"),
    [
        ("qemu-system-x86_64", "bash", True),
        ("multipath", "bash", True),
        ("multipath", "udevadm", False),
        ("anything", "systemd-udevd", False),
        ("multipathd", "systemd", False),
    ],
)
def test_who_has_it_open_is_a_user_unless_he_looks_at_every_device(
    sys: Path, proc: Path, program: str, parent: str, is_user: bool
) -> None:
    open_by(proc / "200", program, 100)
    (proc / "100/exe").symlink_to(f"/usr/bin/{parent}")
    assert users_of("sdz", sys, proc) == ([f"/dev/sdz is open in {program} (pid 200)"] if is_user else [])


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a device node")
def test_a_user_whose_parent_is_gone_is_still_one(sys: Path, proc: Path) -> None:
    open_by(proc / "200", "dd", 77)
    assert users_of("sdz", sys, proc) == ["/dev/sdz is open in dd (pid 200)"]
