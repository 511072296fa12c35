"""CHAP credentials: whose they are, and what they are made of."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from volattachd.errors import InvalidVolumeAttachMode
from volattachd.lifecycle import GRANTED
from volattachd.model import Attachment, Secret


def secret_for(row: Attachment, initiator: str, neighbours: Iterable[Attachment]) -> Secret:
    """New credentials, or those that the same initiator already uses for this volume.

    A target knows one access rule for an initiator, so attachments of one host share it: neither cuts the
    other off by leaving. The credentials die with the last of them.
    """
    for other in neighbours:
        if other.id != row.id and other.initiator == initiator and other.state in GRANTED and other.secret:
            if other.mode is not row.mode:
                raise InvalidVolumeAttachMode(
                    f"{initiator} already has {other.mode.value} access to volume {row.volume!r} through"
                    f" attachment {other.id}; one host cannot have {row.mode.value} access beside it"
                )
            return other.secret
    return new_secret(row.id)


def new_secret(attachment_id: str) -> Secret:
    """CHAP credentials that no attachment had before: 124 random bits (RFC 3720 section 8.2.1 asks for 96).

    Both begin with a letter: LIO takes a CHAP_N that begins with 0b for base64 and one with 0x for hexadecimal, and
    refuses the login; and a value that begins with NULL unsets it. Neither has anything but letters, digits and "-".
    """
    return Secret(username=f"volattach-{attachment_id}", password="s" + secrets.token_hex(16)[1:])
