"""The calls that register volumes and unregister them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

from volattachd.api.views import volume_view
from volattachd.errors import AlreadyExists, InvalidVolume
from volattachd.host.devices import take_device
from volattachd.model import Caller, Volume, now
from volattachd.reconcile.applier import export_of
from volattachd.service.core import Core, View
from volattachd.service.exclusive import Exclusive, exclusive_in_worker
from volattachd.state.journal import Change

_REGISTRY = "the registry of volumes"


class VolumeCalls:
    """The registry of volumes."""

    def __init__(self, core: Core, own_directory: Path, forget_sessions: Callable[[str], None]) -> None:
        """Nothing in ``own_directory`` can be a volume. ``forget_sessions`` is called with each volume that is
        unregistered.
        """
        self._core = core
        self._own_directory = own_directory
        self._forget_sessions = forget_sessions

    @property
    def one_at_a_time(self) -> Exclusive:
        """What keeps two calls of one volume apart."""
        return self._core.exclusive

    def register_volume(
        self, caller: Caller, volume: str, path: str, multiattach: bool = False, read_only: bool = False
    ) -> View:
        """Register a device as a volume, after checking that nothing else uses it."""
        journal, driver = self._core.journal, self._core.driver
        with self._core.exclusive.hold(_REGISTRY):
            found = journal.volumes.get(volume)
            if found is not None:
                if (found.path, found.multiattach, found.read_only) == (path, multiattach, read_only):
                    return self._core.view_volume(found)
                raise AlreadyExists(f"volume {volume!r} is registered already, for {found.path}", "use another name")
            device = take_device(path, read_only, list(journal.volumes.values()), self._own_directory)
            serial = self._new_serial()
            target_name = f"{driver.iqn_prefix}:{volume}.{serial[:8]}"
            row = Volume(volume, path, device, multiattach, read_only, target_name, serial, now())
            driver.check_volume(row)
            journal.commit(Change("register_volume", caller, volume, after=volume_view(row, (), ()), put=row))
            return self._core.view_volume(row)

    @exclusive_in_worker
    def unregister_volume(self, caller: Caller, volume: str) -> View:
        """Forget an available volume; its data stays."""
        journal = self._core.journal
        if volume not in journal.volumes and journal.was_unregistered(volume):
            return {"volume": volume}
        row = self._core.lookup.volume(volume)
        attachments = journal.attachments.of_volume(volume)
        if attachments:
            raise InvalidVolume(
                f"cannot unregister_volume {volume!r}: it has attachments",
                "detach them first",
                attachments=[a.id for a in attachments],
            )
        self._core.reconciler.converge(export_of(row, ()))
        journal.commit(Change("unregister_volume", caller, volume, before=volume_view(row, (), ()), drop=row))
        self._core.conditions.clear(volume)
        self._forget_sessions(volume)
        return {"volume": volume}

    def _new_serial(self) -> str:
        """A serial whose first 25 and first 7 digits no other volume has: WWID and HBA are made from them."""
        taken = {row.serial[:7] for row in list(self._core.journal.volumes.values())}
        while True:
            serial = str(uuid.uuid4())
            if serial[:7] not in taken:
                return serial
