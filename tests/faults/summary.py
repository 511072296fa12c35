"""The numbers of the sweeps at the end of a test run: how much was struck is what a green line does not tell."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A line for each property ``faults`` that a test recorded, in a guest or here."""
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "faults":
                terminalreporter.write_line(f"faults: {value}")
