"""A bit is flipped, or a file is cut, in a state directory that kill -9 left: it is found, or it does not matter.

Each case is a copy of a state directory with one change, which its number decides. Then the journal starts from it.
Either that is refused as damage and no byte of any file has changed, or the rows and the history are what they were.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.soak import PART, times
from tests.state.test_journal import opened, put
from tests.state.test_journal_care import Program
from tests.support import (
    ADMIN,
    HOST_A,
    PATIENCE,
    Rig,
    Wire,
    attachment_id,
    connector,
    in_thread,
    make_file,
    new_attachment,
    new_volume,
    wait_until,
)
from volattachd.errors import JournalDamaged
from volattachd.model import State
from volattachd.state.acknowledged import Acknowledged, Mark, read_mark
from volattachd.state.journal import Journal

FILES = ("journal.db", "journal.db-wal", "keys", "acknowledged")
#: Cases in the short form and in the long one, for each of the two state directories.
SHORT, LONG = 150, 1500
STATES = (State.RESERVED, State.CONNECTED, State.ATTACHED, State.DETACHING, State.DISCONNECTED)


def everything(journal: Journal) -> Any:
    """All that a journal knows."""
    tables = ("ended_attachments", "ended_volumes", "hours")
    return json.loads(
        json.dumps(
            {
                "volumes": [asdict(row) for row in journal.volumes.values()],
                "attachments": [asdict(row) for row in journal.attachments.all()],
                "history": journal.history(since=0, limit=1_000_000),
                "kept": journal.kept(),
                **{
                    table: [list(row)[:-1] for row in journal._db.execute(f"SELECT * FROM {table}")] for table in tables
                },
            }
        )
    )


def content(directory: Path) -> dict[str, bytes]:
    """Every file but the lock, which has the pid of the last start."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.name != "lock"}


