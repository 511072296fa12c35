"""A plug-in for the pytest inside a guest: writes each report as one JSON line, at once, for the pytest outside.

Unlike a JUnit file, which is written at the end, this tells what had already passed when a guest hangs or dies.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

REPORTS = "VOLATTACHD_REPORTS"


def as_line(report: pytest.TestReport) -> str:
    """What the outside needs of one report, in types that no version of pytest changes."""
    longrepr: Any = report.longrepr
    skipped = isinstance(longrepr, tuple)
    record = {
        "nodeid": report.nodeid,
        "when": report.when,
        "outcome": report.outcome,
        "duration": report.duration,
        "longrepr": longrepr[2] if skipped else report.longreprtext,
        "sections": report.sections,
        "properties": [[name, str(value)] for name, value in report.user_properties],
    }
    if hasattr(report, "wasxfail"):
        record["wasxfail"] = report.wasxfail
    return json.dumps(record) + "\n"


def parse(text: str) -> dict[str, list[dict[str, Any]]]:
    """The records of each test. A last line without an end was cut off with its guest, and is left out."""
    records: dict[str, list[dict[str, Any]]] = {}
    for line in text.split("\n")[:-1]:
        record = json.loads(line)
        records.setdefault(record["nodeid"], []).append(record)
    return records


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Opened for each line: closing is what carries a line through the guest's cache to the host."""
    if REPORTS in os.environ:
        with Path(os.environ[REPORTS]).open("a", encoding="utf-8") as file:
            file.write(as_line(report))
