from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.cli.fake_daemon import FakeDaemon, serving
from volattachd.cli import main
from volattachd.cli.parser import HOST_VARIABLE, SOCKET_VARIABLE


class Ran(NamedTuple):
    """What a command did: its exit code, what it printed, and what it asked the daemon."""

    code: int
    out: str
    err: str
    asked: list[tuple[str, dict[str, Any]]]


Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs ``volattach`` against a daemon with a script: ``run("list", script=[result([])])``."""
    monkeypatch.delenv(HOST_VARIABLE, raising=False)
    monkeypatch.setenv("TZ", "UTC")
    with ExitStack() as daemons:

        def runs(*words: str, script: list[Any] | None = None) -> Ran:
            path = tmp_path / "d.sock"
            path.unlink(missing_ok=True)
            daemon: FakeDaemon = daemons.enter_context(serving(path, *(script or [])))
            monkeypatch.setenv(SOCKET_VARIABLE, daemon.path)
            code = main(words)
            printed = capsys.readouterr()
            asked = [(request["method"], request["params"]) for request in daemon.requests]
            return Ran(code, printed.out, printed.err, asked)

        yield runs
