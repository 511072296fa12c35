"""The calls that only read."""

from __future__ import annotations

from volattachd.api.paging import Rows, page_of
from volattachd.api.views import attachment_view
from volattachd.errors import InvalidInput
from volattachd.model import Caller
from volattachd.service.core import Core, View
from volattachd.state.history import Feed


class QueryCalls:
    """What there is, and what happened."""

    def __init__(self, core: Core, page_bytes: int) -> None:
        """A page of history has at most ``page_bytes`` bytes."""
        self._core = core
        self._page_bytes = page_bytes

    def list_volumes(self, caller: Caller, limit: int | None = None, marker: str | None = None) -> Rows:
        """Every registered volume; with ``limit`` or ``marker``, a page of them."""
        rows, is_page = list(self._core.journal.volumes.values()), bool(limit or marker)
        return Rows(page_of(rows, limit, marker) if is_page else rows, self._core.view_volume, is_page)

    def show_volume(self, caller: Caller, volume: str) -> View:
        """One volume."""
        return self._core.view_volume(self._core.lookup.volume(volume))

    def list_attachments(
        self, caller: Caller, volume: str | None = None, limit: int | None = None, marker: str | None = None
    ) -> Rows:
        """Every attachment, or those of one volume; with ``limit`` or ``marker``, a page of them."""
        found, is_page = self._core.journal.attachments, bool(limit or marker)
        rows = found.all() if volume is None else found.of_volume(self._core.lookup.volume(volume).id)
        return Rows(page_of(rows, limit, marker) if is_page else rows, attachment_view, is_page)

    def show_attachment(self, caller: Caller, attachment_id: str) -> View:
        """One attachment; one that has ended has the state ``gone``."""
        row = self._core.journal.attachments.get(attachment_id)
        return self._core.lookup.last_seen(attachment_id) if row is None else attachment_view(row)

    def get_history(
        self,
        caller: Caller,
        volume: str | None = None,
        attachment_id: str | None = None,
        since: int | None = None,
        limit: int = 100,
        before: int | None = None,
    ) -> Rows:
        """What happened, oldest first."""
        return self._core.journal.history_page(volume, attachment_id, since, limit, before, self._page_bytes)

    def subscribe(self, caller: Caller, feed: Feed, since: int | None = None) -> View:
        """Send each further row of the journal over this connection; with ``since``, everything after it first."""
        oldest, last = self._core.journal.kept()
        start = last if since is None else since
        if not oldest - 1 <= start <= last:
            raise InvalidInput(
                f"cannot subscribe since {start}: the journal has the numbers {oldest} to {last}"
                if start < oldest - 1
                else f"cannot subscribe since {start}: the journal's last number is {last}",
                f"call list_volumes, then subscribe since {last}",
                oldest=oldest,
                seq=last,
            )
        feed.follow(self._core.journal, start)
        return {"since": start, "oldest": oldest, "seq": last}

    def unsubscribe(self, caller: Caller, feed: Feed) -> View:
        """Send no rows over this connection any more; ``subscribed`` says whether any were sent before."""
        return {"subscribed": feed.unfollow()}
