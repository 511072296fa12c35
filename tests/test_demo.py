"""The demo does what it says, leaves nothing, and fails when anything is not as it should be."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from demo.screen import members
from volattachd.lifecycle import Call

ROOT = Path(__file__).parent.parent
SEARCH_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
QEMU_IO = shutil.which("qemu-io")
MISSING = [tool for tool in ("tgtd", "tgtadm", "qemu-io") if shutil.which(tool, path=SEARCH_PATH) is None]
SIX = [Call.RESERVE, Call.INITIALIZE, Call.ATTACH, Call.BEGIN_DETACHING, Call.TERMINATE, Call.DETACH]
SECONDS = 60

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it starts an iSCSI target"),
]


@pytest.fixture
def place() -> Iterator[Path]:
    """Where the demo makes its files. However a test went, nothing of it may be left: no file, no process.

    Not below tmp_path: with the demo's own directory, a socket's name would pass the 107 bytes that it may have.
    """
    with TemporaryDirectory(prefix="demo-") as name:
        yield Path(name)
        left = mentioning(name)
        deadline = time.monotonic() + 10
        while left and time.monotonic() < deadline:  # a process that was told to end may be at it still
            time.sleep(0.05)
            left = mentioning(name)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left, "processes are left"
        assert os.listdir(name) == [], "files are left"


def mentioning(text: str) -> list[int]:
    """The processes with ``text`` in their arguments or their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if text.encode() in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


def start(place: Path, *options: str, path: str | None = None) -> subprocess.Popen[str]:
    """The demo with its files in ``place`` and its programs from ``path``."""
    environment = {**os.environ, "TMPDIR": str(place), "PATH": path or os.environ["PATH"]}
    return subprocess.Popen(
        [sys.executable, "-m", "demo", *options],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(place: Path, *options: str, path: str | None = None) -> tuple[int, str]:
    """Exit code and output of a whole run."""
    process = start(place, *options, path=path)
    output = process.communicate(timeout=SECONDS)[0]
    return process.returncode, output


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """The output up to the line that has ``text``."""
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if text in line:
            return read
    raise AssertionError(f"{text!r} never came:\n{read}")


def stand_in(directory: Path, script: str) -> str:
    """A PATH on which qemu-io is this shell script."""
    directory.mkdir()
    program = directory / "qemu-io"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


def test_it_makes_the_six_calls_in_order_and_ends_well(place: Path) -> None:
    code, output = run(place, "--driver", "tgt")
    assert code == 0, output
    assert re.findall(r"^([1-6])  (\w+) ", output, re.MULTILINE) == [
        (str(number), call.value) for number, call in enumerate(SIX, start=1)
    ]
    states = re.findall(r"^   <- state +(\w+)$", output, re.MULTILINE)
    assert states == ["reserved", "attached", "detaching", "disconnected"]
    assert output.rstrip().splitlines()[-1].endswith("nothing left behind")
    assert "\033" not in output


def test_it_shows_that_what_must_be_refused_is_refused(place: Path) -> None:
    _, output = run(place, "--driver", "tgt")
    refused = re.findall(r"ok  refused: (.*) \(", output)
    assert refused == [
        "a wrong secret",
        "another initiator with the right secret",
        "the secret that was good a moment ago",
    ]
    assert "ok  what was written came back" in output
    assert "ok  the target is gone: tgtadm shows nothing of it" in output


def test_the_secret_is_neither_in_the_output_nor_in_the_arguments_of_a_process(place: Path, tmp_path: Path) -> None:
    log = tmp_path / "arguments"
    path = stand_in(tmp_path / "bin", f'echo "$@" >>{log}; exec {QEMU_IO} "$@"')
    code, output = run(place, "--driver", "tgt", path=path)
    assert code == 0, output
    assert re.search(r"data\.auth_password +\*{8}$", output, re.MULTILINE)
    assert "password-secret" in log.read_text()
    for text in (output, log.read_text()):
        assert not re.search(r"\b[0-9a-f]{32}\b", text)


def test_a_daemon_that_does_not_start_fails_it_with_the_daemons_own_words(place: Path) -> None:
    code, output = run(place, "--driver", "nosuch")
    assert code == 1
    assert "demo: the daemon ended with 78 before it served" in output
    assert "unknown driver 'nosuch'" in output


def test_a_missing_initiator_fails_it_with_what_to_install(place: Path, tmp_path: Path) -> None:
    code, output = run(place, "--driver", "tgt", path=str(tmp_path))
    assert code == 1
    assert "demo: there is no initiator: install" in output


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 0", "the target let in an initiator that it must refuse"),
        ("echo 'Connection refused'; exit 1", "the login failed, but not as it should: Connection refused"),
        (
            f'case "$*" in *"write -P"*) echo Pattern verification failed; exit 1;; esac; exec {QEMU_IO} "$@"',
            "the initiator cannot write and read: Pattern verification failed",
        ),
        (
            f'case "$*" in *"write -P"*) exit 0;; esac; exec {QEMU_IO} "$@"',
            "does not hold what the initiator wrote",
        ),
    ],
    ids=["a target that lets everybody in", "another failure than a refusal", "other data", "data elsewhere"],
)
def test_an_initiator_that_sees_something_else_fails_it(place: Path, tmp_path: Path, script: str, told: str) -> None:
    code, output = run(place, "--driver", "tgt", path=stand_in(tmp_path / "bin", script))
    assert code == 1
    assert f"{told}\n" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["daemon  ", "3  attach", "6  detach"])
def test_it_clears_away_when_it_is_interrupted(place: Path, number: signal.Signals, moment: str) -> None:
    process = start(place, "--driver", "tgt")
    read_until(process, moment)
    process.send_signal(number)
    output = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 128 + number, output


def test_it_ends_processes_of_its_own_that_it_does_not_hold(place: Path, tmp_path: Path) -> None:
    """As one is that was forked in the moment of an interrupt."""
    script = f'sleep 1000 >/dev/null 2>&1 & exec {QEMU_IO} "$@"'
    code, output = run(place, "--driver", "tgt", path=stand_in(tmp_path / "bin", script))
    assert code == 0, output
    assert mentioning(str(place)) == []


def test_it_clears_away_when_nobody_reads_any_more(place: Path) -> None:
    process = start(place, "--driver", "tgt")
    read_until(process, "1  reserve_volume")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(SECONDS) == 1


def test_a_daemon_that_dies_on_the_way_fails_it(place: Path, tmp_path: Path) -> None:
    script = f'kill -9 $(cat {tmp_path}/pid); exec {QEMU_IO} "$@"'
    process = start(place, "--driver", "tgt", path=stand_in(tmp_path / "bin", script))
    read_until(process, "daemon  ")
    (daemon,) = (pid for pid in mentioning(str(place)) if b"--state-dir" in arguments(pid))
    (tmp_path / "pid").write_text(str(daemon))
    output = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 1, output
    assert "demo: " in output
    assert "the last lines of the daemon's log:" in output


def arguments(pid: int) -> bytes:
    """The command line of a process, or nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_members_of_members_are_shown_by_their_path_and_nulls_are_not() -> None:
    shown = {"a": "x", "b": {"c": 1, "d": {"e": [True]}}, "f": None, "created_at": 1.5}
    assert list(members(shown)) == [("a", "x"), ("b.c", "1"), ("b.d.e", "[true]")]
