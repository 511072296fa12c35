"""What docs/ says is what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest

from docgen import reference
from volattachd.api.methods import METHODS, Method
from volattachd.cli.commands import COMMANDS
from volattachd.cli.exit_codes import EXITS
from volattachd.errors import kinds
from volattachd.lifecycle import TRANSITIONS
from volattachd.model import State

CLI_PAGE = (reference.DOCS / "cli.md").read_text(encoding="utf-8")


def test_the_generated_pages_are_up_to_date() -> None:
    assert reference.stale() == [], "run: python -m docgen.reference"


def test_check_names_a_stale_page_and_writing_mends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--docs", str(tmp_path)]
    assert reference.main(["--check", *where]) == 1
    assert "docs/states.md is stale" in capsys.readouterr().err
    assert reference.main(where) == 0
    assert reference.main(["--check", *where]) == 0
    (tmp_path / "errors.md").write_text("old")
    assert reference.stale(tmp_path) == ["errors.md"]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_example_is_one_that_the_table_takes(method: Method) -> None:
    params = reference.example_params(method)
    for param in method.params:
        assert not param.required or param.name in params
        if param.name in params:
            fastjsonschema.compile(param.schema)(params[param.name])
    fastjsonschema.compile(method.result)(reference.example_result(method))


def test_every_example_shows_all_that_its_result_has() -> None:
    for method in METHODS:
        properties = method.result.get("properties", {})
        assert set(properties) <= set(reference.example_result(method) if properties else [])


def test_every_line_of_an_example_is_json() -> None:
    for block in re.findall(r"```json\n(.*?)```", reference.methods_page(), re.DOTALL):
        for line in block.splitlines():
            assert json.loads(line)["jsonrpc"] == "2.0"


def test_the_tree_that_opens_the_errors_names_every_kind_with_its_code() -> None:
    assert {name: code for name, (code, _) in reference.remedies().items()} == {k.__name__: k.code for k in kinds()}


def test_the_state_diagram_has_an_arrow_for_each_move_and_none_besides() -> None:
    def node(state: State) -> str:
        return "[*]" if state is State.GONE else state.value

    drawn = {
        (before, after, call)
        for before, after, calls in re.findall(r"^    (\S+) --> (\S+): (.+)$", reference.states_page(), re.MULTILINE)
        for call in calls.split(" / ")
    }
    assert drawn == {
        (node(before), node(after), call.value)
        for call, moves in TRANSITIONS.items()
        for before, after in moves.items()
        if before is not after
    }


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert reference._row(["a|b"]) == "| a\\|b |"


def test_the_command_lines_page_has_the_exit_codes_of_the_table() -> None:
    rows: list[Any] = re.findall(r"^\| (\d+) \| (.+?) \|", CLI_PAGE, re.MULTILINE)
    assert [(int(code), meaning) for code, meaning in rows] == [(row.code, row.meaning) for row in EXITS]


@pytest.mark.parametrize("row", EXITS, ids=lambda row: str(row.code))
def test_the_command_lines_page_names_the_errors_of_an_exit_code(row: Any) -> None:
    (line,) = re.findall(rf"^\| {row.code} \|.*$", CLI_PAGE, re.MULTILINE)
    for error in row.errors:
        assert error in (Exception, KeyboardInterrupt, BrokenPipeError) or f"`{error.__name__}`" in line


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_command_lines_page_has_every_command(command: Any) -> None:
    assert f"`volattach {command.name}" in CLI_PAGE
