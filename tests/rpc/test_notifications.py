from __future__ import annotations

import json
import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import (
    ADMIN,
    LIMITS,
    PATIENCE,
    Rig,
    Wire,
    attachment_id,
    connector,
    full_disk,
    in_thread,
    new_attachment,
    request,
    serving,
    wait_until,
)
from volattachd.api.access import Access
from volattachd.api.methods import Role
from volattachd.api.views import attachment_view
from volattachd.config import Config
from volattachd.errors import JournalFailed
from volattachd.model import State
from volattachd.rpc.notifications import Outlet, Subscription
from volattachd.state.journal import Change


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "d.sock"


@contextmanager
def subscribed(path: Path, *words: int) -> Iterator[Wire]:
    with Wire(path) as wire:
        wire.call("subscribe", *words)
        yield wire


def rows(wire: Wire, count: int) -> list[dict[str, Any]]:
    """The next notifications' rows; fails where anything else comes."""
    found = []
    for _ in range(count):
        message = wire.answer()
        assert message is not None and message.get("method") == "volume_changed", message
        assert set(message) == {"jsonrpc", "method", "params"}
        found.append(message["params"])
    return found


def commit(rig: Rig, count: int, first: int = 100, size: int = 0) -> None:
    """So many rows of history, of ``size`` bytes and more."""
    for number in range(first, first + count):
        row = new_attachment(number, connector={"initiator": "x", "more": "y" * size})
        rig.journal.commit(Change("call", ADMIN, row.volume, row.id, after=attachment_view(row), put=row))


# What comes.


@pytest.mark.parametrize("since", [None, 0, 1, 3, 5, 6])
def test_everything_after_the_number_comes_first_and_then_what_is_new_each_once_in_order(
    rig: Rig, path: Path, since: int | None
) -> None:
    rig.register()
    commit(rig, 5)
    with serving(path, rig.service), Wire(path) as wire:
        answer = wire.call("subscribe", **({} if since is None else {"since": since}))
        start = 6 if since is None else since
        assert answer == {"since": start, "oldest": 1, "seq": 6}
        commit(rig, 4, 200)
        found = rows(wire, 10 - start)
        assert found == rig.journal.history(since=start)
        assert [row["seq"] for row in found] == list(range(start + 1, 11))


def test_a_notification_has_the_row_as_get_history_shows_it_and_no_secret(rig: Rig, path: Path) -> None:
    rig.register()
    with serving(path, rig.service), subscribed(path) as wire:
        rig.reach(State.CONNECTED)
        found = rows(wire, 2)
        assert found == wire.call("get_history", since=1)
        row = rig.journal.attachments.get(attachment_id(1))
        assert row is not None and row.secret is not None
        assert row.secret.password not in json.dumps(found)


def test_rows_that_are_written_while_a_client_subscribes_are_neither_missed_nor_told_twice(
    rig: Rig, path: Path
) -> None:
    rig.register()
    with serving(path, rig.service):
        writing = in_thread(lambda: commit(rig, 300))
        wires = []
        for _ in range(10):
            wire = Wire(path)
            wires.append((wire, wire.call("subscribe")["since"]))
        writing()
        for wire, since in wires:
            with wire:
                assert [row["seq"] for row in rows(wire, 301 - since)] == list(range(since + 1, 302))


def test_a_client_resumes_across_a_restart_without_a_gap(rig: Rig, path: Path) -> None:
    rig.register()
    with serving(path, rig.service), subscribed(path, 0) as wire:
        commit(rig, 3)
        seen = rows(wire, 4)
    assert wire.socket.fileno() == -1
    commit(rig, 2, 200)
    rig.restart()
    commit(rig, 2, 300)
    path.unlink()
    with serving(path, rig.service), subscribed(path, seen[-1]["seq"]) as wire:
        commit(rig, 2, 400)
        seen += rows(wire, 6)
    assert seen == rig.journal.history(since=0)


def test_subscribing_again_begins_anew_from_the_number(rig: Rig, path: Path) -> None:
    rig.register()
    commit(rig, 2)
    with serving(path, rig.service), subscribed(path, 1) as wire:
        assert [row["seq"] for row in rows(wire, 2)] == [2, 3]
        wire.call("subscribe", 0)
        assert [row["seq"] for row in rows(wire, 3)] == [1, 2, 3]
        commit(rig, 1, 200)
        assert [row["seq"] for row in rows(wire, 1)] == [4]


