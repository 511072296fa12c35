"""What must hold after every step, whatever happened: answers against the model, the target against both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.model.contract import FORCE, GONE, GRANTED, LEAVES, TERMINATE, Held, Verdict, World, leads_to
from tests.model.plant import FOREIGN, Plant
from tests.support import ADMIN, HOST_A, HOST_B
from volattachd.drivers.memory import SimulatedExport
from volattachd.errors import DriverError

HOST_C = "iqn.2026-11.org.example:host-c"
HOSTS = (HOST_A, HOST_B, HOST_C)
ROGUE = "iqn.2026-11.org.example:rogue"

_TIMES = ("created_at", "updated_at")


class Watch:
    """The eyes of the model test.

    ``drifted``: somebody has changed the target behind the daemon's back, and no pass was made since. ``broken``: more
    went wrong than one way back can mend; the volume then is as it should be or carries a condition. ``missing``:
    the device is away.
    """

    def __init__(self, plant: Plant, world: World) -> None:
        self.plant = plant
        self.world = world
        self.drifted: set[str] = set()
        self.broken: set[str] = set()
        self.missing: set[str] = set()
        self.old_secrets: dict[str, list[tuple[str, str, str]]] = {}
        self._users: set[str] = set()
        self._passwords: set[str] = set()
        self._seq = 0
        self._last: dict[tuple[str, str | None], Mapping[str, Any] | None] = {}

    def check(self) -> None:
        """Everything."""
        self.check_rows()
        self.check_history()
        self.find_untold_secrets()  # where the device was away at the death, the grant came to the target only later
        for volume in self.world.volumes:
            self._check_target(volume)
            self._check_logins(volume)
        assert self.plant.target[FOREIGN] == SimulatedExport("/srv/foreign", "5ee1", enabled=True)

    # Rows.

    def check_rows(self) -> None:
        """What the daemon shows is what the contract says."""
        service, world = self.plant.service, self.world
        rows, volumes = list(service.list_attachments(ADMIN)), list(service.list_volumes(ADMIN))
        assert [without_times(row) for row in rows] == world.shown()
        assert [view["volume"] for view in volumes] == list(world.volumes)
        for view in volumes:
            self._check_volume(view)
            assert service.show_volume(ADMIN, view["volume"]) == view
            assert list(service.list_attachments(ADMIN, view["volume"])) == [
                r for r in rows if r["volume"] == view["volume"]
            ]
        for row in rows:
            assert service.show_attachment(ADMIN, row["attachment_id"]) == row
        for last in list(world.ended.values())[-1:]:
            assert without_times(service.show_attachment(ADMIN, last.id)) == last.shown()
        self.check_secrecy(rows, volumes, service.get_status(ADMIN))

    def _check_volume(self, view: dict[str, Any]) -> None:
        volume = self.world.volumes[view["volume"]]
        assert view["attachments"] == [row.id for row in self.world.of_volume(volume.name)]
        assert view["status"] == self.world.status(volume.name)
        assert (view["target_name"], view["path"]) == (volume.target_name, volume.path)
        assert (view["multiattach"], view["read_only"]) == (volume.multiattach, volume.read_only)
        assert not view["conditions"] or volume.name in self.broken, view

    def check_secrecy(self, *shown: Any) -> None:
        """No password is in what everybody may read."""
        text = repr(shown)
        assert not any(password in text for password in self._passwords)

    # History.

    def check_history(self) -> None:
        """Each line of history begins where the one before it ended, and goes where the contract lets it."""
        for line in self.plant.service.journal.history(since=self._seq, limit=1000):
            assert line["seq"] > self._seq
            self._seq = line["seq"]
            key = (line["volume"], line["attachment_id"])
            assert line["before"] == self._last.get(key), line
            self._last[key] = line["after"]
            if line["attachment_id"] is not None:
                check_move(line)
            self.check_secrecy(json.dumps(line))
        assert self.plant.service.get_status(ADMIN)["seq"] == self._seq

    # Target.

    def wanted(self, volume: str) -> dict[str, tuple[str, str | None, str | None]] | None:
        """Who should have access how and with which secret; None where nothing should be exported."""
        if not self.world.is_exported(volume):
            return None
        grants = self.world.grants(volume)
        return {initiator: (row.mode, row.user, row.password) for initiator, row in grants.items()}

    def actual(self, volume: str) -> dict[str, tuple[str, str | None, str | None]] | None:
        """The same from the target."""
        export = self.plant.target.get(self.world.volumes[volume].target_name)
        if export is None:
            return None
        grants = export.grants.values()
        return {g.initiator: (g.mode.value, g.secret.username, g.secret.password) for g in grants}

    def _check_target(self, volume: str) -> None:
        if volume in self.drifted:
            return
        wanted, actual = self.wanted(volume), self.actual(volume)
        conditions = self.plant.service.show_volume(ADMIN, volume)["conditions"]
        if wanted == actual and not conditions and volume not in self.missing:
            self.broken.discard(volume)
        if volume in self.broken:
            assert wanted == actual or conditions, (volume, wanted, actual)
            return
        assert wanted == actual, volume
        self._check_export(volume)

    def _check_export(self, volume: str) -> None:
        """An export that is whole: enabled, of the right device, with the sessions that were there before."""
        registered = self.world.volumes[volume]
        export = self.plant.target.get(registered.target_name)
        sessions = {initiator for name, initiator in self.world.sessions if name == volume}
        assert sessions == (set() if export is None else set(export.sessions))
        if export is not None:
            assert (export.path, export.read_only, export.enabled) == (registered.path, registered.read_only, True)

    def _check_logins(self, volume: str) -> None:
        """Secrets of what has ended open nothing, even with faults about; nor do secrets of others."""
        for initiator, user, password in self.old_secrets.get(volume, ())[-8:]:
            self.check_refused(volume, initiator, user, password)
        if volume in self.drifted or volume in self.broken:
            return
        grants = self.world.grants(volume)
        for row in grants.values():
            for initiator in (*HOSTS, ROGUE):
                if initiator != row.initiator:
                    self.check_refused(volume, initiator, str(row.user), str(row.password))

    def check_refused(self, volume: str, initiator: str, user: str, password: str) -> None:
        """The target does not let this initiator in with this secret."""
        try:
            self.plant.driver.login(self.world.volumes[volume].target_name, initiator, user, password)
        except DriverError:
            return
        raise AssertionError(f"{initiator} got into {volume} with a secret of {user} that gives it no access")

    # Secrets.

    def find_untold_secrets(self) -> None:
        """After a death between commit and answer: the secret that no client was told, from the target itself."""
        for row in list(self.world.held.values()):
            if row.state in GRANTED and row.password is None:
                told = (self.actual(row.volume) or {}).get(str(row.initiator))
                if told is not None and self.is_fresh(str(told[1]), str(told[2])):
                    self.keep_secret(row, str(told[1]), str(told[2]))

    def keep_secret(self, row: Held, user: str, password: str) -> None:
        """This attachment, and those that share its access, log in with this; no view may show it from now on."""
        self._users.add(user)
        self._passwords.add(password)
        for other in self.world.of_volume(row.volume):
            if other.initiator == row.initiator and other.state in GRANTED:
                self.world.held[other.id] = replace(other, user=user, password=password)

    def bury_secret(self, before: Held | None) -> None:
        """The attachment left its connection: unless another shares it, its secret must never work again."""
        if before is None or before.password is None or before.initiator in self.world.grants(before.volume):
            return
        grave = self.old_secrets.setdefault(before.volume, [])
        grave.append((str(before.initiator), str(before.user), before.password))

    def is_fresh(self, user: str, password: str) -> bool:
        """Whether nobody ever had either of them."""
        return user not in self._users and password not in self._passwords

    def adopt_sessions(self, volume: str) -> None:
        """After a fault sessions may have ended; none can have come up by itself."""
        registered = self.world.volumes.get(volume)
        export = self.plant.target.get(registered.target_name) if registered else None
        alive = set() if export is None else {(volume, initiator) for initiator in export.sessions}
        before = {session for session in self.world.sessions if session[0] == volume}
        assert alive <= before, "a session came up by itself"
        self.world.sessions = (self.world.sessions - before) | alive


def without_times(view: Mapping[str, Any]) -> dict[str, Any]:
    """A view of an attachment without what nothing is ever ordered by."""
    return {key: value for key, value in view.items() if key not in _TIMES}


def check_move(line: Mapping[str, Any]) -> None:
    """A line of history is a move that the contract has, or the undoing of one."""
    before, after = (GONE if line[side] is None else line[side]["state"] for side in ("before", "after"))
    call: str = line["call"]
    if call.startswith("undo "):
        call, before, after = call[len("undo ") :], after, before
    assert leads_to(before, call) == after, line
    assert before != after, "a call that changes nothing has no line of history"


def check_volume_answer(world: World, volume: str, answer: Mapping[str, Any]) -> None:
    """The answer of detach and unreserve is the volume as it is now."""
    assert (answer["volume"], answer["status"]) == (volume, world.status(volume))
    assert answer["attachments"] == [row.id for row in world.of_volume(volume)]


def revokes(call: str, verdict: Verdict) -> bool:
    """Whether a call takes the access of its attachment away."""
    return call in (TERMINATE, FORCE) and verdict.before is not None and call in LEAVES[verdict.before.state]
