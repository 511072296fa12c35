from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A service over an empty journal and an empty target."""
    made = Rig(tmp_path)
    yield made
    made.journal.close()
