"""What calls, passes and starts do to LIO and to the disk, counted: as much as the plan needs, however many others.

Counted at the seams that production uses: the lio driver's file layer, and the journal's connection. Times are not
looked at; they follow.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.injection import Operation
from tests.faults.target import PREFIX, KernelReader
from tests.faults.world import ATTACH, BEGIN, DETACH, INITIALIZE, RESERVE, TERMINATE, VOLUME, Stage, World
from tests.figures import RecordFigure
from tests.load import add_crowd
from tests.support import make_file
from volattachd.drivers.configfs.tree import ConfigFs

GUEST = {"timeout": 600.0}

#: How many exports there are beside the volume that the calls are about.
OTHERS = (0, 100, 1000)
SIX = (RESERVE, INITIALIZE, ATTACH, BEGIN, TERMINATE, DETACH)

#: The changes of the target that each call needs: what drivers/lio.py lists for a file with one grant. An export is
#: 2 directories and 4 settings of the backstore, its 3 attributes, target and group, 6 attributes, LUN and link, a
#: portal, the 6 parts of the grant, and ``enable``. The last grant goes with ``enable`` and 4 removals, one of them the
#: portal's; what is left of the export in 6.
CHANGES = {
    "reserve_volume": 0,
    "initialize_connection": 2 + 4 + 3 + 2 + 6 + 2 + 1 + 6 + 1,
    "attach": 0,
    "begin_detaching": 0,
    "terminate_connection": 1 + 4,
    "detach": 6,
}


@dataclass(frozen=True)
class Sample:
    """What was counted beside so many others."""

    calls: dict[str, list[Operation]]
    round: list[Operation]
    start: list[Operation]


def shown(operations: list[Operation]) -> list[str]:
    """Operations by what they do, whatever number this life of the volume has."""
    return [re.sub(r"[0-9a-f]{8}(?=$|/)|(?<=fileio_)\d+", "N", str(operation)) for operation in operations]


def on_target(operations: list[Operation], *, changes: bool) -> list[Operation]:
    """Those of the file layer."""
    return [o for o in operations if o.where == "configfs" and o.changes is changes]


def commits(operations: list[Operation]) -> int:
    """Transactions that were made durable."""
    return sum(o.name == "COMMIT" for o in operations)


@pytest.fixture(scope="module")
def samples(base: Path) -> Iterator[dict[int, Sample]]:
    """One world that gets more and more crowded, looked at whenever it is as full as wanted."""
    logging.getLogger("volattachd").setLevel(logging.WARNING)
    world = World(base / "state", make_file(base / "vol.img"), ConfigFs(), KernelReader())
    found, before = {}, 0
    for others in OTHERS:
        add_crowd(world.life.journal, base, PREFIX, range(before, others))
        world.restart()  # makes the exports of the new ones
        found[others] = look(world)
        before = others
    yield found
    logging.getLogger("volattachd").setLevel(logging.NOTSET)


def look(world: World) -> Sample:
    """The six calls, a healthy round over everything, and a start over a target that is as it should be."""
    world.go(Stage.AVAILABLE)
    world.new_attachment()
    seam = world.life.seam
    calls = {}
    for case in SIX:
        seam.arm(None)
        case.send(world)
        calls[case.name] = list(seam.seen)
    seam.arm(None)
    world.service.upkeep.make_round()
    healthy = list(seam.seen)
    world.restart()
    return Sample(calls, healthy, list(world.life.seam.seen))


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("call", CHANGES)
def test_a_call_changes_what_its_plan_lists_and_commits_once(
    call: str, others: int, samples: dict[int, Sample]
) -> None:
    operations = samples[others].calls[call]
    assert len(on_target(operations, changes=True)) == CHANGES[call]
    assert commits(operations) == 1


def without_connector(operations: list[Operation]) -> list[str]:
    """A connector is stored once: beside attachments that have the same one, it is stored already."""
    return [line for line in shown(operations) if "INTO connectors" not in line]


@pytest.mark.parametrize("call", CHANGES)
def test_a_call_does_the_same_beside_a_thousand_others(
    call: str, samples: dict[int, Sample], record_figure: RecordFigure
) -> None:
    alone = samples[0].calls[call]
    for sample in samples.values():
        assert without_connector(sample.calls[call]) == without_connector(alone)
    counted = Counter(o.name for o in alone)
    record_figure("operations", f"{call}: " + ", ".join(f"{n} {name}" for name, n in sorted(counted.items())))


@pytest.mark.parametrize("call", CHANGES)
def test_a_call_touches_nothing_but_its_own_volume(call: str, samples: dict[int, Sample]) -> None:
    operations = [o for o in samples[1000].calls[call] if o.where == "configfs"]
    own = re.compile(
        rf"iscsi/{re.escape(PREFIX)}:{VOLUME}\.[0-9a-f]{{8}}(/.*)?|core/fileio_\d+(/volattach-{VOLUME}\..*)?"
    )
    assert [o for o in operations if not own.fullmatch(o.subject)] == []


@pytest.mark.parametrize("what", ["round", "start"])
def test_a_healthy_look_at_everything_reads_so_much_for_each_export_and_writes_nothing(
    what: str, samples: dict[int, Sample], record_figure: RecordFigure
) -> None:
    looks: dict[int, list[Operation]] = {others: getattr(sample, what) for others, sample in samples.items()}
    reads = {others: len(on_target(operations, changes=False)) for others, operations in looks.items()}
    each = (reads[100] - reads[0]) // 100
    assert reads == {others: reads[0] + each * others for others in OTHERS}
    for operations in looks.values():
        assert on_target(operations, changes=True) == []
        assert commits(operations) == 0
    record_figure("operations", f"{what}: {each} reads for each export, {reads[0]} without any")
