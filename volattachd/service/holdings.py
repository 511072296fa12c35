"""How many attachments each user holds, and the limit to that."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

from volattachd.errors import Busy
from volattachd.model import Attachment


class Holdings:
    """Counts the attachments that exist, by owner. Every method may be called from any thread."""

    def __init__(self, rows: Iterable[Attachment], limit: int) -> None:
        self._lock = threading.Lock()
        self._by_owner = Counter(row.owner for row in rows)
        self._limit = limit

    def add(self, row: Attachment) -> None:
        """Count an attachment that is about to be made. Raises Busy if its owner holds as many as the limit allows."""
        with self._lock:
            if self._by_owner[row.owner] >= self._limit:
                raise Busy(
                    f"cannot reserve_volume {row.volume!r}: uid {row.owner} holds {self._limit} attachments, as many"
                    " as [limits] attachments_per_uid allows",
                    "detach some of them, or ask an admin to raise the limit",
                )
            self._by_owner[row.owner] += 1

    def remove(self, row: Attachment) -> None:
        """An attachment has ended."""
        with self._lock:
            self._by_owner[row.owner] -= 1
