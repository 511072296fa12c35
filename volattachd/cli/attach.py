"""``volattach attach`` and ``volattach detach``: the agent's whole workflow as one command each."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from volattachd.agent import Agent, SentAgain
from volattachd.agent.connectors.base import Waiting
from volattachd.cli.output import text
from volattachd.client.connection import Connection
from volattachd.client.sync import Client


def attach(connection: Connection, args: argparse.Namespace) -> dict[str, Any]:
    """The device of a volume on this host."""
    wish = {"mode": args.mode, "instance_uuid": args.instance, "mount_point": args.mount_point}
    return _agent(connection, args).attach(args.volume, **wish, connector=args.connector).view()


def detach(connection: Connection, args: argparse.Namespace) -> dict[str, Any]:
    """A volume without this host."""
    agent = _agent(connection, args)
    return agent.detach(args.volume, args.force, args.instance, args.connector, args.attachment).view()


def _agent(connection: Connection, args: argparse.Namespace) -> Agent:
    """An agent that waits for as long as a call may take: ``--timeout``."""
    address, timeout = connection.address, connection.timeout
    calls = SentAgain(lambda: Client(address, timeout), timeout, _report)
    return Agent(calls, report=_report, timeout=args.timeout, elsewhere=address.startswith("ssh://"))


def _report(line: str) -> None:
    """Each step as it begins where somebody watches; to a script only what is waited for: else its standard error is
    empty.
    """
    if isinstance(line, Waiting) or sys.stderr.isatty():
        print(text(line), file=sys.stderr, flush=True)
