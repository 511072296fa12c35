"""The typed client, blocking and asyncio alike: what it sends, what it sends again, and what it never does."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import socket
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from tests.cli.fake_daemon import failure, result, serving
from tests.support import PATIENCE, Rig
from tests.support import serving as served
from volattachd.api.methods import METHODS, Method, Schema
from volattachd.client import aio, calls, results, sync
from volattachd.client.calls import Call, Tries
from volattachd.client.protocol import AccessRefused, BadAnswer, NoAnswer, Unreachable
from volattachd.errors import Busy, InvalidInput, InvalidVolume

ID = "00000000-0000-4000-8000-000000000001"
PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", type(None): "null"}
NAMES = {method.name: method.name.removeprefix("rpc.") for method in METHODS}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "d.sock"


class Waiting:
    """The asyncio client, used as the blocking one is: every test below runs against both."""

    def __init__(self, address: str, timeout: float = 60.0) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = self._loop.run_until_complete(self._made(address, timeout))

    async def _made(self, address: str, timeout: float) -> aio.Client:
        return aio.Client(address, timeout)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *args, **kwargs: self._loop.run_until_complete(method(*args, **kwargs))

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._loop.close()


@pytest.fixture(params=[sync.Client, Waiting], ids=["blocking", "asyncio"])
def made(request: pytest.FixtureRequest) -> Any:
    """A client's class."""
    return request.param


# The calls are the table's.


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_call_of_the_table_is_a_method_with_its_parameters(method: Method) -> None:
    build = getattr(calls, NAMES[method.name])
    given = inspect.signature(build).parameters
    assert [(p.name, p.required) for p in method.params] == [(p.name, p.default is p.empty) for p in given.values()]
    assert all(p.default is None for p in given.values() if p.default is not p.empty), "what is left out is not sent"
    for one in (sync.Client(), aio.Client()):
        assert inspect.signature(getattr(one, NAMES[method.name])) == inspect.signature(build)
        assert getattr(one, NAMES[method.name]).__doc__ == build.__doc__


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_call_sends_the_method_and_every_parameter_by_its_name(method: Method) -> None:
    given = {param.name: object() for param in method.params}
    call = getattr(calls, NAMES[method.name])(**given)
    assert (call.method, call.params) == (method.name, given)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_type_of_a_result_is_what_its_schema_says(method: Method) -> None:
    hints = get_type_hints(getattr(calls, NAMES[method.name]))
    (promised,) = get_args(hints["return"])
    assert fits(promised, method.result), f"{promised} is not {method.result}"


def fits(hint: Any, schema: Schema) -> bool:
    """Whether a type says what a schema says, members and all."""
    if is_typeddict(hint):
        members, properties = get_type_hints(hint), schema.get("properties", {})
        return members.keys() == properties.keys() and all(fits(members[name], properties[name]) for name in members)
    if get_origin(hint) is Literal:
        return bool(list(get_args(hint)) == schema["enum"])
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [{"type": kind} for kind in schema["type"]] if isinstance(schema["type"], list) else []
        return len(kinds) == len(get_args(hint)) and all(map(fits, get_args(hint), kinds))
    if get_origin(hint) is list:
        return schema["type"] == "array" and fits(get_args(hint)[0], schema["items"])
    plain: dict[Any, str] = {
        str: "string",
        int: "integer",
        float: "number",
        bool: "boolean",
        dict: "object",
        type(None): "null",
    }
    return "enum" not in schema and bool(schema["type"] == plain[get_origin(hint) or hint])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_call_that_changes_something_is_sent_again_only_with_an_attachments_id(method: Method) -> None:
    def again(**more: Any) -> bool:
        required = {param.name: "x" for param in method.params if param.required}
        return bool(getattr(calls, NAMES[method.name])(**required, **more).again)

    takes_id = any(param.name == "attachment_id" for param in method.params)
    if not method.changes:
        assert again() is not (method.of_connection or method.name == "backup_journal")
    elif takes_id:
        assert again(attachment_id=ID)
        assert again() is (method.name == "reserve_volume"), "which picks an id itself"
    else:
        assert not again()


def test_a_dry_run_changes_nothing_and_may_be_sent_again() -> None:
    assert calls.reconcile(dry_run=True).again
    assert not calls.reconcile(dry_run=False).again


