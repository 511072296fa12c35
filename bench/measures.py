"""The measurements: one function each, numbers in seconds out. Nothing is judged here."""

from __future__ import annotations

import json
import select
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from bench.daemon import PREFIX, Daemon, empty_target
from bench.peers.bare import Bare
from bench.peers.base import ADDRESS, PORT, Peer, Piece
from bench.peers.ours import ATTACH, DETACH, Ours, params_of
from bench.target import ROOT
from bench.yardsticks import BareCommits, Echo, Line, read_bare
from tests.faults.injection import CountedFs, Operation, Seam
from volattachd.api.audit import Audit
from volattachd.client.sync import Client
from volattachd.config import Config
from volattachd.daemon import Service, build_service
from volattachd.drivers.base import Portal
from volattachd.drivers.configfs.tree import ConfigFs
from volattachd.drivers.lio import LioDriver
from volattachd.model import Caller
from volattachd.state.journal import Journal
from volattachd.telemetry.metrics import Metrics

T = TypeVar("T")

SIX = (*ATTACH, *DETACH)
_PIPELINED = 32
_ADMIN = Caller(uid=0, pid=1, admin=True)


def timed(body: Callable[[], object]) -> float:
    """How long it took."""
    began = time.perf_counter()
    body()
    return time.perf_counter() - began


@dataclass
class Cycles:
    """Attaches and detaches of one peer."""

    attach: list[float] = field(default_factory=list)
    detach: list[float] = field(default_factory=list)

    def run(self, peer: Peer, piece: Piece) -> float:
        """One cycle, its result looked at in between; the answer is what it took."""
        self.attach.append(timed(lambda: peer.attach(piece)))
        if not peer.is_attached(piece):
            raise RuntimeError(f"{peer.name}: the target does not let the initiator in")
        self.detach.append(timed(lambda: peer.detach(piece)))
        if not peer.is_detached(piece):
            raise RuntimeError(f"{peer.name}: the target is still there")
        return self.attach[-1] + self.detach[-1]


@dataclass
class SideBySide:
    """Our cycles and what they are compared with, taken in turns."""

    ours: Cycles
    bare: Cycles
    commits: list[float]
    echoes: list[float]
    calls: dict[str, list[float]]


def measure_cycles(ours: Ours, bare: Bare, pieces: tuple[Piece, Piece], directory: Path, runs: int) -> SideBySide:
    """Our cycle, a bare one, six bare commits, six bare echoes: in turns, so that noise meets them all."""
    commits, echo = BareCommits(directory), Echo(str(directory / "echo.sock"), 512)
    found = SideBySide(Cycles(), Cycles(), [], [], ours.calls)
    request = b"x" * 199 + b"\n"
    for _ in range(runs):
        found.bare.run(bare, pieces[0])
        found.commits.append(timed(lambda: commits.commit(len(SIX))))
        found.echoes.append(timed(lambda: [echo.line.ask([request]) for _ in SIX]))
        found.ours.run(ours, pieces[1])
    commits.close()
    echo.close()
    return found


def measure_peer(peer: Peer, piece: Piece, runs: int, budget: float) -> Cycles:
    """Cycles of one peer until there are enough, or the budget in seconds is used up; at least one."""
    found, left = Cycles(), budget
    peer.open(piece)
    try:
        while left > 0 and len(found.attach) < runs:
            left -= found.run(peer, piece)
    finally:
        peer.close()
    return found


class TimedSeam(Seam):
    """Adds up what the operations take, by what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}

    def run(self, operation: Operation, real: Callable[[], T]) -> T:
        began = time.perf_counter()
        try:
            return real()
        finally:
            kind = "journal" if operation.where == "sql" else "changes" if operation.changes else "reads"
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - began


def measure_parts(daemon: Daemon, piece: Piece, runs: int) -> list[dict[str, float]]:
    """What a cycle is made of, without the socket: changes and reads of the target, the journal, and all of it."""

    def run() -> list[dict[str, float]]:
        seam = TimedSeam()
        journal, service = _service(daemon, seam)
        found = []
        for _ in range(runs):
            seam.seconds = {}
            whole = timed(lambda: [service.handlers[call](_ADMIN, **params_of(call, piece.name)) for call in SIX])
            found.append({**seam.seconds, "whole": whole})
        journal.close()
        return found

    return daemon.while_stopped(run)


def _service(daemon: Daemon, seam: Seam) -> tuple[Journal, Service]:
    """The daemon's own parts over its state, with every operation passing the seam."""
    config = replace(Config(), state_dir=daemon.state_dir, portals=(f"{ADDRESS}:{PORT}",))
    journal = Journal(daemon.state_dir, connect=seam.connect)
    driver = LioDriver(PREFIX, [Portal(ip_address(ADDRESS), PORT)], CountedFs(ConfigFs(), seam))
    return journal, build_service(config, journal, driver, Metrics(), Audit())


# Throughput.


def request_of(method: str, **params: Any) -> bytes:
    """A request as a line."""
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() + b"\n"


