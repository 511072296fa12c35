"""Revocations that race with a login, where initiator and target have a kernel each."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.figures import RecordFigure
from tests.guest.harness.guest import Guest
from tests.guest.harness.link import Link
from tests.guest.races import VOLUMES, Outcome, check, shown
from tests.guest.storage import INITIATOR, REPO, SOCKET, StorageHost
from tests.soak import times

pytestmark = pytest.mark.guest

ROUNDS = times(20, 1_000)
PORT = 7700


def test_a_revocation_that_meets_a_login_from_another_kernel_ends_and_leaves_nothing_to_read(
    new_guest: Callable[..., Guest], link: Link, record_figure: RecordFigure
) -> None:
    guest = new_guest(network=link, name="storage")
    compute = new_guest(network=link, name="compute")
    assert guest.end is not None
    assert compute.end is not None
    storage = StorageHost(guest)
    storage.start()
    for volume in VOLUMES:
        guest.run(["python3", "-m", "tests.guest.races", "fill", f"/root/{volume}.img"], cwd=REPO, check=True)
        storage.call("register_volume", volume=volume, path=f"/root/{volume}.img")
    far = f"{guest.end.ipv4}:{PORT}"
    guest.start(f"exec python3 -m tests.guest.relay {far} {SOCKET}", cwd=REPO)
    guest.run(f"until ss -Hltn sport = :{PORT} | grep -q .; do sleep 0.1; done", timeout=30, check=True)
    compute.run(f"echo InitiatorName={INITIATOR} >/etc/iscsi/initiatorname.iscsi", check=True)
    compute.run("pidof iscsid || iscsid", check=True)
    compute.start(f"exec python3 -m tests.guest.relay /run/far.sock {far}", cwd=REPO)
    compute.run("until test -S /run/far.sock; do sleep 0.1; done", timeout=30, check=True)
    words = ["run", "--socket", "/run/far.sock", "--ip", compute.end.ipv4, "--rounds", str(ROUNDS)]
    done = compute.run(["python3", "-m", "tests.guest.races", *words], cwd=REPO, timeout=60 + 10 * ROUNDS, check=True)
    outcome = Outcome(**json.loads(done.stdout))
    record_figure("revocations that meet a login, two kernels", shown(outcome))
    check(outcome, ROUNDS)
