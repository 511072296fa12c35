"""Load for a daemon whose host will lose its power: threads that call, and a line outside for each answer.

Runs inside the guest: ``python3 -m tests.guest.load SOCKET LOG THREADS``. The log is on the host: a line is
there before the next call is sent, and a power cut of the guest does not take it away. Its first line says what was
found once the daemon served, before anything was called that changes something.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import uuid
from typing import Any

from volattachd.client.sync import Client, Unreachable

TARGETS = "/sys/kernel/config/target/iscsi"
CALLS = ("reserve_volume", "initialize_connection", "attach", "begin_detaching", "terminate_connection", "detach")


class Log:
    """What was found, what was tried and what was acknowledged, a line each."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = threading.Lock()

    def line(self, **content: Any) -> None:
        with self._lock:
            os.write(self._fd, json.dumps(content).encode() + b"\n")


def connect(socket: str) -> Client:
    """A connection to the daemon, as soon as it serves. Whoever waits has a limit."""
    while True:
        client = Client(socket)
        try:
            if client.call("get_status", {})["ready"]:
                return client
        except Unreachable:
            pass
        client.close()
        time.sleep(0.05)


def found(client: Client) -> dict[str, Any]:
    """What the journal says, what a pass would still have to do, and which targets the kernel has."""
    return {
        "attachments": client.call("list_attachments", {}),
        "steps": client.call("reconcile", {"dry_run": True})["volumes"],
        "targets": [name for name in os.listdir(TARGETS) if name.startswith("iqn.")],
    }


def params_of(call: str, volume: str, attachment: str) -> dict[str, Any]:
    """The parameters of one call of the cycle."""
    params: dict[str, Any] = {"volume": volume, "attachment_id": attachment}
    if call in ("initialize_connection", "terminate_connection"):
        params["connector"] = {"initiator": f"iqn.2026-11.com.example:{volume}", "ip": "127.0.0.1"}
    if call == "attach":
        params["host_name"] = "load"
    return params


def work(socket: str, log: Log, volume: str) -> None:
    """Cycle after cycle on one volume, from wherever it is, until the power goes."""
    with Client(socket) as client:
        while True:
            rows = client.call("list_attachments", {"volume": volume})
            attachment = rows[0]["attachment_id"] if rows else str(uuid.uuid4())
            for call in CALLS[CALLS.index(next_call(rows)) :]:
                log.line(tried=call, volume=volume, attachment=attachment)
                client.call(call, params_of(call, volume, attachment))
                log.line(acknowledged=call, volume=volume, attachment=attachment)


def next_call(rows: list[dict[str, Any]]) -> str:
    """Where the cycle goes on."""
    states = ("gone", "reserved", "connected", "attached", "detaching", "disconnected")
    return CALLS[states.index(rows[0]["state"] if rows else "gone")]


def main(socket: str, path: str, threads: str) -> None:
    """Say what is found, and start the threads; never returns."""
    log = Log(path)
    with connect(socket) as client:
        log.line(found=found(client))
    running = [threading.Thread(target=work, args=(socket, log, f"vol-{n}")) for n in range(int(threads))]
    for thread in running:
        thread.start()


if __name__ == "__main__":
    main(*sys.argv[1:])
