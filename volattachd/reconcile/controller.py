"""What happens without a call: the start, the periodic pass, repairs, and the end of old reservations.

All of it is ``converge`` again, volume by volume, in workers that may be left behind (sweep.py): a volume that waits
for its device holds up neither the others nor the pass. A volume that failed is tried again with growing pauses; what
is wrong with it stands as a condition until it is over.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from volattachd.concurrency.fanout import Sweep
from volattachd.concurrency.locks import Deadline, Turns, Workers, target_of
from volattachd.drivers.base import Difference, Portal, Step
from volattachd.errors import Busy, ConfigError, DriverError, JournalFailed
from volattachd.host.devices import concerns
from volattachd.model import Export, Volume
from volattachd.reconcile.applier import Converger
from volattachd.reconcile.reconciler import Conditions, Repairer
from volattachd.reconcile.workqueue import Agenda
from volattachd.state.journal import Journal
from volattachd.telemetry import messages

View = dict[str, Any]

#: Pauses between tries for a volume that fails: doubled from the first to the last, in seconds.
_FIRST_PAUSE, _LAST_PAUSE = 1.0, 60.0

#: How long the periodic pass waits for one volume, in seconds; the volume's worker goes on without it.
_PASS_PATIENCE = 2.0

#: Of the time for a reconcile, one volume that does not answer takes this part at most.
_PART_FOR_ONE = 3

#: The turn for listing the targets.
_LISTING = "the list of targets"

#: A round rests so many times as long as it works: the host's processors are for its disks, and for calls.
_REST = 9

#: Targets that are mended at the same time: removals wait for RCU in the kernel, and 8 threads hide most of that.
_SIDE_BY_SIDE = 8


@dataclass(frozen=True)
class _Job:
    """What is to be done for one target; ``volume`` is None where no volume accounts for it."""

    volume: str | None
    target_name: str
    body: Callable[[], View | None]


@dataclass(frozen=True)
class _Patience:
    """How long a pass waits: for one target, and for all of them; ``lenient`` is that of a sweep (sweep.py)."""

    one: float
    all: float = math.inf
    lenient: bool = False


#: A round has all the time that it needs.
_ROUND = _Patience(_PASS_PATIENCE)

_NOT_REACHED = "waits for: other volumes, which wait for the target"


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
        housekeeping: Callable[[], None],
        resolve_portals: Callable[[], Sequence[Portal]],
        on_repair: Callable[[Sequence[str]], None],
    ) -> None:
        """``housekeeping`` begins each periodic pass. ``resolve_portals`` returns the portals that the configuration
        means now: addresses of an interface come and go. ``on_repair`` is given the differences that were corrected.
        """
        self._journal = journal
        self._converger = converger
        self._conditions = conditions
        self._repairer = repairer
        self._turns = turns
        self._workers = workers
        self._patience = patience
        self._backoffs: dict[str, _Backoff] = {}
        self._agenda = Agenda(interval)
        self._why_failed: str | None = None
        self._housekeeping = housekeeping
        self._resolve_portals = resolve_portals
        self._on_repair = on_repair
        #: Whether the start has made the target what the journal says.
        self.is_ready = False
        self.passes = 0
        #: How many initiators were logged in to each volume when it was visited last.
        self.sessions: dict[str, int] = {}

    def start_up(self) -> None:
        """Make the target what the journal says, revocations included, before anybody is served.

        A volume that cannot be mended, or not in time, has a condition then; the others are served.
        """
        one = min(_PASS_PATIENCE, self._patience)
        self._pass_over(
            list(self._journal.volumes), False, _Patience(one, self._patience, lenient=True), self._put_aside
        )
        try:
            self._visit_orphans(False, _Patience(one, self._patience))
        except (DriverError, Busy) as error:
            self._pass_failed(error.message)
        self.passes += 1
        self.is_ready = True

    def run(self) -> None:
        """The periodic pass, and a look at what there is news of, until ``stop``."""
        for volumes in self._agenda.errands():
            try:
                if volumes is None:
                    self.make_round()
                else:
                    self._pass_over(self._due(volumes), False, _ROUND)
            except JournalFailed:
                return  # the daemon is ending: its owner was told by the journal
            except (DriverError, Busy) as error:
                self._pass_failed(error.message)  # the next pass tries again

    def _pass_failed(self, reason: str) -> None:
        """Log why the targets cannot be listed, once as long as it is the same."""
        if reason != self._why_failed:
            messages.PASS_FAILED.tell(reason=reason)
        self._why_failed = reason

    def stop(self) -> None:
        """End the periodic pass."""
        self._agenda.end()

    def note_device(self, names: Collection[str], number: int) -> None:
        """There is news of a block device: look at the volume that it belongs to, even where that was put off."""
        found = [row.id for row in list(self._journal.volumes.values()) if concerns(row, names, number)]
        for volume in found:
            self._backoffs.pop(volume, None)
        if found:
            self._agenda.note(found)

    def note_everything(self) -> None:
        """Anything may have changed: addresses, say. Look at everything soon."""
        self._agenda.note_everything()

    def forget_volume(self, volume: str) -> None:
        """The volume is not registered any more."""
        self.sessions.pop(volume, None)

    def make_round(self) -> None:
        """One periodic pass: what has ended, portals, every volume that is not put off, targets of nobody."""
        self._housekeeping()
        self._follow_portals()
        self._pass_over(self._due(list(self._journal.volumes)), False, _ROUND, pause=self._rest)
        self._visit_orphans(False, _ROUND)
        self._why_failed = None
        self.passes += 1

    def _rest(self, worked: float) -> None:
        """A pause of a round, in which what there is news of is looked at."""
        volumes = self._agenda.rest(_REST * worked)
        if volumes:
            self._pass_over(self._due(volumes), False, _ROUND)

    def _follow_portals(self) -> None:
        """Take over new addresses. Where none is left, what is there stays: it listens again when one is back."""
        driver = self._converger.driver
        try:
            found = tuple(self._resolve_portals())
        except ConfigError as error:
            messages.PORTALS_STAY.tell(reason=error)
            return
        if found and found != driver.portals:
            messages.PORTALS_CHANGED.tell(portals=", ".join(map(str, found)))
            driver.portals = found

    def reconcile(self, *, dry_run: bool) -> list[View]:
        """One pass over all volumes and over targets that no volume accounts for, within the time of a call.

        The answer has one line for each that differed: the steps, and the error where one could not be mended or was
        not reached in time.
        """
        deadline = Deadline(self._patience)
        one = self._patience / _PART_FOR_ONE
        lines = self._pass_over(list(self._journal.volumes), dry_run, _Patience(one, deadline.left()))
        try:
            lines += self._visit_orphans(dry_run, _Patience(one, deadline.left()))
        except (DriverError, Busy) as error:
            lines.append(_line(None, f"{self._converger.driver.iqn_prefix}:*", error=error.message))
        self.passes += 1
        return lines

    def _pass_over(
        self,
        volumes: Iterable[str],
        dry_run: bool,
        patience: _Patience,
        leave_out: Callable[[_Job], View] | None = None,
        pause: Callable[[float], None] | None = None,
    ) -> list[View]:
        rows = [row for row in map(self._journal.volumes.get, volumes) if row is not None]
        jobs = [_Job(row.id, row.target_name, partial(self._visit, row.id, dry_run)) for row in rows]
        return self._sweep(jobs, patience, leave_out or _leave_out, pause)

    def _visit_orphans(self, dry_run: bool, patience: _Patience) -> list[View]:
        deadline = Deadline(patience.all)
        names = self._list_orphans(min(patience.one, patience.all))
        jobs = [_Job(None, name, partial(self._visit_orphan, name, dry_run)) for name in names]
        return self._sweep(jobs, _Patience(patience.one, deadline.left()), _leave_out)

    def _sweep(
        self,
        jobs: Iterable[_Job],
        patience: _Patience,
        leave_out: Callable[[_Job], View],
        pause: Callable[[float], None] | None = None,
    ) -> list[View]:
        return Sweep(
            jobs,
            lambda job: job.body(),
            self._leave_behind,
            workers=self._workers,
            patience=patience.one,
            side_by_side=_SIDE_BY_SIDE,
            pause=pause,
            leave_out=leave_out,
            limit=patience.all,
            lenient=patience.lenient,
        ).run()

    def _leave_behind(self, job: _Job) -> View:
        """Tell of a target whose worker goes on without the pass."""
        waits_for = self._converger.current.get(job.volume or job.target_name, "the target")
        if job.volume is not None:
            self._conditions.set(job.volume, "Pending", f"waits for: {waits_for}")
        return _line(job.volume, job.target_name, error=f"waits for: {waits_for}")

    def _put_aside(self, job: _Job) -> View:
        """Tell of a volume that the start has not come to: the first round does."""
        if job.volume is not None:
            self._conditions.set(job.volume, "Pending", _NOT_REACHED)
        return _leave_out(job)

    def _visit(self, name: str, dry_run: bool) -> View | None:
        """One volume; None where there is nothing to say (equal, or a call is working on its target)."""
        if not self._turns.take(target_of(name), 0):
            return None
        try:
            volume = self._journal.volumes.get(name)  # read in its turn: it may have grown, or gone, meanwhile
            if volume is None:
                return None
            return self._plan(volume) if dry_run else self._mend(volume)
        finally:
            self._turns.give_back(target_of(name))

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
            want = self._repairer.wanted(volume)
            done = self._repairer.look_after(want)
        except DriverError as error:
            self._put_off(volume.id)
            self._conditions.clear(volume.id, "Pending")  # it waits no longer: it has failed
            return _line(volume.id, volume.target_name, error=error.message)
        self._count_sessions(want)
        self._backoffs.pop(volume.id, None)
        self._conditions.clear(volume.id, "Pending")
        if not done:
            return None
        line = _line(volume.id, volume.target_name, done)
        self._on_repair(line["differences"])
        messages.MENDED.tell(
            volume=volume.id, differences=", ".join(line["differences"]), steps="; ".join(line["steps"])
        )
        return line

    def _count_sessions(self, want: Export) -> None:
        """Here, in a worker of the volume's own: listing the sessions of a stalled device does not return."""
        try:
            found = self._converger.list_sessions(want.volume.target_name) if want.grants else []
        except DriverError:
            return  # the number stays as it was seen last; a target that is broken fails the next plan, which tells
        self.sessions[want.volume.id] = len(found)

    def _list_orphans(self, seconds: float) -> list[str]:
        """Targets of ours that no volume accounts for. A worker lists them: it may wait for longer than its caller.

        Raises Busy where the target does not answer in time, or an earlier listing still waits.
        """
        deadline = Deadline(seconds)
        if not self._turns.take(_LISTING, deadline.left()):
            raise Busy("cannot list the targets now: an earlier look waits for the target", "try again later")

        def listing() -> list[str]:
            try:
                return self._orphans()
            finally:
                self._turns.give_back(_LISTING)

        try:
            task = self._workers.submit(listing)
        except RuntimeError as error:  # no thread is to be had
            self._turns.give_back(_LISTING)
            raise Busy(f"cannot list the targets now: {error}", "try again later") from error
        if not task.wait(deadline.left()):
            raise Busy("cannot list the targets now: the target does not answer", "try again later")
        return task.result()

    def _orphans(self) -> list[str]:
        """Targets of ours that no volume accounts for, whatever prefix it was registered under.

        The target is listed first: a volume is in the journal before it is exported, so one that comes in between is
        known.
        """
        found = self._converger.list_exports()
        known = {_own_part(volume.target_name) for volume in list(self._journal.volumes.values())}
        return [name for name in found if _own_part(name) not in known]

    def _visit_orphan(self, name: str, dry_run: bool) -> View | None:
        """A target that no volume accounts for; None where an earlier pass still waits for it."""
        if not self._turns.take(name, 0):
            return None
        try:
            if dry_run:
                return _line(None, name, self._converger.plan_removal(name))
            done = self._converger.remove_orphan(name)
        except DriverError as error:
            messages.ORPHAN_STAYS.tell(target=name, reason=error.message)
            return _line(None, name, error=error.message)
        finally:
            self._turns.give_back(name)
        messages.ORPHAN_REMOVED.tell(target=name)
        line = _line(None, name, done)
        self._on_repair(line["differences"])
        return line

    def _due(self, volumes: Iterable[str]) -> list[str]:
        """Those that are not put off."""
        clock = time.monotonic()
        waiting = {name for name, backoff in list(self._backoffs.items()) if clock < backoff.due}
        return [name for name in volumes if name not in waiting]

    def _put_off(self, volume: str) -> None:
        before = self._backoffs.get(volume)
        pause = min(_LAST_PAUSE, before.pause * 2 if before else _FIRST_PAUSE)
        self._backoffs[volume] = _Backoff(pause, time.monotonic() + pause)


def _own_part(target_name: str) -> str:
    """What is the volume's own in its target's name: all but the prefix of the configuration."""
    return target_name.rpartition(":")[2]


def _leave_out(job: _Job) -> View:
    """Tell of a target that a pass has not come to."""
    return _line(job.volume, job.target_name, error=_NOT_REACHED)


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
