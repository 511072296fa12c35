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
6. An attachment is this agent's if its owner is the user that the daemon takes this agent for, and its id is one that
   this host makes. What its connector says of a host is a label that anybody can choose, and decides nothing.
7. No answer is used before ``answers`` has checked it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from volattachd.agent import answers
from volattachd.agent.answers import AttachmentInfo, ConnectionInfo, VolumeInfo
from volattachd.agent.connectors.base import Connection, Connector, Device, Report, Waiting
from volattachd.agent.connectors.registry import make_connector
from volattachd.agent.errors import AttachedElsewhere, ConnectorUnusable
from volattachd.agent.identity import new_id, was_made_by
from volattachd.agent.retry import BUSY_TIMEOUT, TIMEOUT, Calls, SentAgain
from volattachd.agent.runtime import only_one, runtime_directory
from volattachd.client.sync import Client, ClientError
from volattachd.errors import InvalidVolume, InvalidVolumeAttachMode, SessionActive, VolattachError
from volattachd.model import LOCAL

DEFAULT_CONNECTOR = "iscsi"

#: The member of the connector that tells a later command which connector made the device. The daemon keeps it.
CONNECTOR_MEMBER = "volattach_connector"

#: Pauses between two tries to terminate, while the target has not seen the end of a session, in seconds.
_FIRST_PAUSE, _LAST_PAUSE = 0.5, 4.0

#: States in which the target lets the attachment's initiator in.
_GRANTED = ("connected", "attached", "detaching")

