"""Which block devices may be registered, and that a name which leads to another disk exports nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest.inside.initiator import Initiator, run
from tests.guest.inside.program import TARGET, Program, connector

GUEST = {"together": "calls"}


@pytest.fixture
def loop(new_device: Callable[[str], str]) -> str:
    return new_device("block")


def refusal(program: Program, path: str) -> tuple[str, str]:
    """Kind and words of a refused registration."""
    error = program.refused("register_volume", volume="unsafe", path=path)
    assert program.call("list_volumes") == []
    return error.kind, error.message


def test_a_mounted_device_is_refused(program: Program, loop: str, base: Path) -> None:
    run("mkfs.ext4", "-q", loop)
    mount = base / "mount"
    mount.mkdir()
    run("mount", loop, str(mount))
    try:
        kind, words = refusal(program, loop)
    finally:
        run("umount", str(mount))
    assert (kind, str(mount) in words) == ("InvalidInput", True)


def test_the_device_of_the_root_file_system_is_refused(program: Program) -> None:
    assert refusal(program, "/dev/ubda")[0] == "InvalidInput"


def test_swap_is_refused(program: Program, loop: str) -> None:
    run("mkswap", loop)
    run("swapon", loop)
    try:
        assert refusal(program, loop)[0] == "InvalidInput"
    finally:
        run("swapoff", loop)


@pytest.fixture
def looped(loop: str) -> Iterator[str]:
    """A loop device over the device: the kernel shows no holder of it."""
    upper = run("losetup", "--find", "--show", loop).stdout.strip()
    assert list(Path("/sys/block", Path(loop).name, "holders").iterdir()) == []
    yield upper
    run("losetup", "-d", upper)


@pytest.mark.parametrize("mounted", [False, True])
def test_a_device_under_a_loop_device_is_refused(
    program: Program, loop: str, looped: str, base: Path, mounted: bool
) -> None:
    mount = base / "mount-looped"
    mount.mkdir()
    if mounted:
        run("mkfs.ext4", "-q", looped)
        run("mount", looped, str(mount))
    try:
        kind, words = refusal(program, loop)
        assert (kind, looped in words or str(mount) in words) == ("InvalidInput", True)
    finally:
        run("umount", str(mount), check=False)
        mount.rmdir()


def test_a_device_under_device_mapper_on_a_loop_device_is_refused(program: Program, loop: str, looped: str) -> None:
    run("dmsetup", "create", "tower", "--table", f"0 32768 linear {looped} 0")
    try:
        assert refusal(program, loop)[0] == "InvalidInput"
        assert refusal(program, looped)[0] == "InvalidInput"
    finally:
        run("dmsetup", "remove", "tower")


def test_a_file_is_refused_while_it_is_swap_or_below_a_loop_device_whatever_it_is_called(
    program: Program, base: Path
) -> None:
    image, name = base / "used image", base / "another-name"
    image.write_bytes(bytes(16 << 20))
    image.chmod(0o600)
    name.hardlink_to(image)
    run("mkswap", str(image))
    run("swapon", str(image))
    try:
        assert refusal(program, str(name))[0] == "InvalidInput"
    finally:
        run("swapoff", str(image))
    upper = run("losetup", "--find", "--show", str(image)).stdout.strip()
    try:
        kind, words = refusal(program, str(name))
        assert (kind, upper in words) == ("InvalidInput", True)
    finally:
        run("losetup", "-d", upper)
        image.unlink()
        name.unlink()


def test_a_file_that_another_target_holds_is_refused(program: Program, base: Path) -> None:
    image = base / "foreign.img"
    image.write_bytes(bytes(1 << 20))
    store = TARGET / "core/fileio_0/foreign"
    store.mkdir(parents=True)
    (store / "control").write_text(f"fd_dev_name={image},fd_dev_size={1 << 20}")
    (store / "enable").write_text("1")
    try:
        kind, words = refusal(program, str(image))
        assert (kind, "open for writing" in words) == ("InvalidInput", True)
    finally:
        store.rmdir()
        store.parent.rmdir()
        image.unlink()


def test_the_daemons_own_journal_is_refused(program: Program) -> None:
    journal = program.state_dir / "journal.db"
    kind, words = refusal(program, str(journal))
    assert (kind, "volattachd itself" in words) == ("InvalidInput", True)


def test_a_device_under_device_mapper_is_refused_and_the_mapping_is_not(program: Program, loop: str) -> None:
    run("dmsetup", "create", "linear", "--table", f"0 32768 linear {loop} 0")
    try:
        kind, words = refusal(program, loop)
        assert (kind, "dm-" in words) == ("InvalidInput", True)
        shown = program.call("register_volume", volume="mapped", path="/dev/mapper/linear")
        assert shown["size"] == 32768 * 512
        program.call("unregister_volume", volume="mapped")
    finally:
        run("dmsetup", "remove", "linear")


def test_a_device_that_another_target_holds_is_refused(program: Program, loop: str) -> None:
    store = TARGET / "core/iblock_0/foreign"
    store.mkdir(parents=True)
    (store / "control").write_text(f"udev_path={loop}")
    (store / "enable").write_text("1")
    try:
        assert refusal(program, loop)[0] == "InvalidInput"
    finally:
        store.rmdir()
        store.parent.rmdir()


def looked_at(program: Program, volume: str) -> list[str]:
    """The kinds of a volume's conditions after a look."""
    program.call("reconcile")
    return [c["kind"] for c in program.call("show_volume", volume=volume)["conditions"]]


