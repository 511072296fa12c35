"""The exit codes: what a script can tell from a failure without reading its words. The one table of them."""

from __future__ import annotations

from typing import NamedTuple

from volattachd import errors
from volattachd.client import protocol


class UsageError(Exception):
    """The command line is wrong, and nothing was sent."""

    def __init__(self, message: str, correction: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.correction = correction


class Exit(NamedTuple):
    """One exit code, what it means, and the errors that end in it."""

    code: int
    meaning: str
    errors: tuple[type[BaseException], ...] = ()


OK, UNEXPECTED, USAGE, DEGRADED, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 9, 130, 141

EXITS: tuple[Exit, ...] = (
    Exit(OK, "done"),
    Exit(UNEXPECTED, "unexpected: a fault of the daemon or of this command", (Exception,)),
    Exit(USAGE, "the command line is wrong", (UsageError, errors.InvalidParams)),
    Exit(3, "no such volume or attachment", (errors.VolumeNotFound, errors.AttachmentNotFound)),
    Exit(
        4,
        "the state does not allow it",
        (
            errors.InvalidVolume,
            errors.InvalidVolumeAttachMode,
            errors.SessionActive,
            errors.AlreadyExists,
        ),
    ),
    Exit(5, "a value is not valid", (errors.InvalidInput,)),
    Exit(6, "permission denied", (errors.PermissionDenied, protocol.AccessRefused)),
    Exit(7, "try again: busy, target error, no answer", (errors.Busy, errors.DriverError, protocol.NoAnswer)),
    Exit(8, "the daemon is unreachable", (protocol.Unreachable,)),
    Exit(DEGRADED, "something is wrong: status degraded, not all could be reconciled, or doctor found a problem"),
    Exit(INTERRUPTED, "interrupted", (KeyboardInterrupt,)),
    Exit(BROKEN_PIPE, "the reader of the output went away", (BrokenPipeError,)),
)

_BY_ERROR: dict[type[BaseException], int] = {error: row.code for row in EXITS for error in row.errors}


def code_of(error: BaseException) -> int:
    """The exit code for ``error``: that of the nearest of its classes that the table knows."""
    return next((_BY_ERROR[cls] for cls in type(error).__mro__ if cls in _BY_ERROR), UNEXPECTED)


def table() -> str:
    """The exit codes for ``--help``."""
    return "\n".join(f"  {row.code:>3}  {row.meaning}" for row in EXITS)
