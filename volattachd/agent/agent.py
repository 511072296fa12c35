"""From a volume's name to its device on this host, and back: two lists of steps, and one way to walk them.

    attach:  reserve -> initialize -> connect -> attach
    detach:  begin_detaching -> disconnect -> terminate -> forget

Laws:

1. The daemon is the only memory. What is to be done is decided by the state that it tells, and each step does nothing
   where the state says that it is done: the same command, sent again after a death anywhere, goes on where it ended.
2. A step that fails is taken back, then those before it, last first. What cannot be taken back ends the way back: the
   attachment stays where the next try finds it.
3. What was attached before this command began is never taken back: a failed second try must not cost a working device.
4. Access ends at the target only after the device is gone from this host (force, from another host, is the exception
   that somebody asked for).
5. A volume has one agent of this user at a time on a host.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from volattachd.agent.connectors.base import Connection, Connector, Device, Report
from volattachd.agent.connectors.registry import make_connector
from volattachd.agent.errors import AttachedElsewhere, ConnectorUnusable
from volattachd.agent.identity import new_id, was_made_by
from volattachd.agent.runtime import only_one, runtime_directory
from volattachd.client.sync import AccessRefused, Client, ClientError, Unreachable
from volattachd.errors import Busy, InvalidVolume, InvalidVolumeAttachMode, SessionActive, VolattachError

DEFAULT_CONNECTOR = "iscsi"

#: The member of the connector that tells a later command which connector made the device. The daemon keeps it.
CONNECTOR_MEMBER = "volattach_connector"

#: For how long calls are sent again that a daemon did not answer (it is being restarted, say), in seconds.
PATIENCE = 30.0
_PAUSE = 0.2

View = dict[str, Any]
MakeConnector = Callable[[str, Report], Connector]


class Calls(Protocol):
    """Whoever carries calls to the daemon."""

    def call(self, method: str, params: View) -> Any: ...


class SentAgain:
    """Calls over a new connection each, sent again while no daemon answers. The workflow's calls are idempotent."""

    def __init__(self, connect: Callable[[], Client], patience: float = PATIENCE) -> None:
        self._connect = connect
        self._patience = patience

    def call(self, method: str, params: View) -> Any:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                with self._connect() as client:
                    return client.call(method, params)
            except AccessRefused:
                raise
            except (Unreachable, Busy):
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_PAUSE)  # a daemon that is not there has no event to wait for


@dataclass(frozen=True)
class Attached:
    """A volume on this host. ``path`` is the device; ``details`` are what the connector adds."""

    volume: str
    attachment_id: str
    mode: str
    connector: str
    device: Device

    @property
    def path(self) -> str:
        return self.device.path

    def view(self) -> View:
        """As JSON shows it."""
        own = {"volume": self.volume, "attachment_id": self.attachment_id, "mode": self.mode}
        return {**own, "connector": self.connector, "device": self.path, **self.device.details}


@dataclass(frozen=True)
class Detached:
    """A volume that is no longer on this host. ``lost`` says what force has cost."""

    volume: str
    status: str
    lost: tuple[str, ...] = ()

    def view(self) -> View:
        """As JSON shows it."""
        return {"volume": self.volume, "status": self.status, "lost": list(self.lost)}


@dataclass(frozen=True)
class Wish:
    """What the caller of ``attach`` asked for."""

    mode: str = "rw"
    instance_uuid: str | None = None
    mount_point: str | None = None


