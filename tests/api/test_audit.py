"""What is told of a call: through the real dispatcher and service, as the log gets it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.rpc.test_dispatch import Handlers
from tests.support import (
    FailOnce,
    Gate,
    Rig,
    Service,
    attachment_id,
    connector,
    in_thread,
    new_attachment,
    request,
    wait_until,
)
from volattachd.api.access import Peer
from volattachd.api.audit import Audit, Report
from volattachd.api.methods import METHODS, Role
from volattachd.errors import Busy, DriverError, VolattachError, VolumeNotFound
from volattachd.model import State
from volattachd.rpc.dispatch import Client, Dispatcher
from volattachd.telemetry import messages
from volattachd.telemetry.messages import Told

ID = attachment_id(1)
PEER = Peer(42, 1000, frozenset({1000}))
SIX: list[tuple[str, dict[str, Any], str, str]] = [
    ("reserve_volume", {}, "gone", "reserved"),
    ("initialize_connection", {"connector": connector()}, "reserved", "connected"),
    ("attach", {"host_name": "h"}, "connected", "attached"),
    ("begin_detaching", {}, "attached", "detaching"),
    ("terminate_connection", {"connector": connector()}, "detaching", "disconnected"),
    ("detach", {}, "disconnected", "gone"),
]


class Log:
    """The records of the package, as they come."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def take(self) -> list[tuple[str, dict[str, str]]]:
        """What was told since the last time: the kind's name, and the fields."""
        names = {kind.id: name for name, kind in messages.kinds().items()}
        told = [record.msg for record in self._caplog.records if isinstance(record.msg, Told)]
        self._caplog.clear()
        for one in told:
            assert len(str(one).splitlines()) == 1
        return [(names[one.kind.id], one.fields()) for one in told]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    with caplog.at_level(logging.INFO, "volattachd"):
        yield Log(caplog)


class Desk:
    """One caller before the dispatcher of a rig."""

    def __init__(self, rig: Rig) -> None:
        self.measured: list[tuple[str, str]] = []
        service = Service(rig.config, rig.journal, rig.driver, audit=Audit(self._observe))
        rig.service = service
        self._dispatcher = Dispatcher(service.handlers, service.audit)

    def _observe(self, call: str, outcome: str, seconds: float) -> None:
        assert seconds >= 0
        self.measured.append((call, outcome))

    def ask(self, method: str, role: Role = Role.ADMIN, **params: Any) -> Any:
        answer = self._dispatcher.answer(json.dumps(request(method, **params)).encode(), Client(PEER, role))
        assert answer is not None
        return json.loads(answer)


@pytest.fixture
def desk(rig: Rig, log: Log) -> Desk:
    rig.register()
    return Desk(rig)


@pytest.mark.parametrize("given", [{}, {"attachment_id": ID}], ids=["without an id", "with an id"])
def test_each_call_is_told_once_with_what_it_moved(given: dict[str, Any], desk: Desk, log: Log, rig: Rig) -> None:
    for call, params, before, after in SIX:
        assert "result" in desk.ask(call, volume="vol-1", **given, **params)
        ((kind, fields),) = log.take()
        assert int(fields.pop("VOLATTACH_DURATION_USEC")) >= 0
        assert (kind, fields) == (
            "CALL_DONE",
            {
                "VOLATTACH_CALL": call,
                "VOLATTACH_PEER_UID": "1000",
                "VOLATTACH_PEER_PID": "42",
                "VOLATTACH_VOLUME": "vol-1",
                "VOLATTACH_ATTACHMENT": rig.journal.history(limit=1)[0]["attachment_id"],
                "VOLATTACH_STATE_BEFORE": before,
                "VOLATTACH_STATE_AFTER": after,
            },
        )
    assert desk.measured == [(call, "ok") for call, *_ in SIX]


def test_a_call_that_is_sent_again_is_told_without_a_move(desk: Desk, log: Log) -> None:
    for call, params, *_ in SIX:
        desk.ask(call, volume="vol-1", attachment_id=ID, **params)
        log.take()
        if call != "detach":
            desk.ask(call, volume="vol-1", attachment_id=ID, **params)
            ((kind, fields),) = log.take()
            assert (kind, fields["VOLATTACH_ATTACHMENT"]) == ("CALL_DONE", ID)
            assert not {"VOLATTACH_STATE_BEFORE", "VOLATTACH_STATE_AFTER"} & set(fields)


@pytest.mark.parametrize("method", [m for m in METHODS if not m.changes and m.role < Role.ADMIN], ids=lambda m: m.name)
@pytest.mark.parametrize("outcome", [None, VolumeNotFound("no"), DriverError("no"), Busy("no")])
def test_a_call_that_only_looks_is_not_told_at_the_default_level(
    method: Any, outcome: Exception | None, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    answer_one(method.name, outcome)
    assert log.take() == []
    caplog.set_level(logging.DEBUG, "volattachd")
    answer_one(method.name, outcome)
    ((kind, fields),) = log.take()
    assert (kind, fields["VOLATTACH_CALL"]) == ("LOOKED", method.name)
    assert fields.get("VOLATTACH_ERROR") == (None if outcome is None else type(outcome).__name__)


def answer_one(method: str, outcome: Any, role: Role = Role.ADMIN, **params: Any) -> Any:
    """Ask a dispatcher whose handlers do what they are told."""
    samples = {"volume": "vol-1", "attachment_id": ID, "connector": connector(), "path": "/x"}
    needed = {p.name: samples[p.name] for m in METHODS if m.name == method for p in m.params if p.required}
    message = json.dumps(request(method, **{**needed, **params})).encode()
    return Dispatcher(Handlers(outcome), Audit()).answer(message, Client(PEER, role))


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (VolumeNotFound("no"), "CALL_REFUSED"),
        (DriverError("the kernel said no"), "CALL_FAILED"),
        (Busy("wait"), "CALL_FAILED"),
        (None, "CALL_DONE"),
    ],
)
@pytest.mark.parametrize("method", ["detach", "register_volume", "reconcile", "backup_journal"])
def test_any_other_call_is_told_with_its_outcome(
    method: str, outcome: VolattachError | None, kind: str, log: Log
) -> None:
    answer_one(method, outcome)
    ((told, fields),) = log.take()
    assert told == kind
    assert fields.get("VOLATTACH_ERROR") == (None if outcome is None else outcome.kind)


