"""The modules whose mutants must be noticed, each with the tests that must notice them."""

from __future__ import annotations

from tests.mutation.trial import Subject

_CALLS = ("tests/test_service.py", "tests/test_local.py")
_RECONCILE = ("tests/test_converge.py", "tests/test_repair.py", "tests/test_upkeep.py")

SUBJECTS: tuple[Subject, ...] = (
    Subject("volattachd.service", _CALLS),
    Subject("volattachd.selection", _CALLS),
    Subject("volattachd.credentials", _CALLS),
    Subject("volattachd.local", _CALLS),
    Subject("volattachd.converge", (*_RECONCILE, "tests/test_service.py")),
    Subject("volattachd.repair", (*_RECONCILE, "tests/test_service.py")),
    Subject("volattachd.upkeep", (*_RECONCILE, "tests/test_service.py")),
    Subject("volattachd.journal", ("tests/test_journal.py", "tests/test_journal_care.py")),
    Subject("volattachd.rpc.access", ("tests/rpc/test_access.py",)),
    Subject("volattachd.rpc.framing", ("tests/rpc/test_framing.py",)),
)
