"""Regular files. What block devices do is tested on a real kernel (tests/guest)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import MIB, PATIENCE, in_thread, make_file, new_volume
from volattachd.errors import AlreadyExists, InvalidInput
from volattachd.host.devices import check_unused, inspect_device, take_device, verify_device
from volattachd.model import Volume


def volume_on(path: str, name: str = "vol-1") -> Volume:
    return new_volume(name, path=path, device=inspect_device(path))


@pytest.mark.parametrize("size", [512, 1024, MIB, 5 * MIB + 512])
def test_a_file_is_known_by_its_size_and_its_inode(tmp_path: Path, size: int) -> None:
    path = make_file(tmp_path / "a", size)
    device = inspect_device(path)
    assert (device.kind, device.size) == ("file", size)
    assert device.identity["inode"] == str(os.stat(path).st_ino)


@pytest.mark.parametrize("size", [0, 1, 511, 513, MIB - 1])
def test_a_file_that_is_not_made_of_whole_sectors_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(InvalidInput, match=f"its size of {size} bytes is not a positive multiple of 512"):
        inspect_device(make_file(tmp_path / "a", size))


def directory(path: Path) -> None:
    path.mkdir()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize("make", [directory, fifo, unix_socket])
def test_what_is_no_file_and_no_block_device_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a")
    with pytest.raises(InvalidInput, match="neither a block device nor a regular file"):
        inspect_device(str(tmp_path / "a"))


@pytest.mark.parametrize("name", ["/dev/null", "/dev/zero"])
def test_a_character_device_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="neither a block device nor a regular file"):
        inspect_device(name)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file or directory"):
        inspect_device(str(tmp_path / "a"))


def test_a_file_on_the_way_in_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="Not a directory"):
        inspect_device(make_file(tmp_path / "a") + "/b")


def test_a_link_is_refused_wherever_it_stands_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    real = make_file(tmp_path / "d" / "a")
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "to-d").symlink_to(tmp_path / "d")
    for path in (tmp_path / "link", tmp_path / "to-d" / "a"):
        with pytest.raises(InvalidInput, match="symbolic link") as caught:
            inspect_device(str(path))
        assert str(caught.value.correction).startswith(f"give {real} itself")


def test_a_link_that_leads_nowhere_or_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "missing")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("dangling", "loop"):
        with pytest.raises(InvalidInput, match=f"cannot use {tmp_path}/{name}: "):
            inspect_device(str(tmp_path / name))


@pytest.mark.parametrize("spelt", ["{0}/./a", "{0}/d/../a", "{0}//a", "{0}/a/.", "/..{0}/a"])
def test_a_path_that_is_not_spelt_plainly_is_refused(tmp_path: Path, spelt: str) -> None:
    (tmp_path / "d").mkdir()
    make_file(tmp_path / "a")
    with pytest.raises(InvalidInput):
        inspect_device(spelt.format(tmp_path))


def test_a_path_from_dev_that_leads_out_of_it_is_refused(tmp_path: Path) -> None:
    link = Path("/dev/shm") / f"volattachd-test-{os.getpid()}"
    link.symlink_to(make_file(tmp_path / "a"))
    try:
        with pytest.raises(InvalidInput, match="symbolic link"):
            inspect_device(str(link))
    finally:
        link.unlink()


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o770])
def test_a_directory_that_others_can_write_to_is_refused_wherever_it_stands_on_the_way(
    tmp_path: Path, mode: int
) -> None:
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    path = make_file(tmp_path / "outer" / "inner" / "a")
    inspect_device(path)
    for place in (tmp_path / "outer", tmp_path / "outer" / "inner"):
        place.chmod(mode)
        with pytest.raises(InvalidInput, match="other users can exchange it") as caught:
            inspect_device(path)
        assert f"write to {place}" in caught.value.message
        place.chmod(0o755)
    inspect_device(path)


@pytest.mark.parametrize("mode", [0o1777, 0o1770, 0o755, 0o500])
def test_a_directory_in_which_nobody_else_can_exchange_a_name_is_fine(tmp_path: Path, mode: int) -> None:
    (tmp_path / "d").mkdir()
    path = make_file(tmp_path / "d" / "a")
    (tmp_path / "d").chmod(mode)
    inspect_device(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    path = make_file(tmp_path / "d" / "a")
    os.chown(tmp_path / "d", 65534, -1)
    with pytest.raises(InvalidInput, match="other users can exchange it"):
        inspect_device(path)


def test_a_file_that_cannot_be_opened_is_refused() -> None:
    """Some of the kernel's own files have a size, and no way to be read."""
    path = "/sys/bus/platform/drivers_probe"
    if not os.path.exists(path):
        pytest.skip("no such file here")
    with pytest.raises(InvalidInput, match="cannot use"):
        inspect_device(path)


# Use by others.


def test_a_file_that_nothing_uses_may_be_taken(tmp_path: Path) -> None:
    path, other = make_file(tmp_path / "a"), make_file(tmp_path / "b")
    check_unused(path, False, [volume_on(other)])


