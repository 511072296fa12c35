"""The world that a fault strikes: a state directory, a kernel, one volume, and one life of the daemon after another."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from tests.faults.injection import Connect, CountedFs, Fault, Seam
from tests.faults.target import PORTAL, PREFIX, Reader, Tree, read_target
from tests.support import Service
from volattachd.config import Config
from volattachd.drivers.base import Portal
from volattachd.drivers.configfs.tree import ConfigFs
from volattachd.drivers.lio import LioDriver
from volattachd.model import Attachment, Caller, Export, Volume
from volattachd.service.transition import Transitions
from volattachd.state.journal import Journal

VOLUME = "vol"
HOST_A = "iqn.2026-11.com.example:host-a"
HOST_B = "iqn.2026-11.com.example:host-b"
ADMIN = Caller(uid=0, pid=1, admin=True)
_SECOND = "ffffffff-0000-4000-8000-000000000000"
_LONG = 1 << 18
_KEPT = 50  # lines of history, at least
_ADDRESS, _PORT = PORTAL.split(":")


@dataclass(frozen=True)
class Parts:
    """What a daemon is made of; the mutants exchange one."""

    journal: type[Journal] = Journal
    driver: type[LioDriver] = LioDriver
    transitions: type[Transitions] = Transitions
    connect: Callable[[Connect], Connect] = lambda connect: connect


class Life:
    """One life of the daemon: started in the daemon's order, ended as by SIGKILL."""

    def __init__(self, world: World, fault: Fault | None = None) -> None:
        """Raises whatever would end the daemon while it starts; nothing of it is left then."""
        self.seam = Seam(fault)
        self.failure: BaseException | None = None
        self._state_dir = world.config.state_dir
        self._journal: Journal | None = None
        try:
            self.service = self._start(world)
        except BaseException:
            self.end()
            raise

    def _start(self, world: World) -> Service:
        parts = world.parts
        portal = Portal(ip_address(_ADDRESS), int(_PORT))
        driver = parts.driver(PREFIX, [portal], CountedFs(world.fs, self.seam))
        connect = parts.connect(self.seam.connect)
        self._journal = parts.journal(self._state_dir, on_failure=self._failed, connect=connect)
        driver.start()
        service = Service(world.config, self._journal, driver, transitions=parts.transitions)
        service.upkeep.start_up()
        return service

    def _failed(self, error: BaseException) -> None:
        self.failure = error

    @property
    def journal(self) -> Journal:
        """The open journal."""
        return self.service.journal

    def end(self) -> None:
        """The process is gone. Closing the journal would write its log into the file, and a kill does not."""
        log, kept = self._state_dir / "journal.db-wal", self._state_dir / "kept"
        with suppress(FileNotFoundError):
            if log.stat().st_size < _LONG:  # a long one would only make every start slower
                os.link(log, kept)
        self.seam.end()
        if self._journal is not None:
            self._journal.close()
        with suppress(FileNotFoundError):
            os.replace(kept, log)
            os.unlink(kept)  # where both were the same file


class Stage(Enum):
    """Where the volume is."""

    UNREGISTERED = "unregistered"
    AVAILABLE = "available"
    RESERVED = "reserved"
    CONNECTED = "connected"
    ATTACHED = "attached"
    DETACHING = "detaching"
    DISCONNECTED = "disconnected"


Send = Callable[["World"], Any]


@dataclass(frozen=True)
class Case:
    """A call, where it starts from, and where it leads."""

    name: str
    before: Stage
    after: Stage
    send: Send
    prepare: Callable[[World], None] = lambda world: None

    def __str__(self) -> str:
        return f"{self.name} from {self.before.value}"


@dataclass(frozen=True)
class Rows:
    """What the journal says."""

    volumes: dict[str, Volume]
    attachments: dict[str, Attachment]