def copied(directory: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(directory, to)
    return to


@pytest.fixture(scope="module")
def of_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a real daemon left that was killed: every state, and a history that was trimmed a moment ago."""
    directory = tmp_path_factory.mktemp("program")
    program = Program(directory, "[history]\nrows = 1000\n", interval=0.5)
    process = program.start()
    assert process.stderr is not None
    assert any("ready: " in line for line in process.stderr)
    stderr = process.stderr
    drained = in_thread(lambda: deque(stderr, maxlen=0))  # else the daemon waits for a reader of its log
    with Wire(program.socket) as wire:
        for number in range(8):
            wire.call("register_volume", volume=f"vol-{number}", path=make_file(directory / f"{number}.img"))
        for number in range(100, 620):
            wire.call("reserve_volume", volume="vol-7", attachment_id=attachment_id(number))
            wire.call("unreserve_volume", volume="vol-7", attachment_id=attachment_id(number))
        wait_until(lambda: wire.call("get_history", since=40, limit=1)[0]["seq"] > 41)
        for number, state in enumerate(STATES):
            reach(wire, state, f"vol-{number}", number)
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)
    drained()
    stderr.close()
    return directory / "state"


def reach(wire: Wire, state: State, volume: str, number: int) -> None:
    """Bring an attachment into a state over the wire."""
    where = {"volume": volume, "attachment_id": attachment_id(number)}
    here = connector(HOST_A, note="x" * 3000)
    calls: list[tuple[State, str, dict[str, Any]]] = [
        (State.RESERVED, "reserve_volume", {}),
        (State.CONNECTED, "initialize_connection", {"connector": here}),
        (State.ATTACHED, "attach", {"host_name": "h"}),
        (State.DETACHING, "begin_detaching", {}),
        (State.DISCONNECTED, "terminate_connection", {"connector": here}),
    ]
    for reached, call, members in calls:
        wire.call(call, **where, **members)
        if reached is state:
            return


@pytest.fixture(scope="module")
def of_service(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a service in this process left behind in the middle of its work: hours, ended volumes, and little else."""
    directory = tmp_path_factory.mktemp("service")
    rig = Rig(directory)
    for number in range(4):
        rig.register(f"vol-{number}")
        rig.reach(State.GONE, f"vol-{number}", number)
        rig.journal.count_hour()
    rig.service.unregister_volume(ADMIN, "vol-3")
    rig.journal.trim(hours=2, rows=1000, at_most=1000)
    rig.reach(State.ATTACHED, "vol-0", 10)
    rig.journal._db.execute("PRAGMA wal_checkpoint")
    rig.reach(State.CONNECTED, "vol-1", 11, initiator="iqn.2026-11.org.example:host-z")
    rig.reach(State.DETACHING, "vol-2", 12)
    rig.journal.count_hour()
    left = copied(rig.config.state_dir, directory / "left")
    rig.journal.close()
    return left


def flip(path: Path, chance: random.Random) -> str:
    data = bytearray(path.read_bytes())
    bit = chance.randrange(len(data) * 8)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return f"bit {bit % 8} of byte {bit // 8} of {path.name}"


def cut(path: Path, chance: random.Random) -> str:
    size = chance.randrange(path.stat().st_size)
    os.truncate(path, size)
    return f"{path.name} cut to {size} bytes"


def damage(directory: Path, number: int) -> str:
    """Do what the number says; most of it in the files that have the rows and the history."""
    chance = random.Random(number)
    name = chance.choices(FILES, (8, 8, 3, 1))[0]
    change: Callable[[Path, random.Random], str] = chance.choices((flip, cut), (3, 1))[0]
    return change(directory / name, chance)


def outcome(directory: Path, expected: Any) -> str:
    """What a start makes of a directory: "refused" or "unharmed"; anything else fails."""
    before = content(directory)
    try:
        with opened(directory) as journal:
            assert everything(journal) == expected
            journal.commit(put(new_volume("vol-after", 99)))
            after = everything(journal)
    except JournalDamaged:
        assert content(directory) == before
        return "refused"
    with opened(directory) as journal:
        assert everything(journal) == after
    return "unharmed"


@pytest.mark.parametrize("source", ["of_program", "of_service"])
def test_one_flipped_bit_or_one_cut_file_is_found_or_changes_nothing(
    source: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    prepared: Path = request.getfixturevalue(source)
    assert all((prepared / name).stat().st_size for name in FILES)
    with opened(copied(prepared, tmp_path / "whole")) as journal:
        expected = everything(journal)
    count, found = times(SHORT, LONG), Counter[str]()
    first = 0 if PART is None else PART.number * 1_000_000
    for number in range(first, first + count):
        directory = copied(prepared, tmp_path / "case")
        what = damage(directory, number)
        try:
            result = outcome(directory, expected)
        except BaseException as error:
            raise AssertionError(f"case {number}, {what}: {error!r:.500}") from error
        found[f"{what.split()[-1] if what.startswith('bit') else what.split()[0]} {result}"] += 1
    print(f"\n{source}: {count} cases; wrong rows 0, wrong history 0: {dict(sorted(found.items()))}")
    assert sum(n for name, n in found.items() if name.endswith("refused")) > count // 8


def test_the_program_ends_with_65_says_where_and_changes_nothing(of_program: Path, tmp_path: Path) -> None:
    """The shipped start, over the cases that a start in this process refuses."""
    program, tried = Program(tmp_path), 0
    for number in range(1000):
        directory = copied(of_program, tmp_path / "state")
        damage(directory, number)
        before = content(directory)
        try:
            Journal(directory).close()
        except JournalDamaged as error:
            process = program.start()
            _, said = process.communicate(timeout=PATIENCE)
            assert process.returncode == 65, said
            assert str(error) in said and "restore" in said and "Traceback" not in said
            assert content(directory) == before
            tried += 1
        if tried == times(3, 40):
            return
    raise AssertionError("too few cases were refused")


# The record of what was acknowledged.


@pytest.mark.parametrize("keep", [0, 1, 2, 3, 4])
def test_a_log_without_its_last_transactions_is_recognised(tmp_path: Path, keep: int) -> None:
    """Cut at the end of a transaction, the log is a whole one for SQLite."""
    directory, sizes = tmp_path / "state", []
    journal = Journal(directory)
    log = directory / "journal.db-wal"
    journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for number in range(4):
        sizes.append(log.stat().st_size)
        journal.commit(put(new_volume(f"vol-{number}", number)))
    sizes.append(log.stat().st_size)
    left = copied(directory, tmp_path / "left")
    journal.close()
    os.truncate(left / "journal.db-wal", sizes[keep])
    if keep == 4:
        with opened(left) as journal:
            assert len(journal.volumes) == 4
    else:
        with pytest.raises(JournalDamaged, match=rf"ends with line {keep}, .* line 4.*its log has lost its end"):
            Journal(left)


@pytest.mark.parametrize("care", ["trim", "hour"])
def test_a_log_that_lost_a_trim_or_an_hour_is_recognised(tmp_path: Path, care: str) -> None:
    directory = tmp_path / "state"
    journal = Journal(directory)
    journal.commit(put(new_volume()))
    size = (directory / "journal.db-wal").stat().st_size
    journal.trim(1, 0, 10) if care == "trim" else journal.count_hour()
    left = copied(directory, tmp_path / "left")
    journal.close()
    os.truncate(left / "journal.db-wal", size)
    with pytest.raises(JournalDamaged, match="its log has lost its end"):
        Journal(left)


def test_a_commit_that_was_torn_before_its_answer_is_no_damage(tmp_path: Path) -> None:
    """Killed in the middle of writing a transaction, at any byte of it."""
    directory = tmp_path / "state"
    journal = Journal(directory)
    journal.commit(put(new_volume("vol-1", 1)))
    log = directory / "journal.db-wal"
    before, record = log.stat().st_size, (directory / "acknowledged").read_bytes()
    journal.commit(put(new_volume("vol-2", 2)))
    whole = copied(directory, tmp_path / "whole")
    journal.close()
    end = (whole / "journal.db-wal").stat().st_size
    for size in [*range(before, end, 1237), end]:
        left = copied(whole, tmp_path / "left")
        (left / "acknowledged").write_bytes(record)
        os.truncate(left / "journal.db-wal", size)
        with opened(left) as journal:
            assert list(journal.volumes) == (["vol-1", "vol-2"] if size == end else ["vol-1"])


def test_a_power_cut_that_left_an_old_record_is_no_damage(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    journal = Journal(directory)
    record = (directory / "acknowledged").read_bytes()
    for number in range(4):
        journal.commit(put(new_volume(f"vol-{number}", number)))
    left = copied(directory, tmp_path / "left")
    journal.close()
    (left / "acknowledged").write_bytes(record)
    with opened(left) as journal:
        assert len(journal.volumes) == 4
    mark = read_mark(left)
    assert mark is not None and mark.seq == 4


def test_frames_of_a_torn_transaction_that_are_missing_in_its_middle_are_no_damage(tmp_path: Path) -> None:
    """A power cut may keep any of the pages that were not synced."""
    left, before, end = old_record(tmp_path)
    for at in range(before, end, 4096 + 24):
        case = copied(left, tmp_path / "case")
        overwrite(case / "journal.db-wal", at, b"\0" * (4096 + 24))
        with opened(case) as journal:
            assert list(journal.volumes) == ["vol-0", "vol-1", "vol-2"]


def test_a_bad_frame_with_transactions_behind_it_is_damage_even_with_an_old_record(tmp_path: Path) -> None:
    left, before, _ = old_record(tmp_path)
    for at in (32 + 100, 32 + 24 + 100, before // 2):
        case = copied(left, tmp_path / "case")
        overwrite(case / "journal.db-wal", at, b"\xa5")
        kept = content(case)
        with pytest.raises(JournalDamaged, match=r"journal\.db-wal is damaged, and transactions follow it"):
            Journal(case)
        assert content(case) == kept


def old_record(tmp_path: Path) -> tuple[Path, int, int]:
    """A directory with four transactions in the log, none of them recorded; where the last one begins and ends."""
    directory = tmp_path / "state"
    journal = Journal(directory)
    record = (directory / "acknowledged").read_bytes()
    journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    log = directory / "journal.db-wal"
    for number in range(4):
        before = log.stat().st_size
        journal.commit(put(new_volume(f"vol-{number}", number)))
    left = copied(directory, tmp_path / "left")
    journal.close()
    (left / "acknowledged").write_bytes(record)
    return left, before, (left / "journal.db-wal").stat().st_size


def overwrite(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize("name", ["keys", "acknowledged"])
def test_a_file_beside_the_journal_that_is_missing_is_damage(of_service: Path, tmp_path: Path, name: str) -> None:
    directory = copied(of_service, tmp_path / "state")
    (directory / name).unlink()
    before = content(directory)
    with pytest.raises(JournalDamaged, match=name):
        Journal(directory)
    assert content(directory) == before


def test_a_journal_of_another_host_is_refused(tmp_path: Path) -> None:
    for name, volume in (("one", "vol-1"), ("other", "vol-2")):
        with opened(tmp_path / name) as journal:
            journal.commit(put(new_volume(volume)))
    shutil.copy(tmp_path / "other" / "journal.db", tmp_path / "one" / "journal.db")
    with pytest.raises(JournalDamaged, match="another time or host"):
        Journal(tmp_path / "one")


def test_the_record_is_written_before_the_answer_and_names_the_last_commit(tmp_path: Path) -> None:
    with opened(tmp_path / "state") as journal:
        for number in range(5):
            journal.commit(put(new_volume(f"vol-{number}", number)))
            mark = read_mark(tmp_path / "state")
            assert mark is not None and mark.seq == number + 1


@pytest.mark.parametrize("bad", [0, 1])
def test_one_bad_slot_of_the_record_is_made_up_for_by_the_other(tmp_path: Path, bad: int) -> None:
    Acknowledged.create(tmp_path, Mark(1, 1)).close()
    record = Acknowledged.open(tmp_path)
    record.write(Mark(2, 1))
    record.write(Mark(3, 1))
    record.close()
    overwrite(tmp_path / "acknowledged", 4096 * bad, b"X")
    assert read_mark(tmp_path) == (Mark(2, 1) if bad == 0 else Mark(3, 1))
    overwrite(tmp_path / "acknowledged", 4096 * (1 - bad), b"X")
    assert read_mark(tmp_path) is None


@pytest.mark.parametrize("table", ["attachments", "volumes"])
def test_a_whole_row_of_another_time_is_damage(tmp_path: Path, table: str) -> None:
    """As an old page leaves it: its checksum is right, and it does not belong there."""
    directory = tmp_path / "state"
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        journal.commit(put(new_attachment()))
    db = sqlite3.connect(directory / "journal.db")
    (old,) = db.execute(f"SELECT * FROM {table}").fetchall()
    db.close()
    with opened(directory) as journal:
        journal.commit(put(new_attachment(state=State.ATTACHED, secret=None)))
        journal.commit(put(new_volume(path="/srv/moved")))
    db = sqlite3.connect(directory / "journal.db")
    db.execute(f"REPLACE INTO {table} VALUES ({', '.join('?' * len(old))})", old)
    db.commit()
    db.close()
    with pytest.raises(JournalDamaged, match="do not have the rows that line 4 of the history left"):
        Journal(directory)


def test_what_was_not_acknowledged_is_synced_before_it_counts_as_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between writing and syncing: what a start reads may be in the page cache alone."""
    directory = tmp_path / "state"
    journal = Journal(directory)
    record = (directory / "acknowledged").read_bytes()
    journal.commit(put(new_volume()))
    left = copied(directory, tmp_path / "left")
    journal.close()
    (left / "acknowledged").write_bytes(record)
    done: list[tuple[str, int]] = []
    fsync, pwrite = os.fsync, os.pwrite

    def watched_fsync(fd: int) -> None:
        done.append(("sync", os.fstat(fd).st_ino))
        fsync(fd)

    def watched_pwrite(fd: int, data: bytes, at: int) -> int:
        done.append(("write", os.fstat(fd).st_ino))
        return pwrite(fd, data, at)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "pwrite", watched_pwrite)
    log, beside = ((left / name).stat().st_ino for name in ("journal.db-wal", "acknowledged"))
    with opened(left):
        assert [step for step in done if step[1] in (log, beside)] == [("sync", log), ("write", beside)]


# --verify-journal.


def verified(directory: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "volattachd", "--verify-journal", "--state-dir", str(directory)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_a_good_journal_is_verified_and_no_byte_changes(of_service: Path, tmp_path: Path) -> None:
    directory = copied(of_service, tmp_path / "state")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    done = verified(directory)
    assert (done.returncode, done.stderr) == (0, "")
    assert "is good: 3 volumes, 3 attachments" in done.stdout
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_a_damaged_journal_is_reported_with_65_and_no_byte_changes(of_service: Path, tmp_path: Path) -> None:
    directory = copied(of_service, tmp_path / "state")
    overwrite(directory / "journal.db-wal", 5000, b"\xff\x00\xff")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    done = verified(directory)
    assert done.returncode == 65
    assert "is damaged (" in done.stderr and "restore it from a backup" in done.stderr
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_a_journal_that_a_daemon_works_on_is_not_verified(tmp_path: Path) -> None:
    with opened(tmp_path / "state"):
        done = verified(tmp_path / "state")
    assert done.returncode == 1
    assert f"volattachd (pid {os.getpid()}) works on" in done.stderr


def test_no_state_directory_is_made_by_looking_for_one(tmp_path: Path) -> None:
    done = verified(tmp_path / "state")
    assert done.returncode == 1 and "is no state directory" in done.stderr
    assert not (tmp_path / "state").exists()
