"""From one message to its answer: jsonrpcserver has the envelope, the method table says what a call must look like.

Invariants:

1. An answer, a whole batch's included, is at most ``max_answer_bytes`` long: a result that does not fit is replaced
   by an error, and calls of a batch that come after it are not made.
2. Rows of a list become bytes one after the other, and only as many as the answer takes: a long list is never in memory
   as a whole. Long messages are read, and lists written, by one thread at a time.
3. What a caller sent is cut before it is put into a message.

This is the one place where errors become codes. A bug of ours is -32603 and a traceback in the log; it is never
"method not found", and its text is never sent to the caller.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import fastjsonschema

from volattachd.api.access import Peer
from volattachd.api.audit import Audit, Report
from volattachd.api.methods import METHODS, Method, Param, Role
from volattachd.api.paging import Rows
from volattachd.config import Config
from volattachd.errors import Busy, InvalidInput, InvalidParams, JournalFailed, PermissionDenied, VolattachError
from volattachd.rpc import strictjson
from volattachd.rpc.jsonrpc import Error, Result, Success, answer_request, refuse_request
from volattachd.rpc.limits import Limits
from volattachd.state.history import Feed

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INTERNAL_ERROR = -32700, -32600, -32601, -32603
_JSONRPC_KINDS = {
    PARSE_ERROR: "ParseError",
    INVALID_REQUEST: "InvalidRequest",
    METHOD_NOT_FOUND: "MethodNotFound",
    INTERNAL_ERROR: "InternalError",
}

#: Characters of a value that a message repeats, and of a whole message.
_SHOWN, _MESSAGE = 80, 4096
#: Bytes of a message that is read at once, whatever others do; and those of an answer that hold an error.
_SHORT, _ERROR = 64 * 1024, 1024
#: Held by the thread that reads a long message or writes a list: one at a time, so that neither the memory of that nor
#: its share of the interpreter grows with the number of clients that ask for such things.
_long_work = threading.Lock()

#: JSON-RPC 2.0 section 4. fastjsonschema compiles it: the interpreted check took most of a dispatch.
_ENVELOPE: dict[str, Any] = {
    "type": "object",
    "required": ["jsonrpc", "method"],
    "properties": {
        "jsonrpc": {"const": "2.0"},
        "method": {"type": "string"},
        "id": {"type": ["string", "number", "null"]},
        "params": {"type": ["object", "array"]},
    },
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Client:
    """The connection's context of a call: the peer, its role, and what can be sent to it beside answers."""

    peer: Peer
    role: Role
    feed: Feed | None = None
    #: Told before a call that may take long: what was answered before it should not wait for it.
    before_waiting: Callable[[], None] = lambda: None