def test_after_unsubscribe_nothing_comes(rig: Rig, path: Path) -> None:
    rig.register()
    with serving(path, rig.service), subscribed(path) as wire:
        stop, writing = threading.Event(), threading.Event()

        def write() -> None:
            number = 1000
            while not stop.is_set():
                commit(rig, 1, number)
                number += 1
                writing.set()

        writer = in_thread(write)
        assert writing.wait(10)
        wire.send(request("unsubscribe", call_id="u"))
        while (message := wire.answer()).get("id") != "u":
            assert message["method"] == "volume_changed"
        assert message["result"] == {"subscribed": True}
        commit(rig, 5)
        for call_id in range(20):
            assert wire.ask(request("get_status", call_id=call_id))["id"] == call_id
        stop.set()
        writer()
        assert wire.call("unsubscribe") == {"subscribed": False}


def test_the_answer_comes_before_the_first_notification_in_batches_too(rig: Rig, path: Path) -> None:
    rig.register()
    with serving(path, rig.service), Wire(path) as wire:
        batch = [request("subscribe", 0, call_id=1), request("get_status", call_id=2)]
        answer = wire.ask(batch)
        assert [part["id"] for part in answer] == [1, 2]
        assert rows(wire, 1)[0]["seq"] == 1
    with serving(path.with_name("f.sock"), rig.service), Wire(path.with_name("f.sock")) as wire:
        changing = request("reserve_volume", volume="vol-1", call_id=3)  # what was answered before goes out first
        wire.send(json.dumps(request("get_status", call_id=0)).encode() + json.dumps([batch[0], changing]).encode())
        assert wire.answer()["id"] == 0
        assert [part["id"] for part in wire.answer()] == [1, 3]
        assert [row["seq"] for row in rows(wire, 2)] == [1, 2]
    with serving(path.with_name("e.sock"), rig.service), Wire(path.with_name("e.sock")) as wire:
        wire.send({"jsonrpc": "2.0", "method": "subscribe", "params": [0]})
        assert rows(wire, 1)[0]["seq"] == 1


def test_answers_and_notifications_of_one_connection_are_each_a_line_of_its_own(rig: Rig, path: Path) -> None:
    rig.register()
    commit(rig, 200, size=3000)
    with serving(path, rig.service), subscribed(path, 0) as wire:

        def ask() -> None:
            for number in range(30):
                wire.send(request("get_history", call_id=number, limit=20))

        asking = in_thread(ask)
        writing = in_thread(lambda: commit(rig, 100, 1000, size=3000))
        seqs: list[int] = []
        ids: list[int] = []
        while len(seqs) < 301 or len(ids) < 30:
            message = wire.answer()
            assert ("method" in message) != ("id" in message)
            if "id" in message:
                ids.append(message["id"])
            else:
                seqs.append(message["params"]["seq"])
        writing()
        asking()
    assert (seqs, ids) == (list(range(1, 302)), list(range(30)))


def test_an_answer_does_not_wait_for_a_long_backlog(rig: Rig, path: Path) -> None:
    rig.register()
    commit(rig, 700, size=2000)
    with serving(path, rig.service), subscribed(path, 0) as wire:
        wire.send(request("get_status", call_id="s"))
        before = 0
        while "id" not in wire.answer():
            before += 1
        assert before < 701
        rows(wire, 701 - before)


def test_a_row_that_is_larger_than_the_sockets_buffer_comes_whole(rig: Rig, path: Path) -> None:
    rig.register()
    commit(rig, 3, size=900_000)
    with serving(path, rig.service), subscribed(path, 0) as wire:
        found = rows(wire, 4)
        assert [len(row["after"]["connector"]["more"]) for row in found[1:]] == [900_000] * 3


# What is refused.


@pytest.mark.parametrize(("since", "told"), [(0, "numbers 5 to 7"), (3, "numbers 5 to 7"), (8, "last number is 7")])
def test_a_number_that_the_journal_does_not_have_is_refused_with_those_that_it_has(
    rig: Rig, path: Path, since: int, told: str
) -> None:
    rig.register()
    commit(rig, 6)
    rig.journal.trim(1, 3, 100)
    with serving(path, rig.service), Wire(path) as wire:
        error = wire.ask(request("subscribe", since))["error"]
        assert error["data"]["kind"] == "InvalidInput"
        assert told in error["message"]
        assert "list_volumes" in error["data"]["correction"]
        assert (error["data"]["oldest"], error["data"]["seq"]) == (5, 7)
        assert [row["seq"] for row in _since(wire, 4, 3)] == [5, 6, 7]


