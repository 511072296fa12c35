from __future__ import annotations

import pytest

from volattachd.cli.exits import EXITS, UsageError, code_of
from volattachd.errors import VolattachError, kinds
from volattachd.rpc import client


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
        (client.Unreachable("x"), 8),
        (client.AccessRefused("x"), 6),
        (client.NoAnswer("x"), 7),
        (client.BadAnswer("x"), 1),
        (client.RemoteError(-32603, "x"), 1),
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
