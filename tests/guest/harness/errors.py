"""What can go wrong with a guest, one class for each thing a caller can do about it."""

from __future__ import annotations


class GuestError(Exception):
    """Anything the harness reports; the message says what was tried."""


class Unavailable(GuestError):
    """This machine cannot run guests; the message says what to install."""


class BuildFailed(Unavailable):
    """The root image could not be built."""


class GuestDied(GuestError):
    """The guest's kernel ended while something was still expected of it."""


class GuestHung(GuestError):
    """The guest did not answer within its limit."""
