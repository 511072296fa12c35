"""Rows of the journal as they come, across restarts of the daemon: each once, in order, and none missed.

All that has to be remembered is the number of the last row. When the connection ends, for whatever reason, a new one
is made and the daemon is asked for what came after it. Where it cannot give that (the history was trimmed, or the
journal is an older one again), its refusal ends the command.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from volattachd.cli.output import text
from volattachd.client.connection import Connection
from volattachd.client.protocol import AccessRefused, ClientError, NoAnswer, Unreachable
from volattachd.errors import Busy

#: Pauses between tries to reach the daemon again, doubled from the first to the last, in seconds.
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 5.0


def changes(connection: Connection, since: int | None) -> Iterator[dict[str, Any]]:
    """Every row after ``since``, or without it every new one. Never ends by itself.

    Raises what the first try to subscribe raises; later ones are made again until the daemon is there.
    """
    seq = _subscribe(connection, since)
    while True:
        try:
            for row in _rows(connection, seq):
                seq = row["seq"]
                yield row
        except Unreachable as error:
            print(f"volattach: {text(error.message)}; going on after {seq}", file=sys.stderr, flush=True)
        connection.close()
        connection = _reconnect(connection, seq)


def _subscribe(connection: Connection, since: int | None) -> int:
    """Subscribe; the answer is the number that the first row follows."""
    answer = connection.call("subscribe", {} if since is None else {"since": since})
    if not isinstance(answer, dict) or type(answer.get("since")) is not int:
        raise ClientError("the daemon's answer to subscribe has no number", "see that both have the same version")
    number: int = answer["since"]
    return number


def _rows(connection: Connection, seq: int) -> Iterator[dict[str, Any]]:
    """The rows that are sent after ``seq``. Raises Unreachable where they end."""
    while True:
        method, params = connection.notification()
        if method == "subscription_ended":
            raise NoAnswer(f"the daemon ended the notifications: {params.get('message')}")
        if method != "volume_changed":
            continue
        if params.get("seq") != seq + 1:
            raise NoAnswer(f"the row after {seq} is missing")
        seq += 1
        yield params


def _reconnect(connection: Connection, seq: int) -> Connection:
    """A new connection that is subscribed since ``seq``."""
    pause = _FIRST_PAUSE
    while True:
        fresh = Connection(connection.address, connection.timeout)
        try:
            _subscribe(fresh, seq)
        except AccessRefused:
            raise
        except (Unreachable, Busy):
            fresh.close()
            time.sleep(pause)
            pause = min(_LAST_PAUSE, pause * 2)
        else:
            print(f"volattach: connected again, after {seq}", file=sys.stderr, flush=True)
            return fresh
