"""The sweeps: a fault at the first operation of a call, at the second, … until the call comes through untouched.

``Sweep.depth_one`` does so for every call and kind of fault. Where the process ends, a new life starts over the same
directory and the same kernel; ``depth_two`` strikes that start as well, at points that depth one has found there.
After each, everything in oracle.py is checked, the call is sent again, and documented calls lead back to available.
"""

from __future__ import annotations

import itertools
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.faults import oracle
from tests.faults.injection import ALONE, ENDING, KILLS, SQL, Fault, Kind, Operation, ProcessKilled, applies
from tests.faults.oracle import Violation, require
from tests.faults.target import Tree, read_foreign
from tests.faults.world import RECONCILE, Case, Life, Rows, Stage, World
from volattachd.errors import DriverError, JournalDamaged, JournalFailed, JournalUnusable

#: What ends a daemon that is starting, so that its supervisor starts it again.
ENDS_A_START = (ProcessKilled, JournalUnusable, JournalFailed, DriverError)


@dataclass(frozen=True)
class Point:
    """A place where a call was struck, and what the start after it then did.

    ``recovery`` has the numbers of that start's operations that each kind can strike. ``left`` is what the start
    found: the target, the stage, and every operation that it made of it. Where two points of a call left the same, no
    start can tell them apart, and neither can a fault in it.
    """

    case: Case
    fault: Fault
    recovery: Mapping[Kind, list[int]] = field(default_factory=dict)
    left: str = ""


#: Two faults: one in a call, and one in the start after it.
Pair = tuple[Point, Fault]


def strikes(kind: Kind, seen: Iterable[Operation]) -> list[int]:
    """Which of the operations that the kind applies to are struck: all, but of the reads between two changes one.

    A kill there leaves the same world wherever it falls.
    """
    numbers, number, changed = [], 0, True
    for operation in seen:
        if applies(kind, operation):
            number += 1
            if changed or kind is not Kind.KILL_READING:
                numbers.append(number)
            changed = False
        changed = changed or operation.changes
    return numbers


@dataclass(frozen=True)
class Outcome:
    """What the caller saw: an answer, or an error."""

    answer: Any = None
    error: BaseException | None = None


