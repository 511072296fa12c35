"""The modules whose mutants must be noticed, each with the tests that must notice them."""

from __future__ import annotations

from tests.mutation.trial import Subject

_PARTS = (
    "attachments", "decisions", "exclusive", "operations", "owners", "queries", "reservations", "transition", "volumes",
)  # fmt: skip
_CALLS = ("tests/service/test_attachments.py", "tests/service/test_local_attach.py", "tests/service/test_decisions.py")
#: What the calls do beside the life cycle is tested with what does it.
_SERVICE = (
    *_CALLS,
    "tests/service/test_holdings.py",
    "tests/reconcile/test_controller.py",
    "tests/rpc/test_notifications.py",
    "tests/state/test_journal_care.py",
    "tests/telemetry/test_metrics.py",
    "tests/api/test_audit.py",
)
_RECONCILE = tuple(f"tests/reconcile/test_{name}.py" for name in ("applier", "reconciler", "controller"))
_STATE = tuple(f"tests/state/test_{name}.py" for name in ("journal", "journal_care", "damage"))

SUBJECTS: tuple[Subject, ...] = (
    *(Subject(f"volattachd.service.{name}", _SERVICE) for name in _PARTS),
    Subject("volattachd.service.lookup", _CALLS),
    Subject("volattachd.service.chap", ("tests/service/test_chap.py",)),
    Subject("volattachd.service.holdings", ("tests/service/test_holdings.py",)),
    Subject("volattachd.service.local_attach", _CALLS),
    Subject("volattachd.reconcile.applier", (*_RECONCILE, "tests/service/test_attachments.py")),
    Subject("volattachd.reconcile.reconciler", (*_RECONCILE, "tests/service/test_attachments.py")),
    Subject("volattachd.reconcile.controller", (*_RECONCILE, "tests/service/test_attachments.py")),
    Subject("volattachd.state.journal", _STATE),
    Subject("volattachd.api.access", ("tests/api/test_access.py",)),
    Subject("volattachd.rpc.framing", ("tests/rpc/test_framing.py",)),
)
