from __future__ import annotations

import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.rpc.test_dispatch import Handlers
from tests.support import (
    ADMIN,
    LIMITS,
    PATIENCE,
    Gate,
    ObedientDriver,
    Rig,
    Service,
    Wire,
    connector,
    in_thread,
    make_file,
    serving,
    wait_until,
)
from volattachd.api.access import Access
from volattachd.api.audit import Audit
from volattachd.config import Config
from volattachd.rpc.dispatch import Dispatcher
from volattachd.rpc.server import Server
from volattachd.state.journal import Journal
from volattachd.watchdog import Watchdog


class Meals:
    """How often a watchdog asked, and how often it was fed."""

    def __init__(self) -> None:
        self.asked = 0
        self.fed = 0

    def feed(self) -> None:
        self.fed += 1


@contextmanager
def watching(server: Server) -> Iterator[Meals]:
    """A watchdog that asks without a pause worth mentioning."""
    meals = Meals()

    def connect() -> Any:
        meals.asked += 1
        return server.connect()

    watchdog = Watchdog(connect, meals.feed, 0.001)
    watchdog.start()
    try:
        yield meals
    finally:
        watchdog.stop()


def is_fed_again(meals: Meals) -> None:
    before = meals.fed
    wait_until(lambda: meals.fed >= before + 3)


def starves(meals: Meals, meanwhile: Callable[[], object]) -> None:
    """It asked once and waits, whatever else is answered meanwhile."""
    wait_until(lambda: meals.asked)
    before = (meals.asked, meals.fed)
    for _ in range(50):
        meanwhile()
    assert (meals.asked, meals.fed) == before


def test_every_answer_feeds_it(rig: Rig, tmp_path: Path) -> None:
    with serving(tmp_path / "s", rig.service) as server, watching(server) as meals:
        is_fed_again(meals)


def test_a_hung_dispatcher_starves_it(tmp_path: Path) -> None:
    gate = Gate()
    handlers: Mapping[str, Callable[..., Any]] = {**Handlers(), "get_history": lambda *_, **__: gate()}
    with serving(tmp_path / "s", handlers) as server, watching(server) as meals, Wire(tmp_path / "s") as client:
        assert gate.reached.wait(PATIENCE)
        starves(meals, lambda: client.call("get_status"))
        assert meals.fed == 0
        gate.open()
        is_fed_again(meals)


def test_an_accept_loop_that_does_not_move_starves_it(tmp_path: Path) -> None:
    with serving(tmp_path / "other", Handlers()), Wire(tmp_path / "other") as client:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        server = Server(listener, Dispatcher(Handlers(), Audit()), Access(Config()), LIMITS)
        with watching(server) as meals:
            starves(meals, lambda: client.call("get_status"))
            assert meals.fed == 0
            thread = threading.Thread(target=server.run, daemon=True)
            thread.start()
            is_fed_again(meals)
            server.stop()
            thread.join()


class SlowDisk(sqlite3.Connection):
    """A journal's file whose commits wait at a gate."""

    gate = Gate()

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql == "COMMIT":
            self.gate()
        return super().execute(sql, *values)


def open_slowly(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=SlowDisk)


def test_a_journal_that_does_not_move_starves_it(tmp_path: Path) -> None:
    SlowDisk.gate.open()
    journal = Journal(tmp_path / "state", connect=open_slowly)
    gate = SlowDisk.gate = Gate()
    service = Service(replace(Config(), state_dir=tmp_path / "state"), journal, ObedientDriver())
    with serving(tmp_path / "s", service) as server, Wire(tmp_path / "s") as client:
        path = make_file(tmp_path / "a.img")
        registered = in_thread(lambda: service.register_volume(ADMIN, "vol-1", path))
        assert gate.reached.wait(PATIENCE)
        with watching(server) as meals:
            starves(meals, lambda: client.call("get_status"))
            assert meals.fed == 0
            gate.open()
            is_fed_again(meals)
        assert registered()["volume"] == "vol-1"
    journal.close()


def test_a_volume_that_waits_for_its_device_does_not_starve_it(rig: Rig, tmp_path: Path) -> None:
    rig.register()
    rig.service.reserve_volume(ADMIN, "vol-1")
    gate = rig.driver.before_plan = Gate()
    stuck = in_thread(lambda: rig.service.initialize_connection(ADMIN, "vol-1", connector()))
    assert gate.reached.wait(PATIENCE)
    with serving(tmp_path / "s", rig.service) as server, watching(server) as meals:
        is_fed_again(meals)
        gate.open()
    assert stuck()["driver_volume_type"] == "iscsi"


@pytest.mark.parametrize("limits", [(1, 1), (1, 9), (9, 1)])
def test_clients_that_hold_every_connection_do_not_starve_it(limits: tuple[int, int], rig: Rig, tmp_path: Path) -> None:
    path = tmp_path / "s"
    few = replace(LIMITS, connections=limits[0], connections_per_uid=limits[1])
    with serving(path, rig.service, few) as server, Wire(path) as client:
        client.call("get_status")
        with Wire(path) as refused:
            assert refused.answer()["error"]["data"]["kind"] == "Busy"
        with watching(server) as meals:
            is_fed_again(meals)


def test_its_questions_take_no_clients_place(tmp_path: Path) -> None:
    gate = Gate()
    handlers: Mapping[str, Callable[..., Any]] = {**Handlers(), "get_history": lambda *_, **__: gate()}
    few = replace(LIMITS, connections=1, connections_per_uid=1)
    with serving(tmp_path / "s", handlers, few) as server, watching(server):
        assert gate.reached.wait(PATIENCE)
        with Wire(tmp_path / "s") as client:
            client.call("get_status")
        gate.open()


def test_who_asks_for_the_daemon_is_a_reader_and_no_more(rig: Rig, tmp_path: Path) -> None:
    with serving(tmp_path / "s", rig.service) as server, server.connect() as own:
        own.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "reconcile"}\n')
        assert b"PermissionDenied" in own.recv(4096)


def test_a_server_that_was_stopped_cannot_be_asked(tmp_path: Path) -> None:
    with serving(tmp_path / "s", Handlers()) as server:
        pass
    with pytest.raises(OSError, match=r".+"):
        server.connect()


def hang_up() -> socket.socket:
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours


def refuse() -> socket.socket:
    raise ConnectionRefusedError


@pytest.mark.parametrize("connect", [hang_up, refuse])
def test_a_connection_that_ends_without_an_answer_does_not_feed_it(connect: Callable[[], socket.socket]) -> None:
    meals = Meals()

    def ask() -> socket.socket:
        meals.asked += 1
        return connect()

    watchdog = Watchdog(ask, meals.feed, 0.001)
    watchdog.start()
    wait_until(lambda: meals.asked >= 5)
    watchdog.stop()
    assert meals.fed == 0


def test_without_a_watchdog_there_is_no_thread_that_asks() -> None:
    def fail() -> Any:
        raise AssertionError("it asked")

    before = set(threading.enumerate())
    Watchdog(fail, fail, None).start()
    assert set(threading.enumerate()) <= before
