"""What all calls share. daemon.py makes it and hands it in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from volattachd.api.views import volume_view
from volattachd.drivers.base import TargetDriver
from volattachd.model import Condition, Volume
from volattachd.reconcile.reconciler import Conditions, Repairer
from volattachd.service.exclusive import Exclusive
from volattachd.service.lookup import Selection
from volattachd.service.transition import Transitions
from volattachd.state.journal import Journal

View = dict[str, Any]


@dataclass(frozen=True)
class Core:
    """The parts that more than one group of calls needs."""

    journal: Journal
    driver: TargetDriver
    lookup: Selection
    conditions: Conditions
    reconciler: Repairer
    exclusive: Exclusive
    transitions: Transitions

    def view_volume(self, volume: Volume) -> View:
        """A volume as the calls show it."""
        rows = self.journal.attachments.of_volume(volume.id)
        return volume_view(volume, rows, self.conditions.of(volume.id))

    def degraded(self) -> list[tuple[str, Condition]]:
        """Every condition with the name of its volume."""
        return [(name, condition) for name, found in sorted(self.conditions.all().items()) for condition in found]
