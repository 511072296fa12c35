"""The calls of a client, one function each: what is sent, the type of what is answered, and whether it may be resent.

The functions do nothing but say so; a client runs what they give. The daemon's half has the same calls in the method
table (``api/methods.py``), and a test holds the two together.

Laws:

1. A call that changes something is sent again by itself only where an attachment's id ties it to one life, which is
   over for ever once it has ended. Without that it could act on what somebody else has made meanwhile.
2. ``reserve_volume`` always has an id: without one of its caller's, it picks one, so that a lost answer costs nothing.
3. What was not sent may always be sent later: who has been connected before waits for a daemon that is away.
4. An error that the daemon answered is its answer. It is the caller's to act on, and nothing is sent again for it.
5. A list is whole. If the daemon's answer is a page of it, or none because all of it is too long for an answer, the
   client asks for one page after the other; who gives ``limit`` or ``marker`` asks for pages himself.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

from volattachd.client import results
from volattachd.client.protocol import AccessRefused, NoAnswer, Unreachable
from volattachd.errors import InvalidInput

T = TypeVar("T")
R = TypeVar("R")
Rows = list[results.HistoryRow]

#: Rows of a page, and of history where nobody says how many.
PAGE, _HISTORY = 1000, 100
#: Pauses between two tries, doubled from the first to the last, in seconds.
_FIRST_PAUSE, _LAST_PAUSE = 0.05, 1.0


class Call(Generic[T]):
    """One call whose result is a ``T``."""

    def __init__(self, method: str, again: bool, params: dict[str, Any]) -> None:
        """``again`` says whether it may be sent a second time. A parameter that is None is left out."""
        self.method = method
        self.again = again
        self.params = {name: value for name, value in params.items() if value is not None}

    def requests(self) -> Generator[Call[T], T, T]:
        """What to send one after the other: each answer is sent back in, and the result is what is returned."""
        return (yield self)


class _List(Call[list[R]]):
    """The rows of a list, which have a key ``key`` that pages go by."""

    def __init__(self, method: str, key: str, params: dict[str, Any]) -> None:
        super().__init__(method, True, params)
        self._key = key

    def requests(self) -> Generator[Call[list[R]], list[R], list[R]]:
        try:
            return (yield self)
        except InvalidInput as error:
            if "max_answer_bytes" not in error.details or {"limit", "marker"} & self.params.keys():
                raise
        rows: list[R] = []
        page = yield self._page({"limit": PAGE})
        while page:
            rows += page
            page = yield self._page({"limit": PAGE, "marker": page[-1][self._key]})  # type: ignore[index]
        return rows

    def _page(self, params: dict[str, Any]) -> Call[list[R]]:
        return Call(self.method, True, {**self.params, **params})


class _History(Call[list[results.HistoryRow]]):
    """Rows of history: as many as were asked for, though a page may have fewer."""

    def requests(self) -> Generator[Call[Rows], Rows, Rows]:
        rows = page = yield self
        while page and len(rows) < self.params.get("limit", _HISTORY):
            further = {"since": page[-1]["seq"]} if "since" in self.params else {"before": page[0]["seq"]}
            page = yield Call(self.method, True, {**self.params, **further, "limit": self._left(rows)})
            rows = rows + page if "since" in self.params else page + rows
        return rows

    def _left(self, rows: Rows) -> int:
        left: int = self.params.get("limit", _HISTORY) - len(rows)
        return left


class Tries:
    """The tries of one call within its time: the one place that decides about sending again."""

    def __init__(
        self, call: Call[Any], timeout: float, known: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``known`` says whether this daemon has been there before."""
        self._call = call
        self._known = known
        self._clock = clock
        self._deadline = clock() + timeout
        self._pause = _FIRST_PAUSE

    def left(self) -> float:
        """How long the next try may take, in seconds."""
        return max(0.001, self._deadline - self._clock())

    def pause_after(self, error: Unreachable) -> float:
        """How long to wait before the next try. Raises the error where there is none."""
        pause, self._pause = self._pause, min(_LAST_PAUSE, 2 * self._pause)
        if not self._may_follow(error) or self._clock() + pause >= self._deadline:
            raise error
        return pause

    def _may_follow(self, error: Unreachable) -> bool:
        if isinstance(error, NoAnswer):
            self._known = True
            return self._call.again
        return self._known and not isinstance(error, AccessRefused)


def reserve_volume(
    volume: str,
    attachment_id: str | None = None,
    mode: results.Mode | None = None,
    instance_uuid: str | None = None,
    ttl: float | None = None,
    owner: int | str | None = None,
) -> Call[results.Attachment]:
    """Takes the volume for one attachment; a provisioner may take it for another user, the ``owner``."""
    attachment_id = new_attachment_id() if attachment_id is None else attachment_id
    at = {"volume": volume, "attachment_id": attachment_id}
    what = {"mode": mode, "instance_uuid": instance_uuid, "ttl": ttl, "owner": owner}
    return Call("reserve_volume", True, {**at, **what})


def initialize_connection(
    volume: str, connector: results.Connector, attachment_id: str | None = None
) -> Call[results.Connection]:
    """Exports the volume if it is not yet, and grants this connector alone."""
    return _of_attachment("initialize_connection", volume, attachment_id, connector=connector)


