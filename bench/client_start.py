"""What a start of ``volattach list`` costs, as a multiple of ``python3 -c 'import json, socket, argparse'``.

    python -m bench.client_start [RUNS]

Both run turn by turn, so that a busy machine slows both. The smallest time of each is what it costs where nothing
else is in the way; the ratio of those two should be at most 2.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

BARE = "import json, socket, argparse"
LIST = "import sys; sys.argv[1:] = ['--socket', {path!r}, 'list']; from volattachd.cli import main; sys.exit(main())"
ROOT = Path(__file__).parent.parent


@contextmanager
def daemon() -> Iterator[str]:
    """Something that answers list_volumes as a daemon without volumes does; gives its socket's path."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        path = f"{directory}/d.sock"
        listener.bind(path)
        listener.listen()
        threading.Thread(target=answer_all, args=(listener,), daemon=True).start()
        yield path


def answer_all(listener: socket.socket) -> None:
    """Answers one call on each connection, for as long as the process lives."""
    while True:
        connection, _ = listener.accept()
        with connection:
            asked = json.loads(connection.recv(65536))
            connection.sendall(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": []}).encode() + b"\n")


def cost(program: str) -> float:
    """Seconds of processor time that one run of a Python program takes, the kernel's part included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(words: Sequence[str]) -> int:
    """Prints both costs and their ratio."""
    runs = int(words[0]) if words else 40
    with daemon() as path:
        programs = {"bare": BARE, "list": LIST.format(path=path)}
        times: dict[str, list[float]] = {name: [cost(program)] for name, program in programs.items()}
        for _ in range(runs):
            for name, program in programs.items():
                times[name].append(cost(program))
    for name, taken in times.items():
        print(f"{name}: {min(taken) * 1e3:.1f} ms at least, {statistics.median(taken) * 1e3:.1f} ms in the middle")
    print(f"ratio: {min(times['list']) / min(times['bare']):.2f} (of the smallest), over {runs} runs of each")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
