"""Completion in the real shells, with a daemon that has volumes and with none."""

from __future__ import annotations

import os
import pty
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import AGENT, PATIENCE, Rig, attachment_id, serving
from volattachd.cli.parser import SOCKET_VARIABLE

SHELLS = ("bash", "zsh", "fish")

BASH = """\
source <(volattach completion bash)
COMP_LINE={line} COMP_POINT=${{#COMP_LINE}} COMP_TYPE=9
_python_argcomplete volattach
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
FISH = "volattach completion fish | source; complete -C {line}"


@pytest.fixture(autouse=True)
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One with two volumes and an attachment, which the shells' environment names."""
    rig = Rig(tmp_path)
    rig.register("disk-a")
    rig.register("disk-b")
    rig.service.reserve_volume(AGENT, "disk-a", attachment_id(1))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv(SOCKET_VARIABLE, str(tmp_path / "d.sock"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(tmp_path / "d.sock", rig.service):
        yield


def offered(shell: str, line: str) -> set[str]:
    """What bash or fish offers at the end of a line."""
    script = (BASH if shell == "bash" else FISH).format(line=shlex.quote(line))
    words = [shell, *(["--norc"] if shell == "bash" else ["--no-config"]), "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stderr == ""
    return {found.partition("\t")[0].strip() for found in done.stdout.splitlines()} - {""}


def completed(line: str) -> str:
    """The line as zsh completes it: typed into a terminal, with a tab behind it, and then printed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "dumb"
        os.execvp("zsh", ["zsh", "-f", "-i"])
    try:
        type_in(
            terminal, 'autoload -U compinit; compinit -u; source <(volattach completion zsh); echo set-""up\n', "set-up"
        )
        # The beginning of the line, then a word before it: what was completed is printed, and not run.
        said = type_in(terminal, f"{line}\t\x01echo to: \x05 :end\n", " :end\r\n", after="\nto: ")
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    return said.rpartition("\nto: ")[2].partition(" :end")[0].strip()


def type_in(terminal: int, text: str, until: str, after: str = "") -> str:
    """Type, and read what comes until ``until`` is there behind ``after``."""
    os.write(terminal, text.encode())
    said, deadline = "", time.monotonic() + PATIENCE
    while until not in said.partition(after)[2] if after else until not in said:
        readable, _, _ = select.select([terminal], [], [], deadline - time.monotonic())
        assert readable, f"zsh said only: {said!r}"
        said += os.read(terminal, 65536).decode(errors="replace")
    return said


def test_the_shells_are_there() -> None:
    assert [shell for shell in SHELLS if shutil.which(shell) is None] == [], "make test installs them"


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("volattach unreg", {"unregister"}),
        ("volattach re", {"register", "reconcile"}),
        ("volattach history --at", {"--attachment"}),
        ("volattach show disk-", {"disk-a", "disk-b"}),
        ("volattach unregister disk-", {"disk-a", "disk-b"}),
        ("volattach show 0000", {attachment_id(1)}),
        ("volattach history --attachment ", {attachment_id(1)}),
        ("volattach call res", {"reserve_volume"}),
        ("volattach call show_volume vol", {"volume="}),
        ("volattach completion ", {"bash", "zsh", "fish"}),
        ("volattach register disk-", set()),
    ],
)
def test_bash_and_fish_offer_what_may_come_next(shell: str, line: str, names: set[str]) -> None:
    assert offered(shell, line) == names


@pytest.mark.parametrize(
    ("line", "whole"),
    [
        ("volattach unreg", "volattach unregister"),
        ("volattach history --at", "volattach history --attachment"),
        ("volattach show d", "volattach show disk-"),
        ("volattach show 0000", f"volattach show {attachment_id(1)}"),
        ("volattach call res", "volattach call reserve_volume"),
    ],
)
def test_zsh_completes_a_line(line: str, whole: str) -> None:
    assert completed(line) == whole


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_without_a_daemon_there_are_no_names_and_no_noise(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOCKET_VARIABLE, "/nowhere")
    assert offered(shell, "volattach show disk-") == set()
    assert offered(shell, "volattach sho") == {"show"}


def test_without_argcomplete_the_command_says_what_to_install(tmp_path: Path) -> None:
    """The client half as it is installed alone: no package beside it can be seen."""
    root = Path(__file__).parents[2]
    program = f"import sys; sys.path.insert(0, {str(root)!r}); from volattachd.cli import main; sys.exit(main())"
    words = [sys.executable, "-I", "-S", "-c", program, "completion", "bash"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "completion needs argcomplete" in done.stderr and "apt install python3-argcomplete" in done.stderr
