"""Revocations that race with a login: a real initiator logs in, and its grant is taken away a moment later.

Runs in a guest: in the storage host itself, or on a compute host that reaches the daemon through ``relay``. One round
is a whole life cycle. The revocation comes at a moment that is spread evenly over what an undisturbed login
takes, so that each step of a login is met. A reader reads the new disk as soon as it is there, past every cache.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from volattachd.client.sync import Client
from volattachd.errors import VolattachError

#: One for each initiator. Several race at once: most of a round is waiting.
VOLUMES = tuple(f"racing-{number}" for number in range(4))
BLOCK = 4096
PREFIX = "iqn.2026-11.com.example:"
#: What every block of the volume holds. LIO answers a read of a LUN that is not mapped with whatever memory holds.
PATTERN = bytes(range(1, 251)) * 17
SETTINGS = {
    "node.session.auth.authmethod": "CHAP",
    "node.session.initial_login_retry_max": "0",  # a login that was refused is not tried again
    "node.session.timeo.replacement_timeout": "0",  # a read fails as soon as its session is lost
    "node.conn[0].timeo.login_timeout": "2",
    "node.conn[0].timeo.logout_timeout": "3",
    "node.startup": "manual",
}


def block() -> bytes:
    """What the volume holds at any block."""
    return PATTERN[:BLOCK]


@dataclass
class Outcome:
    """What came of some rounds."""

    rounds: int = 0
    disks: int = 0  # rounds in which the disk was there before the revocation
    sessions: int = 0  # rounds that ended with a session on the initiator's side
    reads: int = 0
    hung: int = 0
    late_reads: int = 0  # that began after the answer, and succeeded
    strange_reads: int = 0  # that gave something that is not the volume's
    longest_answer: float = 0.0  # seconds
    problems: list[str] = field(default_factory=list)


class Reader:
    """Finds the disk of a target as soon as it is there and reads it until ``stop``."""

    def __init__(self, target: str) -> None:
        self.ok: list[float] = []  # when each read that succeeded began
        self.strange = 0
        self._target = target
        self._stop = threading.Event()
        self._buffer = mmap.mmap(-1, BLOCK)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            disk = find_disk(self._target)
            if disk is None or not self._read(disk):
                time.sleep(0.005)

    def _read(self, disk: str) -> bool:
        """Read as long as that works; whether it worked at all."""
        try:
            fd = os.open(disk, os.O_RDONLY | os.O_DIRECT)
        except OSError:
            return False
        count = len(self.ok)
        try:
            while not self._stop.is_set():
                began = time.monotonic()
                size = os.preadv(fd, [self._buffer], 0)
                self.ok += [began] if size else []
                self.strange += self._buffer[:size] != block()[:size]
                time.sleep(0.001)  # a guest has one processor, and the login needs it too
        except OSError:
            pass
        finally:
            os.close(fd)
        return len(self.ok) > count


def find_disk(target: str) -> str | None:
    """The disk of this host's session with a target."""
    for session in Path("/sys/class/iscsi_session").glob("session*"):
        try:
            if (session / "targetname").read_text().strip() != target:
                continue
        except OSError:
            continue
        for found in (session / "device").glob("target*/*:0/block/*"):
            return f"/dev/{found.name}"
    return None


