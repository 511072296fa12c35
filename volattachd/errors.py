"""Errors, one class for each thing that a caller can do about it.

    VolattachError
    ├── InvalidParams              -32602  the call's parameters do not fit its signature: correct the call
    ├── VolumeNotFound              1001   register the volume, or correct its name
    ├── AttachmentNotFound          1002   reserve the volume first, or correct the id
    ├── InvalidVolume               1003   the state does not allow it: make the call that is named instead
    ├── InvalidInput                1004   correct the value that is named
    ├── InvalidVolumeAttachMode     1005   ask for another mode
    ├── SessionActive               1006   log the initiator out, or use force
    ├── DriverError                 1007   the target or the device said no; its words are in the message
    ├── PermissionDenied            1008   ask somebody with the role
    ├── Busy                        1009   send it again
    └── AlreadyExists               1010   use another name, or use what is there

A message says what could not be done, to what, and why. ``correction`` says what to do, where there is one
thing to do. ``details`` are further members of the wire's ``data`` (for instance the candidates).
The classes know nothing of JSON: ``volattachd.rpc`` converts them in one place, by ``code`` and ``kind``.
"""

from __future__ import annotations

from typing import Any, ClassVar


class VolattachError(Exception):
    """The root of everything that a call can answer instead of a result."""

    code: ClassVar[int] = 0
    retriable: ClassVar[bool] = False

    def __init__(self, message: str, correction: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.correction = correction
        self.details = details

    @property
    def kind(self) -> str:
        """The name that the wire gives to this error: the name of its class."""
        return type(self).__name__


_BY_CODE: dict[int, type[VolattachError]] = {}


def _register(cls: type[VolattachError]) -> type[VolattachError]:
    if cls.code in _BY_CODE:
        raise AssertionError(f"{cls.__name__} and {_BY_CODE[cls.code].__name__} share the code {cls.code}")
    _BY_CODE[cls.code] = cls
    return cls


def by_code(code: int) -> type[VolattachError] | None:
    """The class behind a code of the wire, or None for a code that is not ours."""
    return _BY_CODE.get(code)


def kinds() -> list[type[VolattachError]]:
    """Every class that the wire can name, by rising code."""
    return [_BY_CODE[code] for code in sorted(_BY_CODE)]


@_register
class InvalidParams(VolattachError):
    """A parameter is missing, unknown, or there are too many."""

    code = -32602


@_register
class VolumeNotFound(VolattachError):
    """No volume of that name is registered."""

    code = 1001


@_register
class AttachmentNotFound(VolattachError):
    """No attachment has, or ever had, that id."""

    code = 1002


@_register
class InvalidVolume(VolattachError):
    """The state of the volume or of the attachment does not allow the call."""

    code = 1003


@_register
class InvalidInput(VolattachError):
    """A value is not one that the call can take."""

    code = 1004


@_register
class InvalidVolumeAttachMode(VolattachError):
    """The volume or the driver cannot give the mode that was asked for."""

    code = 1005


@_register
class SessionActive(VolattachError):
    """The initiator is still logged in, and revoking its access would cut its I/O."""

    code = 1006


@_register
class DriverError(VolattachError):
    """The target or the device refused a step; the message includes its words."""

    code = 1007
    retriable = True


@_register
class PermissionDenied(VolattachError):
    """The caller's uid does not have the role or does not own the attachment, or the initiator is another owner's."""

    code = 1008


@_register
class Busy(VolattachError):
    """A limit or a deadline was reached. What was begun goes on by itself; the same call may be sent again."""

    code = 1009
    retriable = True


@_register
class AlreadyExists(VolattachError):
    """The name, the device or the id is taken."""

    code = 1010


class JournalFailed(Exception):
    """A commit or fsync failed: what is on the disk is unknown until it is read again.

    Never retried (a second fsync may report success for pages that the first one lost). The journal
    accepts nothing more, and the process must end and start again from the disk.
    """


class JournalUnusable(Exception):
    """The journal cannot be opened: locked, damaged, from a newer version, or with unsafe permissions."""


class JournalDamaged(JournalUnusable):
    """It cannot be used until somebody restores it or installs the version that wrote it: a start mends nothing."""


class ConfigError(Exception):
    """The configuration file cannot be used; the message names file, line and key."""
