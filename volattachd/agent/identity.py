"""Attachment ids that say which host made them, so that a host finds its own again without keeping a state file.

A reservation has no connector yet, so nothing else in it would tell the host that it belongs to: an agent that died
right after it could not resume, and hosts that share a user (one SSH account, say) would take each other's. The first
half of an id is random; the second is a digest of the first half, the host and the volume. It recognises; it
proves nothing: what a caller may do is the daemon's decision, by the owner.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid


def new_id(host: str, volume: str) -> str:
    """A new attachment id of this host for this volume."""
    head = secrets.token_bytes(8)
    return str(uuid.UUID(bytes=head + _mark(head, host, volume)))


def was_made_by(host: str, volume: str, attachment_id: str) -> bool:
    """Whether ``new_id`` made the id on this host for this volume."""
    whole = uuid.UUID(attachment_id).bytes
    return whole[8:] == _mark(whole[:8], host, volume)


def _mark(head: bytes, host: str, volume: str) -> bytes:
    return hashlib.sha256(b"\0".join((head, host.encode(), volume.encode()))).digest()[:8]
