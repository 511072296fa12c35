"""The real service over a real journal and a simulated target, with deaths and faults at chosen points.

A death is an exception that nothing in the package catches for its own ends: from then on every step and every
commit of that life raises it again, and the next life opens a copy of the journal's files as they lay there at that
moment, with nothing closed or flushed for it. The simulated target stays as it was, as a kernel does.

Commits are not synced to the disk here: what a power failure does to the disk is tested elsewhere, and these tests
commit some ten thousand times.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.support import ADMIN, IQN_PREFIX, ObedientDriver, Service, attachment_id
from volattachd.config import Config
from volattachd.drivers.memory import SimulatedExport
from volattachd.errors import DriverError, JournalFailed, VolattachError
from volattachd.state.journal import Journal

FOREIGN = "iqn.2003-01.org.example:somebody-else"
_NOBODY = attachment_id((1 << 48) - 1)


class Died(BaseException):
    """The daemon is dead at this point."""


@dataclass(frozen=True)
class Trouble:
    """What goes wrong during one call, point by point; an empty one is none.

    ``steps`` are the target's changes in turn, each "ok", "fail" or "die", and ``rest`` is the fate of those after
    them; ``plans`` are its readings. ``commit`` counts commits: death is ``when`` it says ("before", "within" or
    "after" the commit). ``subject`` narrows all this to steps that name it. ``reboot``: the whole host goes down.
    """

    steps: tuple[str, ...] = ()
    rest: str = "ok"
    plans: tuple[str, ...] = ()
    commit: int = -1
    when: str = ""
    subject: str = ""
    reboot: bool = False


class Fate:
    """Brings an armed trouble about, in one life of the daemon."""

    def __init__(self) -> None:
        self.dead = False
        self.failures = 0
        self.arm(Trouble())

    def arm(self, trouble: Trouble) -> None:
        """From now on, what the trouble says."""
        self._trouble = trouble
        self._steps, self._plans = list(trouble.steps), list(trouble.plans)
        self._commits = 0
        self.failures = 0

    def before_step(self, step: str) -> None:
        """A change of the target is about to be made."""
        if self._trouble.subject in step:
            self._meet(self._steps.pop(0) if self._steps else self._trouble.rest, step)

    def before_plan(self) -> None:
        """The target is about to be read."""
        self._meet(self._plans.pop(0) if self._plans else "ok", "read the target")

    def before_sql(self, sql: str) -> None:
        """The journal's file is about to be used."""
        if self.dead:
            raise Died
        if sql.startswith("INSERT INTO journal"):
            self._die_if("within")
        elif sql == "COMMIT":
            self._die_if("before")

    def after_sql(self, sql: str) -> None:
        """The journal's file was used."""
        if sql == "COMMIT":
            self._die_if("after")
            self._commits += 1

    def _die_if(self, when: str) -> None:
        if (self._commits, when) == (self._trouble.commit, self._trouble.when):
            self.dead = True
            raise Died

    def _meet(self, fate: str, step: str) -> None:
        self.dead = self.dead or fate == "die"
        if self.dead:
            raise Died
        if fate == "fail":
            self.failures += 1
            raise DriverError(f"cannot {step}: the kernel said no")


class _Watched(sqlite3.Connection):
    """A connection that asks fate, and leaves syncing out."""

    fate: Fate | None = None

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if self.fate is not None:
            self.fate.before_sql(sql)
        cursor = super().execute(sql.replace("synchronous = FULL", "synchronous = OFF"), parameters)
        if self.fate is not None:
            self.fate.after_sql(sql)
        return cursor


class Plant:
    """A storage host: its target, its state directory, and the daemon's present life."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.target: dict[str, SimulatedExport] = {}
        self.put_foreign()
        self._lives = 0
        self._state = directory / "state-0"
        self._open()

    def _open(self) -> None:
        self.fate = Fate()
        self.driver = ObedientDriver(self.target)
        self.journal = Journal(self._state, connect=self._connect)
        self.driver.before_step, self.driver.before_plan = self.fate.before_step, self.fate.before_plan
        self.service = Service(replace(Config(), state_dir=self._state), self.journal, self.driver)

    def _connect(self, path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0, factory=_Watched)
        assert isinstance(db, _Watched)
        db.fate = self.fate
        return db

    def put_foreign(self) -> None:
        """A target of somebody else's, which nothing of ours may ever touch."""
        self.target[FOREIGN] = SimulatedExport("/srv/foreign", "5ee1", enabled=True)

    def attempt(self, call: Callable[[], Any], trouble: Trouble) -> Any:
        """The answer of a call that meets trouble; its refusal; or Died."""
        self.fate.arm(trouble)
        try:
            return call()
        except (VolattachError, Died) as outcome:
            return outcome
        except JournalFailed:
            if not self.fate.dead:
                raise
            return Died()
        finally:
            if not self.fate.dead:
                failures = self.fate.failures
                self.fate.arm(Trouble())
                self.fate.failures = failures

    def crash(self) -> None:
        """Die here, and begin the next life over what is on the disk."""
        self.fate.dead = True
        self._await_stragglers()
        self._lives += 1
        left, self._state = self._state, self.directory / f"state-{self._lives}"
        self._state.mkdir(mode=0o700)
        for file in left.iterdir():
            shutil.copy(file, self._state)
        self.fate.dead = False  # so that what is left of the old life can be thrown away
        self.journal.close()
        shutil.rmtree(left)
        self._open()

    def restart(self) -> None:
        """End in order, and begin again."""
        self.journal.close()
        self._open()

    def lose_target(self) -> None:
        """What a reboot does to a kernel's target, and what somebody may do to it by hand."""
        self.target.clear()
        self.put_foreign()

    def _await_stragglers(self) -> None:
        """Workers of the dead life that passed their last point before it died have made their step after this."""
        for volume in list(self.journal.volumes):
            try:
                self.service.attach(ADMIN, volume, host_name="nobody", attachment_id=_NOBODY)
            except (VolattachError, JournalFailed, Died):
                pass

    def close(self) -> None:
        """End, leaving nothing behind."""
        self.fate.dead = False
        self.journal.close()
        shutil.rmtree(self._state)


def is_ours(target_name: str) -> bool:
    """Whether a target carries one of our names."""
    return target_name.startswith(IQN_PREFIX + ":")
