"""Twenty agents at once, each with a volume of its own, over and over: iscsid, udev and the daemon serve them all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tests.figures import RecordFigure
from tests.guest.inside.agent.compute import leftovers, rename_initiator
from tests.guest.inside.program import Program
from tests.soak import times
from volattachd.agent import Agent, SentAgain
from volattachd.client.sync import Client

GUEST = {"timeout": 1500.0}

AGENTS = 20
ROUNDS = times(2, 10)


def test_twenty_agents_attach_and_detach_without_an_error_and_leave_nothing(
    program: Program, new_device: Callable[[str], str], record_figure: RecordFigure
) -> None:
    rename_initiator("iqn.2026-11.com.example:busy")
    names = [f"busy-{number}" for number in range(AGENTS)]
    for name in names:
        program.call("register_volume", volume=name, path=new_device("file"))
    errors: list[str] = []
    began = time.monotonic()
    threads = [threading.Thread(target=work, args=(program, name, errors)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = f"{time.monotonic() - began:.0f} s"
    record_figure("agents at once", f"{AGENTS} with {ROUNDS} rounds each in {took}, errors: {len(errors)}")
    assert not errors, "\n".join(errors)
    assert {row["status"] for row in program.call("list_volumes")} == {"available"}
    assert leftovers() == []
    for name in names:
        program.call("unregister_volume", volume=name)


def work(program: Program, volume: str, errors: list[str]) -> None:
    """The rounds of one agent. An error ends them: what follows would only repeat it."""
    agent = Agent(SentAgain(lambda: Client(str(program.socket))))
    for number in range(ROUNDS):
        try:
            device = agent.attach(volume).path
            with open(device, "rb") as disk:
                assert len(disk.read(4096)) == 4096
            agent.detach(volume)
        except Exception as error:  # noqa: BLE001 - told by the test, with its round
            errors.append(f"round {number} of {volume}: {type(error).__name__}: {error}")
            return
