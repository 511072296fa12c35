"""``volattach attach`` and ``volattach detach``: the agent's whole workflow as one command each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from volattachd.agent import Agent, SentAgain
from volattachd.cli.output import text
from volattachd.client.connection import Connection
from volattachd.client.sync import Client


def attach(connection: Connection, args: argparse.Namespace) -> dict[str, Any]:
    """The device of a volume on this host."""
    wish = {"mode": args.mode, "instance_uuid": args.instance, "mount_point": args.mount_point}
    return _agent(connection).attach(args.volume, **wish, connector=args.connector).view()


def detach(connection: Connection, args: argparse.Namespace) -> dict[str, Any]:
    """A volume without this host."""
    agent = _agent(connection)
    return agent.detach(args.volume, args.force, args.instance, args.connector).view()


def _agent(connection: Connection) -> Agent:
    return Agent(SentAgain(lambda: Client(connection.address, connection.timeout)), report=_report())


def _report() -> Callable[[str], None]:
    """Where somebody watches, each step as it begins; a script's standard error stays empty."""
    if not sys.stderr.isatty():
        return lambda line: None
    return lambda line: print(text(line), file=sys.stderr, flush=True)