class Work:
    """One volume's way. ``row`` is its attachment as the daemon told it last, None where it has none."""

    def __init__(self, calls: Calls, volume: str, host: str, report: Report) -> None:
        self._calls = calls
        self._host = host
        self.report = report
        self.name = volume
        self.volume: View = calls.call("show_volume", {"volume": volume})
        self.rows: list[View] = calls.call("list_attachments", {"volume": volume})
        self.row: View | None = None
        self.connector: Connector | None = None
        self.wish = Wish()
        self.told: View = {}
        self.force = False
        self.lost: list[str] = []
        self.device = Device("")
        self._data: View = {}

    # Finding.

    def own_rows(self) -> list[View]:
        """The attachments of this host."""
        return [row for row in self.rows if self._is_own(row)]

    def _is_own(self, row: View) -> bool:
        if row["connector"] is not None:
            return bool(row["connector"].get("host") == self._host)
        return was_made_by(self._host, self.name, row["attachment_id"])

    @property
    def state(self) -> str:
        return "gone" if self.row is None else str(self.row["state"])

    def refresh(self) -> None:
        """Ask again: a call that failed may have had its effect."""
        if self.row is not None:
            found = self._calls.call("list_attachments", {"volume": self.name})
            rows = [row for row in found if row["attachment_id"] == self._id()]
            self.row = rows[0] if rows else {**self.row, "state": "gone"}

    def _id(self) -> str:
        assert self.row is not None
        return str(self.row["attachment_id"])

    def _call(self, method: str, **params: Any) -> Any:
        given = {key: value for key, value in params.items() if value is not None}
        return self._calls.call(method, {"volume": self.name, "attachment_id": self._id(), **given})

    # The steps towards the device.

    def reserve(self) -> None:
        if self.state == "gone":
            self.row = {"attachment_id": new_id(self._host, self.name), "state": "gone", "connector": None}
            self.row = self._call("reserve_volume", mode=self.wish.mode, instance_uuid=self.wish.instance_uuid)

    def initialize(self) -> None:
        connector = self._needed()
        info = self._call("initialize_connection", connector={**self.told, CONNECTOR_MEMBER: connector.name})
        if info["driver_volume_type"] != connector.volume_type:
            raise ConnectorUnusable(
                f"cannot attach volume {self.name!r} through {connector.name}: the daemon offers"
                f" {info['driver_volume_type']!r}",
                "the connector local is for the daemon's own host" if connector.name == "local" else None,
            )
        self._data = info["data"]
        self.refresh()

    def connect(self) -> None:
        self.device = self._needed().connect(self._connection(self._data))

    def attach(self) -> None:
        wish = self.wish
        used = {"instance_uuid": wish.instance_uuid, "host_name": self._host, "mount_point": wish.mount_point}
        self.row = self._call("attach", **used)

    # The steps back.

    def begin_detaching(self) -> None:
        if self.state == "attached":
            self.row = self._call("begin_detaching")

    def roll_detaching(self) -> None:
        if self.state == "detaching":
            self.row = self._call("roll_detaching")

    def disconnect(self) -> None:
        if self._is_shared():
            return  # another attachment of this host has the same device
        if self.connector is not None:
            self.lost += self.connector.disconnect(self._connection({}), self.force)

    def terminate(self) -> None:
        if self.state not in ("connected", "attached", "detaching"):
            return
        assert self.row is not None
        revoke = {"connector": self.row["connector"]}
        try:
            self.row = self._call("terminate_connection", **revoke, force=True if self.connector is None else None)
        except SessionActive:
            if not self.force:
                raise
            self.row = self._call("terminate_connection", **revoke, force=True)

    def forget(self) -> None:
        call = {"reserved": "unreserve_volume", "disconnected": "detach"}.get(self.state)
        if call is not None:
            self.volume = self._call(call)
            self.row = None

    def _needed(self) -> Connector:
        assert self.connector is not None
        return self.connector

    def _connection(self, data: View) -> Connection:
        row = self.row or {}
        return Connection(row.get("attachment_id", ""), self.volume, row.get("mode", "rw"), data)

    def _is_shared(self) -> bool:
        states = ("connected", "attached", "detaching")
        others = [row for row in self.own_rows() if self.row is None or row["attachment_id"] != self._id()]
        return any(row["state"] in states for row in others)


class Step(NamedTuple):
    """One step, and what takes it back; None where nothing does."""

    name: str
    do: Callable[[Work], None]
    undo: Callable[[Work], None] | None


ATTACH: tuple[Step, ...] = (
    Step("reserve", Work.reserve, Work.forget),
    Step("initialize", Work.initialize, Work.terminate),
    Step("connect", Work.connect, Work.disconnect),
    Step("attach", Work.attach, Work.begin_detaching),
)
DETACH: tuple[Step, ...] = (
    Step("begin_detaching", Work.begin_detaching, Work.roll_detaching),
    Step("disconnect", Work.disconnect, None),
    Step("terminate", Work.terminate, None),
    Step("forget", Work.forget, None),
)


def walk(steps: Sequence[Step], work: Work, *, take_back: bool = True) -> None:
    """Do the steps in order. Where one fails (an interrupt is a failure too), go back and raise what it raised."""
    done: list[Step] = []
    for step in steps:
        try:
            work.report(step.name)
            step.do(work)
        except BaseException as error:
            if take_back:
                _go_back([*done, step], work, error)
            raise
        done.append(step)


def _go_back(steps: list[Step], work: Work, cause: BaseException) -> None:
    """Take steps back, the last (which failed) first. A failure on the way back is told with its cause."""
    failed = steps.pop()
    back = ([failed] if failed.undo else []) + steps[::-1]
    try:
        for step in back:
            if step.undo is None:
                return
            work.report(f"undo {step.name}")
            work.refresh()
            step.undo(work)
    except (VolattachError, ClientError) as error:
        _tell_both(cause, error, work.name)


def _tell_both(cause: BaseException, error: VolattachError | ClientError, volume: str) -> None:
    if isinstance(cause, (VolattachError, ClientError)):
        cause.message += f"; and the way back failed: {error.message}"
        cause.args = (cause.message,)
        cause.correction = f"volattach detach {volume}, which goes on with it"


