"""Starts daemons quickly: a process that has imported the program, and forks one daemon for each line it reads.

Each is the shipped program from its ``main`` on, in a process of its own; what is spared is a second of imports.
A line ``start [WORDS]`` answers the new process's id, ``wait ID`` how it ended (as os.waitstatus_to_exitcode).
"""

from __future__ import annotations

import json
import os
import sys

from volattachd import daemon
from volattachd.drivers import (
    lio,  # noqa: F401 - what a start would import
    registry,
)


def serve() -> None:
    """Until the end of the input."""
    registry.load("lio")
    for line in sys.stdin:
        command, _, rest = line.partition(" ")
        answer = _start(json.loads(rest)) if command == "start" else _wait(int(rest))
        print(answer, flush=True)


def _start(words: list[str]) -> int:
    pid = os.fork()
    if pid == 0:
        os.close(0)
        os.dup2(2, 1)
        os._exit(daemon.main(words))
    return pid


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    serve()
