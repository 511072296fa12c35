"""The man pages: what the parsers and tables say, and the few words around it that they do not."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from docgen.example import toml
from docgen.roff import entry, example, page, section, subsection, text
from volattachd import config, daemon
from volattachd.cli.exit_codes import EXITS
from volattachd.cli.parser import HOST_VARIABLE, SOCKET_VARIABLE, build_parser

#: What each exit code of the daemon means; a test holds it against the daemon's own.
DAEMON_EXITS = {
    daemon.EXIT_OK: "It was ended by SIGTERM or SIGINT.",
    daemon.EXIT_FAILED: "The journal cannot be opened or written, or the target cannot be used; the log says why.",
    daemon.EXIT_USAGE: "The command line is wrong.",
    daemon.EXIT_DAMAGED: "The journal is damaged, and has to be restored from a backup.",
    daemon.EXIT_CONFIG: "The configuration cannot be used, or the socket is taken.",
}


def write_daemon_page() -> str:
    """volattachd(8)."""
    return page(
        "volattachd",
        8,
        section("NAME", [r"volattachd \- attach and detach volumes over iSCSI"]),
        section("SYNOPSIS", _synopsis("volattachd", daemon.build_parser()._actions)),
        section(
            "DESCRIPTION",
            text(
                "*volattachd* owns the iSCSI target of a storage host.",
                "It serves Cinder's attach and detach calls over a Unix socket.",
                "What it answered is in its journal, on the disk.",
                "The target is made equal to the journal in each call, at each start, and every few seconds.",
            ),
            text(
                "A restart touches no session: the daemon writes only what differs.",
                "There is no error state: what is wrong with a volume is a condition.",
                "It is shown, looked at again by itself, and over when its cause is.",
            ),
        ),
        section("OPTIONS", _options(daemon.build_parser())),
        section(
            "SIGNALS",
            entry("SIGTERM, SIGINT", "End; exports and sessions stay as they are."),
            entry("SIGHUP", "Look up the users and groups of the configuration again."),
        ),
        section("EXIT STATUS", *(entry(str(code), meaning) for code, meaning in DAEMON_EXITS.items())),
        section(
            "ENVIRONMENT",
            entry("NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID, LISTEN_FDS, LISTEN_PID", "As systemd sets them."),
            entry(
                "JOURNAL_STREAM", "Where it names what standard error is, records go to journald with all their fields."
            ),
            entry("TGT_IPC_SOCKET", "With the driver tgt, the control socket of its tgtd."),
        ),
        section(
            "FILES",
            entry(
                str(config.DEFAULT_FILE), "The configuration, volattachd.toml(5). Without it every key has its default."
            ),
            entry(str(config.Config.state_dir), "The journal, with the secrets of the attachments in it."),
            entry(str(config.Config.socket), "The socket."),
        ),
        section(
            "MONITORING",
            text("Every event is a record of journald with a message id and fields:"),
            example(
                "journalctl _UID=0 VOLATTACH_VOLUME=vol-1",
                "journalctl -x _UID=0 -p warning --since -1h -t volattachd",
            ),
            text("The first shows the life of a volume, the second what went wrong, with what to do about it."),
        ),
        section("SEE ALSO", [".BR volattach (1),", ".BR volattachd.toml (5),", ".BR journalctl (1)"]),
    )


def write_client_page() -> str:
    """volattach(1)."""
    parser = build_parser()
    commands = _commands(parser)
    return page(
        "volattach",
        1,
        section("NAME", [r"volattach \- the command line of volattachd"]),
        section("SYNOPSIS", _synopsis("volattach", parser._actions)),
        section(
            "DESCRIPTION",
            text(
                "*volattach* speaks to the socket of volattachd(8).",
                "Everything that it does, any program can do with the same calls.",
            ),
        ),
        section("OPTIONS", text("These stand before the command or after it."), _options(parser)),
        section("COMMANDS", *(_command(name, options) for name, options in commands.items())),
        section("EXIT STATUS", *(entry(str(row.code), _sentence(row.meaning)) for row in EXITS)),
        section(
            "ENVIRONMENT",
            entry(SOCKET_VARIABLE, "The daemon's socket, where no option names it."),
            entry(HOST_VARIABLE, "The storage host, as *--host* takes it, where no option names one."),
        ),
        section("SEE ALSO", [".BR volattachd (8),", ".BR volattachd.toml (5)"]),
    )


def write_config_page() -> str:
    """volattachd.toml(5)."""
    by_section = groupby(config.keys(), key=lambda row: row[0])
    return page(
        "volattachd.toml",
        5,
        section("NAME", [r"volattachd.toml \- the configuration of volattachd"]),
        section("SYNOPSIS", text(str(config.DEFAULT_FILE))),
        section(
            "DESCRIPTION",
            text(
                "A file in TOML.",
                "Every key has a default that works, so an empty file, or none, runs.",
                "A key or section that does not exist, or a value that does not fit, is an error.",
                "It names file, line and key; *volattachd --check-config* tells without starting anything.",
            ),
            text(
                "A change takes effect when the daemon is started again, which touches no session.",
                "Times are in seconds.",
            ),
        ),
        section(
            "KEYS",
            *(_keys(name, rows) for name, rows in by_section),
            subsection(
                f"[{config.INITIATORS}]",
                entry(
                    "NAME",
                    "A user, or a list of users, to whom this initiator's name is bound.",
                    "Nobody else can use it: attachments of other owners are refused.",
                ),
            ),
        ),
        section(
            "EXAMPLE",
            example(
                "[access]", 'admin = ["alice", "%storage"]', "", "[target]", 'portals = ["eth1", "192.0.2.10:3261"]'
            ),
        ),
        section("SEE ALSO", [".BR volattachd (8)"]),
    )


def _keys(name: str, rows: Iterable[tuple[str, str, str, Any]]) -> list[str]:
    entries = (entry(key, _sentence(summary), f"Default: {toml(value)}") for _, key, summary, value in rows)
    return subsection(f"[{name}]", *entries)


def _synopsis(program: str, actions: Iterable[argparse.Action]) -> list[str]:
    """How it is typed. Written here: argparse writes it in another way with each version of Python."""
    return text(" ".join([f"*{program}*", *map(_usage, actions)]))


def _usage(action: argparse.Action) -> str:
    if action.option_strings:
        value = f" {_metavar(action)}" if action.nargs != 0 else ""
        return f"[{action.option_strings[-1]}{value}]"
    return _WORDS.get(action.nargs, "{}").format(_metavar(action))


#: How often a word may stand, as argparse says it.
_WORDS: dict[Any, str] = {"?": "[{}]", "*": "[{} ...]", "+": "{0} [{0} ...]", argparse.PARSER: "{} ..."}


def _command(name: str, options: argparse.ArgumentParser) -> list[str]:
    told = next(action.help for action in _choices(build_parser()) if action.dest == name)
    own = [action for action in options._actions if not _is_shared(action)]
    return subsection(name, _synopsis(f"volattach {name}", own), text(_sentence(told or "")), _entries(own))


def _is_shared(action: argparse.Action) -> bool:
    """Whether every command has the option, so that it stands in OPTIONS."""
    everywhere = {option for shared in build_parser()._actions for option in shared.option_strings}
    return bool(set(action.option_strings) & everywhere)


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return _entries(action for action in parser._actions if action.option_strings)


def _entries(actions: Iterable[argparse.Action]) -> list[str]:
    """An entry for each option, and for each word that has something said of it."""
    return [line for action in actions if action.help for line in entry(_term(action), _sentence(action.help))]


def _term(action: argparse.Action) -> str:
    words = action.option_strings or [_metavar(action)]
    value = f" {_metavar(action)}" if action.option_strings and action.nargs != 0 else ""
    return ", ".join(f"{word}{value}" for word in words)


def _metavar(action: argparse.Action) -> str:
    return str(action.metavar or action.dest.upper())


def _sentence(words: str) -> str:
    """What is said of an option, as a sentence."""
    first = words[0].upper() if words.split()[0].rstrip(":").isalpha() else words[0]
    return f"{first}{words[1:]}".removesuffix(".") + "."


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    return dict(_subparsers(parser).choices)


def _choices(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    yield from _subparsers(parser)._choices_actions


def _subparsers(parser: argparse.ArgumentParser) -> Any:
    (found,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return found