def test_a_file_is_one_volume_under_whatever_name(tmp_path: Path) -> None:
    path = make_file(tmp_path / "a")
    os.link(path, tmp_path / "hard")
    for name in (path, str(tmp_path / "hard")):
        with pytest.raises(AlreadyExists, match="shares a device with volume 'vol-1'"):
            check_unused(name, False, [volume_on(path)])


def test_a_volume_whose_file_is_missing_stands_in_nobodys_way(tmp_path: Path) -> None:
    path, other = make_file(tmp_path / "a"), make_file(tmp_path / "b")
    gone = volume_on(other)
    os.unlink(other)
    check_unused(path, False, [gone])


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_a_file_that_another_process_has_locked_is_refused(tmp_path: Path, read_only: bool, shared: bool) -> None:
    """QEMU locks its images so; readers may share."""
    path = make_file(tmp_path / "a")
    program = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'r+b'); fcntl.lockf(file, fcntl.LOCK_SH if sys.argv[2] else fcntl.LOCK_EX)\n"
        "print('locked', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, path, "1" if shared else ""]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        if read_only and shared:
            check_unused(path, read_only, [])
        else:
            with pytest.raises(InvalidInput, match="another process holds a lock"):
                check_unused(path, read_only, [])
        holder.communicate("")
    check_unused(path, read_only, [])


