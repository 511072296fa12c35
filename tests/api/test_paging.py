from __future__ import annotations

from dataclasses import dataclass

import pytest

from volattachd.api.paging import Rows, page_of


@dataclass(frozen=True)
class Row:
    id: str


def rows(*names: str) -> list[Row]:
    return [Row(name) for name in names]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_pages_have_every_row_once_in_the_order_of_ids(limit: int) -> None:
    there = rows("c", "a", "e", "b", "d")
    seen: list[str] = []
    while page := page_of(there, limit, seen[-1] if seen else None):
        assert len(page) <= limit
        seen += [row.id for row in page]
    assert seen == list("abcde")


def test_a_row_that_is_gone_is_still_a_marker_and_what_stays_is_neither_missed_nor_seen_twice() -> None:
    assert page_of(rows("a", "b", "c", "d"), 2, None) == rows("a", "b")
    assert page_of(rows("a", "c", "d", "aa"), 2, "b") == rows("c", "d")


def test_without_a_limit_a_page_has_a_thousand_rows() -> None:
    there = rows(*(f"{number:04d}" for number in range(1500)))
    assert page_of(there, None, "0099") == there[100:1100]


def test_a_view_is_made_when_its_row_is_asked_for() -> None:
    made: list[int] = []

    def view(number: int) -> dict[str, int]:
        made.append(number)
        return {"n": number}

    lazy = Rows(range(1000), view, is_page=False)
    assert (len(lazy), lazy[5], lazy[-1], list(lazy[2:4])) == (1000, {"n": 5}, {"n": 999}, [{"n": 2}, {"n": 3}])
    assert made == [5, 999, 2, 3]