def attach(
    volume: str,
    instance_uuid: str | None = None,
    host_name: str | None = None,
    mount_point: str | None = None,
    mode: results.Mode | None = None,
    attachment_id: str | None = None,
) -> Call[results.Attachment]:
    """Finalises the attachment; ``instance_uuid`` or ``host_name`` is required."""
    about = {"instance_uuid": instance_uuid, "host_name": host_name, "mount_point": mount_point, "mode": mode}
    return _of_attachment("attach", volume, attachment_id, **about)


def begin_detaching(volume: str, attachment_id: str | None = None) -> Call[results.Attachment]:
    """Says that the client is letting go; access is still granted."""
    return _of_attachment("begin_detaching", volume, attachment_id)


def terminate_connection(
    volume: str, connector: results.Connector, force: bool | None = None, attachment_id: str | None = None
) -> Call[results.Attachment]:
    """Revokes the grant; refuses while the initiator is logged in, unless ``force``."""
    return _of_attachment("terminate_connection", volume, attachment_id, connector=connector, force=force)


def detach(volume: str, attachment_id: str | None = None) -> Call[results.Volume]:
    """Forgets the attachment; removes the export when it was the last."""
    return _of_attachment("detach", volume, attachment_id)


def unreserve_volume(volume: str, attachment_id: str | None = None) -> Call[results.Volume]:
    """Undoes ``reserve_volume``; does nothing where nothing is reserved."""
    return _of_attachment("unreserve_volume", volume, attachment_id)


def roll_detaching(volume: str, attachment_id: str | None = None) -> Call[results.Attachment]:
    """Undoes ``begin_detaching``; does nothing where nothing is detaching."""
    return _of_attachment("roll_detaching", volume, attachment_id)


def register_volume(
    volume: str, path: str, multiattach: bool | None = None, read_only: bool | None = None
) -> Call[results.Volume]:
    """Takes a block device or regular file of the daemon's host into care."""
    options = {"multiattach": multiattach, "read_only": read_only}
    return Call("register_volume", False, {"volume": volume, "path": path, **options})


def unregister_volume(volume: str) -> Call[results.Unregistered]:
    """Forgets an available volume; its data stays."""
    return Call("unregister_volume", False, {"volume": volume})


def list_volumes(limit: int | None = None, marker: str | None = None) -> Call[list[results.Volume]]:
    """Every registered volume; with ``limit`` or ``marker``, a page of them."""
    return _List("list_volumes", "volume", {"limit": limit, "marker": marker})


def show_volume(volume: str) -> Call[results.Volume]:
    """One volume."""
    return Call("show_volume", True, {"volume": volume})


def list_attachments(
    volume: str | None = None, limit: int | None = None, marker: str | None = None
) -> Call[list[results.Attachment]]:
    """Every attachment, or those of one volume; with ``limit`` or ``marker``, a page of them."""
    return _List("list_attachments", "attachment_id", {"volume": volume, "limit": limit, "marker": marker})


def show_attachment(attachment_id: str) -> Call[results.Attachment]:
    """One attachment."""
    return Call("show_attachment", True, {"attachment_id": attachment_id})


def get_history(
    volume: str | None = None,
    attachment_id: str | None = None,
    since: int | None = None,
    limit: int | None = None,
    before: int | None = None,
) -> Call[list[results.HistoryRow]]:
    """What happened, from the journal, oldest first: ``limit`` rows, in as many pages as they need."""
    only = {"volume": volume, "attachment_id": attachment_id, "since": since, "limit": limit, "before": before}
    return _History("get_history", True, only)


def reconcile(dry_run: bool | None = None) -> Call[results.Reconciliation]:
    """Finds what differs between journal and target, and mends it unless ``dry_run``."""
    return Call("reconcile", bool(dry_run), {"dry_run": dry_run})


def get_metrics() -> Call[str]:
    """Counts and times in Prometheus' text format."""
    return Call("get_metrics", True, {})


def get_status() -> Call[results.Status]:
    """Whether the daemon is ready, what is degraded and why, and what is pending."""
    return Call("get_status", True, {})


def subscribe(since: int | None = None) -> Call[results.Subscription]:
    """Sends each further row of the journal over this connection, as a notification."""
    return Call("subscribe", False, {"since": since})


def unsubscribe() -> Call[results.Unsubscribed]:
    """Ends the notifications of this connection; none comes after the answer."""
    return Call("unsubscribe", False, {})


def backup_journal(path: str) -> Call[results.Backup]:
    """Writes a consistent copy of the journal to a new file on the daemon's host."""
    return Call("backup_journal", False, {"path": path})


def discover() -> Call[dict[str, Any]]:
    """Every call of this daemon, as an OpenRPC document."""
    return Call("rpc.discover", True, {})


def _of_attachment(method: str, volume: str, attachment_id: str | None, **params: Any) -> Call[Any]:
    at = {"volume": volume, "attachment_id": attachment_id}
    return Call(method, attachment_id is not None, {**at, **params})


def new_attachment_id() -> str:
    """An id for an attachment that does not exist yet."""
    return str(uuid.uuid4())