class World:
    """Everything that outlives a daemon, the daemon that lives now, and how to bring the volume to any stage."""

    def __init__(
        self,
        directory: Path,
        path: str,
        fs: ConfigFs,
        reader: Reader,
        *,
        shared: bool = False,
        parts: Parts | None = None,
    ) -> None:
        self.config = replace(
            Config(), state_dir=directory, iqn_prefix=PREFIX, portals=(PORTAL,), attachments_per_uid=10_000
        )
        self.path = path
        self.fs = fs
        self.reader = reader
        self.shared = shared
        self.parts = parts or Parts()
        self.attachment_id = ""
        self._numbers = itertools.count(1)
        self.life = Life(self)
        if shared:
            self._grant_second()

    def _grant_second(self) -> None:
        """The other host, attached read-only all the time."""
        self.go(Stage.AVAILABLE)
        self.attachment_id = _SECOND
        self.service.reserve_volume(ADMIN, VOLUME, _SECOND, mode="ro")
        self.service.initialize_connection(ADMIN, VOLUME, connector(HOST_B), _SECOND)
        self.service.attach(ADMIN, VOLUME, host_name="host-b", attachment_id=_SECOND)
        self.attachment_id = ""

    @property
    def service(self) -> Service:
        """The service that lives now."""
        return self.life.service

    def read(self) -> Tree:
        """What of ours the target holds."""
        return read_target(self.reader)

    def rows(self) -> Rows:
        """What the journal says now."""
        journal = self.life.journal
        return Rows(dict(journal.volumes), {row.id: row for row in journal.attachments.all()})

    def stage(self) -> Stage:
        """Where the volume is now, by the journal."""
        rows = self.rows()
        own = rows.attachments.get(self.attachment_id)
        if own is not None:
            return Stage(own.state.value)
        return Stage.AVAILABLE if VOLUME in rows.volumes else Stage.UNREGISTERED

    def restart(self, fault: Fault | None = None) -> None:
        """The daemon dies, if it lives, and a new one starts."""
        self.life.end()
        self.life = Life(self, fault)

    def move(self, directory: Path) -> None:
        """Another state directory for the lives to come."""
        self.config = replace(self.config, state_dir=directory)

    def new_attachment(self) -> None:
        """The next attachment has an id of its own. Each start checks all of the history, so little of it is kept."""
        number = next(self._numbers)
        self.attachment_id = f"00000000-0000-4000-8000-{number:012x}"
        if number % _KEPT == 0:
            self.life.journal.trim(hours=24, rows=_KEPT, at_most=1000 * _KEPT)

    def go(self, stage: Stage) -> None:
        """Bring the volume to a stage by the fewest documented calls."""
        for case in path_between(self.stage(), stage):
            case.send(self)
            assert self.stage() is case.after, f"{case} led to {self.stage()}"

    def close(self) -> None:
        """Nothing of this world stays in the kernel, even where a sweep broke off."""
        self.restart()
        if self.shared:
            self.go(Stage.AVAILABLE)
            self.attachment_id = _SECOND
        self.go(Stage.UNREGISTERED)
        self.life.end()


def connector(initiator: str) -> dict[str, Any]:
    """As os-brick gives it, cut down to what the calls need."""
    return {"initiator": initiator, "ip": "127.0.0.1"}


# The calls.


def _register(world: World) -> Any:
    return world.service.register_volume(ADMIN, VOLUME, world.path, multiattach=world.shared)


def _unregister(world: World) -> Any:
    return world.service.unregister_volume(ADMIN, VOLUME)


def _reserve(world: World) -> Any:
    return world.service.reserve_volume(ADMIN, VOLUME, world.attachment_id)


def _unreserve(world: World) -> Any:
    return world.service.unreserve_volume(ADMIN, VOLUME, world.attachment_id)


def _initialize(world: World) -> Any:
    return world.service.initialize_connection(ADMIN, VOLUME, connector(HOST_A), world.attachment_id)


