"""Many threads call at once, rightly and wrongly: what the journal tells of it is one order that explains every row."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.model.contract import (
    ATTACHED,
    CONNECTED,
    DETACHING,
    DISCONNECTED,
    GONE,
    GRANTED,
    LIVE,
    RESERVED,
)
from tests.model.plant import Plant
from tests.model.watch import HOSTS, check_move, without_times
from tests.support import ADMIN, AGENT, OTHER_AGENT, Service, attachment_id, in_thread, make_file
from volattachd.errors import DriverError, VolattachError
from volattachd.model import Caller

THREADS, CALLS_EACH = 8, 150
VOLUMES = ("vol-a", "vol-b", "vol-c")
#: So few names that threads meet on them.
NAMES = [attachment_id(number) for number in range(1, 200)]

Call = Callable[[], Any]


class Crowd:
    """Clients that all work on the same few volumes, each by its own dice."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.answers: list[Mapping[str, Any]] = []
        self.refusals: list[str] = []

    def work(self, seed: int) -> None:
        """One client's calls."""
        dice = random.Random(seed)
        for _ in range(CALLS_EACH):
            try:
                answer = self._choose(dice)()
            except VolattachError as refusal:
                self.refusals.append(refusal.kind)
            else:
                if "state" in answer:
                    self.answers.append(answer)

    def _choose(self, dice: random.Random) -> Call:
        """The next call for some attachment, or any call about any."""
        caller = dice.choice((ADMIN, ADMIN, AGENT, OTHER_AGENT))
        rows = list(self._service.list_attachments(caller))
        if not rows or dice.random() < 0.15:
            return self._reserve(caller, dice)
        row = dice.choice(rows)
        right = dice.random() < 0.7
        host = (row["connector"] or {}).get("initiator", dice.choice(HOSTS)) if right else dice.choice(HOSTS)
        calls = self._calls(caller, row["volume"], row["attachment_id"] if dice.random() < 0.8 else None, host)
        return calls[_NEXT[row["state"]] if right else dice.choice(sorted(calls))]

    def _reserve(self, caller: Caller, dice: random.Random) -> Call:
        volume, name = dice.choice(VOLUMES), dice.choice(NAMES)
        return lambda: self._service.reserve_volume(caller, volume, name)

    def _calls(self, caller: Caller, volume: str, name: str | None, host: str) -> dict[str, Call]:
        service, connector = self._service, {"initiator": host, "ip": "127.0.0.1"}
        return {
            "initialize": lambda: service.initialize_connection(caller, volume, connector, name),
            "attach": lambda: service.attach(caller, volume, host_name="h", attachment_id=name),
            "begin": lambda: service.begin_detaching(caller, volume, name),
            "roll": lambda: service.roll_detaching(caller, volume, name),
            "terminate": lambda: service.terminate_connection(caller, volume, connector, attachment_id=name),
            "force": lambda: service.terminate_connection(caller, volume, connector, True, name),
            "detach": lambda: service.detach(caller, volume, name),
            "unreserve": lambda: service.unreserve_volume(caller, volume, name),
            "reconcile": lambda: service.reconcile(caller),
        }


_NEXT = {
    RESERVED: "initialize",
    CONNECTED: "attach",
    ATTACHED: "begin",
    DETACHING: "terminate",
    DISCONNECTED: "detach",
}


@pytest.mark.parametrize("fails", [0.0, 0.05], ids=["healthy target", "failing target"])
def test_the_history_of_many_threads_is_one_order_that_explains_every_row(swift_path: Path, fails: float) -> None:
    plant = Plant(swift_path)
    for name in VOLUMES:
        plant.service.register_volume(ADMIN, name, make_file(swift_path / name), multiattach=name != "vol-a")
    start = plant.journal.seq
    if fails:
        plant.driver.before_step = sometimes(fails)
    crowd = Crowd(plant.service)
    waits = [in_thread(lambda seed=seed: crowd.work(seed)) for seed in range(THREADS)]  # type: ignore[misc]
    for wait in waits:
        wait()
    plant.driver.before_step = lambda step: None
    rows = replay(plant, start)
    assert [without_times(row) for row in plant.service.list_attachments(ADMIN)] == rows
    check_answers(plant, crowd)
    check_target(plant)
    plant.crash()
    plant.service.upkeep.start_up()
    assert [without_times(row) for row in plant.service.list_attachments(ADMIN)] == rows
    check_target(plant)
    plant.close()


def sometimes(share: float) -> Callable[[str], None]:
    """A hook that fails this share of steps."""
    dice, lock = random.Random(7), threading.Lock()

    def hook(step: str) -> None:
        with lock:
            unlucky = dice.random() < share
        if unlucky:
            raise DriverError(f"cannot {step}: the kernel said no")

    return hook


def replay(plant: Plant, start: int) -> list[dict[str, Any]]:
    """The rows that history leads to, when each line may only begin where the one before it ended."""
    rows: dict[str, dict[str, Any]] = {}
    seq = start
    for line in plant.service.journal.history(since=start, limit=1_000_000):
        assert line["seq"] == seq + 1, "history has a hole"
        seq = line["seq"]
        name, after = line["attachment_id"], line["after"]
        assert line["before"] == rows.get(name)
        check_move(line)
        rows.pop(name, None) if after is None else rows.__setitem__(name, after)
        check_volume_rows(rows, line["volume"])
    return [without_times(row) for row in rows.values()]


def check_volume_rows(rows: Mapping[str, Mapping[str, Any]], volume: str) -> None:
    """At no point of the order does a volume hold what it may not."""
    here = [row for row in rows.values() if row["volume"] == volume]
    assert len(here) < 2 or volume != "vol-a", "two attachments of a volume that takes one"
    assert all(row["state"] in LIVE for row in here)


def check_answers(plant: Plant, crowd: Crowd) -> None:
    """Every answer is a state that history knows of, and calls were both done and refused."""
    known = set()
    for line in plant.service.journal.history(since=0, limit=1_000_000):
        if line["attachment_id"] is not None:
            state = GONE if line["after"] is None else line["after"]["state"]
            known.add((line["attachment_id"], state))
    assert {(answer["attachment_id"], answer["state"]) for answer in crowd.answers} <= known
    assert crowd.answers and {"InvalidVolume", "PermissionDenied"} <= set(crowd.refusals)


def check_target(plant: Plant) -> None:
    """After a pass the target grants what the rows say, to nobody else."""
    plant.service.reconcile(ADMIN)
    for view in plant.service.list_volumes(ADMIN):
        rows = plant.service.list_attachments(ADMIN, view["volume"])
        export = plant.target.get(view["target_name"])
        wanted = {row["connector"]["initiator"] for row in rows if row["state"] in GRANTED}
        assert (set() if export is None else set(export.grants)) == wanted
        assert view["conditions"] == []
