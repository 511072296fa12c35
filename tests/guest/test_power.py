"""Power cuts under load: what was acknowledged before the cut is there after it, seen from outside."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.figures import RecordFigure
from tests.guest.harness.guest import Guest
from tests.guest.load import CALLS
from tests.guest.storage import REPO, SOCKET, StorageHost
from tests.soak import PART, times

pytestmark = pytest.mark.guest

CUTS = times(15, 1000)
HOSTS = 2
VOLUMES = 6
SEED = 20261122
STATES = ("gone", "reserved", "connected", "attached", "detaching", "disconnected")
#: The state that an acknowledged call leaves.
AFTER = dict(zip(CALLS, (*STATES[1:], "gone"), strict=True))


def test_what_was_acknowledged_before_a_power_cut_holds(
    new_guest: Callable[..., Guest], tmp_path: Path, record_figure: RecordFigure
) -> None:
    guests = [new_guest(disk=tmp_path / f"disk-{n}", name=f"storage-{n}") for n in range(HOSTS)]
    shares = [CUTS // HOSTS + (n < CUTS % HOSTS) for n in range(HOSTS)]
    with ThreadPoolExecutor(HOSTS) as pool:
        checked = sum(pool.map(cut_again_and_again, guests, shares, range(HOSTS)))
    record_figure("power cuts under load", f"{CUTS}, acknowledged calls checked: {checked}, lost: 0")


def cut_again_and_again(guest: Guest, cuts: int, number: int) -> int:
    """The life of one host; the answer is the number of acknowledged calls that were checked."""
    chance = random.Random(f"{SEED} {PART} {number}")
    storage = StorageHost(guest)
    storage.start()
    for volume in range(VOLUMES):
        guest.run(f"truncate -s 4M /root/vol-{volume}.img", check=True)
        storage.call("register_volume", volume=f"vol-{volume}", path=f"/root/vol-{volume}.img")
    lines = one_life(storage, chance.randint(20, 200), 0)
    checked = 0
    for cut in range(1, cuts + 1):
        before = lines
        guest.boot()
        storage.launch()
        lines = one_life(storage, chance.randint(20, 200) if cut < cuts else 0, cut)
        check_target(lines[0]["found"])
        checked += check_rows(lines[0]["found"], before)
    return checked


def one_life(storage: StorageHost, wanted: int, number: int) -> list[dict[str, Any]]:
    """What the load writes until it is cut off: what it finds, and after that as many lines as are ``wanted``."""
    guest, log = storage.guest, f"acks-{number}.log"
    guest.start(f"exec python3 -m tests.guest.load {SOCKET} /host/out/{log} {VOLUMES}", cwd=REPO)
    outside = guest.out / log
    deadline = time.monotonic() + 120
    while not outside.exists() or outside.read_bytes().count(b"\n") < 1 + wanted:
        assert time.monotonic() < deadline, "the load does not get going"
        time.sleep(0.01)
    guest.kill()
    return [json.loads(line) for line in outside.read_text().splitlines()]


def check_rows(found: dict[str, Any], lines: list[dict[str, Any]]) -> int:
    """Each volume is where its last acknowledged call left it, or where the call that was under way leads."""
    actual = {row["volume"]: row for row in found["attachments"]}
    for volume in {line["volume"] for line in lines[1:]}:
        own = [line for line in lines[1:] if line["volume"] == volume]
        tried = own[-1].get("tried")
        acknowledged = [line["acknowledged"] for line in own if "acknowledged" in line]
        before = AFTER[acknowledged[-1]] if acknowledged else STATES[CALLS.index(own[0]["tried"])]
        allowed = {before, AFTER[tried]} if tried else {before}
        row = actual.get(volume)
        state = row["state"] if row else "gone"
        assert state in allowed, f"{volume} is {state}, and must be one of {allowed}: {own[-4:]}"
        assert row is None or row["attachment_id"] == own[-1]["attachment"]
    return sum(1 for line in lines if "acknowledged" in line)


def check_target(found: dict[str, Any]) -> None:
    """The target is what the journal says: no step is left, and the kernel has a target for each connected volume."""
    assert found["steps"] == []
    exported = {row["volume"] for row in found["attachments"] if row["state"] != "reserved"}
    assert {name.rpartition(":")[2].rpartition(".")[0] for name in found["targets"]} == exported