def test_reserve_picks_an_id_where_none_is_given(path: Path, made: Any) -> None:
    with serving(path, result({}), result({})) as daemon, made(daemon.path) as one:
        one.reserve_volume("vol-1")
        one.reserve_volume("vol-1")
    first, second = (request["params"]["attachment_id"] for request in daemon.requests)
    assert first != second
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", first)


# Connections and tries.


def test_a_call_is_typed_and_gives_its_result(path: Path, made: Any) -> None:
    with serving(path, result({"volume": "vol-1"})) as daemon, made(daemon.path) as one:
        assert one.show_volume("vol-1") == {"volume": "vol-1"}
    assert daemon.requests == [{"jsonrpc": "2.0", "id": 1, "method": "show_volume", "params": {"volume": "vol-1"}}]


def test_a_lost_answer_is_asked_for_again_with_the_same_id_over_a_new_connection(path: Path, made: Any) -> None:
    with serving(path, b"", result({"state": "reserved"})) as daemon, made(daemon.path) as one:
        assert one.reserve_volume("vol-1", ttl=60) == {"state": "reserved"}
    first, second = daemon.requests
    assert first == second, "the whole call, its picked id included; ids count anew on a new connection"


@pytest.mark.parametrize(
    "call",
    [
        calls.detach("vol-1"),
        calls.unregister_volume("vol-1"),
        calls.reconcile(),
        calls.backup_journal("/x"),
        calls.subscribe(),
    ],
    ids=lambda call: call.method,
)
def test_what_could_have_a_second_effect_is_never_sent_again(path: Path, made: Any, call: Call[Any]) -> None:
    with serving(path, b"", result(1)) as daemon, made(daemon.path) as one:
        with pytest.raises(NoAnswer):
            one.run(call)
        assert len(daemon.requests) == 1


def test_a_call_by_its_name_is_sent_once(path: Path, made: Any) -> None:
    with serving(path, b"", result(1)) as daemon, made(daemon.path) as one:
        with pytest.raises(NoAnswer):
            one.call("list_volumes")
        assert one.call("list_volumes") == 1, "and the next one has a new connection"


@pytest.mark.parametrize(("code", "kind"), [(1003, InvalidVolume), (1009, Busy)])
def test_an_error_that_the_daemon_answered_is_final(path: Path, made: Any, code: int, kind: type[Exception]) -> None:
    with serving(path, failure(code, "no", retriable=True), result(1)) as daemon, made(daemon.path) as one:
        with pytest.raises(kind):
            one.show_volume("vol-1")
        assert len(daemon.requests) == 1


def test_what_is_no_answer_is_not_sent_again_and_the_next_call_has_a_new_connection(path: Path, made: Any) -> None:
    with serving(path, b"nonsense\n" + b"{}\n", result([])) as daemon, made(daemon.path) as one:
        with pytest.raises(BadAnswer):
            one.list_volumes()
        assert one.list_volumes() == []


def test_a_late_answer_meets_no_later_call(path: Path, made: Any) -> None:
    """The first connection is left with its answer on the way."""
    with listening(path) as listener, made(str(path), 0.2) as one:
        with pytest.raises(NoAnswer, match=r"within 0\.2 s"):
            one.list_volumes()
        late, _ = listener.accept()
        later = threading.Thread(target=answer_one, args=(listener, ["new"]))
        later.start()
        with late:
            late.recv(65536)
            with pytest.raises(BrokenPipeError):
                while True:
                    late.sendall(b'{"jsonrpc":"2.0","id":1,"result":["old"]}\n')
        assert one.run(calls.list_volumes(), PATIENCE) == ["new"]
        later.join(PATIENCE)


def test_a_daemon_that_was_never_there_is_told_at_once(path: Path, made: Any) -> None:
    with made(str(path), 1e5) as one, pytest.raises(Unreachable, match="No such file"):
        one.list_volumes()


def test_a_daemon_that_restarts_is_waited_for_by_who_knew_it(path: Path, made: Any) -> None:
    with made(str(path), PATIENCE) as one:
        first = answering(path, [])
        assert one.list_volumes() == []
        first.join(PATIENCE)
        path.unlink()
        back = threading.Timer(0.2, lambda: answering(path, {"volume": "vol-1"}))
        back.start()
        assert one.unregister_volume("vol-1") == {"volume": "vol-1"}, "it was not sent before: any call may wait"
        back.join(PATIENCE)


