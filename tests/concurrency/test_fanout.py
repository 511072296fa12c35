from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tests.support import PATIENCE, wait_until
from volattachd.concurrency.fanout import Sweep
from volattachd.concurrency.locks import Task, Workers

LONG = 3600.0


def sweep(
    jobs: range,
    do: Callable[[int], str | None],
    *,
    workers: Workers | None = None,
    patience: float = LONG,
    side_by_side: int = 4,
    pause: Callable[[float], None] | None = None,
    limit: float = LONG,
    lenient: bool = False,
) -> list[str]:
    return Sweep(
        jobs,
        do,
        lambda job: f"left {job}",
        workers=workers or Workers(),
        patience=patience,
        side_by_side=side_by_side,
        pause=pause,
        leave_out=lambda job: f"left out {job}",
        limit=limit,
        lenient=lenient,
    ).run()


def test_each_job_is_done_once_and_what_it_found_stands_in_its_place() -> None:
    done: list[int] = []

    def do(job: int) -> str | None:
        done.append(job)
        return f"found {job}" if job % 3 else None

    assert sweep(range(100), do) == [f"found {job}" for job in range(100) if job % 3]
    assert sorted(done) == list(range(100))


def test_nothing_to_do_is_done() -> None:
    assert sweep(range(0), str) == []


def test_one_worker_does_it_all_while_there_is_nothing_to_mend() -> None:
    threads = set[int]()

    def look(job: int) -> None:
        threads.add(threading.get_ident())

    sweep(range(50), look)
    assert len(threads) == 1


def test_what_has_to_be_mended_is_mended_side_by_side_up_to_the_limit() -> None:
    lock, all_there = threading.Lock(), threading.Event()
    at_work, most = 0, 0

    def mend(job: int) -> str:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        if at_work == 4:
            all_there.set()
        if job > 10:
            assert all_there.wait(PATIENCE)
        with lock:
            at_work -= 1
        return str(job)

    assert sweep(range(40), mend, side_by_side=4) == [str(job) for job in range(40)]
    assert most == 4


@pytest.mark.parametrize("stalled", [{0}, {3}, {9}, {0, 1, 2}, set(range(10))])
def test_a_job_that_takes_too_long_is_left_behind_and_told_and_the_rest_goes_on(stalled: set[int]) -> None:
    back, ended = threading.Event(), list[int]()

    def do(job: int) -> str:
        if job in stalled:
            assert back.wait(PATIENCE)
        ended.append(job)
        return f"done {job}"

    found = sweep(range(10), do, patience=0.2)
    assert found == [f"left {job}" if job in stalled else f"done {job}" for job in range(10)]
    back.set()
    wait_until(lambda: sorted(ended) == list(range(10)))


def test_a_worker_that_was_left_behind_takes_no_further_job() -> None:
    back, done_by = threading.Event(), dict[int, int]()

    def do(job: int) -> None:
        done_by[job] = threading.get_ident()
        if job == 0:
            assert back.wait(PATIENCE)
        elif job == 5:
            back.set()
            time.sleep(0.05)  # in which the first worker would take the next job

    sweep(range(10), do, patience=0.2)
    assert done_by[0] not in [done_by[job] for job in range(1, 10)]


def test_a_sweep_pauses_after_each_slice_of_work_and_never_after_the_mending_of_something() -> None:
    mended, pauses, events = {7, 8}, list[float](), list[str]()

    def do(job: int) -> str | None:
        time.sleep(0.06)  # two of them are a slice
        events.append(str(job))
        return "mended" if job in mended else None

    def pause(worked: float) -> None:
        pauses.append(worked)
        events.append("pause")

    sweep(range(12), do, pause=pause, side_by_side=1)
    assert all(worked >= 0.1 for worked in pauses)
    assert pauses
    assert not {("7", "pause"), ("8", "pause")} & set(zip(events, events[1:], strict=False))  # noqa: RUF007 - 3.10 too


def test_a_pause_costs_nobody_his_patience() -> None:
    def look(job: int) -> None:
        time.sleep(0.06)

    assert sweep(range(4), look, patience=0.2, pause=lambda worked: time.sleep(0.5)) == []


def test_a_worker_that_was_left_behind_makes_no_pause_for_the_time_that_it_was_stalled() -> None:
    back, pauses, workers = threading.Event(), list[float](), Workers()

    def look(job: int) -> None:
        if job == 0:
            assert back.wait(PATIENCE)

    assert sweep(range(2), look, workers=workers, patience=0.2, pause=pauses.append) == ["left 0"]
    back.set()
    wait_until(lambda: len(workers._idle) == 2)
    assert pauses == []


def test_what_goes_wrong_in_a_pause_is_raised() -> None:
    def fail(worked: float) -> None:
        raise RuntimeError("the journal has failed")

    with pytest.raises(RuntimeError, match="the journal has failed"):
        sweep(range(10), lambda job: time.sleep(0.06), pause=fail)


def test_an_error_ends_the_sweep_and_is_raised_when_nobody_is_at_work_any_more() -> None:
    done: list[int] = []

    def do(job: int) -> None:
        done.append(job)
        if job == 3:
            raise RuntimeError("the journal has failed")

    with pytest.raises(RuntimeError, match="the journal has failed"):
        sweep(range(10), do)
    assert done == [0, 1, 2, 3]


# The limit of a sweep.


@pytest.mark.parametrize("lenient", [True, False])
def test_a_sweep_in_which_every_target_stalls_ends_at_its_limit_and_names_them_all(lenient: bool) -> None:
    gate = threading.Event()
    try:
        found = sweep(range(1000), lambda job: str(gate.wait(PATIENCE)), patience=0.05, limit=0.3, lenient=lenient)
    finally:
        gate.set()
    left = [word for word in found if not word.startswith("left out")]
    assert 1 < len(left) < 100
    assert found == [*left, *(f"left out {job}" for job in range(len(left), 1000))]


def test_at_its_limit_a_sweep_leaves_the_target_that_it_is_at() -> None:
    gate = threading.Event()
    try:
        assert sweep(range(2), lambda job: str(gate.wait(PATIENCE)), limit=0.1) == ["left 0", "left out 1"]
    finally:
        gate.set()


def test_a_lenient_sweep_goes_on_past_its_limit_while_every_target_answers() -> None:
    assert sweep(range(8), lambda job: time.sleep(0.02), limit=0.05, lenient=True) == []


def test_a_sweep_that_is_done_in_time_leaves_nothing_out() -> None:
    assert sweep(range(100), str, limit=LONG) == [str(job) for job in range(100)]


class FewWorkers(Workers):
    """As many threads as are given, and no more."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.left = threads

    def submit(self, body: Callable[[], object]) -> Task[object]:  # type: ignore[override]
        if self.left == 0:
            raise RuntimeError("can't start new thread")
        self.left -= 1
        return super().submit(body)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_with_few_threads_to_be_had_it_takes_longer_and_is_done(threads: int) -> None:
    assert sweep(range(20), str, workers=FewWorkers(threads)) == [str(job) for job in range(20)]


def test_without_any_thread_it_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="can't start new thread"):
        sweep(range(20), str, workers=FewWorkers(0))