class Sweep:
    """Sweeps over one world."""

    def __init__(self, world: World, kinds: Iterable[Kind] = ALONE) -> None:
        self.world = world
        self.kinds = tuple(kinds)
        self.counts: Counter[str] = Counter()
        self.points: list[Point] = []
        self._foreign = read_foreign(world.reader)
        self._normal: dict[Case, Any] = {}
        self._refused = False

    # Depth one.

    def depth_one(self, cases: Iterable[Case]) -> None:
        """Every point of every case."""
        oracle.check_lock(self.world)
        for case in cases:
            self.acknowledged(case)
            for kind in self.kinds:
                for number in itertools.count(1):
                    if not self._told(self._strike_once, case, Fault(kind, number)):
                        break
            self.check_foreign()

    def acknowledged(self, case: Case) -> None:
        """Without a fault: its answer is the normal one, and what it says survives a kill at once after it."""
        before = self._begin(case)
        answer = case.send(self.world)
        self._normal[case] = oracle.normal(self._plain(case, answer), self.world.attachment_id)
        self.world.life.end()
        self._revive()
        self._check_recovered(case, before, moved=True)

    def check_foreign(self) -> None:
        """Nobody would put back what was changed in a foreign target, so looking once in a while is enough."""
        now, was = read_foreign(self.world.reader), self._foreign
        changed = {path: (was.get(path), now.get(path)) for path in {*was, *now} if was.get(path) != now.get(path)}
        require(not changed, "a foreign target stays as it is", f"(was, is): {changed}")

    def _told(self, strike: Any, case: Case, *faults: Fault) -> Any:
        try:
            return strike(case, *faults)
        except Violation as violation:
            struck = self.world.life.seam.struck
            violation.args = (f"{violation} (in {case}: {', then '.join(map(str, faults))}; last struck: {struck})",)
            raise

    def _strike_once(self, case: Case, fault: Fault) -> bool:
        """One fault in one call; False where the call has fewer such operations."""
        before = self._begin(case)
        outcome, struck = self._send(case, fault)
        if struck is None:
            require(outcome.error is None, "a call without a fault succeeds", outcome.error)
            self._check_answer(case, outcome.answer)
            return False
        self.counts[fault.kind.value] += 1
        if self._ended(fault, struck, outcome):
            tree = self._end(before)
            self._revive()
            self._note(case, fault, tree)
            oracle.check_moment_of_death(tree, before, self.world.rows(), case, self.world.attachment_id)
            self._check_recovered(case, before, moved=None)
            self._send_again(case)
        else:
            self._check_survived(case, before, outcome)
        return True

    def _begin(self, case: Case) -> Rows:
        """Where the case starts, with a new attachment.

        After an error answer everything is as it was before the call, and this is a check of it: the call is made
        again, in the same daemon, and gets as far as the next point. Else back to available, and on from there.
        """
        world = self.world
        if not self._refused:
            world.go(Stage.AVAILABLE)
            world.new_attachment()
            world.go(case.before)
        self._refused = False
        case.prepare(world)
        return world.rows()

    def _send(self, case: Case, fault: Fault) -> tuple[Outcome, Operation | None]:
        """The call with its fault; the answer is what the caller saw and where the fault struck."""
        seam = self.world.life.seam
        seam.arm(fault)
        try:
            outcome = Outcome(answer=case.send(self.world))
        except BaseException as error:  # noqa: BLE001 - a dead process is one of the outcomes
            outcome = Outcome(error=error)
        struck = seam.struck
        if not seam.dead:
            seam.arm(None)
        return outcome, struck

    def _ended(self, fault: Fault, struck: Operation, outcome: Outcome) -> bool:
        """Whether the process is over; checks that what the caller saw is what such a fault must show."""
        if fault.kind not in ENDING:
            expected: tuple[type, ...] = (DriverError, type(None))
        elif struck.changes:
            expected = (ProcessKilled, JournalFailed)
        else:
            expected = (ProcessKilled, sqlite3.Error)
        saw = outcome.error
        require(isinstance(saw, expected), "nothing is acknowledged after a failure", f"the caller saw {outcome}")
        if fault.kind in SQL and struck.changes:
            self._check_nothing_more()
        return fault.kind in KILLS or (fault.kind in SQL and struck.changes)

    def _check_nothing_more(self) -> None:
        """After a failed commit the owner is told, and nothing is accepted any more."""
        require(self.world.life.failure is not None, "a failed commit is fatal", "the owner was not told")
        try:
            self.world.life.journal.history(limit=1)
        except JournalFailed:
            return
        raise Violation("a failed commit is fatal", "the journal goes on")

    def _end(self, before: Rows) -> dict[str, str]:
        """The end of the process; the answer is what it left in the target."""
        self.world.life.end()
        return self.world.read()

    def _note(self, case: Case, fault: Fault, tree: Tree) -> None:
        """What the start found, and the operations for each kind that it has just made."""
        seen = self.world.life.seam.seen
        recovery = {kind: strikes(kind, seen) for kind in self.kinds}
        left = [self.world.stage().value, *(f"{path}: {value}" for path, value in tree.items()), *map(str, seen)]
        self.points.append(Point(case, fault, recovery, self._unnamed("\n".join(left))))

    def _unnamed(self, text: str) -> str:
        """Without what differs from one attachment, or one registration, to the next."""
        rows, own = self.world.rows(), self.world.attachment_id
        names = {own: "(own)"}
        if own in rows.attachments and (secret := rows.attachments[own].secret):
            names[secret.password] = "(password)"
        for volume in rows.volumes.values():
            names |= {volume.serial: "(serial)", volume.serial[:8]: "(serial)"}
        return re.sub("|".join(map(re.escape, names)), lambda found: names[found[0]], text)

    def _check_recovered(self, case: Case, before: Rows, *, moved: bool | None) -> None:
        world = self.world
        oracle.check_rows(before, world.rows(), case, world.attachment_id, moved=moved)
        oracle.check_history(world, world.attachment_id)
        oracle.check_target(world)
        oracle.check_second_pass(world)

    def _check_survived(self, case: Case, before: Rows, outcome: Outcome) -> None:
        """The same daemon goes on: the error changed nothing, or the call found its way."""
        moved = outcome.error is None
        oracle.check_rows(before, self.world.rows(), case, self.world.attachment_id, moved=moved)
        if case is RECONCILE:  # a pass that failed is mended by the next
            self._send_again(case)
        else:
            oracle.check_target(self.world)
        self._refused = outcome.error is not None

    def _send_again(self, case: Case) -> None:
        """The call once more, its answer, and the target after it."""
        self._check_answer(case, case.send(self.world))

    def _check_answer(self, case: Case, answer: Any) -> None:
        oracle.check_answer(self.world, self._plain(case, answer), self._normal[case], case)
        oracle.check_target(self.world)

    @staticmethod
    def _plain(case: Case, answer: Any) -> Any:
        return oracle.without_lines(answer) if case is RECONCILE else answer

    # Depth two.

    def pairs(self) -> Iterator[Pair]:
        """Every point that ended a process, with every point of the start after it."""
        for point in self.points:
            yield from self._pairs_of(point)

    def different_pairs(self) -> Iterator[Pair]:
        """One pair of all those whose first faults left the same behind."""
        for point in {(point.case, point.left): point for point in self.points}.values():
            yield from self._pairs_of(point)

    @staticmethod
    def _pairs_of(point: Point) -> Iterator[Pair]:
        for kind, numbers in point.recovery.items():
            for number in numbers:
                yield point, Fault(kind, number)

    def depth_two(self, chosen: Iterable[Pair]) -> int:
        """A second fault during the start after the first; the answer is how many pairs were tried."""
        struck = 0
        for point, second in chosen:
            self._told(self._strike_twice, point.case, point.fault, second)
            struck += 1
        self.check_foreign()
        return struck

    def _strike_twice(self, case: Case, first: Fault, second: Fault) -> None:
        before = self._begin(case)
        self._send(case, first)
        self._end(before)
        self._start_struck(second)
        self.counts["second fault"] += 1
        self._check_recovered(case, before, moved=None)
        self._send_again(case)

    def _revive(self, fault: Fault | None = None) -> None:
        """A new daemon starts after one that died. A daemon that keeps its rules leaves no damage."""
        try:
            self.world.life = Life(self.world, fault)
        except JournalDamaged as error:
            raise oracle.Violation("what was acknowledged holds", str(error)) from error

    def _start_struck(self, second: Fault) -> None:
        """A start with a fault in it; what ends is started again, what goes on mends itself in its next pass."""
        try:
            self._revive(second)
        except ENDS_A_START:
            self._revive()
            return
        seam = self.world.life.seam
        require(seam.struck is not None, "a start makes the same operations each time", second)
        seam.arm(None)
        self.world.service.upkeep.reconcile(dry_run=False)


class Clock:
    """How long a part took."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __str__(self) -> str:
        return f"{time.monotonic() - self._started:.1f} s"
