"""From one message to its answer: jsonrpcserver has the envelope, the method table says what a call must look like.

This is the one place where errors become codes. A bug of ours is -32603 and a traceback in the log; it is never
"method not found", and its text is never sent to the caller.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import fastjsonschema

from volattachd.api.access import Peer
from volattachd.api.audit import Observe, Report, observe_nothing
from volattachd.api.methods import METHODS, Method, Param, Role
from volattachd.errors import Busy, InvalidInput, InvalidParams, JournalFailed, PermissionDenied, VolattachError
from volattachd.model import Attachment, Caller
from volattachd.rpc import strictjson
from volattachd.rpc.jsonrpc import Error, Result, Success, answer_request, refuse_request
from volattachd.state.history import Feed

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INTERNAL_ERROR = -32700, -32600, -32601, -32603
_JSONRPC_KINDS = {
    PARSE_ERROR: "ParseError",
    INVALID_REQUEST: "InvalidRequest",
    METHOD_NOT_FOUND: "MethodNotFound",
    INTERNAL_ERROR: "InternalError",
}

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

    def caller(self, moved: Callable[[Attachment | None, Attachment | None], None]) -> Caller:
        """The peer as the caller of one call; ``moved`` is told what it moves."""
        return Caller(self.peer.uid, self.peer.pid, self.role >= Role.ADMIN, self.role.name.lower(), moved)


class Dispatcher:
    """Answers messages with the handlers of one service. Raises at start where a handler is missing."""

    def __init__(self, handlers: Mapping[str, Callable[..., Any]], observe: Observe = observe_nothing) -> None:
        """``handlers`` has one entry for each row of the table, by the method's name."""
        if set(handlers) != {method.name for method in METHODS}:
            odd = set(handlers) ^ {method.name for method in METHODS}
            raise AssertionError(f"the method table and the handlers differ in: {', '.join(sorted(odd))}")
        self._observe = observe
        self._check_envelope = fastjsonschema.compile(_ENVELOPE)
        self._methods = {method.name: self._bind(method, handlers[method.name]) for method in METHODS}

    def answer(self, message: bytes, client: Client) -> bytes | None:
        """The answer to one message; None where it wants none (notifications).

        Raises strictjson.Refused for what is not JSON, or not the JSON that we take.
        """
        request = strictjson.loads(message)
        if not isinstance(request, list) or not request:
            response = self._answer_one(request, client)
        else:
            response = [r for r in (self._answer_one(part, client) for part in request) if r is not None] or None
        return None if response is None else strictjson.dumps(response)

    def _answer_one(self, request: Any, client: Client) -> Any:
        """One call of a batch, or the only one: an invalid one in a batch does not spoil the others."""
        try:
            self._check_envelope(request)
        except fastjsonschema.JsonSchemaValueException:
            return _with_kind(refuse_request())
        return _with_kind(answer_request(self._methods, client, request))

    def _bind(self, method: Method, handler: Callable[..., Any]) -> Callable[..., Result]:
        parameters = _Parameters(method)
        may_wait = method.changes or method.of_connection or method.role >= Role.ADMIN  # reading waits for nobody

        def call(client: Client, /, *args: Any, **kwargs: Any) -> Result:
            report = Report(method, client.peer, self._observe)
            try:
                _check_role(method, client)
                params = parameters.bind(args, kwargs)
                report.is_about(params)
                if may_wait:
                    client.before_waiting()
                caller = client.caller(report.moved)
                about = (caller, client.feed) if method.of_connection else (caller,)
                result = handler(*about, **params)
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


def _error(report: Report, error: VolattachError) -> Result:
    report.tell_error(error)
    return Error(error.code, error.message, error_data(error))


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

    def __init__(self, method: Method) -> None:
        self._method = method

    @cached_property
    def _checks(self) -> dict[str, tuple[Param, Callable[[Any], Any]]]:
        """Compiled when the method is called first: for all of them it is a tenth of a daemon's start."""
        return {param.name: (param, fastjsonschema.compile(param.schema)) for param in self._method.params}

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The parameters by name, checked; a null counts as left out."""
        params = {name: value for name, value in self._named(args, kwargs).items() if value is not None}
        for name, (param, check) in self._checks.items():
            if name in params:
                _check_value(self._method, param, check, params[name])
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
                raise InvalidParams(f"{self._method.name} has no parameter {name!r}; it has {shown}")
        return given


def _check_value(method: Method, param: Param, check: Callable[[Any], Any], value: Any) -> None:
    try:
        check(value)
    except fastjsonschema.JsonSchemaValueException as error:
        place = str(error.name)  # "data" is the value itself, "data.initiator" a part of it
        shown = json.dumps(error.value, ensure_ascii=True)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        if place == "data" and error.rule != "required":
            why = f"must be {param.schema.get('description', param.summary)}"
        else:
            why = str(error.message).removeprefix(place).strip()
        what = param.name + place.removeprefix("data")
        raise InvalidInput(f"{method.name}: {what} cannot be {shown}: it {why}") from None


def _with_kind(response: Any) -> Any:
    """jsonrpcserver's own refusals, with the ``data`` that every error of ours has."""
    if response is not None and "error" in response:
        error = response["error"]
        if not isinstance(error.get("data"), dict):
            detail = error.get("data")
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
