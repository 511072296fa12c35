"""A simulated target, for clients' own tests and for models: exports, grants and logins in memory.

It keeps the contract of drivers/base.py step by step, secrets and modes included, and forgets everything
with its process. It is never chosen by itself and proves nothing about a kernel.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from volattachd.drivers.base import Capabilities, Difference, Portal, Session, Step, TargetDriver
from volattachd.errors import DriverError, InvalidInput
from volattachd.model import Export, Grant, Mode, Volume


@dataclass
class SimulatedExport:
    """One target of the simulator."""

    path: str
    serial: str
    read_only: bool = False
    enabled: bool = False
    grants: dict[str, Grant] = field(default_factory=dict)
    sessions: dict[str, Mode] = field(default_factory=dict)


class MemoryDriver(TargetDriver):
    """The simulator. ``login`` and ``logout`` play the initiator.

    ``exports`` stands for the kernel: a second driver over the same mapping is the daemon started again.
    """

    name: ClassVar[str] = "memory"
    capabilities: ClassVar[Capabilities] = Capabilities(per_grant_mode=True, ends_sessions=True, grows=True)

    def __init__(
        self,
        iqn_prefix: str,
        portals: Sequence[Portal],
        exports: dict[str, SimulatedExport] | None = None,
    ) -> None:
        super().__init__(iqn_prefix, portals)
        self.exports: dict[str, SimulatedExport] = {} if exports is None else exports
        self._lock = threading.Lock()

    def check_volume(self, volume: Volume) -> None:
        if "," in volume.path:
            raise InvalidInput(f"cannot export {volume.path!r}: the path has a comma", "use a path without one")

    def plan(self, want: Export) -> list[Step]:
        name = want.volume.target_name
        if not want.exported:
            return self.plan_removal(name)
        actual = self.exports.get(name)
        present = {} if actual is None else dict(actual.grants)
        steps = self._plan_revocations(want, present)
        if actual is None:
            steps.append(Step("create target", name, partial(self._create, want.volume), Difference.EXPORT_MISSING))
        steps += self._plan_grants(want, present)
        if actual is None or not actual.enabled:
            steps.append(Step("enable target", name, partial(self._enable, name)))
        return steps

    def _plan_revocations(self, want: Export, present: dict[str, Grant]) -> list[Step]:
        name = want.volume.target_name
        return [
            Step(
                "remove grant",
                f"{name} {initiator}",
                partial(self._remove_grant, name, initiator),
                Difference.GRANT_UNEXPECTED,
            )
            for initiator, grant in present.items()
            if grant not in want.grants
        ]

    def _plan_grants(self, want: Export, present: dict[str, Grant]) -> list[Step]:
        name = want.volume.target_name
        return [
            Step(
                "create grant",
                f"{name} {grant.initiator}",
                partial(self._create_grant, name, grant),
                Difference.GRANT_MISSING,
            )
            for grant in want.grants
            if present.get(grant.initiator) != grant
        ]

    def plan_removal(self, target_name: str) -> list[Step]:
        export = self.exports.get(target_name)
        if export is None:
            return []
        steps = [
            Step(
                "remove grant",
                f"{target_name} {i}",
                partial(self._remove_grant, target_name, i),
                Difference.GRANT_UNEXPECTED,
            )
            for i in list(export.grants)
        ]
        return [
            *steps,
            Step("remove target", target_name, partial(self._remove, target_name), Difference.EXPORT_UNEXPECTED),
        ]

    def holds_device(self, volume: Volume) -> bool:
        with self._lock:
            return any(export.path == volume.path for export in self.exports.values())

    def list_exports(self) -> list[str]:
        with self._lock:
            return [name for name in self.exports if name.startswith(self.iqn_prefix + ":")]

    def list_sessions(self, target_name: str) -> list[Session]:
        export = self.exports.get(target_name)
        return [] if export is None else [Session(initiator) for initiator in list(export.sessions)]

    def login(self, target_name: str, initiator: str, username: str, password: str) -> Mode:
        """Log in as an initiator would; gives the mode of access.

        Raises DriverError where a real target would refuse the login.
        """
        export = self.exports.get(target_name)
        grant = None if export is None else export.grants.get(initiator)
        if export is None or not export.enabled or grant is None:
            raise DriverError(f"login of {initiator} to {target_name} refused")
        if (grant.secret.username, grant.secret.password) != (username, password):
            raise DriverError(f"login of {initiator} to {target_name} refused: wrong secret")
        export.sessions[initiator] = Mode.RO if export.read_only else grant.mode
        return export.sessions[initiator]

    def logout(self, target_name: str, initiator: str) -> None:
        """End the initiator's session, if it has one."""
        export = self.exports.get(target_name)
        if export is not None:
            export.sessions.pop(initiator, None)

    def _create(self, volume: Volume) -> None:
        with self._lock:
            self.exports[volume.target_name] = SimulatedExport(volume.path, volume.serial, volume.read_only)

    def _remove(self, name: str) -> None:
        with self._lock:
            self.exports.pop(name, None)

    def _enable(self, name: str) -> None:
        self.exports[name].enabled = True

    def _create_grant(self, name: str, grant: Grant) -> None:
        self.exports[name].grants[grant.initiator] = grant

    def _remove_grant(self, name: str, initiator: str) -> None:
        export = self.exports[name]
        export.grants.pop(initiator, None)
        export.sessions.pop(initiator, None)