def _attach(world: World) -> Any:
    return world.service.attach(ADMIN, VOLUME, host_name="host-a", attachment_id=world.attachment_id)


def _begin(world: World) -> Any:
    return world.service.begin_detaching(ADMIN, VOLUME, world.attachment_id)


def _roll(world: World) -> Any:
    return world.service.roll_detaching(ADMIN, VOLUME, world.attachment_id)


def _terminate(world: World) -> Any:
    host = HOST_B if world.attachment_id == _SECOND else HOST_A
    return world.service.terminate_connection(ADMIN, VOLUME, connector(host), attachment_id=world.attachment_id)


def _force(world: World) -> Any:
    return world.service.terminate_connection(
        ADMIN, VOLUME, connector(HOST_A), force=True, attachment_id=world.attachment_id
    )


def _detach(world: World) -> Any:
    return world.service.detach(ADMIN, VOLUME, world.attachment_id)


def _reconcile(world: World) -> Any:
    return world.service.reconcile(ADMIN)


def _wipe(world: World) -> None:
    """The target as targetcli's clear would leave it, with half of an export that no volume accounts for."""
    driver = LioDriver(PREFIX, [], world.fs)
    for volume in world.rows().volumes.values():
        for step in driver.plan(Export(volume, exported=False)):
            step.run()
    for path in (f"iscsi/{PREFIX}:lost.12345678", f"iscsi/{PREFIX}:lost.12345678/tpgt_1"):
        if not world.fs.is_dir(path):
            world.fs.make_dir(path)


_S = Stage
REGISTER = Case("register_volume", _S.UNREGISTERED, _S.AVAILABLE, _register)
UNREGISTER = Case("unregister_volume", _S.AVAILABLE, _S.UNREGISTERED, _unregister)
RESERVE = Case("reserve_volume", _S.AVAILABLE, _S.RESERVED, _reserve)
UNRESERVE = Case("unreserve_volume", _S.RESERVED, _S.AVAILABLE, _unreserve)
INITIALIZE = Case("initialize_connection", _S.RESERVED, _S.CONNECTED, _initialize)
GIVE_UP = Case("terminate_connection", _S.CONNECTED, _S.AVAILABLE, _terminate)
ATTACH = Case("attach", _S.CONNECTED, _S.ATTACHED, _attach)
BEGIN = Case("begin_detaching", _S.ATTACHED, _S.DETACHING, _begin)
ROLL = Case("roll_detaching", _S.DETACHING, _S.ATTACHED, _roll)
TERMINATE = Case("terminate_connection", _S.DETACHING, _S.DISCONNECTED, _terminate)
FORCE = Case("terminate_connection by force", _S.ATTACHED, _S.DISCONNECTED, _force)
DETACH = Case("detach", _S.DISCONNECTED, _S.AVAILABLE, _detach)
RECONCILE = Case("reconcile", _S.ATTACHED, _S.ATTACHED, _reconcile, _wipe)

#: The ways that ``go`` may take: what the documentation tells a client to do.
_DOCUMENTED = (REGISTER, UNREGISTER, RESERVE, UNRESERVE, INITIALIZE, GIVE_UP, ATTACH, BEGIN, TERMINATE, DETACH)
REGISTRY = (REGISTER, UNREGISTER)
LIFE_CYCLE = (RESERVE, UNRESERVE, INITIALIZE, GIVE_UP, ATTACH, BEGIN, ROLL, TERMINATE, FORCE, DETACH, RECONCILE)


@cache
def path_between(start: Stage, end: Stage) -> list[Case]:
    """The fewest calls from one stage to another."""
    ways: dict[Stage, list[Case]] = {start: []}
    waiting = deque([start])
    while waiting:
        at = waiting.popleft()
        if at is end:
            return ways[at]
        for case in _DOCUMENTED:
            if case.before is at and case.after not in ways:
                ways[case.after] = [*ways[at], case]
                waiting.append(case.after)
    raise AssertionError(f"no way from {start} to {end}")
