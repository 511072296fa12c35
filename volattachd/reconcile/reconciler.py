"""What is wrong with each volume, and the one way to mend it: converge, and keep what was found as conditions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from volattachd.api.views import volume_view
from volattachd.drivers.base import Step
from volattachd.errors import DriverError
from volattachd.host.devices import CUT_TO, Finding
from volattachd.model import DAEMON, Condition, Export, Volume, now
from volattachd.reconcile.applier import Converger, DeviceUnusable, export_of
from volattachd.state.journal import Change, Journal
from volattachd.telemetry import messages

Examine = Callable[[Volume], Finding]


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
        self.replace(volume, (kind,), [Condition(kind, message, now())])

    def clear(self, volume: str, *kinds: str) -> None:
        """End conditions of these kinds; without any kind, all of the volume."""
        if volume in self._by_volume:
            self.replace(volume, kinds or tuple(self._by_volume.get(volume, ())), ())

    def replace(self, volume: str, kinds: Collection[str], found: Iterable[Condition]) -> None:
        """Make ``found`` all that is wrong with a volume of these kinds. A condition that stands keeps its time."""
        with self._lock:
            before = self._by_volume.get(volume, {})
            after = {kind: condition for kind, condition in before.items() if kind not in kinds}
            for new in found:
                since = before[new.kind].since if new.kind in before else new.since
                after[new.kind] = replace(new, since=since)
            self._by_volume[volume] = after
            if not after:
                del self._by_volume[volume]
        for kind in before.keys() - after.keys():
            messages.CONDITION_OVER.tell(volume=volume, condition=kind)
        for kind, condition in after.items():
            if kind not in before or before[kind].message != condition.message:
                messages.CONDITIONS[kind].tell(volume=volume, condition=kind, reason=condition.message)


#: What an examination of the device may find; Pending is the caller's matter.
_IDENTITY_KINDS = ("DeviceMissing", "DeviceChanged")
_DEVICE_KINDS = (*_IDENTITY_KINDS, "DeviceFailed", "SpaceLow")
_TARGET_KIND = "TargetError"
CONVERGE_KINDS = (*_DEVICE_KINDS, _TARGET_KIND)


class Repairer:
    """Converges one volume and keeps its conditions: what calls, start and passes have in common.

    Each look ends in one ``Conditions.replace``, with everything that it found and only the kinds that it looked for.
    So a standing condition is logged once, however often it is found, and what was not looked at is not ended.
    """

    def __init__(self, journal: Journal, converger: Converger, conditions: Conditions, examine: Examine) -> None:
        self._journal = journal
        self._examine = examine
        self._converger = converger
        self._conditions = conditions

    def wanted(self, volume: Volume) -> Export:
        """What the journal asks for now."""
        return export_of(volume, self._journal.attachments.of_volume(volume.id))

    def look_after(self, want: Export) -> list[Step]:
        """Converge, and look at the device too: the target may hold one that is gone, or that has grown."""
        found = self._look(want.volume)
        if found.size > want.volume.size and self._can_grow(want.volume):
            want = replace(want, volume=self._grow(want.volume, found.size))
        return self._converge(want, [found])

    def converge(self, want: Export) -> list[Step]:
        """Converge, and record what is wrong. Raises DriverError as the converger does."""
        return self._converge(want, [])

    def revoke(self, want: Export) -> None:
        """Take away what ``want`` does not grant, and record what went wrong; what else is wrong with it stays so.

        Raises DriverError as the converger does.
        """
        try:
            self._converger.revoke(want)
        except DeviceUnusable as error:
            self._conditions.replace(want.volume.id, _IDENTITY_KINDS, [error.condition])
            raise
        except DriverError as error:
            self._conditions.set(want.volume.id, _TARGET_KIND, error.message)
            raise

    def _converge(self, want: Export, findings: list[Finding]) -> list[Step]:
        """``findings`` has what is known of the device; the target may hold it, and then nobody needs to know."""

        def verify(volume: Volume) -> Condition | None:
            if not findings:
                findings.append(self._look(volume))
            return findings[0].condition

        try:
            done, _ = self._converger.converge(want, verify)
        except DeviceUnusable:
            self._show(want.volume.id, findings)
            raise
        except DriverError as error:
            self._show(want.volume.id, findings, Condition(_TARGET_KIND, error.message, now()))
            raise
        self._show(want.volume.id, findings)
        return done

    def _show(self, volume: str, findings: list[Finding], error: Condition | None = None) -> None:
        """What was found wrong: with the device, where it was looked at, and with the target."""
        kinds = CONVERGE_KINDS if findings else (_TARGET_KIND,)
        found = [*(finding.condition for finding in findings), error]
        found += [warning for finding in findings for warning in finding.warnings]
        self._conditions.replace(volume, kinds, [condition for condition in found if condition is not None])

    def _look(self, volume: Volume) -> Finding:
        """Examine the device. That it was cut is committed: its middle is lost, also when it has grown again."""
        found = self._examine(volume)
        before = volume.device.identity.get(CUT_TO)
        if found.cut_to is not None and (before is None or found.cut_to < int(before)):
            identity = {**volume.device.identity, CUT_TO: str(found.cut_to)}
            cut = replace(volume, device=replace(volume.device, identity=identity))
            rows = self._journal.attachments.of_volume(volume.id)
            view = volume_view(volume, rows, ())
            self._journal.commit(Change("cut_volume", DAEMON, volume.id, before=view, after=view, put=cut))
        return found

    def _can_grow(self, volume: Volume) -> bool:
        """Whether initiators would see the new size: at once, or because nothing is exported yet."""
        driver = self._converger.driver
        return driver.capabilities.grows or not driver.holds_device(volume)

    def _grow(self, volume: Volume, size: int) -> Volume:
        """Commit a device's new size. The target follows by the same converge as everything."""
        grown = replace(volume, device=replace(volume.device, size=size))
        rows = self._journal.attachments.of_volume(volume.id)
        views = [volume_view(row, rows, ()) for row in (volume, grown)]
        self._journal.commit(Change("grow_volume", DAEMON, volume.id, before=views[0], after=views[1], put=grown))
        messages.VOLUME_GREW.tell(volume=volume.id, old=volume.size, new=size)
        return grown
