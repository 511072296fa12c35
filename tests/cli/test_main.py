from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.fake_daemon import failure, result, serving
from volattachd import __version__
from volattachd.cli import main
from volattachd.cli.commands import COMMANDS, Command
from volattachd.cli.exit_codes import EXITS
from volattachd.cli.parser import HOST_VARIABLE, SOCKET_VARIABLE
from volattachd.errors import VolattachError, kinds

PROGRAM = [sys.executable, "-m", "volattachd.cli"]


def test_json_prints_exactly_the_result(run: Run) -> None:
    value = {"a": ["ä\x1b\x7f", None, 1.5], "data": {"auth_password": "p"}}
    ran = run("--json", "show", "v", script=[result(value)])
    assert json.loads(ran.out) == value
    assert ran.out.isascii() and ran.out.count("\n") == 1


@pytest.mark.parametrize("line", ["--json list", "list --json"])
def test_common_options_may_stand_before_and_after_the_command(run: Run, line: str) -> None:
    assert run(*line.split(), script=[result([])]).out == "[]\n"


def test_an_option_after_the_command_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path / "d.sock", result([])) as daemon:
        assert main(["--socket", "/nowhere", "list", "--socket", daemon.path]) == 0


def test_the_socket_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path / "d.sock", result([])) as daemon:
        monkeypatch.setenv(SOCKET_VARIABLE, daemon.path)
        assert main(["list"]) == 0
    monkeypatch.setenv(SOCKET_VARIABLE, "")
    main(["list"])
    assert "/run/volattachd/volattachd.sock" in capsys.readouterr().err


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_an_error_is_one_line_with_what_to_do_and_a_code_of_its_own(run: Run, kind: type[VolattachError]) -> None:
    ran = run("list", script=[failure(kind.code, "cannot do it", correction="do that")])
    assert ran.err == "volattach: cannot do it\ntry: do that\n"
    assert ran.out == ""
    (row,) = (row for row in EXITS if kind in row.errors)
    assert ran.code == row.code


def test_an_error_without_a_remedy_is_one_line(run: Run) -> None:
    assert run("list", script=[failure(1004, "cannot do it")]).err == "volattach: cannot do it\n"


def test_an_error_without_a_class_is_unexpected(run: Run) -> None:
    ran = run("list", script=[failure(-32603, "a bug")])
    assert (ran.code, ran.err) == (1, "volattach: a bug (-32603)\n")


def test_nothing_in_an_error_reaches_the_terminal_as_a_control(run: Run) -> None:
    ran = run("list", script=[failure(1003, "a\x1b[2J\nb", correction="c\r\x9b")])
    assert ran.err == "volattach: a\\x1b[2J\\nb\ntry: c\\r\\x9b\n"


def test_a_daemon_that_is_not_there_is_code_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--socket", str(tmp_path / "none"), "list"]) == 8
    assert "try: start volattachd on this host as root, or name its socket\n" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["attach", "detach"])
