"""The client half stands alone.

It runs on hosts that have no daemon, from ``ssh`` and from other people's programs: what it imported beyond the
standard library would have to be installed there, and each start of ``volattach`` would pay for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import volattachd.cli
from tests.cli.fake_daemon import result, serving

CLI = sorted(f"volattachd.cli.{path.stem}" for path in Path(volattachd.cli.__path__[0]).glob("[a-z]*.py"))
RPC = [
    f"volattachd.rpc.{name}"
    for name in ("aio", "calls", "client", "connection", "exchange", "results", "ssh", "transport", "unix")
]
CLIENT_HALF = ["volattachd.errors", "volattachd.model", "volattachd.lifecycle", *RPC, *CLI]

ALLOWED = {
    "volattachd",
    "volattachd.cli",
    "volattachd.errors",
    "volattachd.lifecycle",
    "volattachd.model",
    "volattachd.rpc",
    "volattachd.rpc.framing",
    "volattachd.rpc.methods",
    "volattachd.rpc.strictjson",
    *RPC,
    *CLI,
}

#: What only some commands need; each costs as much as a whole start of ``volattach list`` may cost more than Python.
DEAR = {
    "asyncio",
    "dataclasses",
    "difflib",
    "hypothesis",
    "inspect",
    "pathlib",
    "subprocess",
    "volattachd.rpc.methods",
}


def imported_by(program: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after ``program``, beyond those it begins with."""
    listing = "\nimport sys\nprint('\\n' + ' '.join(sys.modules))"
    return loaded(program + listing) - loaded(listing)


def loaded(program: str) -> set[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(volattachd.__path__[0]).parent)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("module", CLIENT_HALF)
def test_the_client_half_imports_the_standard_library_and_itself_only(module: str) -> None:
    foreign = {
        name for name in imported_by(f"import {module}") if name.partition(".")[0] not in sys.stdlib_module_names
    }
    assert foreign <= ALLOWED


def test_a_plain_command_imports_nothing_dear(tmp_path: Path) -> None:
    with serving(tmp_path / "d.sock", result([])) as daemon:
        command = f"from volattachd.cli import main\nassert main(['--socket', {daemon.path!r}, 'list']) == 0"
        bare = loaded("import argparse, json, socket, sys\nprint('\\n' + ' '.join(sys.modules))")
        assert not (imported_by(command) - bare) & DEAR
        assert daemon.requests
