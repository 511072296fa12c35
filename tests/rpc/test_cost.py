"""What messages may cost a real daemon, and what it answers to anything: no message is a crash, a hang or a bug."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.soak import times
from tests.support import PATIENCE, Wire, attachment_id, connector, make_file, request
from volattachd.api.methods import METHODS

MIB = 1 << 20


class Daemon:
    """A daemon with the simulator as its target, and its memory as the kernel counts it."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "d.sock"
        words = ["--driver", "memory", "--state-dir", str(directory / "state"), "--socket", str(self.socket)]
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "volattachd", *words], stderr=log)
        deadline = time.monotonic() + PATIENCE
        while not self.is_ready():
            assert self.process.poll() is None and time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.01)

    def is_ready(self) -> bool:
        try:
            with Wire(self.socket) as wire:
                return "result" in (wire.ask(request("get_status")) or {})
        except OSError:
            return False

    def memory(self, name: str) -> int:
        """VmRSS, or VmHWM: its peak since ``forget_peak``."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith(name)))

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    try:
        yield made
    finally:
        made.process.terminate()
        made.process.wait(PATIENCE)


def filled(unit: bytes, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    count = (MIB - len(opening) - len(closing)) // len(unit)
    return opening + (unit * count).rstrip(b",") + closing


def batch(call: dict[str, Any], count: int) -> bytes:
    return json.dumps([{**call, "id": number} for number in range(count)]).encode()


CALL = b'{"jsonrpc":"2.0","id":1,"method":"initialize_connection","params":{"volume":"v","connector":'
SHAPES = {
    "ones": filled(b"1,"),
    "lists": filled(b"[],"),
    "objects": filled(b"{},"),
    "nested": filled(b"[" * 30 + b"]" * 30 + b","),
    "nested objects": filled(b'{"":' * 30 + b"1" + b"}" * 30 + b","),
    "most lists": b"[" + b",".join([b"[" * 30 + b"]" * 30] * 1000) + b"]",
    "most objects": b"[" + b",".join([b'{"":' * 30 + b"1" + b"}" * 30] * 1000) + b"]",
    "escapes": filled(b"\\u0100", b'"', b'"'),
    "one string": filled(b"x", b'"', b'"'),
    "long keys": b'{"' + b'":{"'.join([b"\xc3\xa4" * 17_000] * 29) + b'":1' + b"}" * 29,
    "long name": b'{"jsonrpc":"2.0","id":1,"method":"' + b"\xf3\xa0\x80\x81" * 250_000 + b'"}',
    "long parameter": b'{"jsonrpc":"2.0","id":1,"method":"get_status","params":{"' + b"\xc2\x80" * 450_000 + b'":1}}',
    "long connector": CALL + filled(b"\xf3\xa0\x80\x81", b'{"initiator":"', b'"}')[: -MIB // 4] + b'"}}}',
    "discover": batch(request("rpc.discover"), 100),
    "lists of volumes": batch(request("list_volumes"), 100),
    "histories": batch(request("get_history", since=0, limit=1000), 100),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may reset the peak of another process")
def test_no_message_costs_more_than_its_bar(daemon: Daemon, tmp_path: Path) -> None:
    with Wire(daemon.socket) as wire:
        for number in range(40):
            wire.call("register_volume", volume=f"v{number}", path=make_file(tmp_path / f"v{number}"))
            wire.call("reserve_volume", f"v{number}", attachment_id(number))
            full = connector(more="é" * 8000)
            wire.call("initialize_connection", f"v{number}", full, attachment_id(number))
        wire.call("rpc.discover")
    daemon.forget_peak()
    before, figures = daemon.memory("VmRSS"), []
    for name, message in SHAPES.items():
        assert len(message) <= MIB, name
        with Wire(daemon.socket) as hostile, Wire(daemon.socket) as other:
            hostile.send(message)
            began = time.monotonic()
            other.call("get_status")
            delay = time.monotonic() - began
            answer = hostile.answer()
        size = len(json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode())
        growth = daemon.memory("VmHWM") - before
        figures.append(f"{name}: {growth / MIB:.0f} MiB, {size / MIB:.2f} MiB, {delay * 1e3:.0f} ms")
        assert size <= 8 * MIB, name
        assert growth <= 64 * MIB, figures
    print("memory, answer, delay of another's call: " + "; ".join(figures))


# Anything.

CASES = times(20_000, 1_000_000)
END = json.dumps(request("get_status", call_id="end")).encode()


class Fuzz:
    """Messages at random: calls that are nearly right, and bytes that are nearly JSON."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def message(self) -> bytes:
        choose = self._random
        kind = choose.randrange(10)
        if kind < 7:
            return json.dumps(self._call(), ensure_ascii=choose.random() < 0.5).encode("utf-8", "replace")
        if kind < 8:
            return json.dumps([self._call() for _ in range(choose.randrange(5))]).encode()
        data = bytearray(json.dumps(self._call()).encode())
        for _ in range(choose.randrange(1, 4)):
            data[choose.randrange(len(data))] = choose.randrange(256)
        return bytes(data)

    def _call(self) -> dict[str, Any]:
        choose = self._random
        method = choose.choice([m for m in METHODS if m.name not in ("backup_journal", "subscribe", "get_metrics")])
        params = {p.name: self._fitting(p.name) for p in method.params if p.required or choose.random() < 0.4}
        for name in list(params):
            if choose.random() < 0.2:
                params[name] = self._value()
        call = {"jsonrpc": "2.0", "id": self._value(3) if choose.random() < 0.1 else 1, "method": method.name}
        return {**call, "params": list(params.values()) if choose.random() < 0.1 else params}

    def _fitting(self, name: str) -> Any:
        choose = self._random
        ip = choose.choice(["127.0.0.1", "fe80::1%eth0", "::1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::", None])
        values: dict[str, list[Any]] = {
            "volume": [f"v{choose.randrange(4)}"],
            "attachment_id": [attachment_id(choose.randrange(12))],
            "connector": [
                connector(f"iqn.2026-11.org.example:{choose.randrange(3)}", ip=ip),
                {"do_local_attach": True},
            ],
            "mode": ["rw", "ro"],
            "path": ["/dev/null", "/", "/proc/self/mem"],
            "since": [0, 5, 2**63, 2**63 - 1, 1e18, -1],
            "before": [0, 5, 2**63, 2**63 - 1],
            "limit": [1, 10, 10.0, 1001],
            "ttl": [1, 1e300, 3600],
        }
        return choose.choice(values.get(name, ["x", True, 7]))

    def _value(self, depth: int = 0) -> Any:
        choose = self._random
        scalars = [None, True, -1, 2**63, 2**64 - 1, 1.5, 1e308, "", "x" * choose.randrange(300), "\u2028\x00", "é%s{}"]
        if depth > 2 or choose.random() < 0.7:
            return choose.choice(scalars)
        inside = [self._value(depth + 1) for _ in range(choose.randrange(4))]
        return inside if choose.random() < 0.5 else {str(number): value for number, value in enumerate(inside)}


