"""The sweep itself, on a simulated kernel: that it comes through, and that it finds daemons which break a rule.

What it says of the real kernel is in tests/guest/inside/test_faults.py.
"""

from __future__ import annotations

import itertools
import logging
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.injection import ALONE, BESIDE_ANOTHER, Fault, Kind, Operation
from tests.faults.kernel import SimulatedKernel
from tests.faults.mutants import MUTANTS
from tests.faults.oracle import Violation
from tests.faults.sweep import ENDS_A_START, Sweep, strikes
from tests.faults.target import SimulatedReader
from tests.faults.world import INITIALIZE, LIFE_CYCLE, REGISTRY, Life, Parts, Stage, World
from tests.figures import RecordFigure


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory: nothing here is about a loss of power, and syncs are what takes the time."""
    logging.getLogger("volattachd").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        yield Path(name)
    logging.getLogger("volattachd").setLevel(logging.NOTSET)


def new_world(directory: Path, *, shared: bool = False, parts: Parts | None = None) -> World:
    """A volume on a simulated kernel, beside a foreign target."""
    store = directory / "store.img"
    with store.open("wb") as file:
        file.truncate(1 << 20)
    kernel = SimulatedKernel()
    for path in ("core/fileio_0", "core/fileio_0/foreign", "iscsi/iqn.2001-04.com.example:foreign"):
        kernel.make_dir(path)
    return World(directory / "state", str(store), kernel, SimulatedReader(kernel), shared=shared, parts=parts)


@pytest.mark.parametrize(("shared", "kinds"), [(False, ALONE), (True, BESIDE_ANOTHER)], ids=["alone", "shared"])
def test_every_call_survives_a_fault_at_every_point(
    memory: Path, shared: bool, kinds: tuple[Kind, ...], record_figure: RecordFigure
) -> None:
    world = new_world(memory, shared=shared)
    sweep = Sweep(world, kinds)
    sweep.depth_one(LIFE_CYCLE if shared else (*REGISTRY, *LIFE_CYCLE))
    singles = sweep.counts.total()
    pairs = list(sweep.pairs())
    struck = sweep.depth_two(random.Random(1).sample(pairs, 50))
    world.close()
    record_figure("faults", f"simulated kernel: {singles} single faults, {struck} of {len(pairs)} pairs")


def test_of_pairs_that_are_alike_one_is_struck_in_the_long_form(memory: Path) -> None:
    world = new_world(memory)
    sweep = Sweep(world, (Kind.KILL_BEFORE, Kind.KILL_AFTER))
    sweep.depth_one((INITIALIZE,))
    world.close()
    left = [point.left for point in sweep.points]
    befores = [text for point, text in zip(sweep.points, left, strict=True) if point.fault.kind is Kind.KILL_BEFORE]
    afters = [text for point, text in zip(sweep.points, left, strict=True) if point.fault.kind is Kind.KILL_AFTER]
    assert befores[1:] == afters[:-1], "before a change is after the one before it"
    assert {"reserved", "connected"} == {text.partition("\n")[0] for text in left}
    assert {point.left for point, _ in sweep.different_pairs()} == {point.left for point, _ in sweep.pairs()}


def test_of_the_reads_between_two_changes_one_is_struck() -> None:
    read, change = (Operation("configfs", name, "x", changes) for name, changes in (("read", False), ("write", True)))
    seen = [read, read, change, change, read, read]
    assert strikes(Kind.KILL_READING, seen) == [1, 3]
    assert strikes(Kind.KILL_AFTER, seen) == [1, 2]
    assert strikes(Kind.EIO, seen) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", MUTANTS)
def test_the_sweep_finds_a_daemon_that_breaks_a_rule(memory: Path, name: str) -> None:
    parts, check = MUTANTS[name]
    with pytest.raises(Violation) as found:
        world = new_world(memory, shared=True, parts=parts)
        sweep = Sweep(world, (Kind.KILL_AFTER, Kind.EIO, Kind.SQL_EIO))
        sweep.depth_one(LIFE_CYCLE)
        world.close()
        (memory / "alone").mkdir()
        lonely = new_world(memory / "alone", parts=parts)
        Sweep(lonely, (Kind.KILL_AFTER,)).depth_one((INITIALIZE,))
    assert found.value.check == check


def test_the_first_start_survives_a_fault_at_every_statement(memory: Path) -> None:
    world = new_world(memory)
    struck = 0
    for kind in (Kind.KILL_BEFORE, Kind.KILL_AFTER, Kind.KILL_READING, Kind.SQL_EIO, Kind.SQL_FULL):
        for number in itertools.count(1):
            world.go(Stage.UNREGISTERED)
            world.life.end()
            if not _first_start(world, memory / f"{kind.name}-{number}", Fault(kind, number)):
                break
            struck += 1
    assert struck > 50
    world.close()


def _first_start(world: World, directory: Path, fault: Fault) -> bool:
    """A start in an empty directory with a fault, and another one; False where the fault had nothing to strike."""
    world.move(directory)
    try:
        world.life = Life(world, fault)
    except ENDS_A_START:
        world.life = Life(world)
        world.go(Stage.AVAILABLE)
        return True
    return world.life.seam.struck is not None
