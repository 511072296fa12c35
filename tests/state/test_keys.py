"""A secret that has ended is in no file of the state directory, whatever ended the process."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from tests.golden import state_file
from tests.state.test_journal import drop, opened, put
from tests.state.test_journal_care import restored
from tests.support import ADMIN, Rig, new_attachment, new_volume
from volattachd.errors import JournalDamaged
from volattachd.model import Secret, State
from volattachd.state.database import open_connection
from volattachd.state.journal import Journal
from volattachd.state.keys import read_keys

SECRET = Secret("user-of-it", "hidden-password")
CONNECTED = new_attachment(state=State.CONNECTED, secret=SECRET)


def holding(directory: Path, word: bytes) -> list[str]:
    """The files that have a word in them."""
    return [path.name for path in directory.iterdir() if word in path.read_bytes()]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_a_password_is_never_in_clear_in_any_file(directory: Path) -> None:
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        journal.commit(put(CONNECTED))
        assert not holding(directory, b"hidden-password")
    assert not holding(directory, b"hidden-password")
    with opened(directory) as journal:
        assert journal.attachments.all() == [CONNECTED]


@pytest.mark.parametrize("how", ["dropped", "disconnected"])
def test_the_key_of_a_secret_is_gone_before_the_call_that_ends_it_is_answered(directory: Path, how: str) -> None:
    """The files are looked at while the journal is open: so a kill leaves them."""
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        journal.commit(put(CONNECTED))
        ((_, key),) = journal._files.keys.used().items()
        assert holding(directory, key) == ["keys"]
        journal.commit(drop(CONNECTED) if how == "dropped" else put(replace(CONNECTED, secret=None)))
        assert not holding(directory, key)


def test_a_key_that_a_kill_left_is_gone_after_the_next_start(directory: Path) -> None:
    """Killed between the commit and the destruction of the key, or an old slot after a power cut."""
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        journal.commit(put(CONNECTED))
        ((slot, key),) = journal._files.keys.used().items()
        left = (directory / "keys").read_bytes()
        journal.commit(drop(CONNECTED))
    (directory / "keys").write_bytes(left)
    assert (read_keys(directory) or {})[slot] == key
    with opened(directory):
        assert not holding(directory, key)


def test_attachments_that_share_a_secret_keep_it_until_the_last_of_them_ends(directory: Path) -> None:
    second = replace(new_attachment(2, state=State.CONNECTED), secret=SECRET)
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        journal.commit(put(CONNECTED))
        journal.commit(put(second))
        ((_, key),) = journal._files.keys.used().items()
        journal.commit(drop(CONNECTED))
        assert holding(directory, key) == ["keys"]
    with opened(directory) as journal:
        assert journal.attachments.all() == [second]
        journal.commit(drop(second))
        assert not holding(directory, key)


def test_a_slot_is_used_again_with_another_key_and_only_after_a_sync(directory: Path) -> None:
    keys = set()
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        for number in range(600):
            row = new_attachment(1, state=State.CONNECTED, secret=Secret("user", f"password-{number}"))
            journal.commit(put(row))
            keys |= set(journal._files.keys.used().values())
            journal.commit(drop(row))
    assert len(keys) == 600
    assert (directory / "keys").stat().st_size == 256 * 64, "slots are used again"


def test_more_attachments_than_slots_make_room(directory: Path) -> None:
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        for number in range(300):
            journal.commit(put(new_attachment(number, state=State.CONNECTED)))
    with opened(directory) as journal:
        assert [row.secret for row in journal.attachments.all()] == [
            new_attachment(number, state=State.CONNECTED).secret for number in range(300)
        ]


@pytest.mark.parametrize("byte", [0, 31, 40])
def test_a_damaged_key_is_damage_and_no_wrong_password(directory: Path, byte: int) -> None:
    with opened(directory) as journal:
        journal.commit(put(new_volume()))
        journal.commit(put(CONNECTED))
        ((slot, _),) = journal._files.keys.used().items()
    data = bytearray((directory / "keys").read_bytes())
    data[slot * 64 + byte] ^= 1
    (directory / "keys").write_bytes(data)
    with pytest.raises(JournalDamaged, match=f"key of user-of-it in slot {slot} .* damaged"):
        Journal(directory)


def open_carelessly(path: Path) -> sqlite3.Connection:
    """As a build of SQLite does that leaves deleted content where it is."""
    db = open_connection(path)
    db.execute("PRAGMA secure_delete = OFF")
    return db


def test_nothing_of_a_secret_of_version_1_is_left_after_the_migration(directory: Path) -> None:
    directory.mkdir(0o700)
    shutil.copyfile(state_file(1), directory / "journal.db")
    with opened(directory) as journal:
        passwords = {row.secret.password.encode() for row in journal.attachments.all() if row.secret}
    shutil.rmtree(directory)
    directory.mkdir(0o700)
    shutil.copyfile(state_file(1), directory / "journal.db")
    assert passwords and all(holding(directory, password) for password in passwords)
    journal = Journal(directory, connect=open_carelessly)
    keys = journal._files.keys.used().values()
    assert [name for word in passwords for name in holding(directory, word)] == []
    assert {name for key in keys for name in holding(directory, key)} == {"keys"}
    journal.close()


def test_the_keys_of_a_restored_copy_are_moved_out_of_it(rig: Rig, tmp_path: Path) -> None:
    rig.register()
    rig.reach(State.CONNECTED)
    ((_, key),) = rig.journal._files.keys.used().items()
    rig.service.backup_journal(ADMIN, str(tmp_path / "copy.db"))
    directory = restored(tmp_path / "copy.db", tmp_path / "restored")
    assert holding(directory, key) == ["journal.db"]
    journal = Journal(directory, connect=open_carelessly)
    assert journal.attachments.all() == rig.journal.attachments.all()
    assert holding(directory, key) == ["keys"]
    journal.close()
