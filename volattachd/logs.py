"""Log lines on stderr, one for each event: readable in a terminal, with a priority under systemd.

Whatever a record holds, it stays one line: control characters in a name that somebody sent cannot forge another.
"""

from __future__ import annotations

import logging
import os
import sys

#: sd-daemon(3): the syslog priority that journald takes from the start of a line.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_ESCAPES = {code: f"\\x{code:02x}" for code in [*range(0x20), *range(0x7F, 0xA0)] if code != 0x0A}
_ESCAPES |= {0x2028: "\\u2028", 0x2029: "\\u2029"}


class LineFormatter(logging.Formatter):
    """One line for a record; the lines of a traceback follow, indented."""

    def __init__(self, under_systemd: bool) -> None:
        super().__init__("%(message)s" if under_systemd else "%(asctime)s %(levelname)s %(message)s")
        self._under_systemd = under_systemd

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).translate(_ESCAPES).replace("\n", "\n    " if record.exc_info else "\\n")
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{text}" if self._under_systemd else text


def set_up(level: int = logging.INFO) -> None:
    """Send the package's records to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(under_systemd="JOURNAL_STREAM" in os.environ))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("volattachd").setLevel(level)
