"""The plots of docs/performance/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from bench.report import all_cycles
from bench.summary import CYCLE_PARTS, beside, cycle_seconds, parts_of

matplotlib.use("Agg")
from matplotlib import pyplot


def draw(results: dict[str, Any], directory: Path) -> None:
    """Every plot."""
    _draw_cycles(results, directory / "cycles.png")
    _draw_parts(results, directory / "parts.png")


def _draw_cycles(results: dict[str, Any], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name, cycles in all_cycles(results).items():
        sizes = sorted(map(int, cycles))
        times = [cycle_seconds(cycles[str(size)]) * 1000 for size in sizes]
        axes.plot(sizes, times, marker="o", label=name, linewidth=2.5 if name == "volattachd" else 1.2)
    axes.set_yscale("log")
    axes.set_xlabel("other exports")
    axes.set_ylabel("one attach and one detach, in ms")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, path)


def _draw_parts(results: dict[str, Any], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(8, 3.5))
    sizes = sorted(map(int, results["cycles"]))
    left = [0.0] * len(sizes)
    columns = [parts_of(beside(results, size)) for size in sizes]
    for name in CYCLE_PARTS:
        widths = [column[name] * 1000 for column in columns]
        axes.barh([f"{size} others" for size in sizes], widths, left=left, label=name)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_xlabel("one cycle of volattachd, in ms")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