def test_a_closed_client_stays_closed(path: Path, made: Any) -> None:
    with serving(path, result([])) as daemon, made(daemon.path) as one:
        one.list_volumes()
        one.close()
        with pytest.raises(Unreachable, match="this client is closed"):
            one.list_volumes()


def listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(PATIENCE)
    return listener


def answering(path: Path, value: Any) -> threading.Thread:
    """A daemon that answers one call and ends; it listens when this returns."""
    listener = listening(path)

    def body() -> None:
        with listener:
            answer_one(listener, value)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread


def answer_one(listener: socket.socket, value: Any) -> None:
    connection, _ = listener.accept()
    with connection:
        asked = json.loads(connection.recv(65536))
        connection.sendall(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": value}).encode() + b"\n")


# The decision about another try, with time standing still.


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("error", [Unreachable("x"), AccessRefused("x"), NoAnswer("x")], ids=lambda e: type(e).__name__)
def test_every_case_of_another_try(known: bool, again: bool, error: Unreachable) -> None:
    tries = Tries(Call("x", again, {}), 10, known, Clock())
    follows = {"Unreachable": known, "AccessRefused": False, "NoAnswer": again}[type(error).__name__]
    if follows:
        assert tries.pause_after(error) > 0
    else:
        with pytest.raises(type(error)) as caught:
            tries.pause_after(error)
        assert caught.value is error


def test_the_tries_of_one_call_end_with_its_time() -> None:
    clock = Clock()
    tries = Tries(Call("x", True, {}), 10, True, clock)
    pauses = []
    with pytest.raises(NoAnswer):
        while True:
            pauses.append(tries.pause_after(NoAnswer("x")))
            clock.now += pauses[-1]
            assert tries.left() == 10 - clock.now
    assert sum(pauses) < 10
    assert pauses[:5] == [0.05, 0.1, 0.2, 0.4, 0.8] and max(pauses) == 1


# asyncio's own.


def test_calls_of_several_tasks_go_one_after_the_other(path: Path) -> None:
    async def body() -> list[Any]:
        async with aio.Client(daemon.path) as one:
            return await asyncio.gather(*(one.show_volume(f"vol-{n}") for n in range(20)))

    with serving(path, *[result(n) for n in range(20)]) as daemon:
        assert asyncio.run(body()) == list(range(20))
    assert [request["params"]["volume"] for request in daemon.requests] == [f"vol-{n}" for n in range(20)]


def test_a_cancelled_call_ends_its_connection(path: Path) -> None:
    async def body() -> Any:
        async with aio.Client(daemon.path) as one:
            waiting = asyncio.ensure_future(one.list_volumes())
            while not daemon.requests:
                await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert one._connection.closed
            return True

    with serving(path, None) as daemon:
        assert asyncio.run(body())


def test_a_cancelled_dial_leaves_no_connection(path: Path) -> None:
    """The listener's queue is full: the dial is on its way when it is cancelled."""

    async def body() -> None:
        async with aio.Client(str(path), PATIENCE) as one:
            waiting = asyncio.ensure_future(one.list_volumes())
            await asyncio.sleep(0.1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        runner = threading.Thread(target=asyncio.run, args=(body(),))
        runner.start()
        runner.join(0.3)
        listener.settimeout(PATIENCE)
        listener.accept()[0].close()
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(PATIENCE)
            assert connection.recv(1) == b"", "what was dialled too late is closed again"
        runner.join(PATIENCE)
        assert not runner.is_alive()


# Against the real daemon's half.


@pytest.fixture
def address(tmp_path: Path, path: Path) -> Iterator[str]:
    rig = Rig(tmp_path)
    rig.register("vol-1")
    with served(path, rig.service):
        yield str(path)


def test_the_whole_life_of_an_attachment(address: str, made: Any) -> None:
    connector = {"initiator": "iqn.2026-11.org.example:host-a", "ip": "127.0.0.1", "host": "host-a"}
    with made(address, PATIENCE) as one:
        at = {"volume": "vol-1", "attachment_id": one.reserve_volume("vol-1")["attachment_id"]}
        assert one.initialize_connection(**at, connector=connector)["driver_volume_type"] == "iscsi"
        assert one.attach(**at, host_name="host-a")["state"] == "attached"
        assert one.roll_detaching(**at)["state"] == "attached"
        assert one.begin_detaching(**at)["state"] == "detaching"
        assert one.terminate_connection(**at, connector=connector)["state"] == "disconnected"
        assert one.detach(**at)["status"] == "available"
        assert one.unreserve_volume("vol-1")["status"] == "available"
        assert [row["call"] for row in one.get_history("vol-1", limit=1)] == ["detach"]
        assert one.discover()["openrpc"]


TOO_LONG = failure(1004, "too long", max_answer_bytes=8388608)


def test_a_list_that_is_too_long_for_one_answer_comes_in_pages(path: Path, made: Any) -> None:
    pages = [[{"volume": "a"}, {"volume": "b"}], [{"volume": "c"}], []]
    with serving(path, TOO_LONG, *map(result, pages)) as daemon, made(daemon.path) as one:
        assert one.list_volumes() == [{"volume": "a"}, {"volume": "b"}, {"volume": "c"}]
    asked = [request["params"] for request in daemon.requests]
    assert asked == [{}, {"limit": 1000}, {"limit": 1000, "marker": "b"}, {"limit": 1000, "marker": "c"}]


def test_pages_of_attachments_stay_with_their_volume(path: Path, made: Any) -> None:
    with serving(path, TOO_LONG, result([{"attachment_id": ID}]), result([])) as daemon, made(daemon.path) as one:
        assert one.list_attachments("vol-1") == [{"attachment_id": ID}]
    assert daemon.requests[2]["params"] == {"volume": "vol-1", "limit": 1000, "marker": ID}


def test_a_page_that_was_asked_for_is_one_page(path: Path, made: Any) -> None:
    with serving(path, result([{"volume": "a"}]), TOO_LONG) as daemon, made(daemon.path) as one:
        assert one.list_volumes(limit=1) == [{"volume": "a"}]
        with pytest.raises(InvalidInput):
            one.list_volumes(marker="a")
        assert len(daemon.requests) == 2


def test_history_is_asked_for_until_there_are_as_many_rows_as_were_wanted(path: Path, made: Any) -> None:
    def page(*seqs: int) -> dict[str, Any]:
        return result([{"seq": seq} for seq in seqs])

    with serving(path, page(8, 9), page(6, 7), page(5), page(1, 2), page(3)) as daemon, made(daemon.path) as one:
        assert [row["seq"] for row in one.get_history(limit=5)] == [5, 6, 7, 8, 9]
        assert [row["seq"] for row in one.get_history(since=0, limit=3)] == [1, 2, 3]
    asked = [request["params"] for request in daemon.requests]
    assert asked == [
        {"limit": 5}, {"limit": 3, "before": 8}, {"limit": 1, "before": 6},
        {"since": 0, "limit": 3}, {"since": 2, "limit": 1},
    ]  # fmt: skip


def test_notifications_come_after_subscribe(address: str, made: Any) -> None:
    with made(address, PATIENCE) as one, sync.Client(address) as other:
        seq = one.subscribe()["since"]
        other.reserve_volume("vol-1")
        told = one.notification(PATIENCE)
        assert (told.method, told.params["seq"], told.params["call"]) == ("volume_changed", seq + 1, "reserve_volume")
        assert one.unsubscribe() == {"subscribed": True}, "over the connection that subscribed"


def test_no_notification_in_time_is_no_answer(address: str, made: Any) -> None:
    with made(address) as one:
        one.subscribe()
        with pytest.raises(NoAnswer, match="within"):
            one.notification(0.05)


def typed(one: sync.Client) -> int:
    """Read by mypy alone: the methods have types."""
    volume: results.Volume = one.show_volume("vol-1")
    build: Callable[..., Call[results.Volume]] = calls.show_volume
    one.show_volume()  # type: ignore[call-arg]
    one.show_volume(volume=1)  # type: ignore[arg-type]
    return volume["size"] + len(build("vol-1").params)
