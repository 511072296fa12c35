from __future__ import annotations

import logging

import pytest

from volattachd.telemetry import messages
from volattachd.telemetry.throttle import WHILE, Throttle


class Time:
    """A clock that stands still, and what was asked for later."""

    def __init__(self) -> None:
        self.now = 0.0
        self.later: list[object] = []


def refuse(throttle: Throttle, uid: int, count: int) -> None:
    for number in range(count):
        throttle.tell(messages.CONNECTION_REFUSED, uid, pid=number, reason="x" * 900_000)


def test_the_first_refusals_are_logged_and_the_rest_are_one_line_with_their_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    time = Time()
    throttle = Throttle(3, lambda: time.now, lambda seconds, body: time.later.append(body))
    with caplog.at_level(logging.INFO):
        refuse(throttle, 1000, 5000)
        refuse(throttle, 1001, 1)
        assert len(caplog.messages) == 4, "nobody hides the records of somebody else"
        assert len(time.later) == 1
        time.now += WHILE
        throttle.flush()
        assert len(caplog.messages) == 5
        assert caplog.messages[-1].startswith("uid 1000: 4997 more such records within 10 s; the last: refused")
        assert sum(map(len, caplog.messages)) < 20_000, "values are cut"
        refuse(throttle, 1000, 1)
        assert len(caplog.messages) == 6


def test_many_users_share_one_count_and_no_more_memory() -> None:
    throttle = Throttle(1, lambda: 0.0, lambda seconds, body: None)
    for uid in range(5000):
        throttle.tell(messages.CONNECTION_REFUSED, uid, pid=1, reason="x")
    assert len(throttle._windows) == 257
