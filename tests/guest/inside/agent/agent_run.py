"""One command of the agent in a process of its own that ends, by SIGKILL, as its N-th step begins.

python -m tests.guest.inside.agent.agent_run SOCKET STEP attach|detach VOLUME
"""

from __future__ import annotations

import os
import signal
import sys

from volattachd.agent import Agent, SentAgain
from volattachd.client.sync import Client


def main(socket_path: str, last: str, command: str, volume: str) -> None:
    told = 0

    def report(line: str) -> None:
        nonlocal told
        print(line, flush=True)
        told += 1
        if told == int(last):
            os.kill(os.getpid(), signal.SIGKILL)

    agent = Agent(SentAgain(lambda: Client(socket_path)), report=report)
    print(getattr(agent, command)(volume), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
