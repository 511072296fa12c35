"""The journal over the years: checks, versions, backups, trimming, full disks, clocks that jump."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.golden import facts, state_file
from tests.support import (
    ADMIN,
    AGENT,
    PATIENCE,
    Rig,
    Wire,
    attachment_id,
    connector,
    full_disk,
    in_thread,
    make_file,
    new_attachment,
    new_volume,
    request,
    wait_until,
)
from volattachd.api.views import attachment_view, volume_view
from volattachd.errors import AlreadyExists, AttachmentNotFound, InvalidInput, JournalFailed, JournalUnusable
from volattachd.model import Attachment, State, Volume
from volattachd.state.history import Trimmer
from volattachd.state.journal import SCHEMA_VERSION, Change, Journal
from volattachd.state.schema import MIGRATIONS, Migration


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


@contextmanager
def opened(directory: Path, **options: Any) -> Iterator[Journal]:
    journal = Journal(directory, **options)
    try:
        yield journal
    finally:
        journal.close()


def put(row: Volume | Attachment, call: str = "call") -> Change:
    if isinstance(row, Volume):
        return Change(call, ADMIN, row.id, after=volume_view(row, (), ()), put=row)
    return Change(call, AGENT, row.volume, row.id, after=attachment_view(row), put=row)


def drop(row: Volume | Attachment) -> Change:
    if isinstance(row, Volume):
        return Change("unregister_volume", ADMIN, row.id, before=volume_view(row, (), ()), drop=row)
    return Change("detach", AGENT, row.volume, row.id, before=attachment_view(row), drop=row)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "lock"}


def seqs(journal: Journal) -> list[int]:
    return [line["seq"] for line in journal.history(since=0, limit=100_000)]


# The check at the start.


def crashed(directory: Path, prepare: Callable[[sqlite3.Connection], object] = lambda db: None) -> None:
    """A state directory as a kill leaves it: much of it in the log alone, and an index of the log beside it."""
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        for number in range(200):
            journal.commit(put(new_attachment(number)))
        journal._db.execute("PRAGMA wal_checkpoint")
        for number in range(200, 300):
            journal.commit(put(new_attachment(number)))
        prepare(journal._db)
        left = directory.with_name("left")
        shutil.copytree(directory, left)
    shutil.rmtree(directory)
    left.rename(directory)
    (directory / "journal.db-shm").write_bytes(b"an index of another life" * 1000)


def overwrite(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def break_reference(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA foreign_keys = OFF")
    db.execute("DELETE FROM volumes")


def break_index(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA writable_schema = ON")
    db.execute("DELETE FROM sqlite_master WHERE name = 'journal_by_volume'")


DAMAGES: dict[str, tuple[Callable[[sqlite3.Connection], object], Callable[[Path], object]]] = {
    "a page": (lambda db: None, lambda path: overwrite(path, 4096 * 3, b"\xff" * 4096)),
    "many pages": (lambda db: None, lambda path: overwrite(path, 4096 * 2, b"\x5a" * 4096 * 8)),
    "the end": (lambda db: None, lambda path: os.truncate(path, 4096 * 4)),
    "all of it, before its log": (lambda db: None, lambda path: os.truncate(path, 0)),
    "the file is gone, and its log is not": (lambda db: None, lambda path: path.unlink()),
    "a reference": (break_reference, lambda path: None),
    "a table": (lambda db: db.execute("DROP TABLE hours"), lambda path: None),
    "an index": (break_index, lambda path: None),
    "a cell": (lambda db: db.execute("UPDATE attachments SET state = 'lost'"), lambda path: None),
    "a version from the future": (lambda db: db.execute("PRAGMA user_version = 99"), lambda path: None),
    "no version": (lambda db: db.execute("PRAGMA user_version = 0"), lambda path: None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_damaged_is_refused_and_no_byte_changes_even_after_a_crash(directory: Path, damage: str) -> None:
    inside, outside = DAMAGES[damage]
    crashed(directory, inside)
    outside(directory / "journal.db")
    before = files(directory)
    assert len(before["journal.db-wal"]) > 0
    for _ in range(2):
        with pytest.raises(JournalUnusable, match=r"restore it from a backup|restore an older backup"):
            Journal(directory)
        assert files(directory) == before


def test_what_a_crash_left_is_whole_and_read(directory: Path) -> None:
    crashed(directory)
    with opened(directory) as journal:
        assert len(journal.attachments) == 300
        assert journal.commit(put(new_attachment(300))) == 302
    assert not list(directory.glob(".check*"))


def test_what_the_log_has_whole_is_not_damaged(directory: Path) -> None:
    crashed(directory)
    overwrite(directory / "journal.db", 0, b"X" * 16)  # the log has this page in a newer state
    with opened(directory) as journal:
        assert len(journal.attachments) == 300


def test_the_rest_of_a_check_that_was_killed_is_cleared_away(directory: Path) -> None:
    crashed(directory)
    os.link(directory / "journal.db", directory / ".check.db")
    (directory / ".check.db-wal").write_bytes(b"old")
    with opened(directory) as journal:
        assert len(journal.attachments) == 300
    assert not list(directory.glob(".check*"))


def test_another_programs_database_is_refused_untouched(directory: Path) -> None:
    directory.mkdir(0o700)
    db = sqlite3.connect(directory / "journal.db")
    db.execute("CREATE TABLE theirs (a)")
    db.close()
    before = files(directory)
    with pytest.raises(JournalUnusable, match="does not have the tables of a journal"):
        Journal(directory)
    assert files(directory) == before


# Versions.


def write_notes(db: sqlite3.Connection) -> None:
    db.execute("UPDATE volumes SET note = 'was ' || id")


_STEPS: tuple[Migration, ...] = (
    "ALTER TABLE volumes ADD COLUMN note TEXT;\n-- a comment; with a semicolon\nCREATE TABLE more (a TEXT) STRICT;\n",
    write_notes,
)


def version_of(path: Path) -> int:
    version: int
    (version,) = asked(path, "PRAGMA user_version")
    return version


def asked(path: Path, query: str) -> Any:
    db = sqlite3.connect(path)
    try:
        return db.execute(query).fetchone()
    finally:
        db.close()


def old_state(directory: Path, version: int = SCHEMA_VERSION) -> Path:
    directory.mkdir(0o700)
    shutil.copyfile(state_file(version), directory / "journal.db")
    return directory / "journal.db"


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION + 1))
def test_the_state_file_of_every_version_opens_and_tells_what_was_in_it(directory: Path, version: int) -> None:
    old_state(directory, version)
    expected = json.loads(state_file(version).with_suffix(".json").read_text(encoding="utf-8"))
    with opened(directory) as journal:
        assert facts(journal) == expected
        assert journal.commit(put(new_volume("vol-next", 77))) == expected["seq"] + 1


@pytest.mark.parametrize("count", range(len(_STEPS) + 1))
def test_an_older_file_is_brought_forward_step_by_step(directory: Path, count: int) -> None:
    path = old_state(directory)
    later = (*MIGRATIONS, *_STEPS[:count])
    Journal(directory, migrations=later).close()
    assert version_of(path) == SCHEMA_VERSION + count
    if count == len(_STEPS):
        assert asked(path, "SELECT note FROM volumes WHERE id = 'vol-old'") == ("was vol-old",)


def fail(db: sqlite3.Connection) -> None:
    raise sqlite3.OperationalError("no such luck")


def lose_volumes(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM volumes")


@pytest.mark.parametrize("last", ["CREATE TABLE journal (a);\n", fail, lose_volumes])
def test_a_migration_that_fails_leaves_the_old_version(directory: Path, last: Migration) -> None:
    path = old_state(directory)
    later = (*MIGRATIONS, "CREATE TABLE more (a TEXT) STRICT;\n", last)
    with pytest.raises(JournalUnusable):
        Journal(directory, migrations=later)
    assert version_of(path) == SCHEMA_VERSION
    with opened(directory) as journal:
        assert (
            facts(journal)["seq"]
            == json.loads(state_file(SCHEMA_VERSION).with_suffix(".json").read_text("utf-8"))["seq"]
        )


def test_a_file_without_a_version_is_made_by_the_same_steps(directory: Path) -> None:
    later = (*MIGRATIONS, "CREATE TABLE more (a TEXT) STRICT;\n")
    with opened(directory, migrations=later) as journal:
        journal.commit(put(new_volume()))
    with opened(directory, migrations=later) as journal:
        assert list(journal.volumes) == ["vol-1"]
    with pytest.raises(JournalUnusable, match=f"schema version {SCHEMA_VERSION + 1}"):
        Journal(directory)


# Backup.


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory for backups, with nothing else in it."""
    directory = tmp_path / "place"
    directory.mkdir()
    return directory


