from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.support import request
from volattachd.api.access import Peer
from volattachd.api.audit import Audit
from volattachd.api.methods import METHODS, Role
from volattachd.api.paging import Rows
from volattachd.config import Config
from volattachd.errors import JournalFailed, VolattachError, kinds
from volattachd.model import Caller
from volattachd.rpc import strictjson
from volattachd.rpc.dispatch import Client, Dispatcher, refusal
from volattachd.rpc.limits import Limits

PEER = Peer(42, 1000, frozenset({1000}))
ID = "00000000-0000-4000-8000-000000000001"


class Handlers(dict[str, Callable[..., Any]]):
    """A handler for each method, which records how it was called and does what it is told to do."""

    def __init__(self, outcome: Any = None) -> None:
        self.called: list[tuple[str, dict[str, Any]]] = []
        self.callers: list[Caller] = []
        for method in METHODS:
            self[method.name] = self._handler(method.name, outcome)

    def _handler(self, name: str, outcome: Any) -> Callable[..., Any]:
        def handle(caller: Caller, *_: Any, **params: Any) -> Any:
            self.called.append((name, params))
            self.callers.append(caller)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return handle


class Switch:
    """One dispatcher for all tests, because compiling the schemas takes a moment; each test has its handlers."""

    def __init__(self) -> None:
        self.handlers = Handlers()
        self.dispatcher = Dispatcher({method.name: self._to(method.name) for method in METHODS}, Audit())

    def _to(self, name: str) -> Callable[..., Any]:
        return lambda *about, **params: self.handlers[name](*about, **params)


SWITCH = Switch()


def ask(message: Any, handlers: Handlers | None = None, role: Role = Role.ADMIN) -> Any:
    """The answer to one message, as the client parses it; None where there is none."""
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    SWITCH.handlers = handlers or Handlers()
    answer = SWITCH.dispatcher.answer(data, Client(PEER, role))
    return None if answer is None else json.loads(answer)


def code(answer: Any) -> Any:
    return answer["error"]["code"]


# At start.


@pytest.mark.parametrize("name", [method.name for method in METHODS])
def test_a_method_without_a_handler_is_an_error_at_start(name: str) -> None:
    handlers = Handlers()
    del handlers[name]
    with pytest.raises(AssertionError, match=f"differ in: {name}"):
        Dispatcher(handlers, Audit())


def test_a_handler_without_a_method_is_an_error_at_start() -> None:
    handlers = Handlers()
    handlers["unknown"] = lambda caller: None
    with pytest.raises(AssertionError, match="differ in: unknown"):
        Dispatcher(handlers, Audit())


# Calls.


@pytest.mark.parametrize("outcome", [None, True, 0, "", [], {}, {"a": [1]}, "é\u2028\U0001f600"])
def test_a_result_is_answered_with_the_id_of_its_call(outcome: Any) -> None:
    assert ask(request("get_status", call_id=7), Handlers(outcome)) == {"jsonrpc": "2.0", "id": 7, "result": outcome}


@pytest.mark.parametrize("call_id", [0, -1, 2**63 - 1, 2**64 - 1, "", "a", "é", None, 1.5])
def test_an_id_comes_back_as_it_was(call_id: Any) -> None:
    assert ask(request("get_status", call_id=call_id))["id"] == call_id


@pytest.mark.parametrize("call_id", [True, False, [], {}, [1]])
def test_what_cannot_be_an_id_is_an_invalid_request(call_id: Any) -> None:
    answer = ask(request("get_status", call_id=call_id))
    assert (code(answer), answer["id"]) == (-32600, None)


def test_parameters_go_by_name_or_by_position() -> None:
    handlers = Handlers()
    ask(request("reserve_volume", volume="v", mode="ro"), handlers)
    ask(request("reserve_volume", "v", ID, "ro"), handlers)
    ask(request("reserve_volume", "v"), handlers)
    assert handlers.called == [
        ("reserve_volume", {"volume": "v", "mode": "ro"}),
        ("reserve_volume", {"volume": "v", "attachment_id": ID, "mode": "ro"}),
        ("reserve_volume", {"volume": "v"}),
    ]


