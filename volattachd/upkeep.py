"""What happens without a call: the start, the periodic pass, repairs, and the end of old reservations.

All of it is ``converge`` again, volume by volume, in worker threads of their own: a volume that waits for its device
holds up neither the others nor the pass. A volume that failed is tried again with growing pauses; what is wrong
with it stands as a condition until it is over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from volattachd.converge import Converger, DeviceUnusable, Verify, export_of
from volattachd.drivers.base import Difference, Portal, Step
from volattachd.errors import ConfigError, DriverError, JournalFailed
from volattachd.journal import Journal
from volattachd.model import Condition, Export, Volume, now
from volattachd.turns import Deadline, Task, Turns, Workers

log = logging.getLogger(__name__)

View = dict[str, Any]

#: Pauses between tries for a volume that fails: doubled from the first to the last, in seconds.
_FIRST_PAUSE, _LAST_PAUSE = 1.0, 60.0


class Conditions:
    """What is wrong with each volume now. The first time that something was seen is kept while it lasts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_volume: dict[str, dict[str, Condition]] = {}

    def of(self, volume: str) -> list[Condition]:
        """The conditions of one volume."""
        return list(self._by_volume.get(volume, {}).values())

    def all(self) -> dict[str, list[Condition]]:
        """Every volume that has one."""
        return {volume: list(found.values()) for volume, found in dict(self._by_volume).items()}

    def set(self, volume: str, kind: str, message: str) -> None:
        """Show a condition; what the log tells is that it began, or that its reason changed."""
        with self._lock:
            found = self._by_volume.get(volume, {})
            before = found.get(kind)
            since = before.since if before else now()
            self._by_volume[volume] = {**found, kind: Condition(kind, message, since)}
        if before is None or before.message != message:
            log.warning("volume %s: %s: %s", volume, kind, message)

    def clear(self, volume: str, *kinds: str) -> None:
        """End conditions of these kinds; without any kind, all of the volume."""
        with self._lock:
            found = self._by_volume.get(volume, {})
            ended = [kind for kind in found if not kinds or kind in kinds]
            rest = {kind: condition for kind, condition in found.items() if kind not in ended}
            if rest:
                self._by_volume[volume] = rest
            else:
                self._by_volume.pop(volume, None)
        for kind in ended:
            log.info("volume %s: %s is over", volume, kind)


#: What a converge finds out about a volume; Pending is the caller's matter.
_CONVERGE_KINDS = ("DeviceMissing", "DeviceChanged", "TargetError")


class Repairer:
    """Converges one volume and keeps its conditions: what calls, start and passes have in common."""

    def __init__(self, journal: Journal, converger: Converger, conditions: Conditions, verify: Verify) -> None:
        self._journal = journal
        self._verify = verify
        self._converger = converger
        self._conditions = conditions

    def wanted(self, volume: Volume) -> Export:
        """What the journal asks for now."""
        return export_of(volume, self._journal.attachments.of_volume(volume.id))

    def look_after(self, want: Export) -> list[Step]:
        """Converge, and look at the device of a healthy export too: the target may hold one that is gone."""
        done = self.converge(want)
        if want.exported:
            self._show(want.volume.id, self._verify(want.volume))
        return done

    def converge(self, want: Export) -> list[Step]:
        """Converge, and record what is wrong. Raises DriverError as the converger does."""
        name = want.volume.id
        try:
            done, condition = self._converger.converge(want)
        except DeviceUnusable as error:
            self._show(name, error.condition)
            raise
        except DriverError as error:
            self._show(name, Condition("TargetError", error.message, now()))
            raise
        self._show(name, condition)
        return done

    def _show(self, volume: str, condition: Condition | None) -> None:
        """What the last converge found wrong, and nothing of what earlier ones did."""
        if condition is not None:
            self._conditions.set(volume, condition.kind, condition.message)
        over = [kind for kind in _CONVERGE_KINDS if condition is None or kind != condition.kind]
        self._conditions.clear(volume, *over)


#: Volumes visited at the same time: removals wait for RCU in the kernel, and 8 threads hide most of that.
_SIDE_BY_SIDE = 8


