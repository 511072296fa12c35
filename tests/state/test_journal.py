from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import pytest

from tests.support import (
    ADMIN,
    AGENT,
    attachment_id,
    connector,
    full_disk,
    in_thread,
    new_attachment,
    new_volume,
    wait_until,
)
from volattachd.api.views import attachment_view, volume_view
from volattachd.errors import JournalDamaged, JournalFailed, JournalUnusable
from volattachd.model import Attachment, Secret, State, Volume
from volattachd.state.journal import SCHEMA_VERSION, Change, Journal, open_connection


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


@contextmanager
def opened(directory: Path) -> Iterator[Journal]:
    journal = Journal(directory)
    try:
        yield journal
    finally:
        journal.close()


class Traced:
    """Opens the journal's file for it, and sees every statement before it runs."""

    def __init__(self, trace: Callable[[str], None]) -> None:
        self._trace = trace
        self.connections: list[sqlite3.Connection] = []

    def __call__(self, path: Path) -> sqlite3.Connection:
        self.connections.append(open_connection(path))
        return self.connections[-1]

    def start(self) -> None:
        self.connections[-1].set_trace_callback(self._trace)

    def stop(self) -> None:
        self.connections[-1].set_trace_callback(None)


def put(row: Volume | Attachment, call: str = "call") -> Change:
    if isinstance(row, Volume):
        return Change(call, ADMIN, row.id, after=volume_view(row, (), ()), put=row)
    return Change(call, AGENT, row.volume, row.id, after=attachment_view(row), put=row)


def drop(row: Volume | Attachment) -> Change:
    if isinstance(row, Volume):
        return Change("drop", ADMIN, row.id, before=volume_view(row, (), ()), drop=row)
    return Change("drop", AGENT, row.volume, row.id, before=attachment_view(row), drop=row)


def contents(journal: Journal) -> Any:
    return list(journal.volumes.values()), journal.attachments.all(), journal.history(since=0), journal.seq


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "lock"}


FULL = new_attachment(
    2,
    state=State.CONNECTED,
    connector=connector(multipath=None, host="hüst", nested={"a": [1, 2.5, None]}),
    instance_uuid="i",
    host_name="h",
    mount_point="/dev/vdb",
    ttl=2.5,
)


# What was committed is there.


def test_what_was_committed_is_read_again_by_the_next_start(directory: Path) -> None:
    with opened(directory) as journal:
        assert [journal.commit(put(row)) for row in (new_volume(), new_attachment(), FULL)] == [1, 2, 3]
        before = contents(journal)
    with opened(directory) as journal:
        assert contents(journal) == before
        assert journal.volumes == {"vol-1": new_volume()}
        assert journal.attachments.all() == [new_attachment(), FULL]
        assert journal.commit(drop(FULL)) == 4


