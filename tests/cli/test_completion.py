"""Completion in the real shells, with a daemon that has volumes and with none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.shells import completed_by_zsh, offered
from tests.support import AGENT, PATIENCE, Rig, attachment_id, serving
from volattachd.cli import completion
from volattachd.cli.parser import SOCKET_VARIABLE
from volattachd.model import VOLUME_ID

SHELLS = ("bash", "zsh", "fish")
SOURCED = {
    "bash": "source <(volattach completion bash)",
    "zsh": "source <(volattach completion zsh)",
    "fish": "volattach completion fish | source",
}


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
    assert offered(shell, SOURCED[shell], line) == names


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
    assert completed_by_zsh(line, after=SOURCED["zsh"]) == whole


@pytest.mark.parametrize("line", ["volattach unreg"])
def test_zsh_completes_by_a_file_in_its_path(line: str, tmp_path: Path) -> None:
    """As a distribution installs it: the first tab finds the file, and is answered by it."""
    text = subprocess.run(["volattach", "completion", "zsh"], capture_output=True, text=True, check=True).stdout
    (tmp_path / "_volattach").write_text(text)
    assert completed_by_zsh(line, before=f"fpath=({tmp_path} $fpath)") == "volattach unregister"


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_without_a_daemon_there_are_no_names_and_no_noise(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOCKET_VARIABLE, "/nowhere")
    assert offered(shell, SOURCED[shell], "volattach show disk-") == set()
    assert offered(shell, SOURCED[shell], "volattach sho") == {"show"}


def test_without_argcomplete_the_command_says_what_to_install(tmp_path: Path) -> None:
    """The client half as it is installed alone: no package beside it can be seen."""
    root = Path(__file__).parents[2]
    program = f"import sys; sys.path.insert(0, {str(root)!r}); from volattachd.cli import main; sys.exit(main())"
    words = [sys.executable, "-I", "-S", "-c", program, "completion", "bash"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "completion needs argcomplete" in done.stderr and "apt install python3-argcomplete" in done.stderr


def test_a_name_that_cannot_be_one_is_not_given_to_the_shell() -> None:
    rows = [{"volume": name} for name in ("vol-1", "$(touch x)", "a\nb", "../x", "-o", 7, None)]
    assert completion._names([*rows, "x", {}], "volume", VOLUME_ID) == ["vol-1"]
    assert completion._names({"volume": "vol-1"}, "volume", VOLUME_ID) == []
