from __future__ import annotations

import pytest

from volattachd.errors import (
    Busy,
    ConfigError,
    DriverError,
    JournalFailed,
    JournalUnusable,
    VolattachError,
    by_code,
    kinds,
)

#: DESIGN section 4.
CODES = {
    "InvalidParams": -32602,
    "VolumeNotFound": 1001,
    "AttachmentNotFound": 1002,
    "InvalidVolume": 1003,
    "InvalidInput": 1004,
    "InvalidVolumeAttachMode": 1005,
    "SessionActive": 1006,
    "DriverError": 1007,
    "PermissionDenied": 1008,
    "Busy": 1009,
    "AlreadyExists": 1010,
}


def test_every_kind_has_the_code_that_the_design_gives_it() -> None:
    assert {kind.__name__: kind.code for kind in kinds()} == CODES


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_a_code_leads_to_its_class_and_the_class_to_its_kind(kind: type[VolattachError]) -> None:
    assert by_code(kind.code) is kind
    assert kind("cannot").kind == kind.__name__


@pytest.mark.parametrize("code", [0, -32603, -32700, 1000, 1011, 1 << 70])
def test_a_code_that_is_not_ours_has_no_class(code: int) -> None:
    assert by_code(code) is None


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_what_passes_by_itself_may_be_sent_again_and_nothing_else(kind: type[VolattachError]) -> None:
    assert kind.retriable is (kind in (Busy, DriverError))


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_an_error_carries_message_correction_and_details(kind: type[VolattachError]) -> None:
    error = kind("cannot", "do this", attachments=["a"])
    assert (str(error), error.message, error.correction) == ("cannot", "cannot", "do this")
    assert error.details == {"attachments": ["a"]}
    assert kind("cannot").correction is None
    assert kind("cannot").details == {}


@pytest.mark.parametrize("kind", [JournalFailed, JournalUnusable, ConfigError])
def test_what_ends_the_daemon_is_no_answer_to_a_call(kind: type[Exception]) -> None:
    assert not issubclass(kind, VolattachError)