def test_a_null_counts_as_left_out() -> None:
    handlers = Handlers()
    ask(request("reserve_volume", "v", None, "ro", None), handlers)
    ask(request("terminate_connection", volume="v", connector={"initiator": "i", "ip": "x"}, force=None), handlers)
    assert handlers.called[0] == ("reserve_volume", {"volume": "v", "mode": "ro"})
    assert "force" not in handlers.called[1][1]
    answer = ask(request("show_volume", volume=None))
    assert code(answer) == -32602
    assert "needs the parameter 'volume'" in answer["error"]["message"]


@pytest.mark.parametrize("params", [{}, [], None])
def test_a_call_without_parameters_may_leave_them_out_or_empty(params: Any) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "get_status"}
    assert "result" in ask(message if params is None else {**message, "params": params})


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_call_needs_its_role_before_anything_else_is_looked_at(method: Any, role: Role) -> None:
    handlers = Handlers()
    answer = ask(request(method.name, nonsense=1), handlers, role)
    assert handlers.called == []
    if role >= method.role:
        assert code(answer) == -32602
        return
    assert code(answer) == 1008
    assert answer["error"]["data"]["kind"] == "PermissionDenied"
    assert (
        f"needs the role {method.role.name.lower()}, and uid 1000 is {role.name.lower()}" in answer["error"]["message"]
    )


@pytest.mark.parametrize("role", [Role.READER, Role.AGENT, Role.ADMIN])
def test_the_handler_is_told_who_calls(role: Role) -> None:
    handlers = Handlers()
    ask(request("list_volumes"), handlers, role)
    (caller,) = handlers.callers
    assert caller.call_id > 0
    assert replace(caller, call_id=0) == Caller(1000, 42, admin=role is Role.ADMIN, role=role.name.lower())


@pytest.mark.parametrize(
    "name", ["client", "caller", "self", "args", "kwargs", "method", "x", "", "context", "request"]
)
@pytest.mark.parametrize("method", ["get_status", "show_volume", "reserve_volume"])
def test_an_unknown_parameter_is_refused_whatever_its_name(method: str, name: str) -> None:
    handlers = Handlers()
    answer = ask({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"volume": "v", name: 1}}, handlers)
    if method == "get_status":
        assert "has no parameter" in answer["error"]["message"]
    else:
        assert f"{method} has no parameter {name!r}" in answer["error"]["message"]
    assert code(answer) == -32602
    assert answer["error"]["data"]["kind"] == "InvalidParams"
    assert handlers.called == []


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_too_many_parameters_are_refused(method: Any) -> None:
    handlers = Handlers()
    answer = ask(request(method.name, *[None] * (len(method.params) + 1)), handlers)
    assert code(answer) == -32602
    assert f"takes at most {len(method.params)} parameters" in answer["error"]["message"]
    assert handlers.called == []


@pytest.mark.parametrize("method", [m for m in METHODS if any(p.required for p in m.params)], ids=lambda m: m.name)
def test_a_missing_parameter_is_named(method: Any) -> None:
    handlers = Handlers()
    answer = ask(request(method.name), handlers)
    assert code(answer) == -32602
    first = next(param.name for param in method.params if param.required)
    assert f"needs the parameter {first!r}" in answer["error"]["message"]
    assert handlers.called == []


