"""What README.md, HACKING.md and the pages in docs/ name is there: commands, calls, keys, modules, files."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from volattachd import config, daemon
from volattachd.api.methods import BY_NAME
from volattachd.cli.commands import COMMANDS
from volattachd.config import keys
from volattachd.drivers.base import Difference
from volattachd.errors import kinds
from volattachd.lifecycle import Call
from volattachd.reconcile import reconciler

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "HACKING.md", "CHANGELOG.md")] + sorted((ROOT / "docs").glob("*.md"))
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

EVERY_PAGE = pytest.mark.parametrize("name", TEXTS)

#: A test of its own, or a suite that it takes from elsewhere.
HAS_TESTS = r"^(def test_|from tests\.(drivers\.contract|faults\.suite) import)"


def code(text: str) -> str:
    """What stands in code blocks and between backticks; the rest is prose."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}(.*)$", text, re.MULTILINE)
    return "\n".join([*blocks, *indented, *re.findall(r"`([^`\n]+)`", text)])


def anchors(text: str) -> set[str]:
    """The names that headings can be linked by."""
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def rows(page: str, head: str) -> list[list[str]]:
    """The cells of the table that has ``head`` as the title of its first column."""
    table = TEXTS[page].partition(f"| {head} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


@EVERY_PAGE
def test_every_link_leads_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", TEXTS[name]):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


@EVERY_PAGE
def test_every_file_that_is_named_is_there(name: str) -> None:
    for path in re.findall(r"`((?:tests|demo|docs|volattachd)/[\w/.-]+)`", TEXTS[name]):
        assert (ROOT / path).exists(), path


@EVERY_PAGE
def test_every_make_target_that_is_named_is_there(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    for target in re.findall(r"^(?:\$ )?make ([a-z-]+)", code(TEXTS[name]), re.MULTILINE):
        assert target in targets, target


@EVERY_PAGE
def test_every_command_and_call_that_is_typed_is_there(name: str) -> None:
    commands = {command.name for command in COMMANDS}
    typed = r"\bvolattach (?:--json |--(?:host|socket) \S+ )?([a-z][a-z-]*)(?: ([a-z_.]+))?"
    for command, word in re.findall(typed, code(TEXTS[name])):
        assert command in commands, command
        assert command != "call" or not word or word in BY_NAME, word


@EVERY_PAGE
def test_every_option_of_the_daemon_that_is_named_is_there(name: str) -> None:
    options = daemon.build_parser().format_help()
    for option in re.findall(r"\bvolattachd (--[a-z-]+)", code(TEXTS[name])):
        assert option in options, option


def test_every_test_that_the_readme_relies_on_has_tests() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", TEXTS["README.md"])
    assert named
    for path in named:
        assert re.search(HAS_TESTS, (ROOT / path).read_text(), re.MULTILINE)


def test_the_picture_has_the_six_calls_in_their_order() -> None:
    drawn = re.findall(r"C->>D: ([1-6]) (\w+)", TEXTS["README.md"])
    six = [Call.RESERVE, Call.INITIALIZE, Call.ATTACH, Call.BEGIN_DETACHING, Call.TERMINATE, Call.DETACH]
    assert drawn == [(str(number), call.value) for number, call in enumerate(six, start=1)]


def test_continuous_integration_runs_what_the_readme_says() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = re.findall(r"^    (make test[\w-]*)", TEXTS["README.md"], re.MULTILINE)
    assert sorted(script.read_text().splitlines()[-len(commands) :]) == sorted(commands)


def test_the_configuration_page_has_every_key_with_its_default() -> None:
    written = {}
    for key, default, _ in rows("docs/configuration.md", "Key"):
        section, name = re.fullmatch(r"`\[(\w+)\] (\w+)`", key).groups()  # type: ignore[union-attr]
        written[section, name] = tomllib.loads(f"value = {default.strip('`')}")["value"]
    assert written == {(section, name): as_toml(default) for section, name, _, default in keys()}


def as_toml(value: object) -> object:
    """A default as TOML would give it."""
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def test_the_example_file_has_every_key_with_its_default() -> None:
    example = ROOT / "docs" / "volattachd.toml"
    document = tomllib.loads(example.read_text())
    assert {(section, key) for section, body in document.items() for key in body} == {
        (section, key) for section, key, _, _ in keys()
    }
    assert config.load(example) == config.Config()


def test_operations_has_every_condition() -> None:
    assert {row[0].strip("`") for row in rows("docs/operations.md", "Condition")} == {
        *reconciler.CONVERGE_KINDS,
        "Pending",
    }


def test_operations_has_every_difference() -> None:
    told = [row[0].strip("`") for row in rows("docs/operations.md", "Difference")]
    assert told == [difference.value for difference in Difference]


def test_operations_has_every_exit_code_of_the_daemon() -> None:
    codes = {value for name, value in vars(daemon).items() if name.startswith("EXIT_")}
    assert {int(row[0]) for row in rows("docs/operations.md", "Code")} == codes


def test_the_map_has_every_package_and_none_besides() -> None:
    package = ROOT / "volattachd"
    there = {path.stem for path in package.glob("[a-z]*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    drawn = {name for row in rows("HACKING.md", "Package") for name in re.findall(r"`([\w/]+)`", row[0])}
    assert drawn == there | {"demo", "docgen", "bench"}


def test_the_errors_that_are_named_exist() -> None:
    known = {kind.__name__ for kind in kinds()}
    for name in re.findall(r"answers `([A-Z]\w+)`", "".join(TEXTS.values())):
        assert name in known, name
