"""A backup in a directory that somebody else can write, who exchanges names while it is made."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.soak import times
from tests.state.test_journal_care import restored
from tests.support import ADMIN, Rig, in_thread
from volattachd.errors import AlreadyExists, Busy, InvalidInput
from volattachd.model import State
from volattachd.state import backup
from volattachd.state.journal import Journal

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount, and give files away")
NOBODY = 65534


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "place"
    directory.mkdir()
    return directory


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=0777", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def racing(body: Callable[[], None]) -> Iterator[None]:
    """Do something over and over in another thread."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            body()

    done = in_thread(run)
    try:
        yield
    finally:
        over.set()
        done()


def good(path: Path, rig: Rig, to: Path) -> None:
    found = path.lstat()
    assert stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600 and found.st_uid == os.geteuid()
    journal = Journal(restored(path, to))
    assert journal.attachments.all() == rig.journal.attachments.all()
    journal.close()


@needs_root
def test_a_backup_on_another_file_system_is_whole(rig: Rig, elsewhere: Path, tmp_path: Path) -> None:
    rig.register()
    rig.reach(State.CONNECTED)
    answer = rig.service.backup_journal(ADMIN, str(elsewhere / "backup.db"))
    assert answer["size"] == (elsewhere / "backup.db").stat().st_size
    assert os.listdir(elsewhere) == ["backup.db"]
    good(elsewhere / "backup.db", rig, tmp_path / "restored")
    with pytest.raises(AlreadyExists):
        rig.service.backup_journal(ADMIN, str(elsewhere / "backup.db"))


@needs_root
@pytest.mark.parametrize("where", ["place", "elsewhere"])
def test_the_owner_of_the_directory_gets_no_secret_and_makes_root_write_nowhere_else(
    rig: Rig, tmp_path: Path, where: str, request: pytest.FixtureRequest
) -> None:
    """It replaces whatever appears in the directory, by a link to a victim and by a file that it can read."""
    directory: Path = request.getfixturevalue(where)
    os.chown(directory, NOBODY, NOBODY)
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    rig.register()
    rig.reach(State.CONNECTED)
    for number in range(times(30, 300)):
        path = directory / f"backup-{number}.db"
        seen: list[str] = []

        def replace(path: Path = path, seen: list[str] = seen) -> None:
            for name in os.listdir(directory):
                if name == path.name or name in seen:
                    continue
                seen.append(name)
                os.unlink(directory / name)
                (directory / name).symlink_to(victim)

        with racing(replace):
            rig.service.backup_journal(ADMIN, str(path))
        assert seen == [] and victim.read_text() == "untouched"
        good(path, rig, tmp_path / f"restored-{number}")
        path.unlink()


def test_a_file_that_appears_while_the_copy_is_made_is_not_replaced(
    rig: Rig, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rig.journal.copy_to

    def copy(target: object) -> int:
        (place / "backup.db").write_text("mine")
        return real(target)  # type: ignore[arg-type]

    monkeypatch.setattr(rig.journal, "copy_to", copy)
    with pytest.raises(AlreadyExists):
        rig.service.backup_journal(ADMIN, str(place / "backup.db"))
    assert (place / "backup.db").read_text() == "mine"
    assert os.listdir(place) == ["backup.db"]


@pytest.mark.parametrize("part", ["parent", "grandparent"])
def test_a_link_that_another_user_could_have_made_is_not_followed(rig: Rig, place: Path, part: str) -> None:
    (place / "real" / "deep").mkdir(parents=True)
    (place / "link").symlink_to(place / "real")
    place.chmod(0o777)
    path = place / "link" / "backup.db" if part == "parent" else place / "link" / "deep" / "backup.db"
    with pytest.raises(InvalidInput, match="symbolic link in a directory that another user can write"):
        rig.service.backup_journal(ADMIN, str(path))
    assert [*(place / "real").glob("*.db"), *(place / "real" / "deep").glob("*.db")] == []


@pytest.mark.parametrize("relative", [False, True])
def test_a_link_of_the_administrator_is_followed(rig: Rig, place: Path, relative: bool, tmp_path: Path) -> None:
    (place / "real").mkdir()
    (place / "link").symlink_to("../place/real" if relative else place / "real")
    place.chmod(0o755)
    tmp_path.chmod(0o755)
    fd = backup.open_directory(place / "link")
    found, there = os.fstat(fd), (place / "real").stat()
    os.close(fd)
    assert (found.st_dev, found.st_ino) == (there.st_dev, there.st_ino)


def test_links_in_a_circle_end_with_an_error(rig: Rig, place: Path) -> None:
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    place.chmod(0o755)
    with pytest.raises(InvalidInput, match="too many symbolic links"):
        rig.service.backup_journal(ADMIN, str(place / "a" / "backup.db"))


@needs_root
@pytest.mark.parametrize("where", ["place", "elsewhere"])
def test_the_file_is_synced_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, where: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, place = Rig(tmp_path), request.getfixturevalue(where)
    assert (rig.config.state_dir.stat().st_dev == place.stat().st_dev) is (where == "place")
    done: list[tuple[str, int]] = []
    fsync, link = os.fsync, os.link

    def watched_fsync(fd: int) -> None:
        done.append(("sync", os.fstat(fd).st_ino))
        fsync(fd)

    def watched_link(source: str, name: str, **options: object) -> None:
        link(source, name, **options)  # type: ignore[arg-type]
        done.append(("link", (place / name).stat().st_ino))

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "link", watched_link)
    rig.service.backup_journal(ADMIN, str(place / "backup.db"))
    made, directory = (place / "backup.db").stat().st_ino, place.stat().st_ino
    ours = [(what, inode) for what, inode in done if inode in (made, directory)]
    assert ours == [("sync", made), ("link", made), ("sync", directory)]
    rig.journal.close()


def test_one_backup_at_a_time(rig: Rig, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = rig.journal.copy_to

    def copy(target: object) -> int:
        with pytest.raises(Busy):
            rig.service.backup_journal(ADMIN, str(place / "second.db"))
        return real(target)  # type: ignore[arg-type]

    monkeypatch.setattr(rig.journal, "copy_to", copy)
    rig.service.backup_journal(ADMIN, str(place / "first.db"))
    assert os.listdir(place) == ["first.db"]


@needs_root
def test_a_backup_that_would_take_the_journals_room_is_refused(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m,mode=0700", "none", str(small)], check=True)
    try:
        rig = Rig(small)
        rig.register()
        with pytest.raises(InvalidInput, match=r"needs .* free bytes"):
            rig.service.backup_journal(ADMIN, str(tmp_path / "backup.db"))
        rig.reach(State.ATTACHED)
        rig.journal.close()
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
