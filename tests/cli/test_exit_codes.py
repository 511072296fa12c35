from __future__ import annotations

import pytest

from volattachd.cli.exit_codes import EXITS, UsageError, code_of
from volattachd.client import sync
from volattachd.errors import VolattachError, kinds


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_kind_of_error_has_a_code_of_its_own_that_is_not_the_unexpected_one(
    kind: type[VolattachError],
) -> None:
    assert code_of(kind("x")) not in (0, 1)


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind.retriable], ids=lambda kind: kind.__name__)
def test_what_may_be_sent_again_ends_in_the_code_for_that(kind: type[VolattachError]) -> None:
    assert code_of(kind("x")) == 7


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (sync.Unreachable("x"), 8),
        (sync.AccessRefused("x"), 6),
        (sync.NoAnswer("x"), 7),
        (sync.BadAnswer("x"), 1),
        (sync.RemoteError(-32603, "x"), 1),
        (BrokenPipeError(), 141),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError(), 1),
    ],
)
def test_the_nearest_class_of_an_error_decides(error: BaseException, code: int) -> None:
    assert code_of(error) == code


def test_no_code_and_no_error_stands_twice_in_the_table() -> None:
    codes = [row.code for row in EXITS]
    errors = [error for row in EXITS for error in row.errors]
    assert len(set(codes)) == len(codes)
    assert len(set(errors)) == len(errors)
