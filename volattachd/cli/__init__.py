"""volattach: the command line of volattachd. It is a client and nothing more: it imports none of the daemon.

A start should cost little more than Python's own, so what only some commands need is imported by those.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator, Sequence

from volattachd.cli import exit_codes
from volattachd.cli.commands import Outcome, wrong
from volattachd.cli.output import machine, render, text
from volattachd.cli.parser import HOST_VARIABLE, SOCKET_VARIABLE, build_parser, defaults
from volattachd.client.connection import DEFAULT_TIMEOUT, Connection
from volattachd.client.protocol import ClientError
from volattachd.client.unix import DEFAULT_SOCKET
from volattachd.errors import VolattachError

#: What a shell sets that wants completions: see ``completion``.
_ASKED_BY_SHELL = "_ARGCOMPLETE"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code."""
    try:
        code = _command(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()  # here, where a reader that went away is no traceback
        return code
    except KeyboardInterrupt as error:
        return exit_codes.code_of(error)
    except OSError as error:  # the client's own are ClientErrors: only the output is left
        _drop_output()
        return exit_codes.code_of(error) if isinstance(error, BrokenPipeError) else _fail(_output_error(error))


def _command(argv: Sequence[str]) -> int:
    code = exit_codes.OK
    try:
        if _ASKED_BY_SHELL in os.environ:
            _answer_shell()
        args = _parse(argv)
        for outcome in _outcomes(args):
            _print(machine(outcome.result) if args.json else _rendered(outcome, args))
            code = exit_codes.DEGRADED if wrong(outcome) else code
    except SystemExit as leaving:  # argparse, after --help and --version
        return int(leaving.code or exit_codes.OK)
    except (exit_codes.UsageError, VolattachError, ClientError) as error:
        return _fail(error)
    return code


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    _check_utf8(argv)
    args = build_parser(argv).parse_args(argv, defaults())
    args.address = _address(args)
    return args


def _answer_shell() -> None:
    from volattachd.cli.completion import answer_shell

    # argcomplete reads the line by its own rules: what is not given has no default there.
    answer_shell(
        build_parser(mixing=False), lambda given: _address(argparse.Namespace(**vars(defaults()) | vars(given)))
    )


def _address(args: argparse.Namespace) -> str:
    """Where the daemon is: what the command line says goes before the environment, and a host before a socket."""
    if args.host and args.socket:
        raise exit_codes.UsageError("--host and --socket exclude each other", "--host ssh://HOST/PATH/OF/THE/SOCKET")
    if args.host or args.socket:
        return _host(args.host, "--host") if args.host else str(args.socket)
    # The far side is there already: a host that names itself for everybody must not call itself for ever.
    if args.command != "dial-stdio" and (host := os.environ.get(HOST_VARIABLE)):
        return _host(host, HOST_VARIABLE)
    return os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET


def _host(address: str, source: str) -> str:
    from volattachd.client import ssh

    try:
        ssh.parse_address(address)
    except ValueError as error:
        raise exit_codes.UsageError(f"{source}: {error}", "ssh://storage1, say, or ssh://ops@storage1:2222") from None
    return address


def _check_utf8(argv: Sequence[str]) -> None:
    """A word that is not UTF-8 cannot be sent as it is, and must not become another name on its way."""
    for word in argv:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise exit_codes.UsageError(f"the argument {word!a} is not UTF-8") from None


def _outcomes(args: argparse.Namespace) -> Iterator[Outcome]:
    """What the command gets: mostly one outcome, or one after the other for as long as it runs."""
    with Connection(args.address, DEFAULT_TIMEOUT if args.timeout is None else args.timeout) as connection:
        got: Outcome | Iterator[Outcome] = args.run(connection, args)
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


def _fail(error: exit_codes.UsageError | VolattachError | ClientError) -> int:
    print(f"volattach: {text(str(error))}", file=sys.stderr)
    if error.correction:
        print(f"try: {text(error.correction)}", file=sys.stderr)
    return exit_codes.code_of(error)
