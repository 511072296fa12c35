from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support import PATIENCE, in_thread, wait_until
from volattachd.reconcile.workqueue import Agenda

NEVER = 3600.0
Errand = frozenset[str] | None


class Worker:
    """A thread that takes the errands of an agenda, and does nothing about them."""

    def __init__(self, interval: float) -> None:
        self.agenda = Agenda(interval)
        self.errands: list[tuple[float, Errand]] = []
        self.at_work: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        for errand in self.agenda.errands():
            self.errands.append((time.monotonic(), errand))
            self.at_work()

    def what(self) -> list[Errand]:
        return [errand for _, errand in self.errands]

    def end(self) -> None:
        self.agenda.end()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@pytest.fixture
def idle() -> Iterator[Worker]:
    """A worker whose rounds are far away."""
    worker = Worker(NEVER)
    yield worker
    worker.end()


def test_rounds_come_by_themselves() -> None:
    worker = Worker(0.01)
    wait_until(lambda: len(worker.errands) > 3)
    worker.end()
    assert set(worker.what()) == {None}


def test_without_news_there_is_no_errand_before_the_round(idle: Worker) -> None:
    time.sleep(0.2)
    assert idle.errands == []


def test_news_of_some_volumes_is_an_errand_of_its_own(idle: Worker) -> None:
    idle.agenda.note(["vol-1"])
    idle.agenda.note(["vol-1", "vol-2"])
    wait_until(lambda: idle.errands)
    seen = frozenset().union(*(errand or () for errand in idle.what()))
    wait_until(lambda: seen == {"vol-1", "vol-2"} or len(idle.errands) > 1)
    assert None not in idle.what()


def test_news_that_may_concern_everything_is_a_round(idle: Worker) -> None:
    idle.agenda.note(["vol-1"])
    idle.agenda.note_everything()
    wait_until(lambda: None in idle.what())


def test_news_during_an_errand_is_not_lost(idle: Worker) -> None:
    def tell_more() -> None:
        idle.at_work = lambda: None
        idle.agenda.note(["vol-2"])
        idle.agenda.note_everything()

    idle.at_work = tell_more
    idle.agenda.note(["vol-1"])
    wait_until(lambda: len(idle.errands) == 2)
    assert idle.what() == [frozenset({"vol-1"}), None]


def test_a_round_that_takes_longer_than_the_interval_is_followed_by_the_next() -> None:
    worker, ends = Worker(0.01), []

    def work() -> None:
        time.sleep(0.05)
        ends.append(time.monotonic())

    worker.at_work = work
    wait_until(lambda: len(ends) == 3)
    worker.end()
    assert set(worker.what()) == {None}


def test_a_rest_ends_with_news_and_tells_of_which_volumes() -> None:
    agenda = Agenda(NEVER)
    resting = in_thread(lambda: agenda.rest(NEVER))
    agenda.note(["vol-1"])
    assert resting() == {"vol-1"}
    assert agenda.rest(0.01) == frozenset(), "it is told once"


def test_with_news_of_everything_there_is_no_rest_until_the_round_that_it_asks_for() -> None:
    worker, rests = Worker(NEVER), list[frozenset[str]]()

    def look() -> None:
        if not rests:
            worker.agenda.note_everything()
            rests.extend(worker.agenda.rest(NEVER) for _ in range(3))

    worker.at_work = look
    worker.agenda.note_everything()
    wait_until(lambda: len(worker.errands) == 2)
    worker.end()
    assert (worker.what(), rests) == ([None, None], [frozenset()] * 3)


def test_the_end_ends_a_rest() -> None:
    agenda = Agenda(NEVER)
    resting = in_thread(lambda: agenda.rest(NEVER))
    agenda.end()
    assert resting() == frozenset()


def test_the_end_wakes_who_waits() -> None:
    worker = Worker(NEVER)
    worker.end()
    assert worker.errands == []
