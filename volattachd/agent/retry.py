"""Calls to the daemon that are sent again while none answers, for as long as the agent's timeout says.

The workflow's calls are idempotent, so each may be sent again. The first failure is reported at once, with what is
waited for: a command that waits in silence looks like one that hangs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from volattachd.agent.connectors.base import Report, Waiting
from volattachd.client.sync import AccessRefused, Client, Unreachable
from volattachd.errors import Busy

#: For how long the agent waits for one thing that may still come (a daemon that is being restarted, a portal that is
#: busy, the end of a session), in seconds.
TIMEOUT = 60.0

#: For how long it waits for a portal that accepts connections and does not come to the login. LIO gives each connection
#: that says nothing 15 s, one after the other: 40 of them are 600 s.
BUSY_TIMEOUT = 900.0

_PAUSE = 0.2


class Calls(Protocol):
    """Whoever carries calls to the daemon."""

    def call(self, method: str, params: dict[str, Any]) -> Any: ...


class SentAgain:
    """Calls over a new connection each, sent again while no daemon answers, each for ``timeout`` seconds in all."""

    def __init__(
        self, connect: Callable[[], Client], timeout: float = TIMEOUT, report: Report = lambda line: None
    ) -> None:
        self._connect = connect
        self._timeout = timeout
        self._report = report

    def call(self, method: str, params: dict[str, Any]) -> Any:
        deadline = time.monotonic() + self._timeout
        first = True
        while True:
            try:
                with self._connect() as client:
                    return client.call(method, params, max(0.001, deadline - time.monotonic()))
            except AccessRefused:
                raise
            except (Unreachable, Busy) as error:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                if first:
                    self._report(_waits_for(error, left))
                first = False
            time.sleep(min(_PAUSE, left))  # a daemon that is not there has no event to wait for


def _waits_for(error: Unreachable | Busy, left: float) -> Waiting:
    """What is waited for and why, and how it could be helped."""
    help_ = f" ({error.correction})" if isinstance(error, Unreachable) and error.correction else ""
    return Waiting(f"{error.message}; trying again for {left:.0f} s{help_}")