def restored(backup: Path, directory: Path) -> Path:
    directory.mkdir(0o700)
    shutil.copyfile(backup, directory / "journal.db")
    return directory


def test_a_backup_under_load_is_a_prefix_of_what_was_acknowledged_and_the_daemon_starts_from_it(
    rig: Rig, tmp_path: Path
) -> None:
    volumes = [rig.register(f"vol-{n}") for n in range(4)]
    for n in range(500):  # so much that the copy takes several steps
        rig.journal.commit(
            put(new_attachment(10_000 + n, "vol-0", connector={"initiator": f"x{n}", "more": "y" * 9000}))
        )
        rig.journal.commit(drop(new_attachment(10_000 + n, "vol-0")))
    done = threading.Event()

    def work(index: int) -> int:
        count = 0
        while not done.is_set():
            rig.reach(State.GONE, volumes[index], 1000 * (index + 1) + count)
            count += 1
        return count

    workers = [in_thread(lambda i=i: work(i)) for i in range(1, 4)]  # type: ignore[misc]
    wait_until(lambda: rig.journal.seq > 1020)
    before = rig.journal.seq
    answer = rig.service.backup_journal(ADMIN, str(tmp_path / "backup.db"))
    done.set()
    assert all(worker() > 0 for worker in workers)
    assert before <= answer["seq"] <= rig.journal.seq
    everything = rig.journal.history(since=0, limit=100_000)
    with opened(restored(tmp_path / "backup.db", tmp_path / "restored")) as journal:
        assert journal.history(since=0, limit=100_000) == everything[: answer["seq"]]
        assert journal.seq == answer["seq"]
        ended = {line["attachment_id"] for line in everything[: journal.seq] if line["after"] is None}
        begun = {line["attachment_id"] for line in everything[: journal.seq] if line["attachment_id"]}
        assert {row.id for row in journal.attachments.all()} == begun - ended


