"""The calls about the daemon itself: its state, its numbers, its target as a whole, its journal's backup."""

from __future__ import annotations

from pathlib import Path

from volattachd import __version__
from volattachd.model import Caller
from volattachd.reconcile.controller import Upkeep
from volattachd.service.core import Core, View
from volattachd.state.backup import write_backup
from volattachd.telemetry.metrics import Metrics


class OperationCalls:
    """What an operator asks of the daemon."""

    def __init__(self, core: Core, controller: Upkeep, metrics: Metrics) -> None:
        self._core = core
        self._controller = controller
        self._metrics = metrics

    def reconcile(self, caller: Caller, dry_run: bool = False) -> View:
        """What differs between journal and target, as the steps that correct it; without dry_run, corrects it."""
        return {"dry_run": dry_run, "volumes": self._controller.reconcile(dry_run=dry_run)}

    def get_status(self, caller: Caller) -> View:
        """Whether the daemon is ready, what is degraded and why, and what is pending."""
        journal, driver = self._core.journal, self._core.driver
        degraded = self._core.degraded()
        return {
            "ready": self._controller.is_ready,
            "degraded": [f"{name}: {c.kind}: {c.message}" for name, c in degraded],
            "version": __version__,
            "driver": driver.name,
            "portals": [str(portal) for portal in driver.portals],
            "volumes": len(journal.volumes),
            "attachments": len(journal.attachments),
            "pending": [name for name, c in degraded if c.kind == "Pending"],
            "seq": journal.seq,
            "boot_id": journal.boot_id,
            "caller": {"uid": caller.uid, "role": caller.role},
        }

    def get_metrics(self, caller: Caller) -> str:
        """Counts, times and what there is, in Prometheus' text format."""
        from volattachd.telemetry.prometheus import Counted, Present, write_text

        present = Present(self._core.journal, self._core.conditions, self._controller, self._core.driver.name)
        return write_text(Counted(self._metrics), present)

    def backup_journal(self, caller: Caller, path: str) -> View:
        """Write a consistent copy of the journal to a new file."""
        return write_backup(self._core.journal, Path(path))
