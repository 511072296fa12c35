from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import Rig

#: In a guest, where the modules of tests/guest/inside are ordinary tests, there are no guests to be had.
pytest_plugins = ["tests.figures", *([] if "VOLATTACHD_IN_GUEST" in os.environ else ["tests.guest.fixtures"])]


def pytest_configure() -> None:
    """A job that a shell runs in the background ignores SIGINT, and so would every program that a test starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: for tests that prove nothing about a disk, and sync often."""
    memory = os.environ.get("VOLATTACHD_TEST_MEMORY", "/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="volattachd-test-", dir=memory) as directory:
        yield Path(directory)


@pytest.fixture
def rig(quick_path: Path) -> Iterator[Rig]:
    """A service over an empty journal and an empty target."""
    made = Rig(quick_path)
    yield made
    made.journal.close()