def test_a_device_that_was_write_protected_has_a_condition(program: Program, loop: str) -> None:
    program.call("register_volume", volume="protected", path=loop)
    assert looked_at(program, "protected") == []
    run("blockdev", "--setro", loop)
    try:
        assert looked_at(program, "protected") == ["DeviceFailed"]
    finally:
        run("blockdev", "--setrw", loop)
    assert looked_at(program, "protected") == []
    program.call("unregister_volume", volume="protected")


def test_a_device_that_lies_on_an_error_table_has_a_condition(program: Program, loop: str) -> None:
    whole, broken = f"0 32768 linear {loop} 0", f"0 16384 linear {loop} 0\n16384 16384 error"
    run("dmsetup", "create", "lower", "--table", whole)
    run("dmsetup", "create", "upper", "--table", "0 32768 linear /dev/mapper/lower 0")
    try:
        program.call("register_volume", volume="failing", path="/dev/mapper/upper")
        assert looked_at(program, "failing") == []
        for table, kinds in ((broken, ["DeviceFailed"]), (whole, [])):
            run("dmsetup", "suspend", "lower")
            subprocess.run(["dmsetup", "reload", "lower"], input=table, text=True, check=True)
            run("dmsetup", "resume", "lower")
            assert looked_at(program, "failing") == kinds
        program.call("unregister_volume", volume="failing")
    finally:
        run("dmsetup", "remove", "upper")
        run("dmsetup", "remove", "lower")


def test_a_sparse_file_has_a_condition_before_its_file_system_is_full(program: Program, base: Path) -> None:
    mount = base / "small"
    mount.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=8M,mode=755", "none", str(mount))
    try:
        with (mount / "sparse.img").open("wb") as file:
            file.truncate(6 << 20)
        program.call("register_volume", volume="sparse", path=str(mount / "sparse.img"))
        (mount / "other").write_bytes(bytes(4 << 20))
        assert looked_at(program, "sparse") == [], "more was promised than there is, and much is left"
        (mount / "more").write_bytes(bytes((8 << 20) - (4 << 20) - (128 << 10)))
        assert looked_at(program, "sparse") == ["SpaceLow"]
        (mount / "more").unlink()
        assert looked_at(program, "sparse") == []
        program.call("unregister_volume", volume="sparse")
    finally:
        run("umount", str(mount))


def test_a_file_that_was_deleted_while_it_is_exported_has_a_condition(
    program: Program, host1: Initiator, base: Path
) -> None:
    image = base / "deleted.img"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    program.call("register_volume", volume="deleted", path=str(image))
    program.call("reserve_volume", volume="deleted")
    program.call("initialize_connection", volume="deleted", connector=connector(host1.name))
    image.unlink()
    assert looked_at(program, "deleted") == ["DeviceMissing"]
    assert looked_at(program, "deleted") == ["DeviceMissing"]
    program.call("terminate_connection", volume="deleted", connector=connector(host1.name))
    program.call("unregister_volume", volume="deleted")


