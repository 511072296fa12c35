"""How records reach their readers: journald with every field, or one line for each event on stderr.

Under systemd (JOURNAL_STREAM names what stderr is connected to: systemd.exec(5)) records go to journald's own socket,
in its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL). Anywhere else, and where journald does not take one, a
record is a readable line on stderr.

Laws:

1. Whatever a record holds, it stays one line and each field stays one field: control characters in a name that
   somebody sent are escaped, in lines and in fields, and every field goes out with its length before it.
2. What was told is told at once: a datagram, or a whole line, before the call is answered.

The protocol is spoken here because no binding of it is on every host that should run this: python3-systemd needs a C
compiler where it comes from PyPI, and the pure ones are not in Debian 12. It is a length before each value.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import struct
import sys
from array import array
from collections.abc import Mapping
from typing import TextIO

from volattachd.telemetry.messages import Told

JOURNAL_SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "volattachd"

#: syslog(3): the priorities of journald, and of the start of a line that systemd reads (sd-daemon(3)).
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_ESCAPES = {code: f"\\x{code:02x}" for code in [*range(0x20), *range(0x7F, 0xA0)] if code != 0x0A}
_ESCAPES |= {0x2028: "\\u2028", 0x2029: "\\u2029"}
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def set_up(
    level: int = logging.INFO, environment: Mapping[str, str] = os.environ, journal_socket: str = JOURNAL_SOCKET
) -> None:
    """Send the package's records to journald where it reads our stderr, else to stderr."""
    # What no line of ours shows is not asked for, as the logging HOWTO has it ("Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    under_systemd = is_journal(sys.stderr, environment.get("JOURNAL_STREAM"))
    handler: logging.Handler = LineHandler(sys.stderr)
    handler.setFormatter(LineFormatter(under_systemd))
    if under_systemd:
        handler = JournalHandler(journal_socket, handler)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("volattachd").setLevel(level)


def let_go(stream: TextIO) -> None:
    """Before the process ends: a log that could not be written does not change its exit code.

    Python itself writes what is left in the buffer at its end, and where that fails exits with 120, whatever it was
    told. So the buffer is given an end where it can be written.
    """
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def is_journal(stream: TextIO, journal_stream: str | None) -> bool:
    """Whether the stream is the one that systemd connected to journald, and not one that was redirected since."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False  # closed, or no file at all
    return journal_stream == f"{found.st_dev}:{found.st_ino}"


class LineFormatter(logging.Formatter):
    """One line for a record; the lines of a traceback follow, indented."""

    def __init__(self, under_systemd: bool) -> None:
        super().__init__("%(message)s" if under_systemd else "%(asctime)s %(levelname)s %(message)s")
        self._under_systemd = under_systemd

    def format(self, record: logging.LogRecord) -> str:
        text = escape(super().format(record), "\n    " if record.exc_info else "\\n")
        return f"<{priority(record)}>{text}" if self._under_systemd else text


class LineHandler(logging.Handler):
    """Writes each record to a stream's file, past its buffers: one call of the system for a record."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._fd = stream.fileno()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            left = memoryview(self.format(record).encode("utf-8", "backslashreplace") + b"\n")
            while left:
                left = left[os.write(self._fd, left) :]
        except Exception:  # noqa: BLE001 - as every handler does: said on stderr, and never raised to who logs
            self.handleError(record)


class JournalHandler(logging.Handler):
    """Sends each record to journald as one entry; what it does not take goes to ``fallback``."""

    def __init__(self, path: str, fallback: logging.Handler) -> None:
        super().__init__()
        self._path = path
        self.fallback = fallback
        self._text = logging.Formatter("%(message)s")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(encode(entry(record, self._text)))
        except OSError:  # journald is being started again, say: stderr is still its stream
            self.fallback.handle(record)
        except Exception:  # noqa: BLE001 - as every handler does: said on stderr, and never raised to who logs
            self.handleError(record)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendto(data, self._path)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_large(data)

    def _send_large(self, data: bytes) -> None:
        """An entry that no datagram can hold goes as a sealed file in memory."""
        fd = os.memfd_create("volattachd-record", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(fd, "wb", buffering=0) as file:
            file.write(data)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))]
            self._socket.sendmsg([], rights, 0, self._path)


def entry(record: logging.LogRecord, text: logging.Formatter) -> dict[str, str]:
    """The fields of a record."""
    fields = {
        "MESSAGE": escape(text.format(record), "\n    " if record.exc_info else "\\n"),
        "PRIORITY": str(priority(record)),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
    }
    if isinstance(record.msg, Told):
        told = {name: escape(value) for name, value in record.msg.fields().items()}
        return {**fields, "MESSAGE_ID": record.msg.kind.id, **told}
    return fields


def encode(fields: Mapping[str, str]) -> bytes:
    """Fields in the native protocol, in its form for values that may hold anything."""
    parts = []
    for name, value in fields.items():
        data = value.encode("utf-8", "backslashreplace")
        parts.append(b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(data)), data))
    return b"".join(parts)


def escape(text: str, newline: str = "\\n") -> str:
    """The text without control characters; ``newline`` stands for each end of a line."""
    return text.translate(_ESCAPES).replace("\n", newline)


def priority(record: logging.LogRecord) -> int:
    """The syslog priority of a record."""
    return _PRIORITIES.get(record.levelno, 6)