@pytest.mark.parametrize("value", [5, "", "-x", [], {}, True, "x" * 5000, {"a": {"b": 1}}])
@pytest.mark.parametrize("method", [m for m in METHODS if m.params], ids=lambda m: m.name)
def test_a_value_that_does_not_fit_is_refused_before_the_handler(method: Any, value: Any) -> None:
    handlers = Handlers()
    first = method.params[0]
    if (first.schema.get("type") == "boolean" and value is True) or (
        first.schema.get("type") == "integer" and value == 5
    ):
        return
    if first.name == "path" or (first.schema.get("type") in ("string",) and "pattern" not in first.schema):
        return
    answer = ask(request(method.name, **{first.name: value}), handlers)
    assert code(answer) == 1004
    assert answer["error"]["data"]["kind"] == "InvalidInput"
    assert answer["error"]["message"].startswith(f"{method.name}: {first.name}")
    assert len(answer["error"]["message"]) < 400
    assert handlers.called == []


@pytest.mark.parametrize(
    ("connector", "where"),
    [
        ({"initiator": 5}, "connector.initiator cannot be 5"),
        ({"initiator": "i", "ip": 5}, "connector.ip cannot be 5"),
        ([], "connector cannot be []"),
    ],
)
def test_a_refusal_names_the_part_of_the_value(connector: Any, where: str) -> None:
    answer = ask(request("initialize_connection", volume="v", connector=connector))
    assert code(answer) == 1004
    assert where in answer["error"]["message"]


# Errors.


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_an_error_is_answered_with_its_code_kind_and_details(kind: type[VolattachError]) -> None:
    answer = ask(request("get_status", call_id="x"), Handlers(kind("cannot", "do this", attachments=[ID])))
    assert answer == {
        "jsonrpc": "2.0",
        "id": "x",
        "error": {
            "code": kind.code,
            "message": "cannot",
            "data": {
                "kind": kind.__name__,
                "retriable": kind.retriable,
                "attachments": [ID],
                "correction": "do this",
            },
        },
    }
    assert "correction" not in ask(request("get_status"), Handlers(kind("cannot")))["error"]["data"]


@pytest.mark.parametrize(
    "bug",
    [KeyError("hidden"), TypeError("hidden"), OSError("hidden"), AssertionError("hidden"), RecursionError("hidden")],
)
def test_a_bug_of_ours_is_an_internal_error_that_keeps_its_text_to_itself(bug: Exception) -> None:
    answer = ask(request("show_volume", volume="v"), Handlers(bug))
    assert code(answer) == -32603
    assert answer["error"]["data"] == {"kind": "InternalError", "retriable": False}
    assert "hidden" not in json.dumps(answer)
    assert type(bug).__name__ not in json.dumps(answer)


def test_a_failed_journal_is_something_to_send_again() -> None:
    answer = ask(request("detach", volume="v"), Handlers(JournalFailed("the journal cannot be written")))
    assert code(answer) == 1009
    assert answer["error"]["data"]["retriable"] is True


def test_a_bug_in_one_call_of_a_batch_leaves_the_others_alone() -> None:
    handlers = Handlers(1)

    def broken(caller: Caller, **params: Any) -> Any:
        raise KeyError("hidden")

    handlers["list_volumes"] = broken
    first, second = ask([request("list_volumes", call_id=1), request("get_status", call_id=2)], handlers)
    assert (code(first), first["id"]) == (-32603, 1)
    assert (second["result"], second["id"]) == (1, 2)


@pytest.mark.parametrize("name", ["nonsense", "", "rpc.nonsense", "__init__", "answer", "Get_status", "get_status "])
def test_an_unknown_method_is_told(name: str) -> None:
    answer = ask(request(name, call_id=5))
    assert (code(answer), answer["id"]) == (-32601, 5)
    assert answer["error"]["data"]["kind"] == "MethodNotFound"


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"foo": "bar"},
        {"jsonrpc": "2.0"},
        {"method": "get_status", "id": 1},
        {"jsonrpc": "1.0", "method": "get_status", "id": 1},
        {"jsonrpc": 2.0, "method": "get_status", "id": 1},
        {"jsonrpc": "2.0", "method": 5, "id": 1},
        {"jsonrpc": "2.0", "method": None, "id": 1},
        {"jsonrpc": "2.0", "method": "get_status", "id": 1, "params": "x"},
        {"jsonrpc": "2.0", "method": "get_status", "id": 1, "params": 5},
        {"jsonrpc": "2.0", "method": "get_status", "id": 1, "params": None},
        {"jsonrpc": "2.0", "method": "get_status", "id": 1, "extra": 1},
        1,
        "text",
        None,
        True,
        1.5,
        [],
    ],
)
def test_what_is_no_request_is_told_with_one_error(message: Any) -> None:
    handlers = Handlers()
    answer = ask(message, handlers)
    assert (code(answer), answer["id"], answer["jsonrpc"]) == (-32600, None, "2.0")
    assert answer["error"]["data"]["kind"] == "InvalidRequest"
    assert answer["error"]["data"]["retriable"] is False
    assert handlers.called == []


