"""Runs of tests in forked processes: on the module as it is, and on its mutants.

The parent has imported pytest and nothing of the package, so a child imports the package anew, with the mutant in
the module's place. A child is the leader of its own session and may take a bounded amount of memory and time: a mutant
that loops, allocates or leaves processes behind harms nobody.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import os
import pickle
import resource
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import CodeType

import pytest

from tests.mutation.coverage import Choice, Coverage, Recorder
from tests.mutation.mutate import Mutant

REPO = Path(__file__).parents[2]
#: What tests may need at the most, in bytes of address space: a mutant that allocates without end fails soon.
_MEMORY = 4 << 30
#: The stack of a thread, in bytes: a run of many tests leaves hundreds of idle threads behind.
_STACK = 1 << 20
#: The exit code of a child that could not run its tests.
_BROKEN = 99
#: A mutant may take this many times as long as the unchanged module, and these seconds more.
_SLOWER, _MORE_SECONDS = 5, 10
_OPTIONS = ("-x", "-q", "--no-header", "-p", "no:cacheprovider")


class Outcome(str, Enum):
    """What became of a mutant."""

    KILLED = "killed"
    TIMED_OUT = "timed out"
    SURVIVED = "survived"
    NOT_COVERED = "not covered"


@dataclass(frozen=True)
class Subject:
    """A module, and the tests that must notice a change of it."""

    module: str
    tests: tuple[str, ...]
    root: Path = REPO

    @property
    def path(self) -> Path:
        """The file of the module."""
        return self.root / (self.module.replace(".", "/") + ".py")


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, tree: ast.Module) -> None:
        super().__init__(name, path)
        self._tree = tree

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._tree, self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the mutant in place of the module."""

    def __init__(self, subject: Subject, tree: ast.Module) -> None:
        self._subject = subject
        self._loader = _Loader(subject.module, str(subject.path), tree)

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != self._subject.module:
            return None
        return importlib.util.spec_from_file_location(name, self._subject.path, loader=self._loader)


def measure(subject: Subject, room: Path) -> Coverage:
    """Run the tests on the module as it is. Raises RuntimeError if one fails."""
    with tempfile.TemporaryFile() as result:

        def body() -> int:
            recorder = Recorder(subject.path)
            code = pytest.main([*_OPTIONS, *subject.tests], plugins=[recorder])
            pickle.dump(recorder.coverage, result)
            result.flush()
            return int(code)

        log = room / f"{subject.module}.log"
        pid = _fork(body, log)
        _, status = os.waitpid(pid, 0)
        _end_session(pid)
        if os.waitstatus_to_exitcode(status) != 0:
            raise RuntimeError(f"the tests of {subject.module} fail without a change:\n{log.read_text()}")
        result.seek(0)
        coverage: Coverage = pickle.load(result)
        return coverage


@dataclass(frozen=True)
class _Running:
    mutant: Mutant
    pid: int
    pidfd: int
    deadline: float


def try_all(
    subject: Subject, mutants: Iterable[Mutant], coverage: Coverage, room: Path, jobs: int
) -> Iterator[tuple[Mutant, Outcome]]:
    """Try each mutant; answers come as they are known."""
    running: list[_Running] = []
    for mutant in mutants:
        tests = coverage.tests_of(mutant.lines)
        if not tests:
            yield mutant, Outcome.NOT_COVERED
            continue
        while len(running) >= jobs:
            yield from _reap(running)
        seconds = sum(coverage.seconds[test] for test in tests) * _SLOWER + _MORE_SECONDS
        running.append(_start(subject, mutant, tests, room, time.monotonic() + seconds))
    while running:
        yield from _reap(running)


def _start(subject: Subject, mutant: Mutant, tests: Sequence[str], room: Path, deadline: float) -> _Running:
    def body() -> int:
        sys.meta_path.insert(0, _Finder(subject, mutant.tree))
        return int(pytest.main([*_OPTIONS, *subject.tests], plugins=[Choice(tests)]))

    pid = _fork(body, room / "mutant.log")
    return _Running(mutant, pid, os.pidfd_open(pid), deadline)


def _fork(body: Callable[[], int], log: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        with log.open("wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        threading.stack_size(_STACK)
        os._exit(body())
    except BaseException:  # noqa: BLE001 - the child ends here, whatever it was
        traceback.print_exc()
        os._exit(_BROKEN)


def _reap(running: list[_Running]) -> Iterator[tuple[Mutant, Outcome]]:
    """Wait for the first that ends or is late."""
    poll = select.poll()
    for child in running:
        poll.register(child.pidfd, select.POLLIN)
    poll.poll(max(0.0, min(child.deadline for child in running) - time.monotonic()) * 1000)
    for child in list(running):
        pid, status = os.waitpid(child.pid, os.WNOHANG)
        late = pid == 0 and time.monotonic() >= child.deadline
        if pid == 0 and not late:
            continue
        _end_session(child.pid)
        if late:
            os.waitpid(child.pid, 0)
        os.close(child.pidfd)
        running.remove(child)
        yield child.mutant, Outcome.TIMED_OUT if late else _outcome(os.waitstatus_to_exitcode(status))


def _outcome(code: int) -> Outcome:
    if code in (pytest.ExitCode.NO_TESTS_COLLECTED, _BROKEN):
        raise RuntimeError(f"a trial ended with {code}: its tests could not be run")
    return Outcome.SURVIVED if code == pytest.ExitCode.OK else Outcome.KILLED


def _end_session(leader: int) -> None:
    """Whatever the tests have left in the leader's process group."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return
