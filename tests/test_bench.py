"""The benchmarks run, and say what they are for; what they measure is nobody's assertion."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bench import client_start
from bench.report import Figure, figures_of, write_report
from bench.smp import take_out
from bench.together import Columns, Side, run_at_once, run_round
from tests.guest.harness import recipe
from tests.guest.harness.errors import GuestError


def test_the_cost_of_a_start_is_printed_as_a_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    assert client_start.main(["1"]) == 0
    assert re.search(
        r"^ratio: [0-9.]+ \(of the smallest\), over 1 runs of each$", capsys.readouterr().out, re.MULTILINE
    )


# Many volumes at once.


class Played(Side):
    """A side that takes no time, over a target that is a set of names."""

    name: ClassVar[str] = "played"

    def __init__(self, forgets: str = "", leaves: str = "") -> None:
        self.targets = ["a", "b"]
        self._forgets, self._leaves = forgets, leaves
        self._there: set[str] = set()
        self._user = 0.0

    def attach(self) -> None:
        self._user += 2
        self._there = {*self.targets} - {self._forgets}

    def detach(self) -> None:
        self._user += 3
        self._there &= {self._leaves}

    def used(self) -> dict[str, float]:
        return {"user": self._user}

    def is_attached(self, target: str) -> bool:
        self._user += 100
        return target in self._there

    def is_detached(self, target: str) -> bool:
        return not self.is_attached(target)


def test_a_round_adds_up_what_both_halves_used_and_not_the_looking() -> None:
    found: Columns = {}
    side = Played()
    for _ in range(2):
        run_round(side, found)
    assert set(found) == {"attach", "detach", "user"}
    assert found["user"] == [5, 5]


@pytest.mark.parametrize(
    ("side", "words"), [(Played(forgets="b"), "after attach .*'b'"), (Played(leaves="a"), "after detach .*'a'")]
)
def test_a_round_that_did_not_do_its_work_is_an_error(side: Played, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        run_round(side, {})


def test_what_runs_at_once_has_a_thread_each_and_tells_its_error() -> None:
    meeting = threading.Barrier(5, timeout=30)  # passes only where all five are there

    def fail() -> None:
        meeting.wait()
        raise OSError("no")

    with ThreadPoolExecutor(5) as threads:
        run_at_once(threads, [meeting.wait] * 5)
        with pytest.raises(OSError, match="no"):
            run_at_once(threads, [*[meeting.wait] * 4, fail])


def test_a_file_is_taken_out_of_an_image(tmp_path: Path) -> None:
    """The name of the kernel in an image has its version in it."""
    (tmp_path / "root/boot").mkdir(parents=True)
    (tmp_path / "root/boot/vmlinuz-6.1.0-56-amd64").write_bytes(b"kernel" * 1000)
    (tmp_path / "root/boot/config-6.1.0-56-amd64").write_bytes(b"config")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    recipe.command(["mkfs.ext4", "-q", "-F", "-d", str(tmp_path / "root"), str(image)])
    taken = take_out(image, "/boot/vmlinuz-", tmp_path)
    assert (taken.name, taken.read_bytes()) == ("vmlinuz-6.1.0-56-amd64", b"kernel" * 1000)
    with pytest.raises(GuestError, match="initrd"):
        take_out(image, "/boot/initrd.img-", tmp_path)


def results_of(ours: float) -> dict[str, Any]:
    """A run of nothing but cycles, and of many volumes at once where ``ours`` took so long for each half."""
    cycles = {name: {"attach": [0.001], "detach": [0.002]} for name in ("ours", "bare")}
    parts = [{"changes": 0.001, "reads": 0.0005, "journal": 0.0005, "whole": 0.0025}]
    alone = {**cycles, "commits": [0.001], "echoes": [0.001], "calls": {"attach": [0.001]}, "parts": parts}
    together: dict[str, Any] = {
        "ours": {"attach": [ours], "detach": [ours], "user": [2.0], "kernel": [1.0], "client": [0.25]},
        "bare": {"attach": [1.0], "detach": [1.0], "user": [0.3], "kernel": [0.8]},
    }
    together |= {"commits": 25.0, "committing": 0.5, "count": 32, "processors": 2, "kernel": "6.1.0"}
    run = {"cycles": {"0": alone}, "peers": {}, "figures": {}, "versions": {}, "seconds": 60.0}
    return {**run, "together": together}


def test_volumes_at_once_are_a_figure_with_its_bar() -> None:
    [figure] = figures_of(results_of(1.5))
    assert (figure.value, figure.bar, figure.is_met) == (1.5, 1.5, True)
    assert "**not met**" not in write_report(results_of(1.5))


def test_where_the_bar_is_not_met_the_processors_time_adds_up() -> None:
    [figure] = figures_of(results_of(2.0))
    assert (figure.value, figure.is_met) == (2.0, False)
    assert all(words in figure.why for words in ("8.00 s", "2.00 s are", "1.00 s the", "250 ms the", "4.75 s nobody"))
    assert all(words in figure.why for words in ("4.00 s,", "300 ms are", "800 ms the", "2.90 s nobody"))
    report = write_report(results_of(2.0))
    assert figure.why in report
    assert "Debian's kernel 6.1.0" in " ".join(report.split())


def test_a_run_without_volumes_at_once_says_so() -> None:
    results = results_of(1.0)
    del results["together"]
    assert figures_of(results) == []
    assert "Not measured: many volumes at once" in write_report(results)


def with_figures(**more: Any) -> dict[str, Any]:
    """A run in which everything that has a bar was measured, beside 0 and beside 100 others."""
    results = results_of(1.0)
    crowded = dict(results["cycles"]["0"], ours={"attach": [0.003], "detach": [0.004]})
    results["cycles"]["100"] = crowded
    results["figures"] = {
        "crowd": 100,
        "start": {"bare": [0.1], "imports": [0.4], "none": [0.5]},
        "restart": {"starts": [2.0], "bare": [1.0], "reads": 2600, "writes": 0},
        "restore": [{"start": 4.5, "bare": 1.0}],
        "reserving": {"1": [500.0], "64": [600.0]},
        "reserving_slowly": {"1": [20.0], "64": [600.0]},
        "showing": [5000.0, 40000.0],
        "latency": {"quiet": [0.01], "during": [0.03], "passes": [4.0]},
        "resident": 30.0,
        "idle_alone": [0.3, 0.001],
        "idle_crowd": [1.0, 0.09],
        "command": {"ours": [0.3], "bare": [0.2]},
        **more,
    }
    return results


def figure_of(results: dict[str, Any], words: str) -> Figure:
    return next(figure for figure in figures_of(results) if words in figure.name)


def test_what_a_start_takes_adds_up() -> None:
    restart, restore = figure_of(with_figures(), "restart with 100"), figure_of(with_figures(), "restore of 100")
    assert (restart.value, restart.is_met) == (2.0, False)
    for figure in (restart, restore):
        assert "1.00 s are the" in figure.why
        assert (
            "500 ms are a start without volumes: 100 ms the interpreter, 300 ms imports, 100 ms all else" in figure.why
        )
    assert "5 ms for each export" in restart.why  # 2 s less 1 s and 0.5 s
    assert "30 ms for each export" in restore.why


def test_what_a_cycle_grows_by_adds_up() -> None:
    figure = figure_of(with_figures(), "growth of a cycle from 0 to 100")
    assert figure.value == pytest.approx(7 / 3)
    assert "0 ms changes of the target" in figure.why and "4 ms six calls through the socket" in figure.why


def test_a_cycle_beside_none_is_measured_before_and_after() -> None:
    results = with_figures()
    results["again"] = dict(results["cycles"]["0"], ours={"attach": [0.002], "detach": [0.003]})
    figure = figure_of(results, "growth of a cycle")
    assert figure.value == pytest.approx(7 / 4)
    assert figure.words.startswith("3 ms and 5 ms to 7 ms, ")


def test_a_figure_that_is_met_needs_no_reason() -> None:
    figure = figure_of(with_figures(), "on a slow disk")
    assert (figure.value, figure.is_met) == (30.0, True)
    assert figure.why not in write_report(with_figures())