def test_calls_are_answered_while_a_backup_is_being_written(rig: Rig, tmp_path: Path) -> None:
    """The copy lets a call through between two steps: it waits here until one was made."""
    rig.register()
    for n in range(1000):
        rig.journal.commit(put(new_attachment(n, connector={"initiator": f"x{n}", "more": "y" * 5000})))
    target = sqlite3.connect(tmp_path / "copy.db", isolation_level=None, check_same_thread=False)
    asked, answered = threading.Event(), threading.Event()
    calls: list[str] = []

    def trace(sql: str) -> None:
        calls.append(sql)

    def call() -> None:
        assert asked.wait(PATIENCE)
        rig.register("vol-2")
        answered.set()

    waiting = in_thread(call)
    held = rig.journal._writer

    class Watched:
        """The writer's lock: the first time that the copy gives it back, it waits for the call to get in."""

        def __enter__(self) -> None:
            held.acquire()

        def __exit__(self, *_: object) -> None:
            held.release()

        def release(self) -> None:
            held.release()
            asked.set()
            assert answered.wait(PATIENCE)

        def acquire(self) -> None:
            held.acquire()

    rig.journal._writer = Watched()  # type: ignore[assignment]
    seq = rig.journal.copy_to(target)
    waiting()
    rig.journal._writer = held
    assert seq == rig.journal.seq == 1002
    # The row came into the copy although it was committed in the middle of it.
    assert target.execute("SELECT id FROM volumes").fetchall() == [("vol-1",), ("vol-2",)]
    target.close()


def test_a_backup_is_for_its_owner_alone_and_has_the_secrets(rig: Rig, place: Path, tmp_path: Path) -> None:
    rig.register()
    rig.reach(State.CONNECTED)
    before = os.umask(0)
    try:
        answer = rig.service.backup_journal(ADMIN, str(place / "backup.db"))
    finally:
        os.umask(before)
    path = place / "backup.db"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert answer == {"path": str(path), "seq": rig.journal.seq, "size": path.stat().st_size}
    assert sorted(p.name for p in place.iterdir()) == ["backup.db"]
    with opened(restored(path, tmp_path / "restored")) as journal:
        assert journal.attachments.all() == rig.journal.attachments.all()


