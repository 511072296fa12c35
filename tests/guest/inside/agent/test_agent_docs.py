"""The examples of docs/agent.md and of the README's first attach are run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.inside.agent.compute import leftovers
from tests.guest.inside.conftest import remove_volume
from tests.guest.inside.initiator import run
from tests.guest.inside.program import Program
from volattachd.client.sync import DEFAULT_SOCKET

GUEST = {"together": "agent"}

REPO = Path(__file__).parents[4]
EXAMPLES = re.findall(r"^```python\n(.*?)^```", (REPO / "docs/agent.md").read_text(), re.MULTILINE | re.DOTALL)
SHELL = re.findall(r"^```sh\n(.*?)^```", (REPO / "README.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def at_its_place(program: Program) -> Iterator[None]:
    """The daemon where the examples look for it, and ``volattach`` on the path."""
    socket = Path(DEFAULT_SOCKET)
    socket.parent.mkdir(exist_ok=True)
    socket.symlink_to(program.socket)
    command = Path("/usr/local/bin/volattach")
    command.write_text(f'#!/bin/sh\nPYTHONPATH={REPO} exec {sys.executable} -m volattachd.cli "$@"\n')
    command.chmod(0o755)
    yield
    socket.unlink()
    assert leftovers() == []


@pytest.fixture
def vol_1(program: Program) -> Iterator[None]:
    """The volume that the examples speak of."""
    file = Path("/root/vol-1.img")
    file.write_bytes(b"\0" * (16 << 20))
    program.call("register_volume", volume="vol-1", path=str(file))
    yield
    remove_volume(program, "vol-1")


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_in_python_runs(number: int, program: Program, vol_1: None) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", EXAMPLES[number]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "vol-1" in done.stdout
    assert program.call("show_volume", volume="vol-1")["status"] == "available"


def test_the_readmes_first_attach_and_its_way_back_run(program: Program) -> None:
    """All of it but the start of the daemon, which the fixture has done."""
    attach, back = SHELL
    begun = attach.partition("mkdir -p /srv/volumes")
    assert "volattachd &" in begun[0]
    for script in (begun[1] + begun[2].replace("1G", "64M"), back):
        done = run("sh", "-e", "-c", script)
    assert "detach" in done.stdout
    program.call("unregister_volume", volume="vol-1")