def _since(wire: Wire, since: int, count: int) -> list[dict[str, Any]]:
    wire.call("subscribe", since)
    return rows(wire, count)


def test_where_all_history_is_trimmed_the_last_number_is_still_a_beginning(rig: Rig, path: Path) -> None:
    rig.register()
    commit(rig, 6)
    rig.journal.trim(1, 0, 100)
    with serving(path, rig.service), Wire(path) as wire:
        assert wire.ask(request("subscribe", 6))["error"]["data"]["kind"] == "InvalidInput"
        assert wire.call("subscribe", 7) == {"since": 7, "oldest": 8, "seq": 7}
        commit(rig, 1, 200)
        assert rows(wire, 1)[0]["seq"] == 8


@pytest.mark.parametrize("params", [{"since": -1}, {"since": "1"}, {"since": 1.5}, {"since": True}, {"from": 1}])
def test_parameters_are_checked_like_those_of_every_call(rig: Rig, path: Path, params: dict[str, Any]) -> None:
    with serving(path, rig.service), Wire(path) as wire:
        kind = wire.ask(request("subscribe", **params))["error"]["data"]["kind"]
        assert kind == ("InvalidParams" if "from" in params else "InvalidInput")


def test_who_may_not_look_may_not_subscribe(rig: Rig, path: Path) -> None:
    nobody = Access(Config(agent=()))
    nobody._users.clear()
    with serving(path, rig.service, access=nobody), Wire(path) as wire:
        assert wire.answer()["error"]["data"]["kind"] == "PermissionDenied"
        assert wire.answer() is None


def test_a_reader_may_subscribe(rig: Rig, path: Path) -> None:
    readers = Access(Config(agent=()))
    readers._users = {os.getuid(): Role.READER}
    rig.register()
    with serving(path, rig.service, access=readers), subscribed(path, 0) as wire:
        assert rows(wire, 1)[0]["seq"] == 1
        assert wire.ask(request("backup_journal", path="/x"))["error"]["data"]["kind"] == "PermissionDenied"


# Who does not read, and who goes away.


def drained(wire: Wire) -> list[dict[str, Any]]:
    """All that a client finds who begins to read at last, up to the end of the connection."""
    found = []
    while (message := wire.answer()) is not None:
        found.append(message)
    return found


def test_a_slow_reader_is_told_and_dropped_and_others_go_on(rig: Rig, path: Path) -> None:
    rig.register()
    limits = replace(LIMITS, unread_seconds=0.3)
    with serving(path, rig.service, limits) as server, subscribed(path) as slow:
        commit(rig, 500, size=1000)
        with subscribed(path, 1) as quick:
            assert [row["seq"] for row in rows(quick, 500)] == list(range(2, 502))
            wait_until(lambda: len(server._open) == 1)
            commit(rig, 1, 1000)
            assert rows(quick, 1)[0]["seq"] == 502
        *seen, last = drained(slow)
        assert [message["params"]["seq"] for message in seen] == list(range(2, len(seen) + 2))
        assert last["method"] == "subscription_ended"
        assert last["params"]["reason"] == "slow"
        assert last["params"]["seq"] == len(seen) + 1
    path = path.with_name("e.sock")
    with serving(path, rig.service), subscribed(path, last["params"]["seq"]) as again:
        assert rows(again, 1)[0]["seq"] == last["params"]["seq"] + 1


def test_after_half_a_line_comes_nothing(rig: Rig, path: Path) -> None:
    """A row that does not fit into the buffer, and a client that never reads."""
    rig.register()
    limits = replace(LIMITS, unread_seconds=0.2)
    with serving(path, rig.service, limits) as server, Wire(path) as wire:
        wire.call("subscribe")
        commit(rig, 1, size=900_000)
        wait_until(lambda: not server._open)
        received = b""
        while data := wire.socket.recv(1 << 20):
            received += data
        assert received
        assert b"\n" not in received and b"subscription_ended" not in received