class Dispatcher:
    """Answers messages with the handlers of one service. Raises at start where a handler is missing."""

    def __init__(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        audit: Audit,
        limits: Limits = Limits.of(Config()),  # noqa: B008 - it is frozen
    ) -> None:
        """``handlers`` has one entry for each row of the table, by the method's name."""
        if set(handlers) != {method.name for method in METHODS}:
            odd = set(handlers) ^ {method.name for method in METHODS}
            raise AssertionError(f"the method table and the handlers differ in: {', '.join(sorted(odd))}")
        self._audit = audit
        self._limits = limits
        self._check_envelope = fastjsonschema.compile(_ENVELOPE)
        self._methods = {method.name: self._bind(method, handlers[method.name]) for method in METHODS}

    def answer(self, message: bytes, client: Client) -> bytes | None:
        """The answer to one message; None where it wants none (notifications).

        Raises strictjson.Refused for what is not JSON, or not the JSON that we take.
        """
        with _long_work if len(message) > _SHORT else nullcontext():
            request = strictjson.loads(message)
        if isinstance(request, list) and request:
            return self._answer_batch(request, client, len(message))
        response = self._answer_one(request, client)
        answer = None if response is None else strictjson.dumps(response)
        if answer is not None and len(answer) > self._limits.max_answer_bytes:
            return strictjson.dumps(_failure(response["id"], self._too_long(request["method"])))
        return answer

    def _answer_batch(self, batch: list[Any], client: Client, size: int) -> bytes | None:
        """One answer for each call, in order. Once one did not fit, the calls after it are not made."""
        if len(batch) > self._limits.max_batch:
            limit = self._limits.max_batch
            raise strictjson.NotAllowed(f"the batch has {len(batch)} calls; at most {limit} ([limits] max_batch)")
        answers: list[bytes] = []
        room = self._limits.max_answer_bytes - size - _ERROR * len(batch)  # what errors in place of answers may take
        for request in batch:
            response = self._answer_one(request, client, is_full=room < 0)
            if response is None:
                continue
            answer = strictjson.dumps(response)
            if 0 <= room < len(answer):
                answer = strictjson.dumps(_failure(response["id"], _full()))
                room = 0
            room -= len(answer) + 1
            answers.append(answer)
        return b"[" + b",".join(answers) + b"]" if answers else None

    def _answer_one(self, request: Any, client: Client, is_full: bool = False) -> Any:
        """One call of a batch, or the only one: an invalid one in a batch does not spoil the others.

        A call is not made where the answer to its batch ``is_full``. A notification, which has no answer, is.
        """
        try:
            self._check_envelope(request)
        except fastjsonschema.JsonSchemaValueException:
            return _with_kind(refuse_request())
        if is_full and "id" in request:
            return _failure(request["id"], _full())
        return _with_kind(answer_request(self._methods, client, request))

    def _bind(self, method: Method, handler: Callable[..., Any]) -> Callable[..., Result]:
        parameters = _Parameters(method, self._limits)
        may_wait = method.changes or method.of_connection or method.role >= Role.ADMIN  # reading waits for nobody

        def call(client: Client, /, *args: Any, **kwargs: Any) -> Result:
            caller, report = self._audit.begin(method, client.peer, client.role)
            try:
                _check_role(method, client)
                params = parameters.bind(args, kwargs)
                report.is_about(params)
                if may_wait:
                    client.before_waiting()
                about = (caller, client.feed) if method.of_connection else (caller,)
                result = handler(*about, **params)
                if isinstance(result, Rows):
                    result = self._list(method, result)
            except VolattachError as error:
                return _error(report, error)
            except JournalFailed as error:
                why = f"{error}; the daemon starts again from what is on the disk"
                return _error(report, Busy(why, "send the call again"))
            except Exception:  # noqa: BLE001 - told with its traceback; other calls go on
                return _bug(report, method)
            report.tell_done(result)
            return Success(result)

        return call

    def _list(self, method: Method, rows: Rows) -> strictjson.Written:
        """As many rows as the answer may have. Raises InvalidInput where it must have all and they are too long."""
        limit = self._limits.max_page_bytes if rows.is_page else self._limits.max_answer_bytes
        written: list[bytes] = []
        with _long_work:
            for row in rows:
                written.append(strictjson.dumps(row))
                limit -= len(written[-1]) + 1
                if limit >= 0:
                    continue
                if not rows.is_page:
                    raise self._too_long(method.name)
                if len(written) > 1:
                    del written[-1]
                break
            return strictjson.Written(b"[" + b",".join(written) + b"]")

    def _too_long(self, call: str) -> InvalidInput:
        limit = self._limits.max_answer_bytes
        return InvalidInput(
            f"{call}: the answer would be longer than {limit} bytes",
            "ask for less: a page (limit and marker), or one volume",
            max_answer_bytes=limit,
        )


def _error(report: Report, error: VolattachError) -> Result:
    report.tell_error(error)
    return Error(error.code, _cut(error.message), error_data(error))


def _failure(call_id: Any, error: VolattachError) -> dict[str, Any]:
    """The response to a call whose own response does not fit."""
    body = {"code": error.code, "message": error.message, "data": error_data(error)}
    return {"jsonrpc": "2.0", "error": body, "id": call_id}


def _full() -> Busy:
    return Busy("the answer to the batch is as long as an answer may be", "send the call again, in another message")


def _cut(text: str, length: int = _MESSAGE) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _bug(report: Report, method: Method) -> Result:
    kind = _JSONRPC_KINDS[INTERNAL_ERROR]
    report.tell_bug(kind)
    message = f"{method.name} hit a bug in volattachd; its log has the details"
    return Error(INTERNAL_ERROR, message, {"kind": kind, "retriable": False})


def _check_role(method: Method, client: Client) -> None:
    if client.role < method.role:
        raise PermissionDenied(
            f"{method.name} needs the role {method.role.name.lower()}, and uid {client.peer.uid} is"
            f" {client.role.name.lower()}",
            "an admin grants roles in [access] of the configuration",
        )