# Notifications and batches.


@pytest.mark.parametrize("outcome", [1, KeyError("x"), kinds()[3]("cannot")])
@pytest.mark.parametrize("params", [{"volume": "v"}, {"volume": 5}, {}, {"x": 1}])
@pytest.mark.parametrize("method", ["show_volume", "nonsense"])
def test_a_notification_is_never_answered(outcome: Any, params: dict[str, Any], method: str) -> None:
    assert ask({"jsonrpc": "2.0", "method": method, "params": params}, Handlers(outcome)) is None


def test_a_notification_has_its_effect() -> None:
    handlers = Handlers()
    ask({"jsonrpc": "2.0", "method": "show_volume", "params": ["v"]}, handlers)
    assert handlers.called == [("show_volume", {"volume": "v"})]


def test_a_batch_is_answered_in_order_without_its_notifications() -> None:
    handlers = Handlers(1)
    note = {"jsonrpc": "2.0", "method": "get_status"}
    batch = [
        request("get_status", call_id=3),
        note,
        request("nonsense", call_id=2),
        5,
        [],
        [request("get_status")],
        {"jsonrpc": "2.0"},
        request("show_volume", call_id=1, volume=5),
        note,
        request("get_status", call_id=None),
    ]
    answers = ask(batch, handlers)
    told = [(answer["id"], answer.get("result", answer.get("error", {}).get("code"))) for answer in answers]
    assert told == [
        (3, 1), (2, -32601), (None, -32600), (None, -32600), (None, -32600), (None, -32600), (1, 1004), (None, 1),
    ]  # fmt: skip
    assert [name for name, _ in handlers.called] == ["get_status"] * 4


@pytest.mark.parametrize("count", [1, 2, 50])
def test_a_batch_of_notifications_is_not_answered(count: int) -> None:
    handlers = Handlers()
    assert ask([{"jsonrpc": "2.0", "method": "get_status"}] * count, handlers) is None
    assert len(handlers.called) == count


@pytest.mark.parametrize("count", [1, 2, 100])
def test_a_batch_of_calls_is_a_list_of_as_many_answers(count: int) -> None:
    answers = ask([request("get_status", call_id=n) for n in range(count)])
    assert [answer["id"] for answer in answers] == list(range(count))


# JSON that is not taken.

