"""A fault at every operation of every call, on the kernel's target, for a volume on a block device."""

from __future__ import annotations

import pytest

from tests.faults.suite import *  # noqa: F403 - the sweeps
from tests.faults.suite import GUEST as GUEST


@pytest.fixture(scope="module")
def kind() -> str:
    return "block"
