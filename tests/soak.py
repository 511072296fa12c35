"""The long forms of the tests that have one: as a whole, or a part of it at a time.

``VOLATTACHD_SOAK=2/4`` asks a test for the second of four parts of its long form; 1/1 is the whole. Parts are of one
size and differ in what they try. ``python -m tests.soak --parts 4`` runs all four, each kept on one processor and as
many at a time as there are; ``--only 3,4`` goes on where a run was ended. Each part's output is in .cache/soak.
"""

from __future__ import annotations

import argparse
import itertools
import os
import queue
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

VARIABLE = "VOLATTACHD_SOAK"
REPO = Path(__file__).parents[1]
LOGS = REPO / ".cache" / "soak"
INSIDE = "tests/guest/inside"
MODULES = (
    "tests/model",
    "tests/rpc/test_cost.py",
    "tests/state/test_damage.py",
    "tests/state/test_backup.py",
    "tests/guest/test_power.py",
    "tests/guest/test_races.py",
    *(f"{INSIDE}/test_{name}.py" for name in ("faults", "faults_block", "sigkill", "fio", "reattach", "races")),
    f"{INSIDE}/agent/test_agent_load.py",
    f"{INSIDE}/agent/test_silent.py",
)
TAIL = 25


@dataclass(frozen=True)
class Part:
    """The ``number``-th, from 1, of as many parts as ``of`` says."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """A part as the variable names it: 2/4."""
        number, slash, of = text.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise ValueError(f"{VARIABLE} must be a part like 2/4, or 1/1 for the whole: {text!r}")
        return cls(int(number), int(of))

    def amount(self, whole: int) -> int:
        """How many of ``whole`` are this part's: one at least."""
        return max(1, whole * self.number // self.of - whole * (self.number - 1) // self.of)

    def choose(self, items: Iterable[T]) -> Iterator[T]:
        """Those of the items that are this part's: every ``of``-th."""
        return itertools.islice(items, self.number - 1, None, self.of)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


#: The part of the long form that is asked for; None for the short form.
PART = Part.parse(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


def times(short: int, long: int) -> int:
    """How often a test does what it repeats."""
    return PART.amount(long) if PART else short


def run_part(part: Part, processors: queue.SimpleQueue[int], more: list[str]) -> bool:
    """One part to its end, on a processor of its own; False where a test failed."""
    processor, log, started = processors.get(), LOGS / f"{part.number}-of-{part.of}.log", time.monotonic()
    print(f"==> part {part} on processor {processor}: {log}", flush=True)
    words = ["taskset", "--cpu-list", str(processor), sys.executable, "-m", "pytest", "--durations=0", *MODULES, *more]
    with log.open("wb") as output:
        environment = os.environ | {VARIABLE: str(part)}
        done = subprocess.run(words, stdout=output, stderr=output, cwd=REPO, env=environment, check=False)
    processors.put(processor)
    told = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL:])
    print(f"==> part {part}: exit {done.returncode} after {time.monotonic() - started:.0f} s\n{told}", flush=True)
    return done.returncode == 0


def main() -> int:
    """The parts that the command line asks for."""
    allowed = sorted(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", type=int, default=len(allowed), help="into how many parts the whole is divided")
    parser.add_argument("--only", help="the numbers of those to run: 3,4")
    chosen, more = parser.parse_known_args()
    numbers = [int(n) for n in chosen.only.split(",")] if chosen.only else range(1, chosen.parts + 1)
    parts = [Part.parse(f"{number}/{chosen.parts}") for number in numbers]
    LOGS.mkdir(parents=True, exist_ok=True)
    processors: queue.SimpleQueue[int] = queue.SimpleQueue()
    for processor in allowed:
        processors.put(processor)
    with ThreadPoolExecutor(len(allowed)) as pool:
        passed = list(pool.map(lambda part: run_part(part, processors, more), parts))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