def test_a_device_that_is_somebodys_volume_already_is_refused(program: Program, loop: str, base: Path) -> None:
    backing = Path("/sys/block", Path(loop).name, "loop/backing_file").read_text().strip()
    program.call("register_volume", volume="first", path=loop)
    link = Path("/dev/volattachd-test-link")
    link.symlink_to(loop)
    try:
        for path in (loop, str(link), backing):
            assert program.refused("register_volume", volume="second", path=path).kind in (
                "AlreadyExists",
                "InvalidInput",
            ), path
        run("dmsetup", "create", "over", "--table", f"0 32768 linear {loop} 0")
        assert program.refused("register_volume", volume="second", path="/dev/mapper/over").kind == "AlreadyExists"
    finally:
        run("dmsetup", "remove", "over", check=False)
        link.unlink()
        program.call("unregister_volume", volume="first")


def test_a_link_outside_dev_is_refused(program: Program, loop: str, base: Path) -> None:
    link = base / "link"
    link.symlink_to(loop)
    kind, words = refusal(program, str(link))
    link.unlink()
    assert (kind, "symbolic link" in words) == ("InvalidInput", True)


@pytest.fixture
def exchanged(program: Program, base: Path) -> Iterator[str]:
    """A volume whose device name leads to another disk after a restart of everything."""
    images = [base / "right.img", base / "wrong.img"]
    for image in images:
        with image.open("wb") as file:
            file.truncate(16 << 20)
    run("losetup", "/dev/loop90", str(images[0]))
    program.call("register_volume", volume="exchanged", path="/dev/loop90")
    run("losetup", "-d", "/dev/loop90")
    run("losetup", "/dev/loop90", str(images[1]))
    yield "exchanged"
    for row in program.call("list_attachments", volume="exchanged"):
        program.call("unreserve_volume", volume="exchanged", attachment_id=row["attachment_id"])
    program.call("unregister_volume", volume="exchanged")
    subprocess.run(["losetup", "-d", "/dev/loop90"], check=False)


def test_a_name_that_leads_to_another_disk_exports_nothing_until_it_is_right_again(
    program: Program, exchanged: str, host1: Initiator, base: Path
) -> None:
    program.call("reserve_volume", volume=exchanged)
    error = program.refused("initialize_connection", volume=exchanged, connector=connector(host1.name))
    assert (error.kind, error.retriable) == ("DriverError", True)
    shown = program.call("show_volume", volume=exchanged)
    assert [c["kind"] for c in shown["conditions"]] == ["DeviceChanged"]
    assert program.call("list_attachments", volume=exchanged)[0]["state"] == "reserved"
    assert list(TARGET.glob("core/*/volattach-*")) == []
    assert any(exchanged in line for line in program.call("get_status")["degraded"])

    run("losetup", "-d", "/dev/loop90")
    error = program.refused("initialize_connection", volume=exchanged, connector=connector(host1.name))
    kinds = [c["kind"] for c in program.call("show_volume", volume=exchanged)["conditions"]]
    assert (error.kind, kinds) == ("DriverError", ["DeviceMissing"])

    run("losetup", "/dev/loop90", str(base / "right.img"))
    info = program.call("initialize_connection", volume=exchanged, connector=connector(host1.name))
    assert host1.login(info)
    host1.logout(info)
    assert program.call("show_volume", volume=exchanged)["conditions"] == []
    program.call("terminate_connection", volume=exchanged, connector=connector(host1.name))


def test_one_volume_without_its_device_does_not_keep_the_others_from_being_served(
    program: Program, host1: Initiator, base: Path, volume: str
) -> None:
    image = base / "lost.img"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    program.call("register_volume", volume="lost", path=str(image))
    for name in ("lost", volume):
        program.call("reserve_volume", volume=name)
        info = program.call("initialize_connection", volume=name, connector=connector(host1.name))
    program.stop()
    clear_target()
    image.rename(base / "away.img")
    program.start()
    [degraded] = program.call("get_status")["degraded"]
    assert degraded.startswith("lost: DeviceMissing")
    assert host1.login(info), "the other one is served"
    host1.logout(info)
    (base / "away.img").rename(image)
    steps = program.call("reconcile")["volumes"]
    assert [(line["volume"], line["error"]) for line in steps] in ([("lost", None)], [])
    assert program.call("get_status")["degraded"] == []
    program.call("terminate_connection", volume="lost", connector=connector(host1.name))
    program.call("unregister_volume", volume="lost")


def clear_target() -> None:
    """What a reboot, or target.service when it stops, does to everybody's targets."""
    from rtslib_fb import RTSRoot

    RTSRoot().clear_existing(confirm=True)
