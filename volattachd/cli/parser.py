"""The command line's grammar: one argparse parser, made from the table of commands. Nothing is read or sent here."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any, NoReturn

from volattachd import __version__
from volattachd.cli import exit_codes
from volattachd.cli.commands import COMMANDS
from volattachd.client.connection import DEFAULT_TIMEOUT
from volattachd.client.unix import DEFAULT_SOCKET

SOCKET_VARIABLE = "VOLATTACHD_SOCKET"
HOST_VARIABLE = "VOLATTACH_HOST"

_COLUMNS = 80

_EPILOG = f"""\
exit codes:
{exit_codes.table()}

environment, where neither --socket nor --host is given:
  {HOST_VARIABLE}     the daemon's host: ssh://[user@]host[:port][/socket]
  {SOCKET_VARIABLE}  the daemon's socket on this host

The output is plain text without colour (NO_COLOR or not); for programs there is --json."""


class Parser(argparse.ArgumentParser):
    """argparse that reports as every other error of the command is reported."""

    def error(self, message: str) -> NoReturn:
        raise exit_codes.UsageError(message, f"{self.prog} --help")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal. argparse's own asks for every option, in a way that imports four compressors."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    try:
        return int(os.environ.get("COLUMNS") or os.get_terminal_size().columns) or _COLUMNS
    except (ValueError, OSError):
        return _COLUMNS


class _Command(Parser):
    """The parser of one command. Its options may stand before, between and after its words."""

    _mixing = False

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse has it for a whole command line; for the part behind a command it is asked for here."""
        if self._mixing:  # older versions of argparse come back here for the options, and for the words
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False


def build_parser(words: Sequence[str] | None = None, mixing: bool = True) -> argparse.ArgumentParser:
    """The parser of ``volattach``; with ``words``, one that is complete for this command line alone.

    Without ``mixing`` it takes a command's options and words in one pass, for who wants to follow what it does.
    Making a command's options takes longer than all that a command does, so a start makes those of its own command.
    """
    shared = _shared_options()
    parser = Parser(
        prog="volattach",
        description="Attach and detach volumes: the command line of volattachd.",
        epilog=_EPILOG,
        formatter_class=_Formatter,
        parents=[shared],
        allow_abbrev=False,  # a script's abbreviation would break with the next option that begins like it
    )
    parser.add_argument("--version", action="version", version=f"volattach {__version__}")
    commands = parser.add_subparsers(
        prog="volattach", metavar="COMMAND", dest="command", required=True, parser_class=_Command if mixing else Parser
    )
    for command in COMMANDS:
        wanted = words is None or command.name in words
        parents = [shared] if wanted else []
        options = commands.add_parser(
            command.name, help=command.help, parents=parents, allow_abbrev=False, formatter_class=_Formatter
        )
        options.set_defaults(run=command.run)
        if wanted:
            command.options(options)
    return parser


def defaults() -> argparse.Namespace:
    """What the options mean that are not given."""
    return argparse.Namespace(json=False, host=None, socket=None, timeout=None, show_secret=False)


def _shared_options() -> _Command:
    """The options that may stand before the command or after it."""
    shared = _Command(add_help=False, argument_default=argparse.SUPPRESS, formatter_class=_Formatter)
    shared.add_argument("--host", metavar="URL", help="the daemon's host: ssh://[user@]host[:port][/socket]")
    shared.add_argument("--socket", metavar="PATH", help=f"the daemon's socket (default: {DEFAULT_SOCKET})")
    shared.add_argument("--json", action="store_true", help="print exactly the result, as a line of JSON")
    allowance = f"how long a call may take (default: {DEFAULT_TIMEOUT:g})"
    shared.add_argument("--timeout", metavar="SECONDS", type=seconds, help=allowance)
    return shared


def seconds(word: str) -> float:
    """A time-out of the command line."""
    value = float(word)
    if not 0 < value < 1e6:
        raise ValueError
    return value
