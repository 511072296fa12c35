"""Feeds systemd's watchdog for as long as the daemon moves.

The proof is a call of the daemon's own, which goes the way of every client's: through the accept loop, a thread, the
framing, the dispatcher and the service to the journal, where it waits its turn behind whoever writes. What hangs on
that way starves the watchdog, and systemd starts the daemon again.

What does not starve it: a volume that waits for its device (nothing of it is on that way), and clients that hold every
connection (the limits do not count this one). A disk of the journal's that is slow feeds it late, and systemd alone
has the clock for that: WatchdogSec= has to be longer than a commit may take.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

_QUESTION = b'{"jsonrpc": "2.0", "id": 0, "method": "get_history", "params": {"limit": 1}}\n'


class Watchdog:
    """Asks the daemon something every ``pause`` seconds, and calls ``feed`` after each answer."""

    def __init__(self, connect: Callable[[], socket.socket], feed: Callable[[], None], pause: float | None) -> None:
        """``pause`` is None where there is no watchdog to feed."""
        self._connect = connect
        self._feed = feed
        self._pause = pause
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin, in a thread that ends with the process, or with ``stop``."""
        if self._pause is not None:
            threading.Thread(target=self._run, args=(self._pause,), name="watchdog", daemon=True).start()

    def _run(self, pause: float) -> None:
        while not self._stopped.wait(pause):
            if self._is_answered():
                self._feed()

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()

    def _is_answered(self) -> bool:
        """Whether the call got an answer, whatever it says. Waits for it without end: no answer, no food."""
        try:
            with self._connect() as connection:
                connection.sendall(_QUESTION)
                return bool(connection.recv(1))
        except OSError as error:
            log.debug("the watchdog's question was not answered: %s", error)
            return False
