"""One visit to each of many targets, by workers that may be left behind.

Laws:

1. One worker goes from target to target while there is nothing to mend: reading needs no more, and calls should not
   have to share the interpreter with many readers. Each target that needed something brings a worker more, up to a
   limit: changes sleep in the kernel (a removal waits for RCU), so that side by side they take less.
2. A sweep that is in no hurry pauses after each slice of work in which nothing was to be mended: calls that come
   meanwhile have the processors to themselves, however many targets there are.
3. A target at which a worker stays for longer than the patience is left to that worker, and told as waiting; another
   worker goes on with the rest. So one stalled device costs a sweep its patience, once, and no other volume anything.
4. A sweep ends at its limit, however many targets stall: what it has not come to by then is reported as left out. A
   sweep that is ``lenient`` goes on past its limit as long as it has left no target behind.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from volattachd.concurrency.locks import Workers

#: How long a worker works between two pauses, in seconds: much longer than one visit takes, and short for a person.
_SLICE = 0.1

J = TypeVar("J")
R = TypeVar("R")


class _Runner(Generic[J]):
    """One worker's way through a sweep: the job that it is at, and since when."""

    def __init__(self) -> None:
        self.number = -1
        self.job: J | None = None
        self.began = time.monotonic()
        self.worked = 0.0  # seconds since its last pause


class Sweep(Generic[J, R]):
    """Does each job once; ``run`` gives the results that are not None, in the order of the jobs."""

    def __init__(
        self,
        jobs: Iterable[J],
        do: Callable[[J], R | None],
        leave: Callable[[J], R | None],
        *,
        workers: Workers,
        patience: float,
        side_by_side: int,
        pause: Callable[[float], None] | None = None,
        leave_out: Callable[[J], R | None] = lambda job: None,
        limit: float = math.inf,
        lenient: bool = False,
    ) -> None:
        """``do`` visits a target; ``leave`` tells of one that takes longer than ``patience`` seconds.

        ``leave_out`` reports one that the sweep has not come to within ``limit`` seconds.

        ``pause`` waits, for as long as it likes, after so many seconds of work; without it there is no pause.
        """
        self._jobs = deque(enumerate(jobs))
        self._do = do
        self._leave = leave
        self._workers = workers
        self._patience = patience
        self._most = side_by_side
        self._pause = pause
        self._leave_out = leave_out
        self._ends = time.monotonic() + limit
        self._ends_anyhow = not lenient
        self._changed = threading.Condition()
        self._runners: set[_Runner[J]] = set()
        self._found: list[tuple[int, R]] = []
        self._error: BaseException | None = None

    def run(self) -> list[R]:
        """Everything, to the end or past its patience. Raises what ``do`` raised, once nobody is at work any more."""
        with self._changed:
            if self._jobs:
                self._send_runner()
            while self._runners:
                self._changed.wait(self._until_next_look())
                self._leave_behind(time.monotonic() - self._patience)
                if self._ends_anyhow and time.monotonic() >= self._ends:
                    self._give_up()
            if self._error is not None:
                raise self._error
            return [result for _, result in sorted(self._found, key=lambda found: found[0])]

    def _until_next_look(self) -> float:
        """Seconds until a target may have taken too long, or the sweep."""
        oldest = min(runner.began for runner in self._runners)
        end = self._ends if self._ends_anyhow else math.inf
        left = min(oldest + self._patience, end) - time.monotonic()
        return min(max(0.0, left), self._patience)

    def _give_up(self) -> None:
        """Leave everything that is not done: the sweep is over."""
        left_out, self._jobs = list(self._jobs), deque()
        self._leave_behind(math.inf)
        for number, job in left_out:
            self._keep(number, self._leave_out(job))

    def _send_runner(self) -> None:
        runner: _Runner[J] = _Runner()
        self._workers.submit(lambda: self._go(runner))
        self._runners.add(runner)

    def _go(self, runner: _Runner[J]) -> None:
        """A worker's part: job after job, until there is none or it is left behind."""
        try:
            result = None
            while self._next(runner, result):
                assert runner.job is not None
                result = self._do(runner.job)
                self._rest(runner, result is not None)
        except BaseException as error:  # noqa: BLE001 - raised by run
            with self._changed:
                self._error = self._error or error
        finally:
            with self._changed:
                self._runners.discard(runner)
                self._changed.notify()

    def _rest(self, runner: _Runner[J], mended: bool) -> None:
        """Pause where it is time to, and nothing is wrong that others might have as well."""
        runner.worked = 0.0 if mended else runner.worked + time.monotonic() - runner.began
        is_in_time = runner in self._runners  # who was left behind has nothing to pause for: his sweep went on
        if self._pause is not None and is_in_time and runner.worked >= _SLICE:
            runner.began = math.inf  # no patience is lost in a pause
            self._pause(runner.worked)
            runner.worked = 0.0

    def _next(self, runner: _Runner[J], result: R | None) -> bool:
        """Hand in what came of the last job and take another; False where there is none for this worker."""
        with self._changed:
            if runner not in self._runners:
                return False  # it was left behind, and is told of already
            self._keep(runner.number, result)
            if result is not None:
                self._bring_more()
            if not self._jobs or self._error is not None:
                return False
            runner.number, runner.job = self._jobs.popleft()
            runner.began = time.monotonic()
            return True

    def _bring_more(self) -> None:
        if len(self._runners) < self._most:
            try:
                self._send_runner()
            except RuntimeError:
                self._most = len(self._runners)  # no thread is to be had: those that are there do it

    def _leave_behind(self, began_by: float) -> None:
        """Tell of the targets that take too long, and put other workers in the place of theirs."""
        for runner in [runner for runner in self._runners if runner.began <= began_by]:
            self._runners.discard(runner)
            self._ends_anyhow = True
            if runner.job is not None:
                self._keep(runner.number, self._leave(runner.job))
            if self._jobs:
                self._send_runner()

    def _keep(self, number: int, result: R | None) -> None:
        if result is not None:
            self._found.append((number, result))