class Racer:
    """One initiator, its volume, and its rounds."""

    def __init__(self, socket: str, ip: str, volume: str) -> None:
        self._client = Client(socket, 60)
        self._volume = volume
        self._connector = {"initiator": PREFIX + volume, "ip": ip}
        self._iface = volume
        self._has_record = False
        self.outcome = Outcome()
        iscsiadm("-m", "iface", "-I", self._iface, "-o", "new")
        for key, value in {"iface.initiatorname": PREFIX + volume, "iface.transport_name": "tcp"}.items():
            iscsiadm("-m", "iface", "-I", self._iface, "-o", "update", "-n", key, "-v", value)

    def call(self, method: str, **params: Any) -> Any:
        return self._client.call(method, params)

    def calibrate(self) -> float:
        """How long a login takes that nobody disturbs, in seconds: until its disk is there."""
        node = self._begin()
        began = time.monotonic()
        login = subprocess.Popen(["iscsiadm", *node, "--login"], stdout=subprocess.DEVNULL)
        while find_disk(node[3]) is None:
            assert login.poll() in (None, 0), "a login that nobody disturbs succeeds"
            time.sleep(0.005)
        took = time.monotonic() - began
        assert login.wait() == 0
        iscsiadm(*node, "--logout")
        self._terminate()
        self.call("detach", volume=self._volume)
        return took

    def run(self, delays: Iterable[float]) -> Outcome:
        """A round for each delay between login and revocation, in seconds."""
        for delay in delays:
            self._round(delay)
        return self.outcome

    def _begin(self) -> list[str]:
        """The volume is granted, and the initiator has what it needs; the answer is the words of its node."""
        self.call("reserve_volume", volume=self._volume)
        data = self.call("initialize_connection", volume=self._volume, connector=self._connector)["data"]
        self.call("attach", volume=self._volume, host_name="racer")
        node = ["-m", "node", "-T", data["target_iqn"], "-p", data["target_portal"], "-I", self._iface]
        secret = {f"node.session.auth.{key}": data[f"auth_{key}"] for key in ("username", "password")}
        if not self._has_record:
            iscsiadm(*node, "-o", "new")
            secret |= SETTINGS
            self._has_record = True
        iscsiadm(*node, "-o", "update", *[word for k, v in secret.items() for word in ("-n", k, "-v", v)])
        return node

    def _round(self, delay: float) -> None:
        outcome, node = self.outcome, self._begin()
        outcome.rounds += 1
        reader = Reader(node[3])
        login = subprocess.Popen(["iscsiadm", *node, "--login"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        outcome.disks += bool(reader.ok)
        began = time.monotonic()
        answered = self._terminate()
        ended = time.monotonic()
        outcome.longest_answer = max(outcome.longest_answer, ended - began)
        login.wait()
        time.sleep(0.02)  # for a read that should not succeed
        reader.stop()
        outcome.late_reads += sum(answered and at > ended for at in reader.ok)
        outcome.reads += len(reader.ok)
        outcome.strange_reads += reader.strange
        outcome.sessions += iscsiadm(*node, "--logout", check=False) == 0
        if not answered:
            self._terminate()
        self.call("detach", volume=self._volume)

    def _terminate(self) -> bool:
        """Whether the revocation was done before its deadline."""
        try:
            self.call("terminate_connection", volume=self._volume, connector=self._connector, force=True)
        except VolattachError as error:
            self.outcome.hung += 1
            self.outcome.problems.append(f"round {self.outcome.rounds}: {error}")
            return False
        return True


def race(socket: str, ip: str, rounds: int) -> Outcome:
    """So many rounds in all, by all initiators at once."""
    racers = [Racer(socket, ip, volume) for volume in VOLUMES]
    span = 1.2 * max(racer.calibrate() for racer in racers)
    delays = [span * spread(number) for number in range(1, rounds + 1)]
    with ThreadPoolExecutor(len(racers)) as pool:
        runs = [pool.submit(racer.run, delays[first :: len(racers)]) for first, racer in enumerate(racers)]
        return total([run.result() for run in runs])


def total(outcomes: list[Outcome]) -> Outcome:
    """All rounds together."""
    found = Outcome()
    for outcome in outcomes:
        for name, value in asdict(outcome).items():
            before = getattr(found, name)
            setattr(found, name, max(before, value) if name == "longest_answer" else before + value)
    return found


def spread(number: int) -> float:
    """The number-th of a sequence that fills the interval from 0 to 1 evenly, however long it gets (van der Corput)."""
    value, step = 0.0, 0.5
    while number:
        number, bit = divmod(number, 2)
        value += bit * step
        step /= 2
    return value


def iscsiadm(*words: str, check: bool = True) -> int:
    done = subprocess.run(["iscsiadm", *words], capture_output=True, text=True, timeout=90, check=False)
    assert not check or done.returncode == 0, f"iscsiadm {' '.join(words)}: {done.stdout}{done.stderr}"
    return done.returncode


def fill(path: str) -> None:
    """Make the volume's file."""
    with open(path, "wb") as file:
        file.write(block() * 1024)


def shown(outcome: Outcome) -> str:
    """The counts, for the end of a test run."""
    return (
        f"{outcome.rounds} rounds, {outcome.disks} with the disk there before, {outcome.sessions} with a session after;"
        f" {outcome.reads} reads, {outcome.late_reads} after the answer, {outcome.strange_reads} of other data;"
        f" {outcome.hung} hung, the longest answer took {outcome.longest_answer:.2f} s"
    )


def check(outcome: Outcome, rounds: int) -> None:
    """Every round met its login, and nothing went wrong in any."""
    assert outcome.rounds == rounds
    assert 0 < outcome.disks < rounds, "some revocations came before the disk, and some after it"
    assert outcome.reads > 0
    assert outcome.problems == []
    assert (outcome.hung, outcome.late_reads, outcome.strange_reads) == (0, 0, 0)


def main() -> int:
    """``fill FILE`` makes the volume; ``run`` races, and its outcome is a line of JSON."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fill").add_argument("path")
    run = commands.add_parser("run")
    run.add_argument("--socket", required=True)
    run.add_argument("--ip", required=True)
    run.add_argument("--rounds", type=int, required=True)
    options = parser.parse_args()
    if options.command == "fill":
        fill(options.path)
        return 0
    print(json.dumps(asdict(race(options.socket, options.ip, options.rounds))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
