"""The sweeps of one kind of device on the real kernel: ``from tests.faults.suite import *`` in a module of a guest.

The module says which kind by a fixture ``kind``. Short form: every point of depth one, a seeded sample of depth two.
Long form (VOLATTACHD_SOAK=1 outside the guest): kills at reads as well, and every pair of depth two.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.sweep import Clock, Sweep
from tests.faults.seam import ALONE, BESIDE_ANOTHER, Kind
from tests.faults.target import KernelReader
from tests.faults.world import LIFE_CYCLE, REGISTRY, World
from volattachd.drivers.configfs import ConfigFs

#: For the numbers at the end, wherever these tests run.
pytest_plugins = ["tests.faults.summary"]

__all__ = ["pytest_plugins", "foreign", "sweep", "test_every_call_survives_a_fault_at_every_point"]
__all__ += ["test_every_start_after_a_fault_survives_another"]

FOREIGN = "iqn.2001-04.com.example:foreign"
SEED = 20261122
SAMPLE = 130  # for each of two kinds of device, alone and shared

LONG = "VOLATTACHD_SOAK" in os.environ
#: The guest runs the tests that it is told by name, so it must know all of them.
DEFINED = LONG or "VOLATTACHD_IN_GUEST" in os.environ
GUEST = {"timeout": 14400.0 if LONG else 300.0}


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
        yield Sweep(world, tuple(Kind) if LONG else BESIDE_ANOTHER if shared else ALONE)
        world.close()
    logging.getLogger("volattachd").setLevel(logging.NOTSET)


def test_every_call_survives_a_fault_at_every_point(
    sweep: Sweep, kind: str, record_property: Callable[[str, Any], None]
) -> None:
    clock = Clock()
    sweep.depth_one(LIFE_CYCLE if sweep.world.shared else (*REGISTRY, *LIFE_CYCLE))
    record_property("faults", f"{kind}: {sweep.counts.total()} single faults in {clock}")


def test_every_start_after_a_fault_survives_another(
    sweep: Sweep, kind: str, record_property: Callable[[str, Any], None]
) -> None:
    clock = Clock()
    pairs = sweep.depth_two(SEED, SAMPLE)
    record_property("faults", f"{kind}: {SAMPLE} of {pairs} pairs of faults (seed {SEED}) in {clock}")