class Agent:
    """Attaches and detaches volumes on this host. ``report`` is told each step as it begins."""

    def __init__(
        self,
        calls: Calls | None = None,
        host: str | None = None,
        report: Report = lambda line: None,
        make: MakeConnector = make_connector,
        runtime: Path | None = None,
    ) -> None:
        self._calls = calls or SentAgain(Client)
        self._host = host or socket.gethostname()
        self._report = report
        self._make = make
        self._runtime = runtime

    def attach(
        self,
        volume: str,
        mode: str = "rw",
        instance_uuid: str | None = None,
        mount_point: str | None = None,
        connector: str = DEFAULT_CONNECTOR,
    ) -> Attached:
        """Make the volume's device appear on this host, or find it where it already is."""
        made = self._make(connector, self._report)
        told = made.get_connector(self._host)  # what this host lacks is told before anything is reserved
        with self._only_one(volume):
            work = self._work(volume)
            work.told = told
            work.wish = Wish(mode, instance_uuid, mount_point)
            work.connector = made
            work.row = _to_resume(volume, work.own_rows(), work.wish, made.name)
            self._finish_detaching(work)
            walk(ATTACH, work, take_back=work.state != "attached")
            assert work.row is not None
            return Attached(volume, work.row["attachment_id"], work.row["mode"], made.name, work.device)

    def _finish_detaching(self, work: Work) -> None:
        """A detach that was cut off is turned round while the host still has access, and else brought to its end."""
        work.roll_detaching()
        if work.state == "disconnected":
            work.forget()
            work.rows = [row for row in work.rows if row["state"] != "disconnected"]

    def detach(
        self, volume: str, force: bool = False, instance_uuid: str | None = None, connector: str = DEFAULT_CONNECTOR
    ) -> Detached:
        """Make the volume's device go from this host, and end the attachment; with force whatever stands against it.

        ``connector`` matters only where the daemon knows of no attachment here: what that one left is removed.
        """
        with self._only_one(volume):
            work = self._work(volume)
            work.force = force
            rows = [row for row in work.own_rows() if instance_uuid in (None, row["instance_uuid"])]
            work.row = _the_one(rows, volume)
            if work.row is None and work.rows:
                _aim_elsewhere(work)
            else:
                work.connector = self._make(_connector_of(work.row) or connector, self._report)
            walk(DETACH, work)
            view = self._calls.call("show_volume", {"volume": volume})
            return Detached(volume, view["status"], tuple(work.lost))

    def _work(self, volume: str) -> Work:
        return Work(self._calls, volume, self._host, lambda line: self._report(f"{volume}: {line}"))

    @contextmanager
    def _only_one(self, volume: str) -> Iterator[None]:
        with only_one((self._runtime or runtime_directory()) / "volumes.lock", volume):
            yield


def _the_one(rows: list[View], volume: str) -> View | None:
    if len(rows) > 1:
        raise InvalidVolume(
            f"volume {volume!r} has {len(rows)} attachments that could be meant",
            "say which with the instance",
            attachments=[row["attachment_id"] for row in rows],
        )
    return rows[0] if rows else None


def _aim_elsewhere(work: Work) -> None:
    """Take another host's attachment for the one to end, which needs force. Its device there only loses its target."""
    row = _the_one(work.rows, work.name)
    assert row is not None
    if not work.force:
        raise AttachedElsewhere(
            f"cannot detach volume {work.name!r} here: attachment {row['attachment_id']} ({row['state']}) belongs to"
            f" {_host_of(row)}",
            "detach it there; where that host is dead, use force",
            attachments=[row["attachment_id"]],
        )
    work.row = row
    if work.state != "reserved":
        work.lost.append(f"{_host_of(row)} is cut off: what it had not yet written is lost, its device there dead")


def _host_of(row: View) -> str:
    return str((row["connector"] or {}).get("host") or row["host_name"] or "another host")


def _to_resume(name: str, rows: list[View], wish: Wish, connector: str) -> View | None:
    """This host's attachment for the same user, to go on with. One that differs in kind is refused."""
    row = _the_one([row for row in rows if row["instance_uuid"] == wish.instance_uuid], name)
    if row is None or row["state"] == "disconnected":
        return row
    if row["mode"] != wish.mode:
        raise InvalidVolumeAttachMode(
            f"cannot attach volume {name!r} as {wish.mode}: this host has it as {row['mode']}", "detach it first"
        )
    if _connector_of(row) not in (None, connector):
        raise InvalidVolume(
            f"cannot attach volume {name!r} through {connector}: this host has it through {_connector_of(row)}",
            "detach it first",
        )
    return row


def _connector_of(row: View | None) -> str | None:
    """The connector that made the row's device."""
    found = ((row or {}).get("connector") or {}).get(CONNECTOR_MEMBER)
    return None if found is None else str(found)


@contextmanager
def attached(volume: str, agent: Agent | None = None, **wish: Any) -> Iterator[Attached]:
    """A volume's device for the length of a ``with``. It must not be in use any more at the end."""
    agent = agent or Agent()
    found = agent.attach(volume, **wish)
    try:
        yield found
    finally:
        agent.detach(volume, instance_uuid=wish.get("instance_uuid"))
