from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import in_thread, wait_until
from volattachd.state.group_commit import Group


class Work:
    """Records what it was called with; while it is closed, it holds its caller up."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self._open = threading.Semaphore(0)

    def __call__(self, items: list[int]) -> None:
        self.seen.append(items)
        assert self._open.acquire(timeout=10)

    def let(self, times: int) -> None:
        """The next pieces of work may end."""
        self._open.release(times)


def started(group: Group[int], work: Work, numbers: range) -> list[Callable[[], Any]]:
    """Callers with these items, in this order: the first is at work, the others wait."""
    callers = []
    for count, number in enumerate(numbers):
        callers.append(in_thread(lambda number=number: group.do(number)))  # type: ignore[misc]
        wait_until(lambda: len(work.seen) == 1 and len(group) == count)  # noqa: B023 - called at once
    return callers


def test_a_lone_caller_does_its_own_work_at_once() -> None:
    by: list[tuple[threading.Thread, list[int]]] = []
    group: Group[int] = Group(lambda items: by.append((threading.current_thread(), items)))
    for number in range(3):
        group.do(number)
    assert by == [(threading.current_thread(), [number]) for number in range(3)]


def test_who_comes_meanwhile_is_done_as_one_piece_in_the_order_of_coming() -> None:
    work = Work()
    group = Group(work)
    callers = started(group, work, range(10))
    work.let(2)
    for caller in callers:
        caller()
    assert work.seen == [[0], list(range(1, 10))]
    assert len(group) == 0


def test_who_is_done_does_not_wait_for_the_work_of_others() -> None:
    work = Work()
    group = Group(work)
    callers = started(group, work, range(5))
    work.let(1)
    callers[0]()
    wait_until(lambda: len(work.seen) == 2)
    late = in_thread(lambda: group.do(5))
    wait_until(lambda: len(group) == 1)
    work.let(1)
    for caller in callers[1:]:
        caller()  # while the late one's work has not ended
    assert work.seen[2:] in ([], [[5]])
    work.let(1)
    late()
    assert work.seen == [[0], [1, 2, 3, 4], [5]]


def test_work_that_fails_holds_nobody_up() -> None:
    work = Work()

    def fail(items: list[int]) -> None:
        work(items)
        raise OSError(items)

    group = Group(fail)
    callers = started(group, work, range(4))
    work.let(2)
    raised = 0
    for caller in callers:
        try:
            caller()
        except OSError:
            raised += 1
    assert raised == 2, "by those who were at work"
    with pytest.raises(OSError, match="7"):
        work.let(1)
        group.do(7)


def test_everything_is_done_once_and_nobody_starves() -> None:
    threads, each = 16, 200
    seen: list[int] = []
    sizes: list[int] = []

    def work(items: list[int]) -> None:
        seen.extend(items)
        sizes.append(len(items))

    group = Group(work)
    start = threading.Barrier(threads)

    def call(thread: int) -> None:
        start.wait(10)
        for number in range(each):
            group.do(thread * each + number)

    for caller in [in_thread(lambda t=t: call(t)) for t in range(threads)]:  # type: ignore[misc]
        caller()
    assert sorted(seen) == list(range(threads * each))
    assert sum(sizes) == len(seen)
    assert [n for n in seen if n < each] == list(range(each)), "one caller's are done in its order"