def test_looking_at_a_file_leaves_no_lock_on_it(tmp_path: Path) -> None:
    path = make_file(tmp_path / "a")
    check_unused(path, False, [])
    with open(path, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_program_that_is_running_is_refused(tmp_path: Path) -> None:
    """The kernel refuses to open it for writing (ETXTBSY)."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    path = str(tmp_path / "a")
    shutil.copy(os.path.realpath(sleep), path)
    os.truncate(path, -(-os.path.getsize(path) // 512) * 512)
    with subprocess.Popen([path, "60"]) as running:
        try:
            with pytest.raises(InvalidInput, match=r"cannot use .*: Text file busy"):
                check_unused(path, False, [])
        finally:
            running.kill()


def test_a_file_that_another_process_has_open_for_writing_is_refused(tmp_path: Path) -> None:
    """The kernel's target and tgtd lock nothing."""
    path = make_file(tmp_path / "a")
    with open(path, "rb"):
        check_unused(path, False, [])
    with open(path, "r+b"), pytest.raises(InvalidInput, match="has it open for writing"):
        check_unused(path, False, [])
    check_unused(path, False, [])


# The daemon's own files.


def own_names(tmp_path: Path) -> Iterator[Path]:
    """Every way to the daemon's files that is no symbolic link."""
    state = tmp_path / "state"
    yield state / "journal.db"
    yield state / "pr" / "reservations"
    yield tmp_path / "another-name"


def test_the_daemons_own_files_are_refused_under_every_name_and_keep_their_locks(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "pr").mkdir(parents=True)
    journal = make_file(state / "journal.db")
    make_file(state / "pr" / "reservations")
    os.link(journal, tmp_path / "another-name")
    with open(journal, "r+b") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        for path in own_names(tmp_path):
            with pytest.raises(InvalidInput, match="belongs to volattachd itself"):
                take_device(str(path), False, [], state)
        assert not is_lockable(journal), "closing any descriptor of it would have ended the lock"
    beside = make_file(tmp_path / "beside")
    assert take_device(beside, False, [], state).kind == "file"


def is_lockable(path: str) -> bool:
    """Whether another process gets a lock on the file."""
    program = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return subprocess.run([sys.executable, "-c", program, path], capture_output=True, check=False).returncode == 0


# Directories of many users, and exchanges.


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_somebody_elses_file_in_a_directory_of_many_users_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    path = make_file(tmp_path / "d" / "a")
    (tmp_path / "d").chmod(0o1777)
    inspect_device(path)
    os.chown(path, 65534, -1)
    with pytest.raises(InvalidInput, match="belongs to uid 65534, who can exchange it"):
        inspect_device(path)
    (tmp_path / "d").chmod(0o755)
    inspect_device(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link away")
def test_somebody_elses_link_under_dev_is_not_followed() -> None:
    link, real = (Path("/dev/shm") / f"volattachd-test-{os.getpid()}{end}" for end in ("", "-real"))
    make_file(real)
    link.symlink_to(real)
    try:
        assert inspect_device(str(link)).kind == "file"
        os.chown(link, 65534, -1, follow_symlinks=False)
        with pytest.raises(InvalidInput, match="belongs to uid 65534, who can exchange it"):
            inspect_device(str(link))
    finally:
        link.unlink()
        real.unlink()


@contextlib.contextmanager
def flipping(*names: Path) -> Iterator[None]:
    """A thread that renames other things to the first name, again and again."""
    over = threading.Event()
    wanted, *spares = names

    def flip() -> None:
        while not over.is_set():
            for spare in spares:
                os.link(spare, f"{spare}.next")
                os.rename(f"{spare}.next", wanted)
                Path(f"{spare}.next").unlink(missing_ok=True)  # rename leaves it where both are one file already

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(PATIENCE)


def test_a_fifo_that_comes_and_goes_under_the_name_holds_nobody_up_and_is_never_taken(tmp_path: Path) -> None:
    make_file(tmp_path / "file")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "name").hardlink_to(tmp_path / "file")
    seen = set()
    with flipping(tmp_path / "name", tmp_path / "fifo", tmp_path / "file"):
        for _ in range(500):
            try:
                seen.add(in_thread(lambda: inspect_device(str(tmp_path / "name")))().kind)
            except InvalidInput:
                seen.add("refused")
    assert seen <= {"file", "refused"}


def test_what_is_described_is_one_object_however_often_the_name_changes(tmp_path: Path) -> None:
    """Size and identity are those of one file: never the size of one and the inode of the other."""
    files = [Path(make_file(tmp_path / str(size), size)) for size in (MIB, 2 * MIB)]
    kinds = {(str(path.stat().st_ino), path.stat().st_size) for path in files}
    (tmp_path / "name").hardlink_to(files[0])
    seen = set()
    with flipping(tmp_path / "name", *files):
        for _ in range(500):
            with contextlib.suppress(InvalidInput):
                device = take_device(str(tmp_path / "name"), False, [], None)
                seen.add((device.identity["inode"], device.size))
    assert seen <= kinds


# Still the same?


def test_a_file_that_is_still_the_same_is_fine(tmp_path: Path) -> None:
    path = make_file(tmp_path / "a")
    volume = volume_on(path)
    os.utime(path, (1, 1))
    Path(path).chmod(0o600)
    Path(path).write_bytes(b"x" * MIB)
    assert verify_device(volume) is None


def test_a_file_that_has_grown_is_fine(tmp_path: Path) -> None:
    path = make_file(tmp_path / "a")
    volume = volume_on(path)
    os.truncate(path, 2 * MIB)
    assert verify_device(volume) is None


@pytest.mark.parametrize("way", ["moved over", "deleted and made again"])
def test_a_file_that_was_replaced_is_another_device(tmp_path: Path, way: str) -> None:
    path = make_file(tmp_path / "a")
    volume = volume_on(path)
    if way == "moved over":
        os.rename(make_file(tmp_path / "b"), path)
    else:
        os.unlink(path)
        make_file(tmp_path / "b")  # so that the inode's number alone is not simply used again
        make_file(Path(path))
    condition = verify_device(volume)
    assert condition is not None
    assert condition.kind == "DeviceChanged"
    assert f"{path} is another device now" in condition.message


def test_an_inode_that_was_used_again_is_another_device_where_the_filesystem_numbers_its_lives(tmp_path: Path) -> None:
    path = make_file(tmp_path / "a")
    volume = volume_on(path)
    if "generation" not in volume.device.identity:
        pytest.skip("this filesystem does not")
    identity = {**volume.device.identity, "generation": "1"}
    condition = verify_device(replace(volume, device=replace(volume.device, identity=identity)))
    assert condition is not None
    assert condition.kind == "DeviceChanged"
    assert "generation was 1 and is" in condition.message


@pytest.mark.parametrize("size", [512, MIB - 512])
def test_a_file_that_has_shrunk_is_another_device(tmp_path: Path, size: int) -> None:
    path = make_file(tmp_path / "a")
    volume = volume_on(path)
    os.truncate(path, size)
    condition = verify_device(volume)
    assert condition is not None
    assert (condition.kind, condition.message) == ("DeviceChanged", f"{path} has shrunk from {MIB} to {size} bytes")


@pytest.mark.parametrize("what", ["gone", "empty", "directory", "link", "open to others"])
def test_a_file_that_cannot_be_used_any_more_is_missing(tmp_path: Path, what: str) -> None:
    (tmp_path / "d").mkdir()
    path = Path(make_file(tmp_path / "d" / "a"))
    volume = volume_on(str(path))
    if what == "empty":
        os.truncate(path, 0)
    elif what == "open to others":
        path.parent.chmod(0o777)
    else:
        path.rename(tmp_path / "away")
        if what == "directory":
            path.mkdir()
        elif what == "link":
            path.symlink_to(tmp_path / "away")
    condition = verify_device(volume)
    assert condition is not None
    assert condition.kind == "DeviceMissing"
    assert str(path) in condition.message


def test_an_identity_that_is_not_told_yet_is_waited_for(tmp_path: Path) -> None:
    volume = volume_on(make_file(tmp_path / "a"))
    identity = {**volume.device.identity, "wwid": "naa.5"}
    condition = verify_device(replace(volume, device=replace(volume.device, identity=identity)))
    assert condition is not None
    assert (condition.kind, "wwid" in condition.message) == ("DeviceMissing", True)


def test_a_file_where_a_block_device_was_is_another_device(tmp_path: Path) -> None:
    volume = volume_on(make_file(tmp_path / "a"))
    condition = verify_device(replace(volume, device=replace(volume.device, kind="block", identity={"wwid": "x"})))
    assert condition is not None
    assert condition.kind == "DeviceChanged"
