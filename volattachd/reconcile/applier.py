"""Journal to target, one volume at a time: the only place that writes to the target.

``export_of`` says what the journal's rows ask for; ``converge`` makes the target so. A call, a start, a retry
and a repair all come through here, so a crash anywhere is mended by running it again: there is no second way of
recovery that could be wrong.

Laws:

1. It reads before it writes, and a healthy volume sees no write at all: live sessions notice nothing.
2. What it wrote is read again, and what the target did not keep is an error, not a hope.
3. A device that is missing, or is another one than was registered, is never exported: its path is checked before, and
   what the target has opened once it has, since a path may lead elsewhere in between. What the target has
   open already was checked when it was opened and stays: renaming a device cuts nobody off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from volattachd.drivers.base import Session, Step, TargetDriver
from volattachd.errors import DriverError, VolattachError
from volattachd.lifecycle import EXPORTED, GRANTED
from volattachd.model import Attachment, Condition, Export, Grant, Volume
from volattachd.telemetry import messages

Verify = Callable[[Volume], "Condition | None"]
VerifyOpened = Callable[[Volume, str], "Condition | None"]
Plan = Callable[[TargetDriver, Export], list[Step]]


class DeviceUnusable(DriverError):
    """The volume's device is missing or has been exchanged; ``condition`` says which."""

    def __init__(self, volume: Volume, condition: Condition) -> None:
        super().__init__(
            f"cannot export volume {volume.id!r}: {condition.message}",
            "bring the device back; it is looked for again by itself",
        )
        self.condition = condition

    @property
    def kind(self) -> str:
        return DriverError.__name__


def export_of(volume: Volume, attachments: Iterable[Attachment]) -> Export:
    """What the target should hold for a volume with these attachments; of a local one it knows nothing."""
    rows = [row for row in attachments if not row.local]
    grants: dict[str, Grant] = {}
    for row in rows:
        if row.state in GRANTED and row.initiator is not None and row.secret is not None:
            grants.setdefault(row.initiator, Grant(row.initiator, row.mode, row.secret))
    return Export(volume, any(row.state in EXPORTED for row in rows), tuple(grants.values()))


class _DriverBoundary:
    """What a driver did not foresee is its error, told as one, and never the end of a thread that serves everybody."""

    def __init__(self, driver: TargetDriver) -> None:
        self._name = driver.name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, VolattachError):
            messages.DRIVER_BUG.tell(driver=self._name)
            raise DriverError(f"the {self._name} driver failed: {error!r}", "report it with the log") from error


class Converger:
    """Makes targets equal to what they should be. Calls for one volume must not overlap."""

    def __init__(self, driver: TargetDriver, verify: Verify, verify_opened: VerifyOpened | None = None) -> None:
        """``verify`` says what is wrong with a volume's path, ``verify_opened`` with what the target has opened."""
        self.driver = driver
        self._verify = verify
        self._verify_opened = verify_opened or (lambda volume, path: None)
        self._boundary = _DriverBoundary(driver)
        #: The step that each volume is at now, for whoever asks what it waits for.
        self.current: dict[str, str] = {}

    def plan(self, want: Export) -> tuple[list[Step], Condition | None]:
        """The steps to ``want``, or to as much of it as its device allows, and what is wrong with the device."""
        with self._boundary:
            driver = self.driver.looking()
            possible, condition = _possible(driver, want, self._verify)
            return driver.plan(possible), condition

    def converge(self, want: Export, verify: Verify | None = None) -> tuple[list[Step], Condition | None]:
        """Make the target equal to ``want``; the answer is what was done, and the device's condition.

        ``verify`` tells what is wrong with the device, for who has looked at it already.
        Raises DriverError where a step failed or the target did not keep it, DeviceUnusable where the device
        does not allow the export that is wanted: nothing of the volume is exported then.
        """
        return self._make_so(want, lambda driver, possible: driver.plan(possible), verify or self._verify)

    def revoke(self, want: Export) -> tuple[list[Step], Condition | None]:
        """Take away what ``want`` does not grant, and look no further; answer and errors are those of ``converge``."""
        return self._make_so(want, lambda driver, possible: driver.plan_revocation(possible), self._verify)

    def _make_so(self, want: Export, plan: Plan, verify: Verify) -> tuple[list[Step], Condition | None]:
        with self._boundary:
            driver = self.driver.looking()
            possible, condition = _possible(driver, want, verify)
            possible = replace(possible, check_opened=partial(self._check_opened, want.volume))
            steps = plan(driver, possible)
            self._run(want.volume.id, steps)
            left = plan(driver, possible) if steps and not driver.checks_steps else []
        if left:
            raise DriverError(f"cannot export volume {want.volume.id!r}: the target did not keep {left[0]}")
        if possible != want:
            assert condition is not None
            raise DeviceUnusable(want.volume, condition)
        return steps, condition

    def _check_opened(self, volume: Volume, path: str) -> None:
        condition = self._verify_opened(volume, path)
        if condition is not None:
            raise DeviceUnusable(volume, condition)

    def list_exports(self) -> list[str]:
        """The targets under our prefix, whether or not a volume accounts for them."""
        with self._boundary:
            return self.driver.list_exports()

    def list_sessions(self, target_name: str) -> list[Session]:
        """Who is logged in to a target now."""
        with self._boundary:
            return self.driver.list_sessions(target_name)

    def plan_removal(self, target_name: str) -> list[Step]:
        """The steps that remove a target of ours that no volume accounts for."""
        with self._boundary:
            return self.driver.plan_removal(target_name)

    def remove_orphan(self, target_name: str) -> list[Step]:
        """Remove a target of ours that no volume accounts for; the answer is what was done."""
        steps = self.plan_removal(target_name)
        with self._boundary:
            self._run(target_name, steps)
        return steps

    def _run(self, subject: str, steps: list[Step]) -> None:
        try:
            for step in steps:
                self.current[subject] = str(step)
                step.run()
        finally:
            self.current.pop(subject, None)


def _possible(driver: TargetDriver, want: Export, verify: Verify) -> tuple[Export, Condition | None]:
    """What can be had of ``want``: all of it while the target holds the device, nothing without one."""
    condition = None if driver.holds_device(want.volume) else verify(want.volume)
    return (want if condition is None else replace(want, exported=False, grants=())), condition
