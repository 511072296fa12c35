from __future__ import annotations

import threading
from functools import partial

import pytest

from tests.support import PATIENCE, Gate, in_thread, wait_until
from volattachd.concurrency.locks import Deadline, Turns, Workers
from volattachd.errors import Busy


def test_a_turn_is_had_by_one_at_a_time() -> None:
    turns = Turns()
    assert turns.take("a", 0)
    assert not turns.take("a", 0)
    assert not turns.take("a", 0.01)
    turns.give_back("a")
    assert turns.take("a", 0)


def test_turns_of_other_names_are_free() -> None:
    turns = Turns()
    assert all(turns.take(name, 0) for name in ("a", "b", "c"))


def test_a_turn_may_be_given_back_by_another_thread_and_goes_to_who_waits() -> None:
    turns = Turns()
    assert turns.take("a", 0)
    waiting = in_thread(lambda: turns.take("a", PATIENCE))
    in_thread(lambda: turns.give_back("a"))()
    assert waiting()
    assert not turns.take("a", 0)


def test_a_turn_that_is_held_for_a_block_is_given_back_whatever_happens() -> None:
    turns = Turns()
    with pytest.raises(KeyError), turns.hold("a", 0):
        raise KeyError
    with turns.hold("a", 0), pytest.raises(Busy, match="a is busy"), turns.hold("a", 0.01):
        raise AssertionError("two have the turn")
    assert turns.take("a", 0)


def test_a_turn_goes_to_who_waited_longest() -> None:
    turns, order = Turns(), []
    assert turns.take("a", 0)

    def wait(number: int) -> None:
        assert turns.take("a", PATIENCE)
        order.append(number)
        turns.give_back("a")

    waiting = []
    for number in range(5):
        waiting.append(in_thread(partial(wait, number)))
        wait_until(lambda: len(turns._turns["a"]) == number + 1)  # noqa: B023 - waited for at once
    turns.give_back("a")
    for thread in waiting:
        thread()
    assert order == [0, 1, 2, 3, 4]
    assert turns._turns == {}


def test_who_gave_up_waiting_is_passed_over() -> None:
    turns = Turns()
    assert turns.take("a", 0)
    assert not turns.take("a", 0.01)
    turns.give_back("a")
    assert turns._turns == {}


def test_a_turn_that_comes_in_the_last_moment_is_not_lost() -> None:
    """Whoever gives up just as the turn is handed over has it, or has not, and never a bit of both."""
    turns = Turns()
    for number in range(300):
        assert turns.take("a", 0)
        waiting = in_thread(lambda: turns.take("a", 0.002))
        threading.Event().wait(0.001 + number % 3 * 0.0005)
        turns.give_back("a")
        if waiting():
            turns.give_back("a")
        assert turns._turns == {}


def test_turns_that_nobody_wants_take_no_room() -> None:
    turns = Turns()
    for number in range(100):
        with turns.hold(f"name {number}", 0):
            assert not turns.take(f"name {number}", 0)
    assert turns._turns == {}


def test_many_threads_never_have_one_turn_together() -> None:
    turns, inside, seen = Turns(), 0, []

    def work() -> None:
        nonlocal inside
        for _ in range(200):
            with turns.hold("a", PATIENCE):
                inside += 1
                seen.append(inside)
                inside -= 1

    for thread in [in_thread(work) for _ in range(8)]:
        thread()
    assert seen == [1] * 1600
    assert turns._turns == {}


def test_a_task_gives_its_result_or_raises_its_error() -> None:
    workers = Workers()
    task = workers.submit(lambda: 7)
    assert task.wait(PATIENCE)
    assert task.result() == 7
    nothing: dict[str, int] = {}
    failing = workers.submit(lambda: nothing["missing"])
    assert failing.wait(PATIENCE)
    with pytest.raises(KeyError, match="missing"):
        failing.result()


def test_a_task_that_hangs_is_left_behind_and_others_go_on() -> None:
    workers, gate = Workers(), Gate()
    stuck = [workers.submit(gate) for _ in range(20)]
    assert not stuck[0].wait(0.01)
    free = workers.submit(lambda: 1)
    assert free.wait(PATIENCE)
    gate.open()
    assert all(task.wait(PATIENCE) for task in stuck)


def test_a_worker_is_used_again() -> None:
    workers = Workers()
    names = set()
    for _ in range(50):
        task = workers.submit(threading.get_ident)
        assert task.wait(PATIENCE)
        names.add(task.result())
        wait_until(lambda: workers._idle)
    assert len(names) == 1


def test_workers_never_keep_the_process_alive() -> None:
    task = Workers().submit(lambda: threading.current_thread().daemon)
    assert task.wait(PATIENCE)
    assert task.result()


def test_a_deadline_never_has_less_than_nothing_left() -> None:
    assert Deadline(0).left() == 0
    assert Deadline(-5).left() == 0
    assert 0 < Deadline(100).left() <= 100
