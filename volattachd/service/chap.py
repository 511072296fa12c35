"""CHAP credentials: whose they are, and what they are made of.

Invariants:

1. A secret has one owner: the user that owns the attachment. Attachments of different users never share a grant, a
   user name or a password, whatever initiator their connectors name.
2. On one volume, an initiator belongs to one owner at a time. A target knows one access rule for an initiator, so a
   second owner would be given the first one's access.
3. A name that the configuration binds to users is used by attachments of these users alone, also if it is free.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping

from volattachd.errors import ConfigError, InvalidVolumeAttachMode, PermissionDenied
from volattachd.host.users import find_uid
from volattachd.lifecycle import GRANTED
from volattachd.model import Attachment, Secret


class InitiatorBindings:
    """Which users an initiator's name is bound to: ``[initiators]`` of the configuration."""

    def __init__(self, bindings: Iterable[tuple[str, Iterable[str]]]) -> None:
        """Look up every user. Raises ConfigError for one that does not exist."""
        self._uids: Mapping[str, frozenset[int]] = {
            initiator: frozenset(_uid_of(initiator, user) for user in users) for initiator, users in bindings
        }

    def check(self, row: Attachment, initiator: str) -> None:
        """Raise PermissionDenied if the name is bound, and not to the attachment's owner."""
        uids = self._uids.get(initiator)
        if uids is not None and row.owner not in uids:
            raise PermissionDenied(
                f"cannot initialize_connection volume {row.volume!r}: {initiator} is bound to other users than"
                f" uid {row.owner}, the owner of attachment {row.id}",
                "connect with this host's own initiator; an admin binds names in [initiators] of the configuration",
            )


def _uid_of(initiator: str, user: str) -> int:
    uid = find_uid(user)
    if uid is None:
        raise ConfigError(f"initiators.{initiator}: there is no user {user!r}")
    return uid


def secret_for(row: Attachment, initiator: str, neighbours: Iterable[Attachment]) -> Secret:
    """New credentials, or those that the same initiator already uses for this volume, if its owner is the same.

    Attachments of one owner and one host share the access rule: neither cuts the other off by leaving. The
    credentials die with the last of them.
    Raises PermissionDenied if the initiator belongs to another owner, InvalidVolumeAttachMode if the modes differ.
    """
    sharers = [other for other in neighbours if other.initiator == initiator and other.state in GRANTED]
    for other in sharers:
        _check_may_share(row, other, initiator)
    shared = sharers[0].secret if sharers else None
    return shared or new_secret(row.id)


def _check_may_share(row: Attachment, other: Attachment, initiator: str) -> None:
    if other.owner != row.owner:
        raise PermissionDenied(
            f"cannot initialize_connection volume {row.volume!r}: {initiator} belongs to uid {other.owner} there,"
            f" through attachment {other.id}, and uid {row.owner} owns attachment {row.id}",
            "connect with this host's own initiator; if this is its name, an admin can bind it in [initiators]",
        )
    if other.mode is not row.mode:
        raise InvalidVolumeAttachMode(
            f"{initiator} already has {other.mode.value} access to volume {row.volume!r} through"
            f" attachment {other.id}; one host cannot have {row.mode.value} access beside it"
        )


def new_secret(attachment_id: str) -> Secret:
    """CHAP credentials that no attachment had before: 124 random bits (RFC 3720 section 8.2.1 asks for 96).

    Both begin with a letter: LIO takes a CHAP_N that begins with 0b for base64 and one with 0x for hexadecimal, and
    refuses the login; and a value that begins with NULL unsets it. Neither has anything but letters, digits and "-".
    """
    return Secret(username=f"volattach-{attachment_id}", password="s" + secrets.token_hex(16)[1:])