CALL = b'{"jsonrpc":"2.0","id":1,"method":"get_status"}'


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"[" * 1000 + b"]" * 1000, -32600),
        (b"[" * 33 + b"]" * 33, -32600),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, -32600),
        (b"1" * 4301, -32600),
        (b"18446744073709551616", -32600),
        (b"-9223372036854775809", -32600),
        (b"1e400", -32600),
        (b"-1e999", -32600),
        (b'{"jsonrpc":"2.0","jsonrpc":"2.0","method":"get_status","id":1}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"get_status","params":{"a":1,"a":2}}', -32600),
        (b'{"jsonrpc":"2.0","id":"\\ud800","method":"get_status"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"\\udfff"}', -32600),
        (b"NaN", -32700),
        (b"Infinity", -32700),
        (b"-Infinity", -32700),
        (b'{"jsonrpc":"2.0","id":NaN,"method":"get_status"}', -32700),
        (CALL.decode().encode("utf-16"), -32700),
        (CALL.decode().encode("utf-16-be"), -32700),
        (CALL.decode().encode("utf-32"), -32700),
        (b"\xef\xbb\xbf" + CALL, -32700),
        (b'{"jsonrpc":"2.0","id":"\xff","method":"get_status"}', -32700),
        (b'{"jsonrpc":"2.0","id":"\xed\xa0\x80","method":"get_status"}', -32700),
        (b"{'a':1}", -32700),
        (b'{"a":1,}', -32700),
        (b'{"a":01}', -32700),
        (b'"\n"', -32700),
        (b'"\t"', -32700),
        (b"", -32700),
        (b"   ", -32700),
        (CALL + b"x", -32700),
    ],
)
def test_json_that_could_mean_two_things_is_refused_with_a_reason(message: bytes, expected: int) -> None:
    handlers = Handlers()
    with pytest.raises(strictjson.Refused) as caught:
        ask(message, handlers)
    answer = refusal(caught.value)
    assert (code(answer), answer["id"]) == (expected, None)
    assert answer["error"]["data"]["kind"] == ("ParseError" if expected == -32700 else "InvalidRequest")
    assert len(answer["error"]["message"]) > len("ParseError: ")
    assert handlers.called == []
    strictjson.dumps(answer)


# What a message may cost.

MIB = 1 << 20


def small(**members: int) -> Dispatcher:
    """A dispatcher over the handlers of the test, with some limits of its own."""
    limits = replace(Limits.of(Config()), **members)
    return Dispatcher({method.name: SWITCH._to(method.name) for method in METHODS}, Audit(), limits)


def answered(message: Any, handlers: Handlers, dispatcher: Dispatcher = SWITCH.dispatcher) -> bytes:
    SWITCH.handlers = handlers
    answer = dispatcher.answer(json.dumps(message).encode(), Client(PEER, Role.ADMIN))
    assert answer is not None
    return answer


def rows_of(count: int, size: int, is_page: bool) -> Rows:
    return Rows(range(count), lambda number: {"volume": f"v{number}", "path": "x" * size}, is_page)


@pytest.mark.parametrize("batch", [[1] * 101, [request("get_status")] * 101, [1] * 32_000])
def test_a_batch_of_too_many_calls_is_refused_as_a_whole(batch: list[Any]) -> None:
    handlers = Handlers()
    with pytest.raises(strictjson.NotAllowed, match=r"at most 100 \(\[limits\] max_batch\)"):
        ask(batch, handlers)
    assert handlers.called == []
    assert len(ask(batch[:100])) == 100


def test_an_answer_that_is_too_long_is_an_error_with_what_to_do() -> None:
    answer = json.loads(answered(request("get_metrics", call_id="x"), Handlers("y" * 8 * MIB)))
    assert (answer["error"]["code"], answer["id"]) == (1004, "x")
    assert "longer than 8388608 bytes" in answer["error"]["message"]
    assert answer["error"]["data"]["max_answer_bytes"] == 8 * MIB
    assert "limit and marker" in answer["error"]["data"]["correction"]


def test_a_batch_whose_answer_is_full_makes_no_further_call_and_says_so() -> None:
    handlers = Handlers("y" * 3 * MIB)
    note = {"jsonrpc": "2.0", "method": "list_volumes"}
    batch = [*(request("get_status", call_id=number) for number in range(99)), note]
    data = answered(batch, handlers)
    assert len(data) <= 8 * MIB
    answers = json.loads(data)
    assert [answer["id"] for answer in answers] == list(range(99))
    assert ["result" in answer for answer in answers] == [True] * 2 + [False] * 97
    assert {answer["error"]["code"] for answer in answers[2:]} == {1009}
    assert answers[2]["error"]["data"]["retriable"] is True
    assert [name for name, _ in handlers.called] == ["get_status"] * 3 + ["list_volumes"], "the notification is made"


