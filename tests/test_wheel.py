"""The wheel: nothing in it needs a compiler, and its client half runs where nothing else is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.cli.fake_daemon import result, serving
from tests.cli.test_imports import CLIENT_HALF
from volattachd import __version__

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as a build leaves things in its tree; with the build tools that are here."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "volattachd", source / "volattachd", ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(source / "dist"), str(source)]
    subprocess.run([*PIP, "wheel", *options], check=True)
    (built,) = (source / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def alone(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and nothing else, not even pip; the answer is its directory of commands."""
    home = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    commands = home / "bin"
    subprocess.run([*PIP, "--python", str(commands / "python"), "install", "--no-deps", str(wheel)], check=True)
    return commands


def run(*words: str | Path) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/", env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_is_for_every_machine(wheel: Path) -> None:
    assert wheel.name == f"volattachd-{__version__}-py3-none-any.whl"


def test_nothing_that_it_depends_on_was_compiled_here() -> None:
    """What pip builds by itself is tagged for this machine's linux; what a registry has is pure, or manylinux."""
    names = set(needed("volattachd"))
    assert {"jsonrpcserver", "pyroute2", "pyudev"} <= names
    for name in names:
        tags = re.findall(r"^Tag: (\S+)$", metadata.distribution(name).read_text("WHEEL") or "", re.MULTILINE)
        assert tags and all(re.search(r"-none-any$|-(many|musl)linux", tag) for tag in tags), name


def needed(name: str, seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """What a distribution needs here, and what that needs."""
    for line in metadata.requires(name) or []:
        found = re.match(r"[\w.-]+", line)
        if found is None or ";" in line or found[0] in seen:
            continue
        yield found[0]
        yield from needed(found[0], seen | {found[0]})


def test_the_client_half_runs_with_nothing_else(alone: Path, tmp_path: Path) -> None:
    installed = run(
        alone / "python", "-c", "from importlib import metadata as m; print(*[d.name for d in m.distributions()])"
    )
    assert installed.split() == ["volattachd"]
    assert run(alone / "volattach", "--version") == f"volattach {__version__}\n"
    with serving(tmp_path / "d.sock", result([{"volume": "vol-1"}])) as daemon:
        shown = run(alone / "volattach", "--socket", daemon.path, "--json", "list")
    assert json.loads(shown) == [{"volume": "vol-1"}]


@pytest.mark.parametrize("module", CLIENT_HALF)
def test_every_module_of_the_client_half_can_be_imported_there(alone: Path, module: str) -> None:
    run(alone / "python", "-c", f"import {module}")


def test_every_command_has_its_help_there(alone: Path) -> None:
    for command in re.findall(r"^    ([a-z-]+)  ", run(alone / "volattach", "--help"), re.MULTILINE):
        run(alone / "volattach", command, "--help")


def test_the_daemon_says_there_what_it_lacks(alone: Path) -> None:
    for words in ([alone / "volattachd"], [alone / "python", "-m", "volattachd"]):
        done = subprocess.run([*words, "--version"], capture_output=True, text=True, check=False, cwd="/")
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(
            r"volattachd: cannot start: the Python package \w+ is not installed\ntry: pip install volattachd .*\n",
            done.stderr,
        )
