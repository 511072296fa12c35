"""What is wrong with each volume, and the one way to mend it: converge, and keep what was found as conditions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from volattachd.api.views import volume_view
from volattachd.drivers.base import Step
from volattachd.errors import DriverError
from volattachd.host.devices import Finding
from volattachd.model import DAEMON, Condition, Export, Volume, now
from volattachd.reconcile.applier import Converger, DeviceUnusable, Verify, export_of
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
        with self._lock:
            found = self._by_volume.get(volume, {})
            before = found.get(kind)
            since = before.since if before else now()
            self._by_volume[volume] = {**found, kind: Condition(kind, message, since)}
        if before is None or before.message != message:
            messages.CONDITIONS[kind].tell(volume=volume, condition=kind, reason=message)

    def clear(self, volume: str, *kinds: str) -> None:
        """End conditions of these kinds; without any kind, all of the volume."""
        if volume not in self._by_volume:
            return
        with self._lock:
            found = self._by_volume.get(volume, {})
            ended = [kind for kind in found if not kinds or kind in kinds]
            rest = {kind: condition for kind, condition in found.items() if kind not in ended}
            if rest:
                self._by_volume[volume] = rest
            else:
                self._by_volume.pop(volume, None)
        for kind in ended:
            messages.CONDITION_OVER.tell(volume=volume, condition=kind)


#: What a converge finds out about a volume; Pending is the caller's matter.
CONVERGE_KINDS = ("DeviceMissing", "DeviceChanged", "TargetError")


class Repairer:
    """Converges one volume and keeps its conditions: what calls, start and passes have in common."""

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
        found = self._examine(want.volume)
        if found.size > want.volume.size and self._can_grow(want.volume):
            want = replace(want, volume=self._grow(want.volume, found.size))
        done = self.converge(want, lambda volume: found.condition)
        if want.exported:
            self._show(want.volume.id, found.condition)
        return done

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

    def converge(self, want: Export, verify: Verify | None = None) -> list[Step]:
        """Converge, and record what is wrong. Raises DriverError as the converger does."""
        with self._errors_shown(want.volume.id):
            done, condition = self._converger.converge(want, verify)
        self._show(want.volume.id, condition)
        return done

    def revoke(self, want: Export) -> None:
        """Take away what ``want`` does not grant, and record what went wrong; what else is wrong with it stays so.

        Raises DriverError as the converger does.
        """
        with self._errors_shown(want.volume.id):
            self._converger.revoke(want)

    @contextmanager
    def _errors_shown(self, volume: str) -> Iterator[None]:
        try:
            yield
        except DeviceUnusable as error:
            self._show(volume, error.condition)
            raise
        except DriverError as error:
            self._show(volume, Condition("TargetError", error.message, now()))
            raise

    def _show(self, volume: str, condition: Condition | None) -> None:
        """What the last converge found wrong, and nothing of what earlier ones did."""
        if condition is not None:
            self._conditions.set(volume, condition.kind, condition.message)
        over = [kind for kind in CONVERGE_KINDS if condition is None or kind != condition.kind]
        self._conditions.clear(volume, *over)
