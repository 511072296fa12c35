"""volattach: the command line of volattachd. It is a client and nothing more: it imports none of the daemon.

A start should cost little more than Python's own, so what only some commands need is imported by those.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from volattachd import __version__
from volattachd.cli import exits
from volattachd.cli.commands import COMMANDS, Outcome, wrong
from volattachd.cli.rendering import machine, render, text
from volattachd.errors import VolattachError
from volattachd.rpc.client import DEFAULT_SOCKET, DEFAULT_TIMEOUT, Client, ClientError

SOCKET_VARIABLE = "VOLATTACHD_SOCKET"

_EPILOG = f"""\
exit codes:
{exits.table()}

environment:
  {SOCKET_VARIABLE}  the daemon's socket, where --socket is not given

The output is plain text without colour (NO_COLOR or not); for programs there is --json."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code."""
    try:
        code = _command(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()  # here, where a reader that went away is no traceback
        return code
    except KeyboardInterrupt as error:
        return exits.code_of(error)
    except OSError as error:  # the client's own are ClientErrors: only the output is left
        _drop_output()
        return exits.code_of(error) if isinstance(error, BrokenPipeError) else _fail(_output_error(error))


def _command(argv: Sequence[str]) -> int:
    code = exits.OK
    try:
        args = _parse(argv)
        for outcome in _outcomes(args):
            _print(machine(outcome.result) if args.json else _rendered(outcome, args))
            code = exits.DEGRADED if wrong(outcome) else code
    except SystemExit as leaving:  # argparse, after --help and --version
        return int(leaving.code or exits.OK)
    except (exits.UsageError, VolattachError, ClientError) as error:
        return _fail(error)
    return code


class _Parser(argparse.ArgumentParser):
    """argparse that reports as every other error of the command is reported."""

    def error(self, message: str) -> NoReturn:
        raise exits.UsageError(message, f"{self.prog} --help")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    _check_utf8(argv)
    shared = _shared_options()
    parser = _Parser(
        prog="volattach",
        description="Attach and detach volumes: the command line of volattachd.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shared],
        allow_abbrev=False,  # a script's abbreviation would break with the next option that begins like it
    )
    parser.add_argument("--version", action="version", version=f"volattach {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for command in COMMANDS:
        options = commands.add_parser(command.name, help=command.help, parents=[shared], allow_abbrev=False)
        options.set_defaults(run=command.run)
        command.options(options)
    socket_path = os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET
    defaults = argparse.Namespace(json=False, socket=socket_path, timeout=DEFAULT_TIMEOUT, show_secret=False)
    return parser.parse_args(argv, defaults)


def _shared_options() -> _Parser:
    """The options that may stand before the command or after it."""
    shared = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
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


def _check_utf8(argv: Sequence[str]) -> None:
    """A word that is not UTF-8 cannot be sent as it is, and must not become another name on its way."""
    for word in argv:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise exits.UsageError(f"the argument {word!a} is not UTF-8") from None


def _outcomes(args: argparse.Namespace) -> Iterator[Outcome]:
    """What the command gets: mostly one outcome, or one after the other for as long as it runs."""
    with Client(args.socket, args.timeout) as client:
        got: Outcome | Iterator[Outcome] = args.run(client, args)
        yield from (got,) if isinstance(got, Outcome) else got


def _rendered(outcome: Outcome, args: argparse.Namespace) -> str:
    return render(outcome.method, outcome.result, args.show_secret)


def _print(output: str) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale without the character is no reason to fail
    print(output, flush=True)  # who follows changes sees each of them now


def _output_error(error: OSError) -> ClientError:
    return ClientError(f"cannot write the output: {error.strerror}")


def _drop_output() -> None:
    """What is still buffered must not fail once more while Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _fail(error: exits.UsageError | VolattachError | ClientError) -> int:
    print(f"volattach: {text(str(error))}", file=sys.stderr)
    if error.correction:
        print(f"try: {text(error.correction)}", file=sys.stderr)
    return exits.code_of(error)
