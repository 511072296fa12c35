"""Runs the selected tests of a module, or of several, in one guest."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests import soak

from . import record
from .channel import Completed
from .errors import GuestError, Unavailable
from .guest import REPO, Guest

LIMIT = 300.0
TAIL = 6000
SETTINGS = {"extra_disks", "memory"}
Section = tuple[str, str]

#: What of the environment outside also holds inside: how long the long tests are.
PASSED_ON = (soak.VARIABLE,)


class GuestLike(Protocol):
    """As much of a guest as a run needs; the harness's own tests put something cheaper in its place."""

    out: Path

    @property
    def console(self) -> str: ...

    def run(self, command: Sequence[str], *, timeout: float, env: Mapping[str, str], cwd: str) -> Completed: ...


Boot = Callable[..., AbstractContextManager[GuestLike]]


@dataclass(frozen=True)
class GuestRun:
    """What is to run: node ids below `root`, in a guest with these settings, within `limit` seconds.

    `problem` says why it cannot be run at all.
    """

    root: Path
    nodeids: tuple[str, ...]
    settings: Mapping[str, Any]
    limit: float
    problem: str = ""


@dataclass
class GuestResult:
    """What came of it. `problem` is what kept tests from having reports of their own."""

    records: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    problem: str = ""
    unavailable: bool = False
    sections: list[Section] = field(default_factory=list)


def run_guest(run: GuestRun, boot: Boot = Guest) -> GuestResult:
    """One boot, one pytest, all its results. Raises nothing that a guest can cause."""
    unknown, known = set(run.settings) - SETTINGS, sorted({*SETTINGS, "timeout", "together"})
    if unknown or run.problem:
        return GuestResult(problem=run.problem or f"GUEST has unknown settings: {sorted(unknown)}; known: {known}")
    try:
        share = {} if run.root == REPO else {"root": run.root}
        with boot(share=share, **run.settings) as guest:
            return _run_in(guest, run)
    except Unavailable as error:
        return GuestResult(problem=str(error), unavailable=True)
    except GuestError as error:
        return GuestResult(problem=str(error))


def _run_in(guest: GuestLike, run: GuestRun) -> GuestResult:
    """The harness comes from /host/repo, and so do the tests unless they are of another tree."""
    root = "/host/repo" if run.root == REPO else "/host/root"
    argv = ["python3", "-m", "pytest", "-c", "/host/ctl/pytest.ini", f"--rootdir={root}", "-p", record.__name__]
    env = {record.REPORTS: "/host/out/reports.jsonl", "PYTHONPATH": "/host/repo"}
    env |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    problem = ""
    try:
        done = guest.run([*argv, *run.nodeids], timeout=run.limit, env=env, cwd=root)
        output = done.stdout + done.stderr
        if done.returncode not in (0, 1):
            problem = f"pytest in the guest ended with {done.returncode}"
    except subprocess.TimeoutExpired as late:
        output, problem = str(late.stdout) + str(late.stderr), f"killed at its limit of {run.limit:g} s"
    except GuestError as error:
        output, problem = "", str(error)
    return _collect(guest, output, problem)


def _collect(guest: GuestLike, output: str, problem: str) -> GuestResult:
    reports = guest.out / "reports.jsonl"
    result = GuestResult(problem=problem)
    try:
        result.records = record.parse(reports.read_text(encoding="utf-8") if reports.exists() else "")
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        result.problem = f"{problem or 'the guest left broken reports'}: {error}"
    if not result.records:
        result.sections.append(("guest pytest", output[-TAIL:]))
    result.sections.append(("guest console", guest.console[-TAIL:]))
    for log in sorted(guest.out.glob("*.log")):
        result.sections.append((f"guest {log.name}", log.read_text(errors="backslashreplace")[-TAIL:]))
    return result
