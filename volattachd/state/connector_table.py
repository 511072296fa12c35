"""The table ``connectors``: each connector once, for all rows and lines of history that have it.

A connector is the largest part of an attachment by far, and the same in all of its life; often it is the same for all
attachments of a host. A connector is in the table as long as anything refers to it. The references are counted
in memory: a start reads every row and line anyway, to check them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from volattachd.state.codec import Connector
from volattachd.state.contents import Contents


class ConnectorTable:
    """The table and what refers to it. Changes belong to the transaction that is open."""

    def __init__(self, db: sqlite3.Connection, contents: Contents) -> None:
        self._db = db
        self._contents = contents
        #: The connector of each attachment that exists, and its hash.
        self._held = contents.connectors

    def refer(self, attachment_id: str | None, members: Mapping[str, Any] | None) -> bytes | None:
        """The hash under which a connector is kept, for one more that refers to it."""
        if members is None:
            return None
        contents = self._contents
        held = self._held.get(attachment_id or "")
        if held is not None and held[0] == members:
            digest = held[1]
        else:
            connector = Connector.of(members)
            digest = connector.digest
            if not contents.references[digest]:
                self._db.execute("INSERT OR IGNORE INTO connectors VALUES (?, ?)", (digest, connector.text))
                contents.sizes[digest] = len(connector.text.encode())
                contents.size += contents.sizes[digest]
        contents.references[digest] += 1
        return digest

    def release(self, digest: bytes | None) -> None:
        """One less refers to it: the last one takes it along."""
        if digest is None:
            return
        contents = self._contents
        contents.references[digest] -= 1
        if not contents.references[digest]:
            del contents.references[digest]
            self._db.execute("DELETE FROM connectors WHERE digest = ?", (digest,))
            contents.size -= contents.sizes.pop(digest)

    def hold(self, attachment_id: str, members: Mapping[str, Any] | None) -> bytes | None:
        """The attachment's row has this connector from now on, in place of what it had."""
        digest = self.refer(attachment_id, members)
        before = self._held.pop(attachment_id, None)
        if digest is not None and members is not None:
            self._held[attachment_id] = members, digest
        self.release(before and before[1])
        return digest

    def finder(self) -> _Finder:
        """Reads connectors, each once."""
        return _Finder(self._db)


class _Finder:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._found: dict[bytes, dict[str, Any]] = {}

    def __call__(self, digest: bytes) -> dict[str, Any]:
        if digest not in self._found:
            row = self._db.execute("SELECT connector FROM connectors WHERE digest = ?", (digest,)).fetchone()
            self._found[digest] = json.loads(row["connector"])
        return self._found[digest]
