"""The host's user database."""

from __future__ import annotations

import pwd


def has_user(uid: int) -> bool:
    """Whether the database has a user of this number."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def find_uid(name: str) -> int | None:
    """The uid of a user's name, or the number that is written in its place; None if there is no such user."""
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None
