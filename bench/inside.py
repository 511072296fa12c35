"""The part that runs in the guest: ``python3 -m bench.inside OUT``. What was measured goes to OUT as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import measures
from bench.daemon import PREFIX, Daemon, empty_target
from bench.disk import slow_disk
from bench.peers.bare import Bare
from bench.peers.base import Peer, Piece
from bench.peers.cinder import Cinder
from bench.peers.ours import Ours
from bench.peers.rtslib import Rtslib
from bench.peers.targetcli import Targetcli
from bench.peers.tgt import Tgt
from bench.summary import BUDGET, PATIENCE
from bench.target import count_targets, shape_of
from tests.load import add_crowd
from volattachd.client.sync import Client
from volattachd.state.journal import Journal

SIZE = 1 << 20
#: What the peers are, and the most others that they are tried beside: tgt knows nothing of LIO's exports.
PEERS: tuple[tuple[Callable[[], Peer], int], ...] = ((Rtslib, 1000), (Targetcli, 1000), (Cinder, 1000), (Tgt, 0))
LOOP = "/dev/loop7"
#: What a write and a flush take on the slow disk, in milliseconds: half a turn of 7,200 a minute, and a short seek.
SLOW = 8


class Bench:
    """One run: the crowd grows, and at each size everything is measured that belongs there."""

    def __init__(self, directory: Path, sizes: list[int], runs: int, *, peers: bool, figures: bool) -> None:
        self._directory = directory
        self._sizes = sizes
        self._runs = runs
        self._peers = PEERS if peers else ()
        self._figures = figures
        self._daemon = Daemon(directory)
        self._results: dict[str, Any] = {"cycles": {}, "peers": {}, "figures": {}, "notes": []}

    def run(self) -> dict[str, Any]:
        """All of it."""
        began = time.monotonic()
        self._daemon.start()
        if self._figures:
            self._measure_alone()
        before = 0
        for size in self._sizes:
            self._grow(range(before, size))
            self._measure_beside(size)
            before = size
        if self._figures:
            self._measure_crowd(before)
        self._daemon.stop()
        if before and self._sizes[0] == 0:
            self._measure_again()
        return {**self._results, "versions": versions(), "seconds": time.monotonic() - began}

    def _piece(self, name: str, block: bool = False) -> Piece:
        path = self._directory / f"{name}.img"
        with path.open("wb") as file:
            file.truncate(SIZE)
        if block:
            subprocess.run(["losetup", LOOP, str(path)], check=True)
        return Piece(name, LOOP if block else str(path), SIZE)

    def _grow(self, numbers: range) -> None:
        """More attached volumes: into the journal, and by the next start into the target."""
        if not numbers:
            return
        tell(f"{numbers.stop} others")
        self._daemon.stop()
        journal = Journal(self._daemon.state_dir)
        add_crowd(journal, self._directory, PREFIX, numbers)
        journal.close()
        self._daemon.start()
        if count_targets() != numbers.stop:
            raise RuntimeError(f"there should be {numbers.stop} targets, and there are {count_targets()}")

    # What is measured without others.

    def _measure_alone(self) -> None:
        figures = self._results["figures"]
        self._check_floor()
        tell("start of the command line")
        figures["command"] = measures.measure_command(self._daemon, self._runs)
        tell("start of a daemon without volumes")
        figures["start"] = measures.measure_start(self._daemon, 5)
        tell("wake-ups")
        figures["idle_alone"] = self._daemon.watch(30)
        tell("throughput")
        volumes = [self._register(f"load-{number}", multiattach=True) for number in range(64)]
        figures["reserving"] = measures.measure_groups(self._daemon, volumes)
        figures["showing"] = measures.measure_showing(self._daemon, volumes[0], self._directory, self._runs * 3)
        with Client(self._daemon.socket) as client:
            for volume in volumes:
                client.call("unregister_volume", {"volume": volume})
        tell("throughput on a slow disk")
        figures["reserving_slowly"] = self._daemon.while_stopped(self._measure_slow_disk)

    def _measure_slow_disk(self) -> dict[str, list[float]]:
        """The same on a disk that takes its time, with a daemon of its own."""
        with slow_disk(self._directory, SLOW) as directory:
            daemon = Daemon(directory)
            daemon.start()
            paths = [self._piece(f"slowly-{number}").path for number in range(64)]
            with Client(daemon.socket) as client:
                for path in paths:
                    client.call("register_volume", {"volume": Path(path).stem, "path": path, "multiattach": True})
            found = measures.measure_groups(daemon, [Path(path).stem for path in paths])
            daemon.close()
            return found

    def _register(self, name: str, **more: Any) -> str:
        with Client(self._daemon.socket) as client:
            client.call("register_volume", {"volume": name, "path": self._piece(name).path, **more})
        return name

    def _check_floor(self) -> None:
        """The floor is only one if it makes what we make."""
        ours, bare = Ours(self._daemon.socket), Bare()
        pieces = self._piece("shape-ours"), self._piece("shape-bare")
        ours.open(pieces[0])
        ours.attach(pieces[0])
        bare.attach(pieces[1])
        mine, theirs = shape_of(ours.target_name(pieces[0])), shape_of(bare.target_name(pieces[1]))
        ours.detach(pieces[0])
        bare.detach(pieces[1])
        ours.close()
        if mine != theirs:
            odd = sorted(set(mine.items()) ^ set(theirs.items()))
            raise RuntimeError(f"bare configfs makes something else than volattachd: {odd}")

    # What is measured beside others.

    def _measure_beside(self, size: int) -> None:
        tell(f"cycles beside {size}")
        ours, pieces = Ours(self._daemon.socket), (self._piece(f"bare-{size}"), self._piece(f"ours-{size}"))
        ours.open(pieces[1])
        found = measures.measure_cycles(ours, Bare(), pieces, self._directory, self._runs)
        parts = measures.measure_parts(self._daemon, pieces[1], self._runs)
        ours.close()
        self._results["cycles"][str(size)] = {**asdict(found), "parts": parts}
        self._daemon.stop()
        for make, most in self._peers:
            self._measure_peer(make(), size, most)
        self._daemon.start()

    def _measure_again(self) -> None:
        """Cycles beside none once more, at the end of the run."""
        tell("cycles beside 0, again")
        empty_target(self._daemon.state_dir)
        directory = self._directory / "again"
        directory.mkdir(mode=0o700)
        daemon = Daemon(directory)
        daemon.start()
        ours, pieces = Ours(daemon.socket), (self._piece("bare-again"), self._piece("ours-again"))
        ours.open(pieces[1])
        self._results["again"] = asdict(measures.measure_cycles(ours, Bare(), pieces, directory, self._runs))
        ours.close()
        daemon.close()

    def _measure_peer(self, peer: Peer, size: int, most: int) -> None:
        of_peer = self._results["peers"].setdefault(peer.name, {})
        slow = any(cycles["attach"][0] + cycles["detach"][0] > PATIENCE for cycles in of_peer.values())
        if size > most or slow or not is_installed(peer):
            return
        tell(f"{peer.name} beside {size}")
        piece = self._piece(f"peer-{size}", peer.block)
        of_peer[str(size)] = asdict(measures.measure_peer(peer, piece, self._runs, BUDGET))
        if peer.block:
            subprocess.run(["losetup", "-d", LOOP], check=True)

    # What is measured of a full house.

    def _measure_crowd(self, size: int) -> None:
        figures = self._results["figures"]
        figures["crowd"] = size
        tell("memory and wake-ups")
        figures["resident"] = self._daemon.resident_mebibytes()
        figures["idle_crowd"] = self._daemon.watch(30)
        tell("restart")
        figures["restart"] = measures.measure_restart(self._daemon, 5)
        tell("latency during passes")
        volume = self._register("latency")
        figures["latency"] = measures.measure_latency(self._daemon, volume, max(10, self._runs * 2))
        tell("restore")
        pieces = [Piece(f"many-{n}", str(self._directory / f"crowd-{n}.img"), SIZE) for n in range(size)]
        figures["restore"] = [measures.measure_restore(self._daemon, pieces) for _ in range(3)]


def is_installed(peer: Peer) -> bool:
    """Whether this guest has the program at all."""
    return not isinstance(peer, Cinder) or any(
        os.access(f"{place}/cinder-rtstool", os.X_OK) for place in ("/usr/bin", "/usr/local/bin")
    )


def versions() -> dict[str, str]:
    """What it was measured with."""
    words = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n"]
    names = ["python3-rtslib-fb", "targetcli-fb", "tgt", "cinder-common"]
    listed = subprocess.run([*words, *names], capture_output=True, text=True, check=False).stdout
    return {
        "kernel": platform.release(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processor(s)",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **dict(line.split(" ", 1) for line in listed.splitlines() if " " in line),
    }


def tell(what: str) -> None:
    """Progress."""
    print(f"bench: {what}", file=sys.stderr, flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--sizes", default="0,100,400,1000")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-figures", action="store_true")
    options = parser.parse_args()
    directory = Path("/var/lib/volattachd-bench")
    directory.mkdir(mode=0o700)
    sizes = [int(word) for word in options.sizes.split(",")]
    chosen = {"peers": not options.no_peers, "figures": not options.no_figures}
    bench = Bench(directory, sizes, options.runs, **chosen)
    options.out.write_text(json.dumps(bench.run(), indent=1))


if __name__ == "__main__":
    main()
