"""A look at the target reads each thing once, and never what it knows to have changed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from volattachd.drivers.configfs.tree import ConfigFs, Look


class Counted(ConfigFs):
    """Counts what is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.reads: Counter[str] = Counter()

    def read(self, path: str) -> str:
        self.reads[path] += 1
        return super().read(path)

    def is_dir(self, path: str) -> bool:
        self.reads[path] += 1
        return super().is_dir(path)

    def list_dirs(self, path: str) -> list[str]:
        self.reads[path] += 1
        return super().list_dirs(path)


@pytest.fixture
def tree(tmp_path: Path) -> Counted:
    (tmp_path / "core/hba/store").mkdir(parents=True)
    (tmp_path / "core/hba/store/enable").write_text("0\n")
    return Counted(tmp_path)


def test_an_attribute_is_read_once(tree: Counted) -> None:
    look = Look(tree)
    assert [look.read("core/hba/store/enable") for _ in range(3)] == ["0"] * 3
    assert tree.reads == {"core/hba/store/enable": 1}


def test_what_an_attribute_or_a_list_shows_to_be_there_is_not_asked_for(tree: Counted) -> None:
    look = Look(tree)
    look.read("core/hba/store/enable")
    assert look.is_dir("core/hba/store") and look.is_dir("core/hba") and look.is_dir("core")
    assert tree.reads == {"core/hba/store/enable": 1}
    other = Look(tree)
    assert other.list_dirs("core/hba") == ["store"]
    assert other.is_dir("core/hba/store")
    assert tree.reads["core/hba/store"] == 0


def test_what_was_missing_is_asked_for_again(tree: Counted) -> None:
    look = Look(tree)
    assert not look.is_dir("core/new")
    tree.make_dir("core/new")
    assert look.is_dir("core/new")
    with pytest.raises(FileNotFoundError):
        look.read("core/new/enable")


@pytest.mark.parametrize(
    "change",
    [
        lambda look: look.write("core/hba/store/enable", "1"),
        lambda look: look.make_dir("core/hba/other"),
        lambda look: look.make_link("core/link", "core/hba"),
    ],
)
def test_after_a_change_everything_is_read_anew(tree: Counted, change: object) -> None:
    look = Look(tree)
    look.read("core/hba/store/enable")
    look.list_dirs("core/hba")
    assert callable(change)
    change(look)
    Path(tree.root, "core/hba/store/enable").write_text("2\n")
    assert look.read("core/hba/store/enable") == "2"
    assert look.list_dirs("core/hba") == tree.list_dirs("core/hba")


def test_what_was_removed_is_gone(tree: Counted) -> None:
    look = Look(tree)
    tree.make_dir("core/empty")
    assert look.is_dir("core/empty")
    look.remove_dir("core/empty")
    assert not look.is_dir("core/empty")
    look.make_link("core/link", "core/hba")
    assert look.list_links("core") == ["link"]
    look.remove_link("core/link")
    assert look.list_links("core") == []
