"""What messages may cost a real daemon: the worst shapes that were found, and what they are answered with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import PATIENCE, Wire, attachment_id, connector, make_file, request

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