def test_attach_and_detach_wait_as_long_as_the_timeout_and_say_for_what(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = tmp_path / "none"
    line = ["--socket", str(path), "--timeout", "0.3", command, "vol-1", "--connector", "qemu"]
    assert main(line) == 8
    first, second, correction = capsys.readouterr().err.splitlines()
    assert first.startswith(f"cannot reach the daemon at {path}: ") and "; trying again for 0 s (start" in first
    assert second.startswith(f"volattach: cannot reach the daemon at {path}")
    assert correction.startswith("try: start volattachd")


def test_no_answer_in_time_is_code_7(run: Run) -> None:
    ran = run("--timeout", "0.1", "list", script=[None])
    assert ran.code == 7
    assert "try: send the call again" in ran.err


@pytest.mark.parametrize(
    "line",
    [
        "",
        "lst",
        "list extra",
        "list --bogus",
        "list --attach",
        "--timeout 0 list",
        "--timeout x list",
        "--timeout nan list",
        "history --since x",
        "register v",
        "show",
        "call",
        "call nothing",
        "call attach x",
        "call show_volume volum=v",
        "call show_volume",
    ],
)
def test_a_wrong_command_line_is_code_2_and_sends_nothing(run: Run, line: str) -> None:
    ran = run(*line.split())
    assert ran.code == 2
    assert ran.asked == []
    assert ran.err.startswith("volattach: ") and "\ntry: " in ran.err
    assert ran.err.count("\n") == 2


def test_an_argument_that_is_not_utf8_is_refused_and_never_changed(run: Run) -> None:
    ran = run("register", "v", "/dev/\udcff")
    assert ran.code == 2
    assert "is not UTF-8" in ran.err
    assert ran.asked == []


def test_the_secret_is_masked_unless_it_is_asked_for(run: Run) -> None:
    call = ["call", "initialize_connection", "volume=v", 'connector={"initiator":"iqn.2026-11.com.example:a"}']
    reply = result({"driver_volume_type": "iscsi", "data": {"auth_password": "hunter2"}})
    assert "hunter2" not in run(*call, script=[reply]).out
    assert "hunter2" in run(*call, "--show-secret", script=[reply]).out
    assert "hunter2" in run(*call, "--json", script=[reply]).out


@pytest.mark.parametrize("place", range(4))
def test_options_may_stand_between_the_words_of_a_command(run: Run, place: int) -> None:
    words = ["initialize_connection", "volume=v", 'connector={"initiator":"iqn.2026-11.com.example:a"}']
    words.insert(place, "--show-secret")
    ran = run("call", *words, script=[result({"driver_volume_type": "iscsi", "data": {"auth_password": "hunter2"}})])
    assert "hunter2" in ran.out
    assert ran.asked == [
        ("initialize_connection", {"volume": "v", "connector": {"initiator": "iqn.2026-11.com.example:a"}})
    ]


def test_every_option_and_word_may_change_places(run: Run) -> None:
    for words in itertools.permutations(["--multiattach", "v", "/dev/x", "--read-only"]):
        if words.index("v") < words.index("/dev/x"):
            ran = run("register", *words, script=[result({})])
            assert ran.asked == [
                ("register_volume", {"volume": "v", "path": "/dev/x", "multiattach": True, "read_only": True})
            ]


@pytest.mark.parametrize(
    "line",
    [
        "--host storage1 list",
        "--host ssh:// list",
        "--host ssh://-oProxyCommand=x list",
        "--host ssh://a:0 list",
        "--host ssh://a --socket /s list",
    ],
)
def test_a_host_that_can_be_none_is_a_wrong_command_line(run: Run, line: str) -> None:
    ran = run(*line.split())
    assert ran.code == 2
    assert ran.err.startswith("volattach: --host") and "\ntry: " in ran.err


def test_a_host_may_come_from_the_environment_and_the_command_line_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOST_VARIABLE, "storage1")
    monkeypatch.setenv(SOCKET_VARIABLE, "/nowhere")
    assert main(["list"]) == 2
    assert f"volattach: {HOST_VARIABLE}: 'storage1' is not ssh://" in capsys.readouterr().err
    with serving(tmp_path / "d.sock", result([])) as daemon:
        assert main(["list", "--socket", daemon.path]) == 0


def test_help_has_every_command_and_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"    {command.name}" in shown for command in COMMANDS)
    assert all(f"  {row.code:>3}  {row.meaning}" in shown for row in EXITS)
    assert SOCKET_VARIABLE in shown


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_help(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command.name, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"volattach {__version__}\n"


def started(socket_path: str, *words: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, "--socket", socket_path, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("length", [10, 1_000_000])
def test_a_reader_that_goes_away_is_no_noise(tmp_path: Path, length: int, buffered: str) -> None:
    with serving(tmp_path / "d.sock", result("x" * length)) as daemon:
        program = started(daemon.path, "--json", "list", PYTHONUNBUFFERED=buffered)
        assert program.stdout and program.stderr
        program.stdout.close()
        assert (program.wait(30), program.stderr.read()) == (141, "")
        program.stderr.close()


def test_an_output_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with serving(tmp_path / "d.sock", result([])) as daemon, open("/dev/full", "w") as full:
        command = [*PROGRAM, "--socket", daemon.path, "list"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "volattach: cannot write the output: No space left on device\n"


def test_an_interrupt_is_quiet_and_code_130(tmp_path: Path) -> None:
    with serving(tmp_path / "d.sock", None) as daemon:
        program = started(daemon.path, "list")
        while not daemon.requests:
            assert program.poll() is None
        program.send_signal(signal.SIGINT)
        assert (*program.communicate(timeout=30), program.returncode) == ("", "", 130)


def test_a_locale_without_the_character_is_no_reason_to_fail(tmp_path: Path) -> None:
    with serving(tmp_path / "d.sock", result([{"volume": "v", "path": "/dev/ä→"}])) as daemon:
        program = started(daemon.path, "list", PYTHONIOENCODING="ascii")
        out, err = program.communicate(timeout=30)
    assert (program.returncode, err) == (0, "")
    assert "/dev/\\xe4\\u2192" in out