@pytest.mark.parametrize("method", ["list_volumes", "detach"])
def test_who_may_not_is_told_even_where_he_only_looks(method: str, log: Log) -> None:
    answer_one(method, None, Role.NOBODY)
    ((kind, fields),) = log.take()
    assert (kind, fields["VOLATTACH_PEER_UID"]) == ("CALL_DENIED", "1000")


def test_a_bug_is_told_once_as_that_with_its_traceback(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    answer_one("detach", ZeroDivisionError("one\nPRIORITY=0"))
    assert [record.exc_info is not None for record in caplog.records] == [True]
    ((kind, fields),) = log.take()
    assert (kind, fields["VOLATTACH_ERROR"], fields["VOLATTACH_VOLUME"]) == ("BUG", "InternalError", "vol-1")


@pytest.mark.parametrize("name", ["vol-1\nPRIORITY=0", "vol-1\x1b[2J", "ä", "x" * 64])
def test_a_value_that_is_refused_is_in_no_field(name: str, desk: Desk, log: Log) -> None:
    assert desk.ask("detach", volume=name)["error"]["data"]["kind"] == "InvalidInput"
    ((kind, fields),) = log.take()
    assert (kind, "VOLATTACH_VOLUME" in fields) == ("CALL_REFUSED", False)
    assert name not in "".join(fields.values())


def test_a_move_that_was_undone_is_no_move(desk: Desk, log: Log, rig: Rig) -> None:
    desk.ask("reserve_volume", volume="vol-1", attachment_id=ID)
    log.take()
    rig.driver.before_step = FailOnce(0)
    desk.ask("initialize_connection", volume="vol-1", connector=connector())
    told = log.take()
    assert [kind for kind, _ in told if kind.startswith("CALL")] == ["CALL_FAILED"]
    ((_, fields),) = [(kind, fields) for kind, fields in told if kind == "CALL_FAILED"]
    assert (fields["VOLATTACH_ERROR"], fields["VOLATTACH_ATTACHMENT"]) == ("DriverError", ID)
    assert "VOLATTACH_STATE_AFTER" not in fields


def test_what_a_call_moves_after_its_caller_was_told_busy_is_told_when_it_moves(quick_path: Path, log: Log) -> None:
    rig = Rig(quick_path, call_seconds=0.05)
    try:
        rig.register()
        desk = Desk(rig)
        for call, params, *_ in SIX[:-1]:
            while "error" in desk.ask(call, volume="vol-1", attachment_id=ID, **params):
                pass  # Busy, on a slow machine: it is sent again
        gate = Gate()
        rig.driver.before_plan = gate
        log.take()
        busy = in_thread(lambda: desk.ask("detach", volume="vol-1", attachment_id=ID))
        assert busy()["error"]["data"]["kind"] == "Busy"
        assert ("CALL_FAILED", "Busy") in [(kind, fields.get("VOLATTACH_ERROR")) for kind, fields in log.take()]
        gate.open()
        late: list[dict[str, str]] = []

        def told() -> list[dict[str, str]]:
            late.extend(fields for kind, fields in log.take() if kind == "CALL_LATE")
            return late

        wait_until(told)
        assert late == [
            {
                "VOLATTACH_CALL": "detach",
                "VOLATTACH_PEER_UID": "1000",
                "VOLATTACH_PEER_PID": "42",
                "VOLATTACH_VOLUME": "vol-1",
                "VOLATTACH_ATTACHMENT": ID,
                "VOLATTACH_STATE_BEFORE": "disconnected",
                "VOLATTACH_STATE_AFTER": "gone",
            }
        ]
    finally:
        rig.journal.close()


def test_each_move_is_told_once_whenever_the_caller_is_answered(rig: Rig, log: Log) -> None:
    """A move and an answer at the same moment: the record of the call has it, or one of its own."""
    method = next(method for method in METHODS if method.name == "attach")
    before, after = new_attachment(1, state=State.CONNECTED), new_attachment(1, state=State.ATTACHED)
    for _ in range(300):
        report = Report(method, PEER, lambda call, outcome, seconds: None)
        moving = in_thread(partial(report.moved, before, after))
        report.tell_error(Busy("no"))
        moving()
        told = log.take()
        moves = [fields for _, fields in told if fields.get("VOLATTACH_STATE_AFTER") == "attached"]
        assert len(moves) == 1, told


def test_no_secret_is_in_a_record(desk: Desk, log: Log, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "volattachd")
    passwords, seen = [], ""
    for call, params, *_ in SIX:
        answer = desk.ask(call, volume="vol-1", **params)
        if call == "initialize_connection":
            passwords.append(answer["result"]["data"]["auth_password"])
        seen += "".join(record.getMessage() for record in caplog.records) + str(log.take())
    assert "initialize_connection" in seen
    assert len(passwords) == 1 and passwords[0] not in seen
