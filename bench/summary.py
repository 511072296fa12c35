"""From samples to the numbers that are shown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

#: The size at which a cycle is compared with its floor.
COMPARED = 400
#: A peer gets this long for its cycles at one size, in seconds, and at least one of them.
BUDGET = 20.0
#: One that needs longer for a cycle is not tried beside more, in seconds.
PATIENCE = 120.0
#: What a cycle of ours is made of: these add up to it.
CYCLE_PARTS = (
    "changes of the target",
    "reads of the target",
    "the journal",
    "volattachd's own work",
    "six calls through the socket",
)


def beside(results: dict[str, Any], size: int) -> dict[str, Any]:
    """What was measured beside so many others; beside the most there were, in a smaller run."""
    sizes = sorted(map(int, results["cycles"]))
    found: dict[str, Any] = results["cycles"][str(size if size in sizes else sizes[-1])]
    return found


def median(samples: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(samples)


def quantile(samples: Sequence[float], part: float) -> float:
    """The sample below which this part of all are."""
    return sorted(samples)[min(len(samples) - 1, int(part * len(samples)))]


def cycle_seconds(cycles: dict[str, list[float]]) -> float:
    """The median of an attach and a detach together."""
    return median([attach + detach for attach, detach in zip(cycles["attach"], cycles["detach"], strict=True)])


def floor_of(found: dict[str, Any]) -> float:
    """Bare configfs, six bare commits and six bare echoes."""
    return cycle_seconds(found["bare"]) + median(found["commits"]) + median(found["echoes"])


def parts_of(found: dict[str, Any]) -> dict[str, float]:
    """What one of our cycles is made of, the whole of it, and what its floor is made of."""
    whole = cycle_seconds(found["ours"])
    inner = {name: median([run[name] for run in found["parts"]]) for name in ("changes", "reads", "journal", "whole")}
    measured = inner["changes"] + inner["reads"] + inner["journal"]
    parts = (inner["changes"], inner["reads"], inner["journal"], inner["whole"] - measured, whole - inner["whole"])
    return {
        **dict(zip(CYCLE_PARTS, parts, strict=True)),
        "**a cycle**": whole,
        "bare configfs": cycle_seconds(found["bare"]),
        "six bare SQLite commits": median(found["commits"]),
        "six bare echoes": median(found["echoes"]),
    }


def as_milliseconds(seconds: float) -> str:
    """A time that people can read."""
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"