View = dict[str, Any]
MakeConnector = Callable[[str, Report], Connector]


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
    """One volume's way. ``row`` is its attachment as the daemon showed it last, None where it has none."""

    def __init__(self, calls: Calls, volume: str, host: str, report: Report, timeout: float | None = None) -> None:
        self._calls = calls
        self._host = host
        self._timeout = TIMEOUT if timeout is None else timeout
        self._busy_timeout = BUSY_TIMEOUT if timeout is None else timeout
        self.report = report
        self.name = volume
        self._uid = answers.parse_uid(calls.call("get_status", {}))
        self.volume: VolumeInfo = answers.parse_volume(calls.call("show_volume", {"volume": volume}), volume)
        self.rows: list[AttachmentInfo] = self._listed()
        self.row: AttachmentInfo | None = None
        self.connector: Connector | None = None
        self.wish = Wish()
        self.told: View = {}
        self.force = False
        self.lost: list[str] = []
        self.device = Device("")
        self._info: ConnectionInfo | None = None

    # Finding.

    def own_rows(self) -> list[AttachmentInfo]:
        """The attachments that this host's agent made for this user."""
        return [row for row in self.rows if self._is_own(row)]

    def _is_own(self, row: AttachmentInfo) -> bool:
        return row.owner == self._uid and was_made_by(self._host, self.name, row.id)

    def _listed(self) -> list[AttachmentInfo]:
        return answers.parse_attachments(self._calls.call("list_attachments", {"volume": self.name}), self.name)

    @property
    def state(self) -> str:
        return "gone" if self.row is None else self.row.state

    def refresh(self) -> None:
        """Ask again: a call that failed may have had its effect."""
        if self.row is not None:
            rows = [row for row in self._listed() if row.id == self._id()]
            self.row = rows[0] if rows else replace(self.row, state="gone")

    def _id(self) -> str:
        assert self.row is not None
        return self.row.id

    def _call(self, method: str, **params: Any) -> Any:
        given = {key: value for key, value in params.items() if value is not None}
        return self._calls.call(method, {"volume": self.name, "attachment_id": self._id(), **given})

    def _move(self, method: str, **params: Any) -> None:
        """A call that answers the attachment."""
        self.row = answers.parse_attachment(self._call(method, **params), self.name, self._id())

    # The steps towards the device.

    def reserve(self) -> None:
        if self.state == "gone":
            made = new_id(self._host, self.name)
            self.row = AttachmentInfo(made, self.name, "gone", self.wish.mode, self._uid)
            self._move("reserve_volume", mode=self.wish.mode, instance_uuid=self.wish.instance_uuid)

    def initialize(self) -> None:
        connector = self._needed()
        info = self._call("initialize_connection", connector={**self.told, CONNECTOR_MEMBER: connector.name})
        self._info = answers.parse_connection(info, self.volume, self._id())
        offered = self._info.volume_type
        if offered != connector.volume_type:
            raise ConnectorUnusable(
                f"cannot attach volume {self.name!r} through {connector.name}: the daemon offers {offered!r}",
                "the connector local is for the daemon's own host" if connector.name == LOCAL else None,
            )
        self.refresh()

    def connect(self) -> None:
        self.device = self._needed().connect(self._connection(self._info))

    def attach(self) -> None:
        wish = self.wish
        self._move("attach", instance_uuid=wish.instance_uuid, host_name=self._host, mount_point=wish.mount_point)

    # The steps back.

    def begin_detaching(self) -> None:
        if self.state == "attached":
            self._move("begin_detaching")

    def roll_detaching(self) -> None:
        if self.state == "detaching":
            self._move("roll_detaching")

    def disconnect(self) -> None:
        if self._is_shared():
            return  # another attachment of this host has the same device
        if self.connector is not None:
            self.lost += self.connector.disconnect(self._connection(None), self.force)

    def terminate(self) -> None:
        if self.state not in _GRANTED:
            return
        if self.connector is None:  # it is another host's, and its end was forced
            self._terminate(force=True)
            return
        try:
            self._terminate()
        except SessionActive as error:
            if self.force:
                self._terminate(force=True)
            elif self.connector.ends_sessions:
                self._terminate_when_ended(error)
            else:
                raise

    def _terminate(self, force: bool | None = None) -> None:
        assert self.row is not None
        self._move("terminate_connection", connector=self.row.connector, force=force)

    def _terminate_when_ended(self, error: SessionActive) -> None:
        """The session ended on this host. Over a path that is dead the target learns that by its own time-out alone."""
        self.report(
            Waiting(
                f"no session is left on this host, but the target has not seen its end: {error.message};"
                f" waiting for that for {self._timeout:g} s"
            )
        )
        deadline, pause = time.monotonic() + self._timeout, _FIRST_PAUSE
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(pause, left))
            pause = min(_LAST_PAUSE, 2 * pause)
            try:
                self._terminate()
            except SessionActive as again:
                error = again
            else:
                return
        raise SessionActive(
            f"{error.message}; this host has no session left, and the target has not seen that in {self._timeout:g} s",
            f"send the same command again in a minute, when the target has timed the session out: volattach detach"
            f" {self.name}; an admin may use --force at once, which costs nothing here",
            **error.details,
        ) from error

    def forget(self) -> None:
        call = {"reserved": "unreserve_volume", "disconnected": "detach"}.get(self.state)
        if call is not None:
            self.volume = answers.parse_volume(self._call(call), self.name)
            self.row = None

    def _needed(self) -> Connector:
        assert self.connector is not None
        return self.connector

    def _connection(self, info: ConnectionInfo | None) -> Connection:
        attachment_id, mode = ("", "rw") if self.row is None else (self.row.id, self.row.mode)
        return Connection(attachment_id, self.volume, mode, info, self._timeout, self._busy_timeout)

    def _is_shared(self) -> bool:
        others = [row for row in self.own_rows() if self.row is None or row.id != self._id()]
        return any(row.state in _GRANTED for row in others)


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
    """Attaches and detaches volumes on this host. ``report`` is given each step as it begins.

    ``timeout`` is for how long it waits for one thing that may still come: a daemon or a portal that does not answer,
    the end of a session. Without one that is TIMEOUT, and BUSY_TIMEOUT for a portal that is busy. ``elsewhere``: the
    daemon is on another host, so its paths mean nothing here.
    """

    def __init__(
        self,
        calls: Calls | None = None,
        host: str | None = None,
        report: Report = lambda line: None,
        make: MakeConnector = make_connector,
        runtime: Path | None = None,
        timeout: float | None = None,
        elsewhere: bool = False,
    ) -> None:
        self._calls = calls or SentAgain(Client, TIMEOUT if timeout is None else timeout, report)
        self._host = host or socket.gethostname()
        self._report = report
        self._make = make
        self._runtime = runtime
        self._timeout = timeout
        self._elsewhere = elsewhere

    def attach(
        self,
        volume: str,
        mode: str = "rw",
        instance_uuid: str | None = None,
        mount_point: str | None = None,
        connector: str = DEFAULT_CONNECTOR,
    ) -> Attached:
        """Make the volume's device appear on this host, or find it where it already is."""
        answers.check_name(volume)
        made = self._made(connector)
        told = made.get_connector(self._host)  # what this host lacks is reported before anything is reserved
        with self._only_one(volume):
            work = self._work(volume)
            work.told = told
            work.wish = Wish(mode, instance_uuid, mount_point)
            work.connector = made
            work.row = _to_resume(volume, work.own_rows(), work.wish, made.name)
            self._finish_detaching(work)
            walk(ATTACH, work, take_back=work.state != "attached")
            assert work.row is not None
            return Attached(volume, work.row.id, work.row.mode, made.name, work.device)

    def _finish_detaching(self, work: Work) -> None:
        """A detach that was cut off is turned round while the host still has access, and else brought to its end."""
        work.roll_detaching()
        if work.state == "disconnected":
            work.forget()
            work.rows = [row for row in work.rows if row.state != "disconnected"]

    def detach(
        self,
        volume: str,
        force: bool = False,
        instance_uuid: str | None = None,
        connector: str = DEFAULT_CONNECTOR,
        attachment_id: str | None = None,
    ) -> Detached:
        """Make the volume's device go from this host, and end the attachment; with force whatever stands against it.

        ``instance_uuid`` and ``attachment_id`` say which attachment is meant. ``connector`` matters only if the daemon
        knows of no attachment here: what that one left is removed.
        """
        answers.check_name(volume)
        with self._only_one(volume):
            work = self._work(volume)
            work.force = force
            meant = [row for row in work.rows if _is_meant(row, instance_uuid, attachment_id)]
            own = work.own_rows()
            work.row = _the_one([row for row in meant if row in own], volume)
            if work.row is None and self._is_elsewhere(work, meant, by_name=instance_uuid or attachment_id):
                _aim_elsewhere(work, meant)
            else:
                work.connector = self._made(_connector_of(work.row) or connector)
            walk(DETACH, work)
            shown = answers.parse_volume(self._calls.call("show_volume", {"volume": volume}), volume)
            return Detached(volume, shown.status, tuple(work.lost))

    def _is_elsewhere(self, work: Work, meant: list[AttachmentInfo], by_name: str | None) -> bool:
        """Whether another's attachment is meant; of a multiattach volume, which others may use, only a named one."""
        if not meant or not work.volume.multiattach or by_name:
            return bool(meant)
        ids = ", ".join(row.id for row in meant)
        work.report(Waiting(f"it has attachments of others, which stay: {ids}"))
        return False

    def _made(self, name: str) -> Connector:
        made = self._make(name, self._report)
        if self._elsewhere and made.volume_type == LOCAL:
            raise ConnectorUnusable(
                f"the connector {name} takes a path of the daemon's own host, and the daemon is on another one",
                "use the connector iscsi",
            )
        return made

    def _work(self, volume: str) -> Work:
        def report(line: str) -> None:
            self._report(type(line)(f"{volume}: {line}"))

        return Work(self._calls, volume, self._host, report, self._timeout)

    @contextmanager
    def _only_one(self, volume: str) -> Iterator[None]:
        with only_one((self._runtime or runtime_directory()) / "volumes.lock", volume):
            yield


