"""How much room the state takes, and what happens where there is none."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.state.test_journal import drop, opened, put
from tests.state.test_journal_care import Program, seqs
from tests.support import AGENT, HOST_A, PATIENCE, Rig, Wire, attachment_id, connector, new_attachment, new_volume
from volattachd.model import State

MIB = 1 << 20
#: As large as a connector may be: 16 KiB and 64 members.
LARGEST = connector(HOST_A, **{f"member-{number:02}": "ü" * 120 for number in range(62)})
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def test_400_calls_with_the_largest_connector_grow_the_state_by_8_mib_at_most(rig: Rig) -> None:
    rig.register()
    rig.service.reserve_volume(AGENT, "vol-1", attachment_id(1))
    before = size(rig.config.state_dir)
    rig.service.initialize_connection(AGENT, "vol-1", LARGEST, attachment_id(1))
    rig.service.attach(AGENT, "vol-1", host_name="h", attachment_id=attachment_id(1))
    for _ in range(199):
        rig.service.begin_detaching(AGENT, "vol-1", attachment_id(1))
        rig.service.roll_detaching(AGENT, "vol-1", attachment_id(1))
    assert rig.journal.seq == 402
    grown = size(rig.config.state_dir) - before
    print(f"\n400 calls: {grown / MIB:.2f} MiB")
    assert grown <= 8 * MIB
    lines = list(rig.service.get_history(AGENT, since=3, limit=1000))
    assert all(line["after"]["connector"]["member-61"] == "ü" * 120 for line in lines), "and each line shows it"
    rig.restart()
    assert list(rig.service.get_history(AGENT, since=3, limit=1000)) == lines


def test_a_connector_goes_with_the_last_line_that_has_it(tmp_path: Path) -> None:
    first, second = (new_attachment(n, state=State.CONNECTED, connector=connector(f"iqn.{n}")) for n in (1, 2))

    def count() -> int:
        found: int = journal._db.execute("SELECT count(*) FROM connectors").fetchone()[0]
        return found

    with opened(tmp_path / "state") as journal:
        journal.commit(put(new_volume()))
        journal.commit(put(first))
        journal.commit(put(second))
        journal.commit(drop(first))
        assert count() == 2
        journal.trim(1, 0, 2)
        assert count() == 2, "the line of its end has it"
        journal.trim(1, 0, 100)
        assert count() == 1, "the row has it"
    with opened(tmp_path / "state") as journal:
        assert journal.attachments.all() == [second]
        journal.commit(drop(second))
        journal.trim(1, 0, 100)
        assert count() == 0
        assert journal._contents.size == 0


@pytest.mark.parametrize("restart", [False, True])
def test_history_is_bounded_in_bytes_and_the_oldest_lines_go_first(tmp_path: Path, restart: bool) -> None:
    def fill() -> None:
        for number in range(50):
            row = new_attachment(number, state=State.CONNECTED, connector=connector(f"iqn.{number}", note="x" * 10_000))
            journal.commit(put(row))
            journal.commit(drop(row))

    with opened(tmp_path / "state") as journal:
        journal.commit(put(new_volume()))
        fill()
        before = journal.history(since=0, limit=1000)
        if not restart:
            while journal.trim(1, 1000, 7, max_bytes=100_000):
                pass
    with opened(tmp_path / "state") as journal:
        while journal.trim(1, 1000, 7, max_bytes=100_000):
            pass
        kept = journal.history(since=0, limit=1000)
        assert kept == before[-len(kept) :]
        assert 15 <= len(kept) <= 19, "nine connectors of 10 kB fit, with two lines each"
        assert journal.kept() == (seqs(journal)[0], 101)


# Nowhere to write.


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB of its own."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill_up(place: Path) -> None:
    with open(place / "filler", "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    found = os.statvfs(place)
    assert found.f_bavail == 0


@needs_root
def test_a_daemon_that_was_killed_starts_on_a_full_disk_and_answers(small: Path) -> None:
    program = Program(small)
    process = program.start()
    assert process.stderr is not None and any("ready: " in line for line in process.stderr)
    image = small / "vol.img"
    image.write_bytes(b"x" * 4096)
    with Wire(program.socket) as wire:
        wire.call("register_volume", volume="vol-1", path=str(image))
        wire.call("reserve_volume", volume="vol-1")
        process.kill()
        process.communicate(timeout=PATIENCE)
    assert (small / "state" / "journal.db-wal").stat().st_size > 0
    fill_up(small)
    with program.running(), Wire(program.socket) as wire:
        assert wire.call("list_volumes")[0]["status"] == "attaching"
        assert not (small / "state" / ".check.db").exists()


@needs_root
def test_a_state_directory_that_cannot_be_written_ends_the_start_with_a_clear_error(small: Path) -> None:
    program = Program(small)
    with program.running():
        pass
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    process = program.start()
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "Read-only file system: make it writable" in said
    assert "Traceback" not in said
