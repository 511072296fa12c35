"""Many volumes at once, in a guest with several processors: ``python3 -m bench.together OUT``.

volattachd's side is so many connections, each of which takes a volume of its own through the six calls; the floor is
as many threads of bare configfs in one process. A side attaches everything, the target is looked at, the side detaches
everything, and the target is looked at again; the two sides take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from bench.daemon import Daemon
from bench.measures import request_of, timed
from bench.peers.bare import Bare
from bench.peers.base import INITIATOR, Piece
from bench.peers.ours import ATTACH, DETACH, params_of
from bench.target import is_gone, is_granted
from bench.yardsticks import Line
from volattachd.client.sync import Client

SIZE = 1 << 20
COUNT = 32
Columns = dict[str, list[float]]


class Side(ABC):
    """One way to attach and detach a number of volumes, all at once."""

    name: ClassVar[str]
    #: The names of the volumes' targets.
    targets: list[str]

    @abstractmethod
    def attach(self) -> None:
        """Returns when the last one is attached."""

    @abstractmethod
    def detach(self) -> None:
        """Returns when the last one is detached."""

    @abstractmethod
    def used(self) -> dict[str, float]:
        """Seconds of processors so far, by what they went to."""

    def is_attached(self, target: str) -> bool:
        """Whether the target is really there and lets the initiator in."""
        return is_granted(target, INITIATOR)

    def is_detached(self, target: str) -> bool:
        """Whether the target is really gone."""
        return is_gone(target)


def run_round(side: Side, found: Columns) -> None:
    """Attach all, look, detach all, look: one more number in each column. Looking is not in them."""
    taken: dict[str, float] = defaultdict(float)
    for body, check in ((side.attach, side.is_attached), (side.detach, side.is_detached)):
        before = side.used()
        taken[body.__name__] = timed(body)
        for what, seconds in side.used().items():
            taken[what] += seconds - before[what]
        wrong = [target for target in side.targets if not check(target)]
        if wrong:
            raise RuntimeError(f"{side.name}: after {body.__name__} these targets are not as they should be: {wrong}")
    for what, seconds in taken.items():
        found.setdefault(what, []).append(seconds)


def run_at_once(threads: ThreadPoolExecutor, bodies: Sequence[Callable[[], object]]) -> None:
    """Each in a thread of its own, let go together; returns when the last one is done. An error of one is raised."""
    gate = threading.Barrier(len(bodies))

    def run(body: Callable[[], object]) -> None:
        gate.wait()  # so no thread is free for a second one before each has its own
        body()

    for started in [threads.submit(run, body) for body in bodies]:
        started.result()


class BareThreads(Side):
    """The floor: a thread for each volume, in this process."""

    name: ClassVar[str] = "bare configfs"

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._peers = [(Bare(number), piece) for number, piece in enumerate(pieces)]
        self.targets = [peer.target_name(piece) for peer, piece in self._peers]
        self._threads = ThreadPoolExecutor(len(pieces))

    def attach(self) -> None:
        run_at_once(self._threads, [partial(peer.attach, piece) for peer, piece in self._peers])

    def detach(self) -> None:
        run_at_once(self._threads, [partial(peer.detach, piece) for peer, piece in self._peers])

    def used(self) -> dict[str, float]:
        times = os.times()
        return {"user": times.user, "kernel": times.system}


class Ours(Side):
    """The daemon: a connection for each volume. One thread asks for all of them, to cost as little as may be."""

    name: ClassVar[str] = "volattachd"

    def __init__(self, daemon: Daemon, pieces: Sequence[Piece]) -> None:
        self._daemon = daemon
        with Client(daemon.socket) as client:
            shown = [client.call("register_volume", {"volume": p.name, "path": p.path}) for p in pieces]
        self.targets = [volume["target_name"] for volume in shown]
        self._lines = [(Line(daemon.socket), piece.name) for piece in pieces]

    def attach(self) -> None:
        self._run(ATTACH)

    def detach(self) -> None:
        self._run(DETACH)

    def _run(self, calls: Sequence[str]) -> None:
        """On every connection these calls one after the other, on all connections at once."""
        queues = {
            line.socket.fileno(): (line, iter([request_of(call, **params_of(call, volume)) for call in calls]))
            for line, volume in self._lines
        }
        waiting = select.poll()
        for fd, (line, queue) in queues.items():
            waiting.register(fd, select.POLLIN)
            line.socket.sendall(next(queue))
        left = len(queues) * len(calls)
        while left:
            for fd, _ in waiting.poll():
                line, queue = queues[fd]
                for answer in line.receive():
                    if b'"result"' not in answer:
                        raise RuntimeError(f"a call was refused: {answer!r}")
                    left -= 1
                    for request in islice(queue, 1):
                        line.socket.sendall(request)

    def used(self) -> dict[str, float]:
        user, kernel = self._daemon.cpu_seconds()
        times = os.times()
        return {"user": user, "kernel": kernel, "client": times.user + times.system}

    def commits(self) -> tuple[float, float]:
        """The journal's commits so far, and the seconds that they took."""
        with Client(self._daemon.socket) as client:
            lines = dict(line.rsplit(" ", 1) for line in client.call("get_metrics").splitlines() if line[0] != "#")
        name = "volattachd_journal_commit_seconds"
        return float(lines[f"{name}_count"]), float(lines[f"{name}_sum"])


def measure_together(daemon: Daemon, directory: Path, rounds: int) -> dict[str, Any]:
    """Rounds of both sides in turns, after one of each that is not counted."""
    theirs, mine = ([_piece(directory, f"{side}-{n}") for n in range(COUNT)] for side in ("bare", "ours"))
    bare, ours = BareThreads(theirs), Ours(daemon, mine)
    for side in (bare, ours):
        run_round(side, {})
    found: dict[str, Columns] = {"bare": {}, "ours": {}}
    before = ours.commits()
    for _ in range(rounds):
        run_round(bare, found["bare"])
        run_round(ours, found["ours"])
    commits, committing = ((last - first) / rounds for first, last in zip(before, ours.commits(), strict=True))
    return {**found, "commits": commits, "committing": committing, "count": COUNT, "processors": os.cpu_count()}


def _piece(directory: Path, name: str) -> Piece:
    path = directory / f"{name}.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return Piece(name, str(path), SIZE)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    directory = Path("/var/lib/volattachd-bench")
    directory.chmod(0o700)
    daemon = Daemon(directory)
    daemon.start(interval=3600)
    began = time.monotonic()
    found = measure_together(daemon, directory, options.rounds)
    daemon.stop()
    options.out.write_text(json.dumps({**found, "seconds": time.monotonic() - began, "kernel": os.uname().release}))


if __name__ == "__main__":
    main()
