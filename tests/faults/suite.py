"""The sweeps of one kind of device on the real kernel: ``from tests.faults.suite import *`` in a module of a guest.

The module says which kind by a fixture ``kind``. Short form: every point of depth one, a seeded sample of depth two.
Long form (tests/soak.py): every kind of fault, and every pair of depth two that differs from the others.
"""

from __future__ import annotations

import logging
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.faults.injection import ALONE, BESIDE_ANOTHER, BLOCK, Kind
from tests.faults.sweep import Clock, Pair, Sweep
from tests.faults.target import KernelReader
from tests.faults.world import LIFE_CYCLE, REGISTRY, Case, World
from tests.figures import RecordFigure
from tests.soak import PART
from volattachd.drivers.configfs.tree import ConfigFs

FOREIGN = "iqn.2001-04.com.example:foreign"
SEED = 20261122
#: Pairs of faults for one kind of device; there are two.
SAMPLES = {"alone": 170, "shared": 80}

GUEST = {"timeout": 86400.0 if PART else 600.0}

__all__ = [
    "foreign",
    "sweep",
    "test_every_call_survives_a_fault_at_every_point",
    "test_every_start_after_a_fault_survives_another",
]


@pytest.fixture(scope="module")
def foreign(new_device: Callable[[str], str]) -> Iterator[None]:
    """Somebody else's target on the same host, in use."""
    from rtslib_fb import LUN, TPG, FabricModule, FileIOStorageObject, NetworkPortal, NodeACL, Target

    store = FileIOStorageObject("foreign", dev=new_device("file"), size=1 << 20)
    target = Target(FabricModule("iscsi"), FOREIGN)
    tpg = TPG(target, 1)
    LUN(tpg, 0, store)
    NetworkPortal(tpg, "127.0.0.1", 3291)
    acl = NodeACL(tpg, "iqn.2026-11.com.example:host-a")
    acl.chap_userid, acl.chap_password = "foreign", "foreign-secret"
    tpg.enable = True
    yield
    target.delete()
    store.delete()


@pytest.fixture(scope="module", params=["alone", "shared"])
def sweep(
    request: pytest.FixtureRequest, kind: str, new_device: Callable[[str], str], foreign: None
) -> Iterator[Sweep]:
    """A sweep over a volume that is used alone, or beside another host's read-only attachment.

    The journal is in memory: power is not lost here, and its syncs would take most of the time.
    """
    logging.getLogger("volattachd").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        shared = request.param == "shared"
        world = World(Path(name, "state"), new_device(kind), ConfigFs(), KernelReader(), shared=shared)
        short = BESIDE_ANOTHER if shared else BLOCK if kind == "block" else ALONE
        yield Sweep(world, tuple(Kind) if PART else short)
        world.close()
    logging.getLogger("volattachd").setLevel(logging.NOTSET)


def cases(sweep: Sweep) -> tuple[Case, ...]:
    """Every call that a volume allows: one with another host's attachment cannot be unregistered."""
    return LIFE_CYCLE if sweep.world.shared else (*REGISTRY, *LIFE_CYCLE)


def test_every_call_survives_a_fault_at_every_point(sweep: Sweep, kind: str, record_figure: RecordFigure) -> None:
    clock = Clock()
    sweep.depth_one(cases(sweep))
    name = "shared" if sweep.world.shared else "alone"
    record_figure("faults", f"{kind}, {name}: {sweep.counts.total()} single faults in {clock}")


def test_every_start_after_a_fault_survives_another(sweep: Sweep, kind: str, record_figure: RecordFigure) -> None:
    clock = Clock()
    name = "shared" if sweep.world.shared else "alone"
    pairs, different = list(sweep.pairs()), list(sweep.different_pairs())
    struck = sweep.depth_two(chosen(pairs, different, SAMPLES[name]))
    told = f"{struck} of {len(pairs)} pairs of faults, of which {len(different)} are different, in {clock}"
    record_figure("faults", f"{kind}, {name}: {told}")


def chosen(pairs: list[Pair], different: list[Pair], sample: int) -> Iterable[Pair]:
    """Always the same ones, or this part's share of all that are different."""
    return PART.choose(different) if PART else random.Random(SEED).sample(pairs, sample)
