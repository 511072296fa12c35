"""The sweep itself, on a simulated kernel: whole, and fast enough for every run. The guests sweep the real one."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.kernel import SimulatedKernel
from tests.faults.seam import Kind
from tests.faults.sweep import Sweep
from tests.faults.target import SimulatedReader
from tests.faults.world import LIFE_CYCLE, REGISTRY, World


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory: nothing here is about a loss of power, and syncs are what takes the time."""
    logging.getLogger("volattachd").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)
    logging.getLogger("volattachd").setLevel(logging.NOTSET)


def new_world(directory: Path, *, shared: bool = False) -> World:
    store = directory / "store.img"
    with store.open("wb") as file:
        file.truncate(1 << 20)
    kernel = SimulatedKernel()
    for path in ("core/fileio_0", "core/fileio_0/foreign", "iscsi/iqn.2001-04.com.example:foreign"):
        kernel.make_dir(path)
    return World(directory / "state", str(store), kernel, SimulatedReader(kernel), shared=shared)


@pytest.mark.parametrize("shared", [False, True])
def test_every_call_survives_every_fault(memory: Path, shared: bool) -> None:
    world = new_world(memory, shared=shared)
    sweep = Sweep(world, tuple(Kind))
    sweep.depth_one(LIFE_CYCLE if shared else (*REGISTRY, *LIFE_CYCLE))
    print(sweep.counts, sum(sweep.counts.values()))
    pairs = sweep.depth_two(seed=1, sample=100)
    print(pairs)
    world.close()