def test_rows_that_are_trimmed_before_they_could_be_sent_end_the_subscription(rig: Rig, path: Path) -> None:
    rig.register()
    with serving(path, rig.service), subscribed(path) as wire:
        commit(rig, 400, size=5000)  # more than the buffer takes: the rest waits in the journal
        rig.journal.trim(1, 0, 1000)
        *seen, last = drained(wire)
        assert [message["params"]["seq"] for message in seen] == list(range(2, len(seen) + 2))
        assert last["params"]["reason"] == "trimmed"
        assert last["params"]["seq"] == len(seen) + 1 < 401


@pytest.mark.parametrize("how", ["close", "half"])
def test_who_goes_away_leaves_no_thread_behind(rig: Rig, path: Path, how: str) -> None:
    def subscriptions() -> int:
        return sum(thread.name == "subscription" for thread in threading.enumerate())

    before = subscriptions()
    with serving(path, rig.service) as server:
        wires = [Wire(path) for _ in range(5)]
        for wire in wires:
            wire.call("subscribe")
        assert subscriptions() == before + 5
        for wire in wires:
            wire.socket.close() if how == "close" else wire.end()
        wait_until(lambda: not server._open)
        assert subscriptions() == before
        for wire in wires:
            wire.socket.close()


def test_who_only_waits_is_not_closed(rig: Rig, path: Path) -> None:
    """The times that a message and an answer may take are over many times."""
    rig.register()
    limits = replace(LIMITS, message_seconds=0.01, unread_seconds=0.01)
    with serving(path, rig.service, limits), subscribed(path) as wire, Wire(path) as other:
        for number in range(5):
            assert not threading.Event().wait(0.05)
            other.call("get_status")
            commit(rig, 1, number)
            assert rows(wire, 1)[0]["seq"] == number + 2


def test_the_end_of_the_server_ends_subscriptions(rig: Rig, path: Path) -> None:
    rig.register()
    with serving(path, rig.service) as server:
        wire = Wire(path)
        wire.call("subscribe", 0)
        rows(wire, 1)
        server.stop()
        assert not server._open
        assert wire.answer() is None
        wire.socket.close()


def test_the_failure_of_the_journal_ends_subscriptions(rig: Rig, path: Path) -> None:
    rig.register()
    with serving(path, rig.service) as server, subscribed(path) as wire:
        with full_disk(), pytest.raises(JournalFailed):
            commit(rig, 1)
        assert wire.answer() is None
        wait_until(lambda: not server._open)


def test_many_subscribers_each_see_everything_in_order(rig: Rig, path: Path) -> None:
    rig.register()

    def read(wire: Wire) -> list[int]:
        with wire:
            return [row["seq"] for row in rows(wire, 201)]

    with serving(path, rig.service):
        wires = [Wire(path) for _ in range(20)]
        for wire in wires:
            wire.call("subscribe", 0)
        readers = [in_thread(lambda w=wire: read(w)) for wire in wires]  # type: ignore[misc]
        commit(rig, 200)
        assert all(reader() == list(range(1, 202)) for reader in readers)


def test_calls_over_the_socket_are_told_to_those_who_follow(rig: Rig, path: Path) -> None:
    rig.register()
    with serving(path, rig.service), subscribed(path) as watcher, Wire(path) as agent:
        found = agent.call("reserve_volume", volume="vol-1")
        agent.call("initialize_connection", volume="vol-1", connector=connector())
        reserved, connected = rows(watcher, 2)
        assert reserved["after"] == found
        assert (connected["call"], connected["after"]["state"]) == ("initialize_connection", "connected")


def test_a_socket_is_writable_only_while_a_quarter_of_its_buffer_is_used() -> None:
    """What rule 4 of events.py rests on: there is room for a last short line where poll says that there is none."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        ours.setblocking(False)
        poll = select.poll()
        poll.register(ours, select.POLLOUT)
        while poll.poll(0):
            ours.send(b"x" * 1000)
        assert ours.send(b"y" * 500) == 500


@pytest.mark.parametrize("missing", [1, 2, 5])
def test_a_gap_in_front_of_rows_that_are_kept_ends_the_subscription_before_one_is_sent(rig: Rig, missing: int) -> None:
    for number in range(8):
        rig.register(f"vol-{number}")
    rig.journal.trim(1, 8 - missing, 1000)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    subscription = Subscription(rig.journal, 0, Outlet(ours, PATIENCE), ours.close)
    subscription.begin()
    subscription._thread.join(PATIENCE)
    last = json.loads(theirs.makefile().readline())
    theirs.close()
    assert (last["method"], last["params"]["reason"], last["params"]["seq"]) == ("subscription_ended", "trimmed", 0)
