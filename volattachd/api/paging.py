"""Lists in parts: which rows a page has. No I/O.

Invariants:

1. A page follows the id of a row, not its place: whatever is added or removed between two pages, each row that stays is
   on one page and on one only.
2. A page is empty only at the end of the list. One that is long in bytes may have fewer rows than were asked for.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar, overload

PAGE = 1000


class _HasId(Protocol):
    @property
    def id(self) -> str:
        """The row's own name, which no other row has."""


R = TypeVar("R")
T = TypeVar("T", bound=_HasId)


class Rows(Sequence[dict[str, Any]]):
    """The rows of an answer, each made when it is asked for. A page may be cut short, another list may not."""

    def __init__(self, rows: Sequence[R], view: Callable[[R], dict[str, Any]], is_page: bool) -> None:
        self._rows = rows
        self._view = view
        self.is_page = is_page

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | Rows:
        if isinstance(index, slice):
            return Rows(self._rows[index], self._view, self.is_page)
        return self._view(self._rows[index])


def page_of(rows: Iterable[T], limit: int | None, marker: str | None) -> list[T]:
    """The first ``limit`` rows after the id ``marker``, by rising ids."""
    after = (row for row in rows if marker is None or row.id > marker)
    return heapq.nsmallest(limit or PAGE, after, key=lambda row: row.id)