class _Parameters:
    """The parameters that one method takes."""

    def __init__(self, method: Method, limits: Limits) -> None:
        self._method = method
        self._limits = limits

    @cached_property
    def _checks(self) -> dict[str, tuple[Param, Callable[[Any], Any]]]:
        """Compiled when the method is called first: for all of them it is a tenth of a daemon's start."""
        return {param.name: (param, fastjsonschema.compile(param.schema)) for param in self._method.params}

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The parameters by name, checked; a null counts as left out."""
        params = {name: value for name, value in self._named(args, kwargs).items() if value is not None}
        for name, (param, check) in self._checks.items():
            if name in params:
                params[name] = _checked(self._method, param, check, params[name])
                if param.is_kept:
                    self._check_size(param, params[name])
            elif param.required:
                raise InvalidParams(f"{self._method.name} needs the parameter {name!r} ({param.summary})")
        return params

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """What was given, by names that the method has."""
        names = self._checks
        if len(args) > len(names):
            shown = ", ".join(names) or "none"
            raise InvalidParams(f"{self._method.name} takes at most {len(names)} parameters: {shown}")
        given = {**dict(zip(names, args, strict=False)), **kwargs} if args else kwargs
        for name in given:
            if name not in names:
                shown = ", ".join(names) or "none"
                unknown = _cut(name, _SHOWN)
                raise InvalidParams(f"{self._method.name} has no parameter {unknown!r}; it has {shown}")
        return given

    def _check_size(self, param: Param, value: Any) -> None:
        limits, what = self._limits, f"{self._method.name}: {param.name}"
        if (members := _count_members(value)) > limits.max_connector_members:
            limit = f"at most {limits.max_connector_members} are kept ([limits] max_connector_members)"
            raise InvalidInput(f"{what} has {members} values at all levels; {limit}", "leave out what is not needed")
        if (size := len(strictjson.dumps(value))) > limits.max_connector_bytes:
            limit = f"at most {limits.max_connector_bytes} are kept ([limits] max_connector_bytes)"
            raise InvalidInput(f"{what} has {size} bytes as JSON; {limit}", "leave out what is not needed")


def _count_members(value: Any) -> int:
    """The values inside ``value``, at every level."""
    if not isinstance(value, (dict, list)):
        return 0
    inside = value.values() if isinstance(value, dict) else value
    return len(value) + sum(map(_count_members, inside))


def _checked(method: Method, param: Param, check: Callable[[Any], Any], value: Any) -> Any:
    """The value, if it fits the parameter's schema."""
    try:
        check(value)
    except fastjsonschema.JsonSchemaValueException as error:
        place = str(error.name)  # "data" is the value itself, "data.initiator" a part of it
        shown = strictjson.abridged(error.value, _SHOWN)
        if place == "data" and error.rule != "required":
            why = f"must be {param.schema.get('description', param.summary)}"
        else:
            why = str(error.message).removeprefix(place).strip()
        what = param.name + place.removeprefix("data")
        raise InvalidInput(f"{method.name}: {what} cannot be {shown}: it {why}") from None
    return int(value) if param.schema["type"] == "integer" else value  # 5.0 is an integer to JSON Schema


def _with_kind(response: Any) -> Any:
    """jsonrpcserver's own refusals, with the ``data`` that every error of ours has."""
    if response is not None and "error" in response:
        error = response["error"]
        if not isinstance(error.get("data"), dict):
            detail = _cut(str(error.get("data") or ""), _SHOWN)
            kind = _JSONRPC_KINDS[error["code"]]
            error["data"] = {"kind": kind, "retriable": False, **({"detail": detail} if detail else {})}
    return response


def error_data(error: VolattachError) -> dict[str, Any]:
    """The ``data`` member of an error's answer."""
    data = {"kind": error.kind, "retriable": error.retriable, **error.details}
    if error.correction is not None:
        data["correction"] = error.correction
    return data


def refusal(error: strictjson.Refused) -> dict[str, Any]:
    """The answer to a message that could not be read, and so has no id."""
    broken = isinstance(error, strictjson.NotJson)
    code, kind = (PARSE_ERROR, "ParseError") if broken else (INVALID_REQUEST, "InvalidRequest")
    data = {"kind": kind, "retriable": False}
    return {"jsonrpc": "2.0", "error": {"code": code, "message": f"{kind}: {error}", "data": data}, "id": None}
