"""What every module in a guest uses: the daemon, two initiators, files and block devices to register."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest.inside.initiator import Initiator, run
from tests.guest.inside.program import Program

SIZE = 16 << 20
Device = Callable[[str], str]

_loops = itertools.count(100)


@pytest.fixture(scope="module")
def base() -> Path:
    """A directory on the guest's disk that nobody else can write to."""
    path = Path("/var/lib/volattachd-test")
    path.mkdir(mode=0o700, exist_ok=True)
    return path


@pytest.fixture(scope="module")
def program(base: Path) -> Iterator[Program]:
    """The daemon of the module, with real LIO."""
    made = Program(base, '[target]\ndriver = "lio"\n')
    made.start()
    yield made
    assert made.stop() == 0


@pytest.fixture(scope="module")
def host1() -> Initiator:
    return Initiator("iqn.2026-11.com.example:host1")


@pytest.fixture(scope="module")
def host2() -> Initiator:
    return Initiator("iqn.2026-11.com.example:host2")


@pytest.fixture(scope="module")
def new_device(base: Path) -> Iterator[Device]:
    """Makes a device of a kind, "file" or "block"; the answer is its path."""
    loops = []

    def make(kind: str, size: int = SIZE) -> str:
        path = base / f"{uuid.uuid4()}.img"
        with path.open("wb") as file:
            file.truncate(size)
        if kind == "file":
            return str(path)
        loop = f"/dev/loop{next(_loops)}"
        run("losetup", loop, str(path))
        loops.append(loop)
        return loop

    yield make
    for loop in loops:
        run("losetup", "-d", loop)


@pytest.fixture
def volume(program: Program, new_device: Device) -> Iterator[str]:
    """A registered file of 16 MiB, whatever state the test leaves it in."""
    name = f"vol-{uuid.uuid4()}"
    program.call("register_volume", volume=name, path=new_device("file"))
    yield name
    remove_volume(program, name)


def remove_volume(program: Program, name: str) -> None:
    """Bring a volume back to available by force, and forget it."""
    for row in program.call("list_attachments", volume=name):
        end_attachment(program, row)
    program.call("unregister_volume", volume=name)


def end_attachment(program: Program, row: dict[str, object]) -> None:
    """The documented way out of every state."""
    at = {"volume": row["volume"], "attachment_id": row["attachment_id"]}
    if row["state"] == "reserved":
        program.call("unreserve_volume", **at)
        return
    if row["state"] != "disconnected":
        program.call("terminate_connection", **at, connector=row["connector"], force=True)
    program.call("detach", **at)
