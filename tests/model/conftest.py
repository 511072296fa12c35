from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.model.test_machine import TALLY

_MEMORY = Path("/dev/shm")


@pytest.fixture
def swift_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: thousands of journals are made and thrown away here."""
    if not os.access(_MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="volattachd-", dir=_MEMORY) as directory:
        yield Path(directory)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how far the walks went: a rule that is never taken proves nothing."""
    if TALLY["examples"]:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(TALLY.items()))
        terminalreporter.write_line(f"model test: {counts}")
