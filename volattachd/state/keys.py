"""Secrets on the disk: sealed in the journal, under keys that are kept beside it and destroyed with the attachment.

A database cannot forget: SQLite keeps old content in its log, and a kill keeps the log as it is. So the journal has a
secret only as ``password XOR SHAKE-256(key)``, and the key, 32 random bytes, is in a slot of the file ``keys``.

Invariants, and why a secret that has ended cannot be read from any file of the state directory:

1. A key seals one secret, and is never used for another one. Without it the sealed text is as good as random.
2. When the last attachment with a secret has ended, its slot is overwritten with a new random key, in place, after
   the commit and before the answer. Nothing else ever has the key: neither the database nor its log.
3. A key is synced before a secret is sealed with it, so that no power cut can leave a row without its key. Keys are
   made and synced many at a time, and a slot that was overwritten waits for the next of these syncs. A call pays no
   sync for its key.
4. A start overwrites, and syncs, every slot that no row refers to. So a kill between commit and overwriting, and a
   power cut that brings an old slot back, leave nothing.
5. A slot has a checksum, and a sealed secret has a fingerprint of its key: a wrong key is damage, and never a wrong
   password.

A copy of the journal (backup.py), a new journal and one of an older version have their keys in the table ``keys``.
The start that finds them there moves them to the file (database.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from hashlib import blake2b, shake_256
from itertools import groupby
from pathlib import Path

from volattachd.model import Secret
from volattachd.state.checksums import SIZE, Damage
from volattachd.state.files import read_file, sync_directory

NAME = "keys"
_KEY, _SLOT = 32, 64
#: Slots that are made and synced at a time.
_ROOM = 256


class Keys:
    """The file, open for writing, and which slot each secret has."""

    def __init__(
        self, fd: int, keys: Mapping[int, bytes], slots: Mapping[Secret, int], users: Iterable[Secret]
    ) -> None:
        self._fd = fd
        self._keys = dict(keys)
        self._slots = dict(slots)
        self._uses: dict[Secret, int] = {}
        for secret in users:
            self._uses[secret] = self._uses.get(secret, 0) + 1
        used = set(self._slots.values())
        self._free: list[int] = []
        self._stale = [slot for slot in range(self._size()) if slot not in used]
        self._renew(self._stale)
        self._refill()

    @classmethod
    def create(cls, state_dir: Path, keys: Mapping[int, bytes]) -> None:
        """Make the file, or make it anew, with these keys; it is durable when this returns."""
        fd = os.open(state_dir / NAME, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            count = _rounded(max(keys, default=0) + 1)
            os.pwrite(fd, b"".join(_packed(slot, keys.get(slot) or os.urandom(_KEY)) for slot in range(count)), 0)
            os.fsync(fd)
            sync_directory(state_dir)
        finally:
            os.close(fd)

    @classmethod
    def open(
        cls, state_dir: Path, keys: Mapping[int, bytes], slots: Mapping[Secret, int], users: Iterable[Secret]
    ) -> Keys:
        """Open the file, whose ``keys`` were read. ``slots`` has each secret of a row, ``users`` one for each row."""
        fd = os.open(state_dir / NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return cls(fd, keys, slots, users)
        except BaseException:
            os.close(fd)
            raise

    def seal(self, secret: Secret) -> str:
        """The secret as the journal has it. A secret that no row has yet takes a slot."""
        slot = self._slots.get(secret)
        if slot is None:
            if not self._free:
                self._refill()
            slot = self._slots[secret] = self._free.pop()
        return sealed(secret, slot, self._keys[slot])

    def count(self, before: Secret | None, after: Secret | None) -> None:
        """A row had the one secret, and now has the other: durable. A secret that no row has is destroyed."""
        if before == after:
            return
        if after is not None:
            self._uses[after] = self._uses.get(after, 0) + 1
        if before is not None:
            self._uses[before] -= 1
            if not self._uses[before]:
                self._destroy(before)

    def used(self) -> dict[int, bytes]:
        """The keys that rows refer to, by slot."""
        return {slot: self._keys[slot] for slot in self._slots.values()}

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _destroy(self, secret: Secret) -> None:
        del self._uses[secret]
        slot = self._slots.pop(secret)
        self._renew([slot])
        self._stale.append(slot)

    def _renew(self, slots: list[int]) -> None:
        """Overwrite slots, given in order, and none between them: a run of neighbours with one write."""
        random = os.urandom(_KEY * len(slots))
        for _, members in groupby(enumerate(slots), lambda member: member[1] - member[0]):
            run = {slot: random[_KEY * index : _KEY * (index + 1)] for index, slot in members}
            os.pwrite(self._fd, b"".join(_packed(slot, key) for slot, key in run.items()), min(run) * _SLOT)
            self._keys |= run

    def _refill(self) -> None:
        """Sync what was overwritten; it can be used then. Where that is nothing, make more room."""
        if not self._stale:
            first = self._size()
            self._stale = list(range(first, first + _ROOM))
            self._renew(self._stale)
        os.fdatasync(self._fd)
        self._free, self._stale = self._stale, []

    def _size(self) -> int:
        """Slots of the file; a last one that was cut off counts as well."""
        return -(-os.fstat(self._fd).st_size // _SLOT)


def read_keys(state_dir: Path) -> dict[int, bytes] | None:
    """The keys of the file by slot, without those that are damaged; None where there is no file."""
    data = read_file(state_dir / NAME)
    if data is None:
        return None
    slots = ((at // _SLOT, data[at : at + _SLOT]) for at in range(0, len(data), _SLOT))
    return {slot: found[:_KEY] for slot, found in slots if found == _packed(slot, found[:_KEY])}


def sealed(secret: Secret, slot: int, key: bytes) -> str:
    """A secret under a key, as text for the journal."""
    password = secret.password.encode()
    pad = shake_256(key).digest(len(password))
    return json.dumps(
        {
            "username": secret.username,
            "slot": slot,
            "key": _fingerprint(key),
            "sealed": bytes(a ^ b for a, b in zip(password, pad, strict=True)).hex(),
        }
    )


def unsealed(text: str, keys: Mapping[int, bytes]) -> tuple[Secret, int]:
    """The secret that a text of the journal stands for, and its slot. Raises Damage without its key."""
    found = json.loads(text)
    slot, data = found["slot"], bytes.fromhex(found["sealed"])
    key = keys.get(slot)
    if key is None or _fingerprint(key) != found["key"]:
        raise Damage(f"the key of {found['username']} in slot {slot} of the file {NAME} is damaged or missing")
    pad = shake_256(key).digest(len(data))
    return Secret(found["username"], bytes(a ^ b for a, b in zip(data, pad, strict=True)).decode()), slot


def new_key() -> bytes:
    """A key that no secret was sealed with."""
    return os.urandom(_KEY)


def _fingerprint(key: bytes) -> str:
    return blake2b(key, digest_size=8, person=b"fingerprint").hexdigest()


def _packed(slot: int, key: bytes) -> bytes:
    checksum = blake2b(slot.to_bytes(8, "big") + key, digest_size=SIZE).digest()
    return (key + checksum).ljust(_SLOT, b"\0")


def _rounded(count: int) -> int:
    return -(-count // _ROOM) * _ROOM