def _is_meant(row: AttachmentInfo, instance_uuid: str | None, attachment_id: str | None) -> bool:
    return instance_uuid in (None, row.instance_uuid) and attachment_id in (None, row.id)


def _the_one(rows: list[AttachmentInfo], volume: str) -> AttachmentInfo | None:
    if len(rows) > 1:
        raise InvalidVolume(
            f"volume {volume!r} has {len(rows)} attachments that could be meant: {', '.join(row.id for row in rows)}",
            "say which with --instance or --attachment",
            attachments=[row.id for row in rows],
        )
    return rows[0] if rows else None


def _aim_elsewhere(work: Work, rows: list[AttachmentInfo]) -> None:
    """Take another's attachment for the one to end, which needs force. Its device there only loses its target."""
    row = _the_one(rows, work.name)
    assert row is not None
    if not work.force:
        raise AttachedElsewhere(
            f"cannot detach volume {work.name!r} here: attachment {row.id} ({row.state}) of uid {row.owner} was not"
            f" made by this host's agent; it says that it belongs to {row.host}",
            "detach it there, or with the program that made it; if that host is dead, an admin may use --force",
            attachments=[row.id],
        )
    work.row = row
    if work.state != "reserved":
        work.lost.append(f"{row.host} is cut off: what it had not yet written is lost, its device there dead")


def _to_resume(name: str, rows: list[AttachmentInfo], wish: Wish, connector: str) -> AttachmentInfo | None:
    """This host's attachment for the same user, to go on with. One that differs in kind is refused."""
    row = _the_one([row for row in rows if row.instance_uuid == wish.instance_uuid], name)
    if row is None or row.state == "disconnected":
        return row
    if row.mode != wish.mode:
        raise InvalidVolumeAttachMode(
            f"cannot attach volume {name!r} as {wish.mode}: this host has it as {row.mode}", "detach it first"
        )
    if _connector_of(row) not in (None, connector):
        raise InvalidVolume(
            f"cannot attach volume {name!r} through {connector}: this host has it through {_connector_of(row)}",
            "detach it first",
        )
    return row


def _connector_of(row: AttachmentInfo | None) -> str | None:
    """The connector that made the row's device."""
    return None if row is None else row.connector_name(CONNECTOR_MEMBER)


@contextmanager
def attached(volume: str, agent: Agent | None = None, **wish: Any) -> Iterator[Attached]:
    """A volume's device for the length of a ``with``. It must not be in use any more at the end."""
    agent = agent or Agent()
    found = agent.attach(volume, **wish)
    try:
        yield found
    finally:
        agent.detach(volume, instance_uuid=wish.get("instance_uuid"))