def test_what_was_committed_survives_a_kill_without_close(directory: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.support import *\n"
        "from tests.state.test_journal import put\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "journal.commit(put(new_volume()))\n"
        "journal.commit(put(new_attachment()))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(directory)], check=False)
    with opened(directory) as journal:
        assert journal.volumes == {"vol-1": new_volume()}
        assert journal.attachments.all() == [new_attachment()]
        assert journal.seq == 2


def test_a_row_can_be_put_again_and_dropped_and_the_history_keeps_all_of_it(directory: Path) -> None:
    states = [State.RESERVED, State.CONNECTED, State.ATTACHED, State.DETACHING, State.DISCONNECTED]
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        for state in states:
            journal.commit(put(new_attachment(state=state), state.value))
            assert journal.attachments.get(attachment_id(1)) == new_attachment(state=state)
        journal.commit(drop(new_attachment(state=states[-1])))
    with opened(directory) as journal:
        assert len(journal.attachments) == 0
        assert journal.attachments.of_volume("vol-1") == []
        lines = journal.history(attachment_id=attachment_id(1))
        assert [line["after"] and line["after"]["state"] for line in lines] == [s.value for s in states] + [None]
        journal.commit(drop(new_volume()))
        assert journal.volumes == {}


def test_an_attachment_of_a_volume_that_is_not_there_is_never_written(directory: Path) -> None:
    with opened(directory) as journal, pytest.raises(JournalFailed, match="FOREIGN KEY"):
        journal.commit(put(new_attachment()))
    with opened(directory) as journal:
        assert len(journal.attachments) == 0


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_order_of_creation_survives_updates_and_the_next_start(directory: Path, order: tuple[int, ...]) -> None:
    names = ["vol-c", "vol-a", "vol-b"]
    with opened(directory) as journal:
        for number, name in enumerate(names):
            journal.commit(put(new_volume(name, number)))
            journal.commit(put(new_attachment(9 - number, "vol-c")))
        for index in order:
            journal.commit(put(new_volume(names[index], index, read_only=True)))
            journal.commit(put(new_attachment(9 - index, "vol-c", State.CONNECTED)))
        ids = [attachment_id(9 - number) for number in range(3)]
        assert list(journal.volumes) == names
        assert [row.id for row in journal.attachments.of_volume("vol-c")] == ids
    with opened(directory) as journal:
        assert list(journal.volumes) == names
        assert [row.id for row in journal.attachments.all()] == ids
        assert [row.id for row in journal.attachments.of_volume("vol-c")] == ids


def test_a_reader_sees_a_row_only_after_its_commit(directory: Path) -> None:
    """The trace callback runs in the middle of the transaction: nothing is visible there."""
    seen: list[tuple[str, int]] = []
    traced = Traced(lambda sql: seen.append((sql.split()[0], len(journal.volumes))))
    journal = Journal(directory, connect=traced)
    traced.start()
    journal.commit(put(new_volume()))
    traced.stop()
    assert seen[0][0] == "BEGIN"
    assert seen[-1][0] == "COMMIT"
    assert {count for _, count in seen} == {0}
    assert len(journal.volumes) == 1
    journal.close()


# Group commit.


def test_changes_that_wait_are_committed_as_one_transaction(directory: Path) -> None:
    count = 20
    statements: list[str] = []
    first_is_in = threading.Event()

    def trace(sql: str) -> None:
        if not first_is_in.is_set():
            first_is_in.set()
            wait_until(lambda: len(journal._group) == count - 1)
        statements.append(sql.split()[0])

    traced = Traced(trace)
    journal = Journal(directory, connect=traced)
    journal.commit(put(new_volume()))
    traced.start()
    commits = [in_thread(lambda n=n: journal.commit(put(new_attachment(n)))) for n in range(count)]  # type: ignore[misc]
    seqs = sorted(commit() for commit in commits)
    traced.stop()
    assert statements.count("BEGIN") == statements.count("COMMIT") == 2
    assert seqs == list(range(2, count + 2))
    assert len(journal.attachments) == count
    journal.close()


def test_many_threads_get_unique_numbers_without_a_gap_and_every_row_once(directory: Path) -> None:
    threads, each = 8, 25
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        start = threading.Barrier(threads)

        def work(thread: int) -> list[int]:
            start.wait(10)
            return [journal.commit(put(new_attachment(thread * each + n))) for n in range(each)]

        workers = [in_thread(lambda t=t: work(t)) for t in range(threads)]  # type: ignore[misc]
        taken = [worker() for worker in workers]
        assert sorted(seq for seqs in taken for seq in seqs) == list(range(2, threads * each + 2))
        assert all(a < b for seqs in taken for a, b in pairwise(seqs))
        assert journal.seq == threads * each + 1
    with opened(directory) as journal:
        lines = journal.history(since=1, limit=1000)
        assert sorted(line["attachment_id"] for line in lines) == [attachment_id(n) for n in range(threads * each)]
        for thread, seqs in enumerate(taken):
            assert [lines[seq - 2]["attachment_id"] for seq in seqs] == [
                attachment_id(thread * each + n) for n in range(each)
            ]


# A failed commit.


def test_a_commit_that_fails_changes_nothing_and_ends_the_journal(directory: Path) -> None:
    told: list[BaseException] = []
    journal = Journal(directory, on_failure=told.append)
    journal.commit(put(new_volume()))
    with full_disk(), pytest.raises(JournalFailed, match="cannot be written"):
        journal.commit(put(new_attachment()))
    assert len(told) == 1
    assert journal.attachments.all() == []
    assert journal.seq == 1
    # There is room again, and it is refused all the same: what is on the disk is not known.
    for again in (lambda: journal.commit(put(new_attachment(2))), journal.history, lambda: journal.last_of("x")):
        with pytest.raises(JournalFailed):
            again()
    with pytest.raises(JournalFailed):
        journal.last_ended("vol-1")
    assert len(told) == 1
    assert journal.volumes == {"vol-1": new_volume()}
    journal.close()
    with opened(directory) as journal:
        assert journal.volumes == {"vol-1": new_volume()}
        assert journal.attachments.all() == []
        assert journal.commit(put(new_attachment())) == 2


def test_everybody_who_waits_for_a_commit_that_fails_is_told(directory: Path) -> None:
    count = 10
    told: list[BaseException] = []
    first_is_in = threading.Event()

    def trace(sql: str) -> None:
        if not first_is_in.is_set():
            first_is_in.set()
            wait_until(lambda: len(journal._group) == count - 1)

    traced = Traced(trace)
    journal = Journal(directory, told.append, traced)
    journal.commit(put(new_volume()))
    traced.start()
    with full_disk():
        commits = [in_thread(lambda n=n: journal.commit(put(new_attachment(n)))) for n in range(count)]  # type: ignore[misc]
        for commit in commits:
            with pytest.raises(JournalFailed):
                commit()
    assert len(told) == 1
    assert len(journal.attachments) == 0
    journal.close()


def test_a_closed_journal_takes_nothing_and_tells_nobody_of_a_failure(directory: Path) -> None:
    told: list[BaseException] = []
    journal = Journal(directory, on_failure=told.append)
    journal.close()
    with pytest.raises(JournalFailed, match="closed"):
        journal.commit(put(new_volume()))
    with pytest.raises(JournalFailed, match="closed"):
        journal.history()
    assert told == []


# History.


def test_a_line_of_history_says_who_did_what_to_what(directory: Path) -> None:
    row = new_attachment()
    with opened(directory) as journal:
        journal.commit(put(new_volume(), "register_volume"))
        journal.commit(put(row, "reserve_volume"))
        journal.commit(drop(row))
        first, second, third = journal.history()
    assert (first["seq"], first["call"], first["uid"], first["pid"]) == (1, "register_volume", 0, 1)
    assert (first["volume"], first["attachment_id"], first["before"]) == ("vol-1", None, None)
    assert first["after"]["volume"] == "vol-1"
    assert first["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (second["uid"], second["pid"], second["attachment_id"]) == (1000, 2, row.id)
    assert (second["before"], second["after"]) == (None, attachment_view(row))
    assert (third["before"], third["after"]) == (attachment_view(row), None)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journal]:
    """History with 30 lines: 1 and 2 register volumes, then the attachments take turns."""
    with opened(tmp_path_factory.mktemp("long") / "state") as journal:
        journal.commit(put(new_volume("vol-1", 1)))
        journal.commit(put(new_volume("vol-2", 2)))
        for n in range(28):
            journal.commit(put(new_attachment(n % 4, f"vol-{1 + n % 2}")))
        yield journal


@pytest.mark.parametrize("since", [None, 0, 1, 15, 29, 30, 31])
@pytest.mark.parametrize("volume", [None, "vol-1", "vol-2", "vol-3"])
@pytest.mark.parametrize("attachment", [None, 0, 3, 9])
def test_history_is_filtered_and_limited_and_always_oldest_first(
    long: Journal, volume: str | None, attachment: int | None, since: int | None
) -> None:
    every = long.history(since=0, limit=1000)
    assert [line["seq"] for line in every] == list(range(1, 31))
    name = None if attachment is None else attachment_id(attachment)
    fitting = [
        line
        for line in every
        if volume in (None, line["volume"]) and name in (None, line["attachment_id"]) and line["seq"] > (since or 0)
    ]
    for limit in range(1, 32):
        expected = fitting[-limit:] if since is None else fitting[:limit]
        assert long.history(volume, name, since, limit) == expected


def test_the_last_line_of_an_attachment_and_the_last_end_on_a_volume_are_found(directory: Path) -> None:
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        assert journal.last_of(attachment_id(1)) is None
        assert journal.last_ended("vol-1") is None
        for number in (1, 2, 3):
            journal.commit(put(new_attachment(number)))
        assert journal.last_ended("vol-1") is None
        for number, seq in ((2, 5), (1, 6)):
            journal.commit(drop(new_attachment(number)))
            ended = journal.last_ended("vol-1")
            assert ended is not None
            assert (ended["seq"], ended["attachment_id"]) == (seq, attachment_id(number))
        last = journal.last_of(attachment_id(3))
        assert last is not None
        assert (last["seq"], last["after"]["state"]) == (4, "reserved")


# Secrets and permissions.


def test_a_secret_is_in_no_line_of_history(directory: Path) -> None:
    row = new_attachment(state=State.CONNECTED, secret=Secret("user-of-it", "hidden-password"))
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        journal.commit(put(row))
        assert "hidden-password" not in json.dumps(journal.history())
    with sqlite3.connect(directory / "journal.db") as db:
        told = str(db.execute("SELECT * FROM journal").fetchall())
        assert "hidden-password" not in told
        assert "user-of-it" in str(db.execute("SELECT * FROM attachments").fetchall())


@pytest.mark.parametrize("how", ["dropped", "disconnected"])
def test_a_secret_leaves_the_disk_with_its_grant(directory: Path, how: str) -> None:
    row = new_attachment(state=State.CONNECTED, secret=Secret("user-of-it", "hidden-password"))
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        journal.commit(put(row))
        journal.commit(drop(row) if how == "dropped" else put(replace(row, state=State.DISCONNECTED, secret=None)))
    assert not [name for name, data in files(directory).items() if b"hidden-password" in data]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_whatever_the_umask_others_can_read_nothing(directory: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with opened(directory) as journal:
            journal.commit(put(new_volume()))
            found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
            mode = stat.S_IMODE(directory.stat().st_mode)
    finally:
        os.umask(before)
    if umask != 0o777:  # there even the owner's bits are off, and only root gets this far
        assert mode == 0o700
        assert found["journal.db"] == found["lock"] == 0o600
    assert not [name for name, mode in found.items() if mode & 0o077]
    assert set(found) >= {"journal.db", "lock", "journal.db-wal"}


# Refusals.


@pytest.mark.parametrize("extra", [1 << bit for bit in range(6)], ids=oct)
def test_a_directory_that_others_can_enter_is_refused_and_left_as_it_is(directory: Path, extra: int) -> None:
    directory.mkdir()
    directory.chmod(0o700 | extra)
    with pytest.raises(JournalUnusable, match=f"mode {0o700 | extra:04o}"):
        Journal(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700 | extra
    assert list(directory.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_refused(directory: Path) -> None:
    directory.mkdir(0o700)
    os.chown(directory, 65534, 65534)
    with pytest.raises(JournalUnusable, match="uid 65534"):
        Journal(directory)
    assert list(directory.iterdir()) == []


def test_a_file_in_place_of_the_directory_is_refused(directory: Path) -> None:
    directory.write_text("")
    directory.chmod(0o600)
    with pytest.raises(JournalUnusable, match="must be a directory"):
        Journal(directory)


def test_a_directory_that_cannot_be_made_is_told(directory: Path) -> None:
    with pytest.raises(JournalUnusable, match="cannot make the state directory"):
        Journal(directory / "missing" / "state")


@pytest.mark.parametrize("name", ["lock", "journal.db", "journal.db-wal", "keys", "acknowledged"])
def test_a_link_in_the_place_of_a_file_is_not_followed(directory: Path, tmp_path: Path, name: str) -> None:
    directory.mkdir(0o700)
    (directory / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(JournalUnusable, match="symbolic link"):
        Journal(directory)
    assert not (tmp_path / "elsewhere").exists()


def test_a_second_journal_on_the_directory_is_refused_and_names_the_process(directory: Path) -> None:
    with opened(directory) as first:
        with pytest.raises(JournalUnusable, match=rf"another volattachd \(pid {os.getpid()}\)"):
            Journal(directory)
        first.commit(put(new_volume()))
    with opened(directory) as second:
        assert list(second.volumes) == ["vol-1"]


def test_a_second_process_on_the_directory_is_refused_and_the_first_works_on(directory: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from volattachd.state.journal import Journal; Journal(Path(sys.argv[1]))"
    )
    with opened(directory) as first:
        first.commit(put(new_volume()))
        command = [sys.executable, "-c", program, str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert f"JournalUnusable: another volattachd (pid {os.getpid()}) works on {directory}" in done.stderr
        assert first.commit(put(new_attachment())) == 2


def test_other_programs_are_kept_out_of_the_open_file(directory: Path) -> None:
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        program = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('DELETE FROM volumes')"
        command = [sys.executable, "-c", program, str(directory / "journal.db")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "locked" in done.stderr


def test_a_refused_start_releases_the_lock(directory: Path) -> None:
    directory.mkdir(0o700)
    (directory / "journal.db").write_bytes(b"nonsense" * 100)
    with pytest.raises(JournalUnusable):
        Journal(directory)
    with open(directory / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def closed_journal(directory: Path) -> Path:
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        for number in range(40):  # several pages, by long rows
            journal.commit(put(new_attachment(number, mount_point="x" * 1000)))
    return directory / "journal.db"


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 99, 2**31 - 1])
def test_a_version_from_the_future_is_refused_and_the_file_stays_as_it_is(directory: Path, version: int) -> None:
    path = closed_journal(directory)
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {version}")
    db.close()
    before = files(directory)
    with pytest.raises(JournalUnusable, match=f"schema version {version}, and this volattachd knows {SCHEMA_VERSION}"):
        Journal(directory)
    assert files(directory) == before


def garble_header(data: bytearray) -> bytearray:
    return bytearray(b"X") + data[1:]


def garble_a_page(data: bytearray) -> bytearray:
    data[4096 * 3 : 4096 * 4] = b"\xff" * 4096
    return data


DAMAGES: dict[str, Callable[[bytearray], bytearray]] = {
    "no header": garble_header,
    "a page of garbage": garble_a_page,
    "cut in half": lambda data: data[: len(data) // 2],
    "cut inside the first page": lambda data: data[:50],
    "text": lambda data: bytearray(b"not a database at all\n" * 300),
    "garbage throughout": lambda data: data[:100] + bytearray(b"\xa5" * (len(data) - 100)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_and_stays_as_it_is(directory: Path, damage: str) -> None:
    path = closed_journal(directory)
    path.write_bytes(DAMAGES[damage](bytearray(path.read_bytes())))
    before = files(directory)
    with pytest.raises(JournalUnusable, match="restore it from a backup"):
        Journal(directory)
    assert files(directory) == before


def crashed(directory: Path, version: int | None = None) -> dict[str, bytes]:
    """The state directory as a kill leaves it: the last commits are in the write-ahead log only."""
    traced = Traced(lambda sql: None)
    journal = Journal(directory, connect=traced)
    journal.commit(put(new_volume()))
    if version is not None:
        traced.connections[0].execute(f"PRAGMA user_version = {version}")
    left = directory.with_name("left")
    shutil.copytree(directory, left)
    journal.close()
    shutil.rmtree(directory)
    left.rename(directory)
    return files(directory)


def test_a_log_that_a_crash_left_is_read(directory: Path) -> None:
    assert len(crashed(directory)["journal.db-wal"]) > 0
    with opened(directory) as journal:
        assert list(journal.volumes) == ["vol-1"]


def test_a_version_from_the_future_is_refused_untouched_even_after_a_crash(directory: Path) -> None:
    before = crashed(directory, version=99)
    with pytest.raises(JournalUnusable, match="schema version 99"):
        Journal(directory)
    assert {name: data for name, data in files(directory).items() if name in before} == before


def test_an_empty_file_is_a_start_that_a_crash_cut_short(directory: Path) -> None:
    directory.mkdir(0o700)
    (directory / "journal.db").touch(0o600)
    with opened(directory) as journal:
        assert journal.commit(put(new_volume())) == 1


@pytest.mark.parametrize("cell", ["state", "mode", "connector", "secret"])
def test_a_row_that_was_changed_is_reported_as_damage(directory: Path, cell: str) -> None:
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        journal.commit(put(new_attachment(state=State.CONNECTED)))
    db = sqlite3.connect(directory / "journal.db")
    db.execute(f"UPDATE attachments SET {cell} = ?", (b"x" if cell == "connector" else "x",))
    db.commit()
    db.close()
    with pytest.raises(JournalDamaged, match=f"{attachment_id(1)}.*checksum"):
        Journal(directory)
