from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from docgen.reference import example_result
from tests.cli.conftest import Run
from tests.cli.fake_daemon import failure, result
from volattachd.api.methods import BY_NAME
from volattachd.cli.commands import COMMANDS

UUID = "6f1c8a52-9d0e-4b7a-8f23-5c1d2e3f4a5b"


@pytest.mark.parametrize(
    ("line", "method", "params"),
    [
        ("register v /dev/x", "register_volume", {"volume": "v", "path": "/dev/x"}),
        (
            "register v /dev/x --multiattach --read-only",
            "register_volume",
            {"volume": "v", "path": "/dev/x", "multiattach": True, "read_only": True},
        ),
        ("unregister v", "unregister_volume", {"volume": "v"}),
        ("list", "list_volumes", {}),
        ("list --attachments", "list_attachments", {}),
        ("show v", "show_volume", {"volume": "v"}),
        (f"show {UUID}", "show_volume", {"volume": UUID}),
        ("history", "get_history", {}),
        (
            f"history v --attachment {UUID} --since 0 --limit 5",
            "get_history",
            {"volume": "v", "attachment_id": UUID, "since": 0, "limit": 5},
        ),
        ("status", "get_status", {}),
        ("metrics", "get_metrics", {}),
        ("reconcile", "reconcile", {}),
        ("reconcile --dry-run", "reconcile", {"dry_run": True}),
        ("call show_volume volume=v", "show_volume", {"volume": "v"}),
        ("call rpc.discover", "rpc.discover", {}),
    ],
)
def test_a_command_makes_one_call(run: Run, line: str, method: str, params: dict[str, Any]) -> None:
    ran = run(*line.split(), script=[result(example_result(BY_NAME[method]))])
    assert ran.asked == [(method, params)]
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.endswith("\n") and ran.out.strip()


def test_a_relative_path_means_the_callers_directory_and_not_the_daemons(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("register", "v", "disk.img", script=[result({})]).asked[0][1]["path"] == f"{tmp_path}/disk.img"


def test_a_uuid_is_an_attachment_where_it_is_no_volume(run: Run) -> None:
    reply = result({**example_result(BY_NAME["show_attachment"]), "state": "detaching"})
    ran = run("show", UUID, script=[failure(1001, "no such volume"), reply])
    assert [method for method, _ in ran.asked] == ["show_volume", "show_attachment"]
    assert ran.code == 0
    assert "detaching" in ran.out


def test_a_uuid_that_is_neither_says_so(run: Run) -> None:
    ran = run("show", UUID, script=[failure(1001, "no such volume"), failure(1002, "no such attachment")])
    assert ran.code == 3
    assert ran.err.startswith(f"volattach: there is neither a volume nor an attachment '{UUID}'\ntry: ")


def test_another_refusal_of_a_uuid_is_told_as_it_is(run: Run) -> None:
    assert run("show", UUID, script=[failure(1008, "not you")]).code == 6


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ({"ready": True, "degraded": []}, 0),
        ({"ready": True, "degraded": ["no portal"]}, 9),
        ({"ready": False, "degraded": []}, 9),
        ({}, 9),
    ],
)
@pytest.mark.parametrize("words", [["status"], ["status", "--json"], ["call", "get_status"]])
def test_status_tells_a_degraded_daemon_by_its_exit_code(
    run: Run, words: list[str], answer: dict[str, Any], code: int
) -> None:
    assert run(*words, script=[result(answer)]).code == code


@pytest.mark.parametrize(("error", "code"), [(None, 0), ("EBUSY", 9)])
def test_reconcile_tells_by_its_exit_code_that_something_could_not_be_mended(
    run: Run, error: str | None, code: int
) -> None:
    answer = {"dry_run": False, "volumes": [{"volume": "v", "steps": ["a step"], "error": error}]}
    assert run("reconcile", script=[result(answer)]).code == code


def test_metrics_are_printed_line_by_line(run: Run) -> None:
    assert run("metrics", script=[result("# TYPE a gauge\na 1.0\n")]).out == "# TYPE a gauge\na 1.0\n"


@pytest.mark.parametrize("before", [None, "old and longer than the new one"])
def test_metrics_replace_a_file_that_everybody_may_read(run: Run, tmp_path: Path, before: str | None) -> None:
    directory = tmp_path / "collector"
    directory.mkdir()
    path = directory / "volattachd.prom"
    if before is not None:
        path.write_text(before)
    ran = run("metrics", "--textfile", str(path), script=[result("a 1.0\n")])
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("a 1.0\n", 0o644)
    assert list(directory.iterdir()) == [path]


@pytest.mark.parametrize("reply", [failure(1009, "busy"), result(None)])
def test_without_metrics_the_file_stays_as_it_was(run: Run, tmp_path: Path, reply: Any) -> None:
    path = tmp_path / "x.prom"
    path.write_text("old")
    assert run("metrics", "--textfile", str(path), script=[reply]).code != 0
    assert path.read_text() == "old"


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.prom").mkdir()
    (tmp_path / "x.prom" / "file").touch()
    for path in (tmp_path / "missing" / "x.prom", tmp_path / "x.prom"):
        ran = run("metrics", "--textfile", str(path), script=[result("a 1.0\n")])
        assert (ran.code, ran.out) == (1, "")
        assert ran.err.startswith(f"volattach: cannot write {path}: ")
    assert not list(tmp_path.glob(".x.prom*"))


def test_every_command_is_told_in_a_line_of_its_own() -> None:
    assert len({command.name for command in COMMANDS}) == len(COMMANDS)
    assert all(command.help and "\n" not in command.help for command in COMMANDS)
