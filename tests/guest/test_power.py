"""Power cuts under load: what was acknowledged before the cut is there after it, seen from outside."""

from __future__ import annotations

import json
import os
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

pytestmark = pytest.mark.guest

CUTS = 1000 if "VOLATTACHD_SOAK" in os.environ else 15
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
    chance = random.Random(SEED + number)
    storage = StorageHost(guest)
    storage.start()
    for volume in range(VOLUMES):
        guest.run(f"truncate -s 4M /root/vol-{volume}.img", check=True)
        storage.call("register_volume", volume=f"vol-{volume}", path=f"/root/vol-{volume}.img")
    return sum(one_cut(storage, chance, cut) for cut in range(cuts))


def one_cut(storage: StorageHost, chance: random.Random, cut: int) -> int:
    """Load, cut, boot, look."""
    guest, log = storage.guest, f"acks-{cut}.log"
    guest.start(f"exec python3 -m tests.guest.load {SOCKET} /host/out/{log} {VOLUMES}", cwd=REPO)
    outside = guest.out / log
    wanted = chance.randint(20, 200)
    deadline = time.monotonic() + 60
    while not outside.exists() or outside.read_bytes().count(b"\n") < wanted:
        assert time.monotonic() < deadline, "the load does not get going"
        time.sleep(0.01)
    guest.kill()
    lines = [json.loads(line) for line in outside.read_text().splitlines()]
    guest.boot()
    guest.run(f"rm -f {SOCKET}", check=True)
    storage.start()
    check_target(storage)
    return check_rows(storage, lines)


def check_rows(storage: StorageHost, lines: list[dict[str, Any]]) -> int:
    """Each volume is where its last acknowledged call left it, or where the call that was under way leads."""
    actual = {row["volume"]: row for row in storage.call("list_attachments")}
    for volume in {line["volume"] for line in lines}:
        own = [line for line in lines if line["volume"] == volume]
        tried = own[-1].get("tried")
        acknowledged = [line["acknowledged"] for line in own if "acknowledged" in line]
        before = AFTER[acknowledged[-1]] if acknowledged else STATES[CALLS.index(own[0]["tried"])]
        allowed = {before, AFTER[tried]} if tried else {before}
        row = actual.get(volume)
        state = row["state"] if row else "gone"
        assert state in allowed, f"{volume} is {state}, and must be one of {allowed}: {own[-4:]}"
        assert row is None or row["attachment_id"] == own[-1]["attachment"]
    return sum(1 for line in lines if "acknowledged" in line)


def check_target(storage: StorageHost) -> None:
    """The target is what the journal says: no step is left, and rtslib sees only complete exports of ours."""
    assert storage.call("reconcile", dry_run=True)["volumes"] == []
    exported = {row["volume"] for row in storage.call("list_attachments") if row["state"] != "reserved"}
    names = storage.guest.run("ls /sys/kernel/config/target/iscsi", check=True).stdout.split()
    targets = {name.rpartition(":")[2].rpartition(".")[0] for name in names if name.startswith("iqn.2026-11")}
    assert targets == exported