def test_nothing_that_is_sent_is_a_crash_a_hang_or_a_bug(daemon: Daemon, tmp_path: Path) -> None:
    seed = int(os.environ.get("VOLATTACHD_SEED") or random.randrange(2**32))
    fuzz, outcomes = Fuzz(seed), Counter[object]()
    print(f"seed {seed} (VOLATTACHD_SEED)")
    with Wire(daemon.socket) as wire:
        for number in range(4):
            path = make_file(tmp_path / f"v{number}")
            wire.call("register_volume", volume=f"v{number}", path=path, multiattach=number > 1)
    wire, settled = Wire(daemon.socket), 0
    for number in range(CASES):
        message = fuzz.message()
        try:
            wire.send(message + b"\n" + END)
            if not is_json(message):
                wire.end()  # half a message would be waited for
        except OSError:
            pass  # it hung up: its answer says why
        while (answer := wire.answer()) is not None and answer_id(answer) != "end":
            for part in answer if isinstance(answer, list) else [answer]:
                code = part.get("error", {}).get("code", "done")
                assert code != -32603, (seed, message)
                outcomes[code] += 1
        if answer is None:
            wire.socket.close()
            wire = Wire(daemon.socket)
            outcomes["closed"] += 1
        if number == CASES // 4:
            settled = daemon.memory("VmRSS")
    assert daemon.process.poll() is None
    growth = daemon.memory("VmRSS") - settled
    print(f"{CASES} cases: {dict(outcomes)}; growth over the last three quarters: {growth / MIB:.1f} MiB")
    assert growth <= 32 * MIB
    assert outcomes["done"] > CASES / 20 and outcomes[-32700] and outcomes[1004], "the fuzz reaches what it should"
    wire.socket.close()


def is_json(message: bytes) -> bool:
    try:
        json.loads(message)
    except ValueError:
        return False
    return True


def answer_id(answer: Any) -> Any:
    return answer.get("id") if isinstance(answer, dict) else None