@pytest.mark.parametrize("what", ["file", "directory", "dangling link"])
def test_a_backup_never_replaces_what_is_there(rig: Rig, place: Path, what: str) -> None:
    path = place / "there"
    if what == "file":
        path.write_text("mine")
    elif what == "directory":
        path.mkdir()
    else:
        path.symlink_to(place / "nowhere")
    with pytest.raises(AlreadyExists):
        rig.service.backup_journal(ADMIN, str(path))
    assert sorted(p.name for p in place.iterdir()) == ["there"]
    assert what != "file" or path.read_text() == "mine"


@pytest.mark.parametrize("path", ["missing/backup.db", "file/backup.db", "x" * 300])
def test_a_backup_that_cannot_be_written_says_why_and_the_journal_works_on(rig: Rig, place: Path, path: str) -> None:
    (place / "file").touch()
    with pytest.raises(InvalidInput, match="cannot write the backup"):
        rig.service.backup_journal(ADMIN, str(place / path))
    rig.register()


def test_a_backup_on_a_full_disk_leaves_nothing_behind_and_the_journal_works_on(rig: Rig, place: Path) -> None:
    rig.register()
    with full_disk(), pytest.raises(InvalidInput, match="cannot write the backup"):
        rig.service.backup_journal(ADMIN, str(place / "backup.db"))
    assert sorted(p.name for p in place.iterdir()) == []
    rig.reach(State.ATTACHED)
    rig.service.backup_journal(ADMIN, str(place / "backup.db"))


def test_what_a_killed_backup_left_is_in_nobodys_way_and_goes_with_the_next_start(rig: Rig, place: Path) -> None:
    part = rig.config.state_dir / "backup.part"
    part.write_text("half")
    rig.service.backup_journal(ADMIN, str(place / "backup.db"))
    assert not part.exists()
    part.write_text("half")
    rig.restart()
    assert not part.exists()


def test_a_restored_journal_makes_the_target_equal_to_it(rig: Rig, tmp_path: Path) -> None:
    rig.register("vol-1")
    rig.register("vol-2")
    rig.reach(State.ATTACHED, "vol-1", 1)
    rig.service.backup_journal(ADMIN, str(tmp_path / "backup.db"))
    rig.reach(State.ATTACHED, "vol-2", 2)
    rig.register("vol-3")
    rig.reach(State.ATTACHED, "vol-3", 3)
    rig.service.terminate_connection(ADMIN, "vol-1", connector(), force=True)
    rig.service.detach(ADMIN, "vol-1")
    rig.journal.close()
    shutil.rmtree(rig.config.state_dir)
    restored(tmp_path / "backup.db", rig.config.state_dir)
    rig._open()
    rig.service.upkeep.start_up()
    assert (rig.exported("vol-1"), rig.exported("vol-2")) == (True, False)
    assert len(rig.granted("vol-1")) == 1
    assert len(rig.driver.exports) == 1


# Trimming.


def lives(journal: Journal, count: int, volume: str = "vol-1", first: int = 1) -> None:
    """Attachments that come and go: two rows each."""
    for number in range(first, first + count):
        journal.commit(put(new_attachment(number, volume)))
        journal.commit(drop(new_attachment(number, volume)))


@pytest.mark.parametrize("rows", [0, 1, 5, 20, 21, 22, 1000])
@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_the_newest_rows_are_kept_and_the_oldest_go_first(directory: Path, rows: int, batch: int) -> None:
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        lives(journal, 10)
        before = journal.history(since=0)
        taken = []
        while count := journal.trim(hours=1, rows=rows, at_most=batch):
            taken.append(count)
            assert journal.history(since=0) == before[sum(taken) :]
        assert sum(taken) == max(0, 21 - rows)
        assert max(taken, default=0) <= batch
        assert journal.kept() == (22 - min(rows, 21), 21)


@pytest.mark.parametrize("hours", [0, 1, 2, 3, 24, 30])
def test_age_is_counted_in_hours_of_running_across_restarts(directory: Path, hours: int) -> None:
    for _ in range(24):
        with opened(directory) as journal:
            journal.commit(put(new_volume()))
            journal.count_hour()
    with opened(directory) as journal:
        while journal.trim(hours, rows=1_000_000, at_most=5):
            pass
        assert seqs(journal) == list(range(24 - hours + 1, 25)) if hours < 24 else list(range(1, 25))
        journal.count_hour()
        journal.trim(hours, rows=1_000_000, at_most=100)
        assert len(seqs(journal)) == min(hours, 24) - (1 if 0 < hours <= 24 else 0)


