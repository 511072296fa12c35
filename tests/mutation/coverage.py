"""Which test executes which lines of one module, how long each test takes, and a choice of tests: a pytest plugin."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest


@dataclass
class Coverage:
    """What a run of the unchanged module's tests has shown."""

    lines: dict[str, set[int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def tests_of(self, lines: Collection[int] | None) -> list[str]:
        """The tests that execute one of these lines, the fastest first; None: every test."""
        found = [test for test, covered in self.lines.items() if lines is None or covered & set(lines)]
        return sorted(found, key=self.seconds.__getitem__)


class Recorder:
    """Records the lines of one file that each test executes, in whichever thread."""

    def __init__(self, path: Path) -> None:
        self.coverage = Coverage()
        self._path = str(path)
        self._current: set[int] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._current = self.coverage.lines.setdefault(item.nodeid, set())
        started = time.monotonic()
        threading.settrace(self._trace)
        sys.settrace(self._trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self.coverage.seconds[item.nodeid] = time.monotonic() - started

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename != self._path:
            return None
        self._current.add(frame.f_lineno)
        return self._trace


class Choice:
    """Runs the chosen tests alone, in the order in which they were chosen."""

    def __init__(self, tests: Collection[str]) -> None:
        self._order = {test: number for number, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self._order), key=lambda item: self._order[item.nodeid]
        )