def measure_reserving(daemon: Daemon, volumes: Sequence[str], clients: int, calls: int) -> float:
    """Durable reserve_volume calls a second of so many clients, each of which waits for its answers."""
    lines = {line.socket.fileno(): (line, volume) for line, volume in
             ((Line(daemon.socket), volumes[n]) for n in range(clients))}  # fmt: skip
    waiting = select.poll()
    began = time.perf_counter()
    for fd, (line, volume) in lines.items():
        waiting.register(fd, select.POLLIN)
        line.socket.sendall(request_of("reserve_volume", volume=volume))
    answered, sent = 0, clients
    while answered < calls:
        for fd, _ in waiting.poll():
            line, volume = lines[fd]
            answers = line.receive()
            if any(b'"result"' not in answer for answer in answers):
                raise RuntimeError(f"a call was refused: {answers}")
            answered += len(answers)
            if answers and sent < calls:
                line.socket.sendall(request_of("reserve_volume", volume=volume))
                sent += 1
    rate = calls / (time.perf_counter() - began)
    for line, _ in lines.values():
        line.close()
    with Client(daemon.socket) as client:
        for row in client.call("list_attachments"):
            if row["state"] == "reserved":
                client.call("unreserve_volume", {"volume": row["volume"], "attachment_id": row["attachment_id"]})
    return rate


def measure_groups(daemon: Daemon, volumes: Sequence[str]) -> dict[str, list[float]]:
    """Those rates of one client and of 64, three of each."""
    asked = (("1", 1, 100), ("64", 64, 640))
    return {
        name: [measure_reserving(daemon, volumes, clients, calls) for _ in range(3)] for name, clients, calls in asked
    }


def measure_showing(daemon: Daemon, volume: str, directory: Path, rounds: int) -> tuple[float, float]:
    """Calls a second of pipelined show_volume, and of an echo of as many bytes."""
    request = request_of("show_volume", volume=volume)
    line = Line(daemon.socket)
    [answer] = line.ask([request])
    echo = Echo(str(directory / "show.sock"), len(answer) + 1)
    shows, echoes = [], []
    for _ in range(rounds):
        shows.append(timed(lambda: line.ask([request] * _PIPELINED)))
        echoes.append(timed(lambda: echo.line.ask([request] * _PIPELINED)))
    line.close()
    echo.close()
    return _PIPELINED / statistics.median(shows), _PIPELINED / statistics.median(echoes)


# Start, restart, restore.


def measure_start(daemon: Daemon, runs: int) -> dict[str, list[float]]:
    """Starts with nothing to look at: a bare interpreter, one that imports the daemon, a daemon without volumes."""
    programs = {"bare": "pass", "imports": "import gc; gc.disable(); import volattachd.daemon"}
    found: dict[str, list[float]] = {"bare": [], "imports": [], "none": []}
    daemon.stop()
    for _ in range(runs):
        for name, program in programs.items():
            found[name].append(timed(lambda: subprocess.run([sys.executable, "-c", program], check=True)))  # noqa: B023
        found["none"].append(daemon.start())
        daemon.stop()
    daemon.start()
    return found


def measure_restart(daemon: Daemon, runs: int) -> dict[str, Any]:
    """A start over a target that is as it should be, and bare reading of the same attributes."""

    def record() -> list[Operation]:
        seam = Seam()
        journal, service = _service(daemon, seam)
        service.controller.start_up()
        journal.close()
        return [operation for operation in seam.seen if operation.where == "configfs"]

    daemon.stop()
    operations = record()
    reads = [operation for operation in operations if not operation.changes]
    starts, bare = [], []
    for _ in range(runs):
        bare.append(timed(lambda: read_bare(str(ROOT), reads)))
        starts.append(daemon.start())
        daemon.stop()
    daemon.start()
    return {"starts": starts, "bare": bare, "reads": len(reads), "writes": len(operations) - len(reads)}


def measure_restore(daemon: Daemon, pieces: Sequence[Piece]) -> dict[str, float]:
    """A start over an empty target, and bare configfs making as many exports."""
    daemon.stop()
    empty_target(daemon.state_dir)
    peers = [(Bare(number), piece) for number, piece in enumerate(pieces)]
    bare = sum(timed(lambda: peer.attach(piece)) for peer, piece in peers)  # noqa: B023 - called at once
    for peer, piece in peers:
        peer.detach(piece)
    return {"bare": bare, "start": daemon.start()}


def measure_latency(daemon: Daemon, volume: str, cycles: int) -> dict[str, list[float]]:
    """What each call of a cycle takes while nothing else goes on, and while passes over everything do."""
    daemon.stop()
    daemon.start(interval=3600)
    found = {"passes": list[float](), "quiet": _latencies(daemon, volume, cycles)}
    over = threading.Event()

    def pass_over_and_over() -> None:
        with Client(daemon.socket, timeout=600) as client:
            while not over.is_set():
                found["passes"].append(timed(lambda: client.call("reconcile")))

    thread = threading.Thread(target=pass_over_and_over)
    thread.start()
    found["during"] = _latencies(daemon, volume, cycles)
    over.set()
    thread.join()
    daemon.stop()
    daemon.start()
    return found


def _latencies(daemon: Daemon, volume: str, cycles: int) -> list[float]:
    with Client(daemon.socket) as client:
        return [timed(lambda: client.call(call, params_of(call, volume)))  # noqa: B023 - called at once
                for _ in range(cycles) for call in SIX]  # fmt: skip


def measure_command(daemon: Daemon, runs: int) -> dict[str, list[float]]:
    """A start of ``volattach list``, and of a bare interpreter with what any client imports."""
    ours = [sys.executable, "-m", "volattachd.cli", "--socket", daemon.socket, "list"]
    bare = [sys.executable, "-c", "import json, socket, argparse"]
    found: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(runs):
        for name, words in (("ours", ours), ("bare", bare)):
            found[name].append(timed(lambda: subprocess.run(words, check=True, capture_output=True)))  # noqa: B023
    return found