@pytest.mark.parametrize("rows", [0, 3])
def test_numbers_go_on_after_everything_was_trimmed_and_after_a_restart(directory: Path, rows: int) -> None:
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        lives(journal, 3)
        journal.trim(1, rows, 1000)
    with opened(directory) as journal:
        assert journal.seq == 7
        assert journal.kept() == (8 - rows, 7)
        assert journal.commit(put(new_attachment(9))) == 8
        assert journal.kept() == (8 - rows, 8)


def test_current_rows_survive_the_history_that_tells_of_them(rig: Rig) -> None:
    states = [State.RESERVED, State.CONNECTED, State.ATTACHED, State.DETACHING, State.DISCONNECTED]
    rig.register(multiattach=True)
    for number, state in enumerate(states):
        rig.reach(state, number=number, initiator=f"iqn.2026-11.org.example:host-{number}")
    rows = rig.journal.attachments.all()
    while rig.journal.trim(1, 0, 7):
        pass
    assert list(rig.service.get_history(ADMIN)) == []
    rig.restart()
    assert rig.journal.attachments.all() == rows
    rig.service.upkeep.start_up()
    assert rig.driver.ran == []
    for number, state in enumerate(states):
        rig.service.terminate_connection(
            ADMIN, "vol-1", connector(f"iqn.2026-11.org.example:host-{number}"), True, attachment_id(number)
        ) if state is not State.RESERVED else rig.service.unreserve_volume(ADMIN, "vol-1", attachment_id(number))
        rig.service.detach(ADMIN, "vol-1", attachment_id(number))
    assert rig.service.show_volume(ADMIN, "vol-1")["status"] == "available"


@pytest.mark.parametrize("restart", [False, True])
def test_an_id_that_ended_stays_ended_when_its_history_is_trimmed(rig: Rig, restart: bool) -> None:
    rig.register("vol-1")
    rig.register("vol-2")
    name = rig.reach(State.GONE, "vol-1", 1)
    shown = rig.service.show_attachment(ADMIN, name)
    rig.reach(State.GONE, "vol-1", 2)
    while rig.journal.trim(1, 0, 3):
        pass
    if restart:
        rig.restart()
    service = rig.service
    for volume in ("vol-1", "vol-2"):
        with pytest.raises(InvalidInput, match=r"has ended|belong"):
            service.reserve_volume(AGENT, volume, name)
    assert service.detach(AGENT, "vol-1", name)["status"] == "available"
    assert service.unreserve_volume(AGENT, "vol-1", name)["status"] == "available"
    answers = [
        service.terminate_connection(AGENT, "vol-1", connector(), attachment_id=name),
        service.show_attachment(ADMIN, name),
    ]
    forgotten = dict.fromkeys(("connector", "instance_uuid", "host_name", "mount_point"))
    assert answers == [{**shown, **forgotten}] * 2
    assert service.terminate_connection(AGENT, "vol-1", connector())["attachment_id"] == attachment_id(2)
    with pytest.raises(InvalidInput, match="belonged to volume 'vol-1'"):
        service.detach(AGENT, "vol-2", name)
    with pytest.raises(AttachmentNotFound):
        service.detach(AGENT, "vol-1", attachment_id(3))


def test_an_unregistered_volume_stays_known_as_such_when_its_history_is_trimmed(rig: Rig) -> None:
    rig.register()
    rig.service.unregister_volume(ADMIN, "vol-1")
    rig.journal.trim(1, 0, 100)
    assert rig.service.unregister_volume(ADMIN, "vol-1") == {"volume": "vol-1"}
    rig.register()
    rig.service.unregister_volume(ADMIN, "vol-1")
    rig.journal.trim(1, 0, 100)
    assert rig.service.unregister_volume(ADMIN, "vol-1") == {"volume": "vol-1"}


def test_the_trimmer_counts_hours_and_keeps_what_the_configuration_says(directory: Path) -> None:
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        lives(journal, 600)
        for look in range(24):
            Trimmer(journal, days=1, rows=1000, hour=0.0).look()
            assert seqs(journal) == list(range(202, 1202)), look
        Trimmer(journal, days=1, rows=1000).look()  # no hour is over
        assert len(seqs(journal)) == 1000
        Trimmer(journal, days=1, rows=1000, hour=0.0).look()
        assert seqs(journal) == []