@pytest.mark.parametrize("size", [MIB // 100, MIB])
def test_no_batch_is_answered_with_more_than_an_answer_may_have(size: int) -> None:
    ids = "i" * (MIB // 110)
    batch = [request("get_status", call_id=f"{ids}{number}") for number in range(100)]
    data = answered(batch, Handlers("é" * (size // 2)), small(max_answer_bytes=2 * MIB))
    assert len(data) <= 2 * MIB
    assert len(json.loads(data)) == 100


def test_a_list_is_made_row_by_row_and_only_as_far_as_it_fits() -> None:
    made: list[int] = []

    def view(number: int) -> dict[str, Any]:
        made.append(number)
        return {"volume": "x" * 1000}

    answer = json.loads(answered(request("list_volumes"), Handlers(Rows(range(100_000), view, is_page=False))))
    assert (answer["error"]["code"], answer["error"]["data"]["max_answer_bytes"]) == (1004, 8 * MIB)
    assert len(made) < 8400
    assert json.loads(answered(request("list_volumes"), Handlers(rows_of(5, 10, is_page=False))))["result"] == list(
        rows_of(5, 10, is_page=False)
    )


@pytest.mark.parametrize(("size", "count"), [(100_000, 10), (MIB, 1), (2 * MIB, 1), (10, 50)])
def test_a_page_ends_where_it_is_long_in_bytes_and_has_one_row_at_least(size: int, count: int) -> None:
    found = json.loads(answered(request("get_history"), Handlers(rows_of(50, size, is_page=True))))["result"]
    assert found == list(rows_of(50, size, is_page=True))[:count]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"x": "y" * 17_000}, "bytes as JSON; at most 16384"),
        ({"x": "é" * 8200}, "bytes as JSON; at most 16384"),
        ({str(number): 1 for number in range(63)}, None),
        ({str(number): 1 for number in range(64)}, "must contain|must be"),
        ({"x": [[1] * 30] * 2}, None),
        ({"x": [[1] * 31] * 2}, "has 66 values at all levels; at most 64"),
        ({"x": "y" * 16_000}, None),
    ],
)
@pytest.mark.parametrize("method", ["initialize_connection", "terminate_connection"])
def test_a_connector_has_a_size_at_most(method: str, more: dict[str, Any], told: str | None) -> None:
    handlers = Handlers()
    answer = ask(request(method, volume="v", connector={"initiator": "i", **more}), handlers)
    assert len(handlers.called) == (told is None)
    if told is not None:
        assert code(answer) == 1004
        assert re.search(told, answer["error"]["message"])
        assert len(answer["error"]["message"]) < 400


def test_what_a_caller_sent_is_cut_in_every_message() -> None:
    long = "\U000e0001" * 100_000
    for message in (
        request(long),
        request("get_status", **{long: 1}),
        request("show_volume", volume=long),
        request("show_volume", volume=[long]),
        request("show_volume", volume={long: [long]}),
        request("reserve_volume", "v", long),
        request("initialize_connection", volume="v", connector=long),
    ):
        assert len(json.dumps(ask(message))) < 6000
    for kind in kinds():
        assert len(ask(request("get_status"), Handlers(kind(long)))["error"]["message"]) == 4096


def test_an_integer_that_is_written_as_a_number_is_an_integer() -> None:
    handlers = Handlers()
    ask(b'{"jsonrpc":"2.0","id":1,"method":"get_history","params":{"since":5.0,"limit":1e2}}', handlers)
    assert [(type(value), value) for value in handlers.called[0][1].values()] == [(int, 5), (int, 100)]


@pytest.mark.parametrize("since", [2**63, 2**64 - 1, 1e19, 2.0**63])
@pytest.mark.parametrize("method", ["get_history", "subscribe"])
def test_a_sequence_number_that_sqlite_cannot_hold_is_invalid(method: str, since: float) -> None:
    assert code(ask(request(method, since=since))) == 1004
    assert code(ask(request("get_history", before=since))) == 1004
