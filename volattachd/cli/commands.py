"""The commands, one row each: its words, and the call that it makes."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from volattachd.cli.exit_codes import UsageError
from volattachd.client.connection import Connection
from volattachd.client.protocol import ClientError
from volattachd.errors import AttachmentNotFound, VolumeNotFound

_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"  # compiled where it is wanted: a start is cheap without


class Outcome(NamedTuple):
    """What a command got: the method that answered, for the sake of its rendering, and the result."""

    method: str
    result: Any


class Command(NamedTuple):
    """One command. ``options`` adds its words to a parser; ``run`` makes its call, or calls one after the other."""

    name: str
    help: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Connection, argparse.Namespace], Outcome | Iterator[Outcome]]


def wrong(outcome: Outcome) -> bool:
    """Whether the answer tells of something that somebody should look after. One that cannot be read does."""
    look = _WRONG.get(outcome.method)
    try:
        return look is not None and look(outcome.result)
    except (AttributeError, KeyError, TypeError):
        return True


_WRONG: dict[str, Callable[[Any], bool]] = {
    "get_status": lambda result: bool(result.get("degraded")) or not result.get("ready"),
    "doctor": lambda result: any(finding["level"] == "problem" for finding in result),
    "reconcile": lambda result: any(entry.get("error") for entry in result.get("volumes") or []),
}


def _no_options(parser: argparse.ArgumentParser) -> None:
    pass


def _made(connection: Connection, method: str, **params: Any) -> Outcome:
    """One call; a parameter that is None is left out."""
    given = {name: value for name, value in params.items() if value is not None}
    return Outcome(method, connection.call(method, given))


def _call_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", metavar="METHOD")
    parser.add_argument("words", metavar="key=value", nargs="*", help="key=@FILE and key=@- read the value")
    parser.add_argument("--show-secret", action="store_true", help="print secrets instead of asterisks")


def _call(connection: Connection, args: argparse.Namespace) -> Outcome:
    from volattachd.cli.params import parse  # the method table: no other command needs it, and it costs a start

    return Outcome(args.method, connection.call(args.method, parse(args.method, args.words)))


def _register_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("volume", metavar="VOLUME")
    parser.add_argument("path", metavar="PATH", help="a block device or a regular file")
    parser.add_argument("--multiattach", action="store_true", help="more than one attachment at a time")
    parser.add_argument("--read-only", action="store_true", help="nobody may write to it")


def _register(connection: Connection, args: argparse.Namespace) -> Outcome:
    options = {"multiattach": args.multiattach or None, "read_only": args.read_only or None}
    return _made(connection, "register_volume", volume=args.volume, path=_there(connection, args.path), **options)


def _volume_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("volume", metavar="VOLUME")


def _unregister(connection: Connection, args: argparse.Namespace) -> Outcome:
    return _made(connection, "unregister_volume", volume=args.volume)


def _list_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--attachments", action="store_true", help="the attachments and not the volumes")


def _list(connection: Connection, args: argparse.Namespace) -> Outcome:
    return _made(connection, "list_attachments" if args.attachments else "list_volumes")


def _show_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="VOLUME|ATTACHMENT_ID")


def _show(connection: Connection, args: argparse.Namespace) -> Outcome:
    """A UUID may name either; the volume is the first that is asked for."""
    if not re.fullmatch(_UUID, args.name):
        return _made(connection, "show_volume", volume=args.name)
    try:
        return _made(connection, "show_volume", volume=args.name)
    except VolumeNotFound:
        pass
    try:
        return _made(connection, "show_attachment", attachment_id=args.name)
    except AttachmentNotFound:
        message = f"there is neither a volume nor an attachment {args.name!r}"
        raise VolumeNotFound(message, "volattach list, or volattach list --attachments") from None


def _history_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("volume", metavar="VOLUME", nargs="?")
    parser.add_argument("--attachment", metavar="ID", help="only this attachment")
    parser.add_argument("--since", metavar="N", type=int, help="only what came after sequence number N")
    parser.add_argument("--limit", metavar="N", type=int, help="at most N rows")


def _history(connection: Connection, args: argparse.Namespace) -> Outcome:
    only = {"volume": args.volume, "attachment_id": args.attachment}
    return _made(connection, "get_history", **only, since=args.since, limit=args.limit)


def _status(connection: Connection, _: argparse.Namespace) -> Outcome:
    return _made(connection, "get_status")


def _metrics_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--textfile", metavar="FILE", help="replace FILE by them, whole or not at all, and print nothing"
    )


def _metrics(connection: Connection, args: argparse.Namespace) -> Outcome | Iterator[Outcome]:
    outcome = _made(connection, "get_metrics")
    if args.textfile is None:
        return outcome
    from volattachd.cli.textfile import replace_file

    if not isinstance(outcome.result, str):
        raise ClientError("the daemon's answer to get_metrics is no text", "see that both have the same version")
    replace_file(args.textfile, outcome.result)
    return iter(())


def _reconcile_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only tell the steps")


def _reconcile(connection: Connection, args: argparse.Namespace) -> Outcome:
    return _made(connection, "reconcile", dry_run=args.dry_run or None)


def _watch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", metavar="N", type=int, help="first everything after sequence number N")


def _watch(connection: Connection, args: argparse.Namespace) -> Iterator[Outcome]:
    from volattachd.cli.watch import changes

    return (Outcome("volume_changed", row) for row in changes(connection, args.since))


def _doctor(connection: Connection, _: argparse.Namespace) -> Outcome:
    from volattachd.cli.doctor import examine

    return Outcome("doctor", examine(connection))


def _completion_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")


def _completion(_: Connection, args: argparse.Namespace) -> Iterator[Outcome]:
    from volattachd.cli.completion import shell_code

    print(shell_code(args.shell))  # as it is: it is no result of a call
    return iter(())


def _dial(connection: Connection, _: argparse.Namespace) -> Iterator[Outcome]:
    from volattachd.cli.dial_stdio import relay

    relay(connection.address, connection.timeout)
    return iter(())


def _backup_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a new file on the daemon's host")


def _backup(connection: Connection, args: argparse.Namespace) -> Outcome:
    return _made(connection, "backup_journal", path=_there(connection, args.file))


def _there(connection: Connection, path: str) -> str:
    """A path of this command line on the daemon's host: this directory is none of another host's."""
    if connection.address.startswith("ssh://") and not os.path.isabs(path):
        raise UsageError(f"{path!r} is relative, and the daemon is on another host", "give an absolute path")
    return os.path.join(os.getcwd(), path)  # which leaves an absolute path as it is


def _attach_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("volume", metavar="VOLUME")
    parser.add_argument("--mode", choices=("rw", "ro"), default="rw", help="what this host may do (default: rw)")
    parser.add_argument("--instance", metavar="UUID", help="the instance that uses the volume")
    parser.add_argument("--mount-point", metavar="PATH", help="where the instance sees it; only recorded")
    connectors = "the connector: iscsi (default), local, qemu or another"
    parser.add_argument("--connector", metavar="NAME", default="iscsi", help=connectors)


def _attach(connection: Connection, args: argparse.Namespace) -> Outcome:
    from volattachd.cli import attach  # the agent: no other command needs it

    return Outcome("agent.attach", attach.attach(connection, args))


def _detach_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("volume", metavar="VOLUME")
    parser.add_argument("--force", action="store_true", help="whatever uses it, and of whatever host it is")
    parser.add_argument("--instance", metavar="UUID", help="only the attachment of this instance")
    parser.add_argument("--attachment", metavar="ID", help="only this attachment")
    parser.add_argument("--connector", metavar="NAME", default="iscsi", help="whose leftovers to remove")


def _detach(connection: Connection, args: argparse.Namespace) -> Outcome:
    from volattachd.cli import attach

    return Outcome("agent.detach", attach.detach(connection, args))


COMMANDS: tuple[Command, ...] = (
    Command("attach", "make a volume's device appear on this host", _attach_options, _attach),
    Command("detach", "make a volume's device go from this host", _detach_options, _detach),
    Command("call", "make any single call", _call_options, _call),
    Command("register", "take a device or file into care as a volume", _register_options, _register),
    Command("unregister", "forget a volume that nobody uses; its data stays", _volume_option, _unregister),
    Command("list", "list the volumes, or the attachments", _list_options, _list),
    Command("show", "show one volume or attachment", _show_options, _show),
    Command("history", "what happened, from the journal, oldest first", _history_options, _history),
    Command("watch", "each change as it happens, until interrupted", _watch_options, _watch),
    Command("backup", "copy the journal to a new file while the daemon works", _backup_options, _backup),
    Command("status", "how the daemon is", _no_options, _status),
    Command("doctor", "look at both sides, and say what is wrong and what to do", _no_options, _doctor),
    Command("completion", "print what a shell reads to complete this command", _completion_options, _completion),
    Command("dial-stdio", "pass standard input and output to the daemon: the far side of --host", _no_options, _dial),
    Command("metrics", "counts and times, for Prometheus", _metrics_options, _metrics),
    Command("reconcile", "make the target equal to the journal", _reconcile_options, _reconcile),
)