def test_the_periodic_pass_trims(tmp_path: Path) -> None:
    rig = Rig(tmp_path, rows=5, interval=0.01)
    rig.register()
    lives(rig.journal, 20)
    running = in_thread(rig.service.upkeep.run)
    wait_until(lambda: rig.journal.kept() == (37, 41))
    rig.service.upkeep.stop()
    running()
    rig.journal.close()


def test_a_failure_to_trim_is_as_fatal_as_a_failed_commit(directory: Path) -> None:
    told: list[BaseException] = []
    journal = Journal(directory, on_failure=told.append)
    journal.commit(put(new_volume()))
    lives(journal, 5)
    with full_disk(), pytest.raises(JournalFailed):
        journal.trim(1, 0, 100)
    with pytest.raises(JournalFailed):
        journal.commit(put(new_volume("vol-2", 2)))
    assert len(told) == 1
    journal.close()
    with opened(directory) as journal:
        assert seqs(journal) == list(range(1, 12))


# A full disk, and clocks.


class Program:
    """The daemon as a process of its own, over the simulated target."""

    def __init__(self, directory: Path, more: str = "", interval: float = 3600) -> None:
        self.socket = directory / "d.sock"
        self._directory = directory
        self._config = directory / "volattachd.toml"
        self._config.write_text(f'[access]\nadmin = ["{os.getuid()}"]\n[reconcile]\ninterval = {interval}\n{more}')

    def start(self, before: Callable[[], None] | None = None) -> subprocess.Popen[str]:
        words = ["--config", str(self._config), "--state-dir", str(self._directory / "state"), "--driver", "memory"]
        command = [sys.executable, "-m", "volattachd", *words, "--socket", str(self.socket)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=before)

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        process = self.start()
        assert process.stderr is not None
        try:
            assert any("ready: " in line for line in process.stderr)
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE)


def no_room() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def test_on_a_full_disk_nothing_false_is_acknowledged_and_with_room_again_it_goes_on(tmp_path: Path) -> None:
    program = Program(tmp_path)
    path = make_file(tmp_path / "vol-1.img")
    with program.running() as process, Wire(program.socket) as wire, Wire(program.socket) as other:
        wire.call("register_volume", volume="vol-1", path=path)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        answer = wire.ask(request("reserve_volume", volume="vol-1"))
        assert (answer["error"]["data"]["kind"], answer["error"]["data"]["retriable"]) == ("Busy", True)
        assert wire.answer() is None
        assert other.answer() is None
        assert process.wait(PATIENCE) == 1
    refused = program.start(no_room)
    _, told = refused.communicate(timeout=PATIENCE)
    assert refused.returncode == 1
    assert "make room" in told and "Traceback" not in told
    with program.running() as process, Wire(program.socket) as wire:
        assert [volume["status"] for volume in wire.call("list_volumes")] == ["available"]
        assert wire.call("reserve_volume", volume="vol-1")["state"] == "reserved"
    assert process.returncode == 0


def test_a_clock_that_jumps_by_years_changes_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    real, jumps = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + jumps[0])
    years = 365 * 86400.0
    rig.register()
    for number, jump in enumerate((30 * years, -30 * years, 0.0, 7 * years), start=1):
        jumps[0] = jump
        rig.reach(State.RESERVED, number=number)
        jumps[0] = -jump
        rig.service.expire_reservations()
        assert rig.state(number) is State.RESERVED
        rig.restart()
        jumps[0] = 2 * jump
        rig.reach(State.ATTACHED, number=number)
        jumps[0] = 0.0
        rig.service.expire_reservations()
        assert rig.state(number) is State.ATTACHED
        rig.service.begin_detaching(AGENT, "vol-1")
        jumps[0] = jump
        rig.service.terminate_connection(AGENT, "vol-1", connector())
        rig.service.detach(AGENT, "vol-1")
    calls = ["reserve_volume", "initialize_connection", "attach", "begin_detaching", "terminate_connection", "detach"]
    history = list(rig.service.get_history(ADMIN, since=1))
    assert [line["call"] for line in history] == calls * 4
    assert [line["seq"] for line in history] == list(range(2, 26))
    assert sorted(line["at"] for line in history) != [line["at"] for line in history]
