"""Figures at the end of a test run: how much was tried is what a green line does not tell.

A test calls ``record_figure("what", "how much")``, in a guest or here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

RecordFigure = Callable[[str, str], None]


@pytest.fixture
def record_figure(record_property: Callable[[str, object], None]) -> RecordFigure:
    """Has a line printed when the run is over."""
    return lambda what, text: record_property("figure", f"{what}: {text}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The lines of the tests that passed."""
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "figure":
                terminalreporter.write_line(value)
