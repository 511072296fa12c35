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

ROOT = Path(volattachd.__path__[0])
CLI = sorted(f"volattachd.cli.{path.stem}" for path in Path(volattachd.cli.__path__[0]).glob("[a-z]*.py"))
CLIENT = sorted(f"volattachd.client.{path.stem}" for path in (ROOT / "client").glob("[a-z]*.py"))
CLIENT_HALF = ["volattachd.errors", "volattachd.model", "volattachd.lifecycle", *CLIENT, *CLI]

ALLOWED = {
    "volattachd",
    "volattachd.api",
    "volattachd.api.methods",
    "volattachd.cli",
    "volattachd.client",
    "volattachd.errors",
    "volattachd.lifecycle",
    "volattachd.model",
    "volattachd.rpc",
    "volattachd.rpc.strictjson",
    *CLIENT,
    *CLI,
}

#: What a plain command imports beyond what everybody pays who imports argparse, json and socket.
PLAIN = {
    *("volattachd", "volattachd.cli", "volattachd.client", "volattachd.errors"),
    *(f"volattachd.cli.{name}" for name in ("commands", "exit_codes", "output", "parser")),
    *(f"volattachd.client.{name}" for name in ("connection", "protocol", "transport", "unix")),
    *("volattachd.rpc", "volattachd.rpc.strictjson"),
    *("typing", "typing.io", "typing.re", "contextlib", "grp", "math", "locale"),
}

AGENT = [
    f"volattachd.agent.{'.'.join(path.relative_to(ROOT / 'agent').with_suffix('').parts)}"
    for path in sorted((ROOT / "agent").rglob("[a-z]*.py"))
]


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
    assert {name for name in foreign if not name.startswith("volattachd.agent")} <= ALLOWED


@pytest.mark.parametrize("module", AGENT)
def test_the_agent_needs_pyudev_only_where_it_waits_for_a_device(module: str) -> None:
    loaded_modules = imported_by(f"import {module}")
    assert not {
        name for name in loaded_modules if name.partition(".")[0] not in {*sys.stdlib_module_names, "volattachd"}
    }
    theirs = {name for name in loaded_modules if name.startswith("volattachd.")}
    assert {name for name in theirs if not name.startswith("volattachd.agent")} <= ALLOWED


def test_a_plain_command_imports_what_it_needs_and_no_more(tmp_path: Path) -> None:
    """A count of modules and not of seconds: ``python -m bench.client_start`` has those."""
    with serving(tmp_path / "d.sock", result([])) as daemon:
        command = f"from volattachd.cli import main\nassert main(['--socket', {daemon.path!r}, 'list']) == 0"
        bare = loaded("import argparse, json, socket, sys\nprint('\\n' + ' '.join(sys.modules))")
        beyond = {name for name in imported_by(command) - bare if not name.rpartition(".")[2].startswith("_")}
        assert beyond <= PLAIN
        assert daemon.requests


def test_no_command_before_it_runs_imports_more_than_list(tmp_path: Path) -> None:
    """The table of commands names functions that import what they need."""
    parsed = imported_by("from volattachd.cli.parser import build_parser\nbuild_parser()")
    assert {name for name in parsed if name.startswith("volattachd.")} <= PLAIN
