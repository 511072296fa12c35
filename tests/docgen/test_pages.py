from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import pytest

from docgen.files import FILES
from docgen.pages import DAEMON_EXITS, write_client_page, write_config_page, write_daemon_page
from docgen.roff import entry, escape, text
from volattachd import daemon
from volattachd.agent.connectors.registry import BUILT_IN
from volattachd.cli.commands import COMMANDS
from volattachd.cli.exit_codes import EXITS
from volattachd.config import keys

ROOT = Path(__file__).parents[2]
PAGES = [name for name in FILES if name.startswith("docs/man/")]


def plain(page: str) -> str:
    """The words of a page without roff's marks."""
    for mark, word in (("\\fB", ""), ("\\fR", ""), ("\\-", "-"), ("\\(dq", '"'), ("\\&", ""), ("\\e", "\\")):
        page = page.replace(mark, word)
    return page


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings]


@pytest.mark.parametrize("name", PAGES)
def test_groff_has_nothing_to_say_of_a_page(name: str) -> None:
    command = ["groff", "-man", "-ww", "-z", "-rCHECKSTYLE=3", str(ROOT / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_no_blank_line(name: str) -> None:
    """The groff of Debian 13 warns of it, the groff of Debian 12 does not."""
    assert "" not in (ROOT / name).read_text().splitlines()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_its_name_and_what_it_is_for(name: str) -> None:
    title, _, number = Path(name).name.rpartition(".")
    page = plain((ROOT / name).read_text())
    assert f".TH {title.upper()} {number} " in page
    assert f".SH NAME\n{title} - " in page


def test_the_daemons_page_has_every_option_and_every_exit_code() -> None:
    page = plain(write_daemon_page())
    for option in options_of(daemon.build_parser()):
        assert option in page
    assert set(DAEMON_EXITS) == {value for name, value in vars(daemon).items() if name.startswith("EXIT_")}


def test_no_connector_is_named_as_the_command_does_not_know_it() -> None:
    words = plain(write_client_page()).split()
    assert set(BUILT_IN) <= {word.strip(",.") for word in words}
    assert not {name.capitalize() for name in BUILT_IN} & {word.strip(",.") for word in words} - {"Local"}


def test_the_commands_page_has_every_command_with_its_options_and_every_exit_code() -> None:
    page = plain(write_client_page())
    for command in COMMANDS:
        parser = argparse.ArgumentParser(add_help=False)
        command.options(parser)
        part = page.partition(f'.SS "{command.name}"\n')[2].partition("\n.S")[0]
        assert part.lower().find(command.help.lower()) > 0
        for action in parser._actions:
            assert (action.option_strings or [str(action.metavar)])[0] in part, command.name
    for row in EXITS:
        assert f".TP\n{row.code}\n" in page


def test_the_configurations_page_has_every_key() -> None:
    page = plain(write_config_page())
    for section, key, summary, _ in keys():
        assert f'.SS "[{section}]"' in page
        assert f".TP\n{key}\n" in page
        assert summary[1:] in page


@pytest.mark.parametrize("words", [".TH forged", "'de forged", "a\\fBforged", 'a "quoted" word', "--option"])
def test_words_are_no_commands(words: str) -> None:
    (_, line) = text(words)
    assert not line.startswith((".", "'"))
    assert "\\f" not in escape(words)
    assert plain(line) == words
    assert plain(entry(words, "text")[1]) == words
