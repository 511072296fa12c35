from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.support import in_thread
from volattachd.agent.errors import ConnectorUnusable
from volattachd.agent.runtime import _private, only_one


def test_one_name_is_held_by_one_at_a_time_and_others_go_on(tmp_path: Path) -> None:
    file, entered = tmp_path / "lock", threading.Event()

    def second() -> str:
        with only_one(file, "vol-1"):
            entered.set()
        return "entered"

    with only_one(file, "vol-1"), only_one(file, "vol-2"):
        result = in_thread(second)
        assert not entered.wait(0.2)
    assert result() == "entered"


def test_a_directory_that_others_can_enter_is_not_used(tmp_path: Path) -> None:
    assert _private(tmp_path / "own").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "own")
    for name in ("open", "link"):
        with pytest.raises(ConnectorUnusable, match="not a directory of this user alone"):
            _private(tmp_path / name)
