"""Whose an attachment is, before it is reserved."""

from __future__ import annotations

from volattachd.errors import InvalidInput, PermissionDenied
from volattachd.host.users import find_uid, has_user
from volattachd.model import Attachment, Caller


def find_owner(caller: Caller, volume: str, owner: int | str | None) -> int:
    """The uid that a reservation is for. Raises PermissionDenied if the caller may not reserve for it."""
    if owner is None:
        return caller.uid
    uid = find_uid(owner) if isinstance(owner, str) else owner
    if uid is None or (uid != caller.uid and not has_user(uid)):
        raise InvalidInput(
            f"cannot reserve_volume {volume!r} for owner {owner!r}: there is no such user on the daemon's host",
            "give the name or the uid of a user that is known there",
        )
    if uid != caller.uid and not caller.provisions:
        raise PermissionDenied(
            f"cannot reserve_volume {volume!r} for uid {uid}: uid {caller.uid} may reserve for itself alone",
            "an admin grants the role provisioner in [access] of the configuration",
        )
    return uid


def check_same_owner(found: Attachment, owner: int | str | None, uid: int) -> None:
    """Raise InvalidInput if a reservation that is sent again names another owner."""
    if owner is not None and found.owner != uid:
        raise InvalidInput(
            f"attachment {found.id} belongs to uid {found.owner}, not to {owner!r}", "reserve with a new attachment_id"
        )
