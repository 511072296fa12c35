"""The benchmarks run, and say what they are for; what they measure is nobody's assertion."""

from __future__ import annotations

import re

import pytest

from bench import client_start


def test_the_cost_of_a_start_is_printed_as_a_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    assert client_start.main(["1"]) == 0
    assert re.search(
        r"^ratio: [0-9.]+ \(of the smallest\), over 1 runs of each$", capsys.readouterr().out, re.MULTILINE
    )