@dataclass(frozen=True)
class _Job:
    """What is to be done for one target; ``volume`` is None where no volume accounts for it."""

    volume: str | None
    target_name: str
    body: Callable[[], View | None]


@dataclass(frozen=True)
class _Visit:
    """A job that a worker is at."""

    job: _Job
    task: Task[View | None]
    deadline: Deadline


@dataclass
class _Backoff:
    """When a failing volume is due again, on the monotonic clock."""

    pause: float
    due: float


class Upkeep:
    """The passes over all volumes, and the thread that makes them."""

    def __init__(
        self,
        journal: Journal,
        converger: Converger,
        repairer: Repairer,
        conditions: Conditions,
        turns: Turns,
        workers: Workers,
        *,
        interval: float,
        patience: float,
    ) -> None:
        self._journal = journal
        self._converger = converger
        self._conditions = conditions
        self._repairer = repairer
        self._turns = turns
        self._workers = workers
        self._interval = interval
        self._patience = patience
        self._backoffs: dict[str, _Backoff] = {}
        self._stopped = threading.Event()
        #: The portals that the configuration means now: addresses of an interface come and go.
        self.resolve_portals: Callable[[], Sequence[Portal]] = lambda: self._converger.driver.portals
        self.expire: Callable[[], None] = lambda: None
        self.passes = 0

    def start_up(self) -> None:
        """Make the target what the journal says, revocations included, before anybody is served.

        A volume that cannot be mended, or not in time, has a condition then; the others are served.
        """
        self.reconcile(dry_run=False)

    def run(self) -> None:
        """The periodic pass, until ``stop``."""
        while not self._stopped.wait(self._interval):
            try:
                self.expire()
                self._follow_portals()
                self.reconcile(dry_run=False, only_due=True)
            except JournalFailed:
                return  # the daemon is ending: its owner was told by the journal
            except DriverError as error:
                log.warning("cannot look at the target: %s", error.message)  # the next pass tries again

    def _follow_portals(self) -> None:
        """Take over new addresses. Where none is left, what is there stays: it listens again when one is back."""
        driver = self._converger.driver
        try:
            found = tuple(self.resolve_portals())
        except ConfigError as error:
            log.warning("portals stay as they are: %s", error)
            return
        if found and found != driver.portals:
            log.info("portals are now %s", ", ".join(map(str, found)))
            driver.portals = found

    def stop(self) -> None:
        """End the periodic pass."""
        self._stopped.set()

    def reconcile(self, *, dry_run: bool, only_due: bool = False) -> list[View]:
        """One pass over all volumes and over targets that no volume accounts for.

        The answer has one line for each that differed: the steps, and the error where one could not be mended.
        """
        volumes = [v for v in list(self._journal.volumes.values()) if not only_due or self._is_due(v.id)]
        jobs = [_Job(volume.id, volume.target_name, partial(self._visit, volume, dry_run)) for volume in volumes]
        lines = list(self._visit_all(jobs))
        jobs = [_Job(None, name, partial(self._visit_orphan, name, dry_run)) for name in self._orphans()]
        lines += self._visit_all(jobs)
        self.passes += 1
        return [line for line in lines if line is not None]

    def _visit_all(self, jobs: Iterable[_Job]) -> Iterator[View | None]:
        """Visit targets side by side; one that outlasts its deadline is left behind with its worker."""
        window: deque[_Visit] = deque()
        for job in jobs:
            if len(window) == _SIDE_BY_SIDE:
                yield self._finish(window.popleft())
            window.append(_Visit(job, self._workers.submit(job.body), Deadline(self._patience)))
        for visit in window:
            yield self._finish(visit)

    def _finish(self, visit: _Visit) -> View | None:
        if visit.task.wait(visit.deadline.left()):
            return visit.task.result()
        job = visit.job
        waits_for = self._converger.current.get(job.volume or job.target_name, "the target")
        if job.volume is not None:
            self._conditions.set(job.volume, "Pending", f"waits for: {waits_for}")
        return _line(job.volume, job.target_name, error=f"waits for: {waits_for}")

    def _visit(self, volume: Volume, dry_run: bool) -> View | None:
        """One volume; None where there is nothing to say (equal, or a call is working on it)."""
        if not self._turns.take(volume.id, 0):
            return None
        try:
            if volume.id not in self._journal.volumes:
                return None
            return self._plan(volume) if dry_run else self._mend(volume)
        finally:
            self._turns.give_back(volume.id)

    def _plan(self, volume: Volume) -> View | None:
        try:
            want = self._repairer.wanted(volume)
            steps, condition = self._converger.plan(want)
        except DriverError as error:
            return _line(volume.id, volume.target_name, error=error.message)
        why = condition.message if condition is not None and want.exported else None
        return _line(volume.id, volume.target_name, steps, why) if steps or why else None

    def _mend(self, volume: Volume) -> View | None:
        try:
            done = self._repairer.look_after(self._repairer.wanted(volume))
        except DriverError as error:
            self._put_off(volume.id)
            return _line(volume.id, volume.target_name, error=error.message)
        self._backoffs.pop(volume.id, None)
        self._conditions.clear(volume.id, "Pending")
        if not done:
            return None
        line = _line(volume.id, volume.target_name, done)
        log.info("volume %s: mended %s: %s", volume.id, ", ".join(line["differences"]), "; ".join(line["steps"]))
        return line

    def _orphans(self) -> list[str]:
        """Targets of ours that no volume accounts for, whatever prefix it was registered under.

        The target is listed first: a volume is in the journal before it is exported, so one that comes in between is
        known.
        """
        found = self._converger.driver.list_exports()
        known = {_own_part(volume.target_name) for volume in list(self._journal.volumes.values())}
        return [name for name in found if _own_part(name) not in known]

    def _visit_orphan(self, name: str, dry_run: bool) -> View | None:
        """A target that no volume accounts for; None where an earlier pass still waits for it."""
        if not self._turns.take(name, 0):
            return None
        try:
            if dry_run:
                return _line(None, name, self._converger.driver.plan_removal(name))
            done = self._converger.remove_orphan(name)
        except DriverError as error:
            log.warning("target %s is not in the journal and cannot be removed: %s", name, error.message)
            return _line(None, name, error=error.message)
        finally:
            self._turns.give_back(name)
        log.warning("target %s was not in the journal: removed", name)
        return _line(None, name, done)

    def _is_due(self, volume: str) -> bool:
        backoff = self._backoffs.get(volume)
        return backoff is None or time.monotonic() >= backoff.due

    def _put_off(self, volume: str) -> None:
        before = self._backoffs.get(volume)
        pause = min(_LAST_PAUSE, before.pause * 2 if before else _FIRST_PAUSE)
        self._backoffs[volume] = _Backoff(pause, time.monotonic() + pause)


def _own_part(target_name: str) -> str:
    """What is the volume's own in its target's name: all but the prefix of the configuration."""
    return target_name.rpartition(":")[2]


def _line(volume: str | None, target_name: str, steps: Sequence[Step] = (), error: str | None = None) -> View:
    """What one target differed in, and what mends it."""
    kinds = {step.difference for step in steps}
    for whole, parts in _INCLUDES.items():
        if whole in kinds:
            kinds -= parts
    return {
        "volume": volume,
        "target_name": target_name,
        "differences": sorted(kind.value for kind in kinds),
        "steps": [str(step) for step in steps],
        "error": error,
    }


#: A whole export that is missing, say, is told as that alone: its grants and portals are missing with it.
_INCLUDES = {
    Difference.EXPORT_MISSING: frozenset(Difference) - {Difference.EXPORT_MISSING},
    Difference.EXPORT_UNEXPECTED: frozenset(Difference) - {Difference.EXPORT_UNEXPECTED},
    Difference.GRANT_MISSING: frozenset({Difference.GRANT_DIFFERS}),
    Difference.GRANT_UNEXPECTED: frozenset({Difference.GRANT_DIFFERS}),
}
