"""``key=value`` words of the command line into the parameters of a call, by the types of the method table.

Strings are taken as they stand; anything else is JSON. ``key=@FILE`` reads the value from a file, ``key=@-`` from
standard input, and ``key=@@…`` is a string that begins with an ``@``. The daemon still checks every value.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from volattachd.api.methods import BY_NAME, METHODS, Method, Param
from volattachd.cli.exit_codes import UsageError
from volattachd.rpc import strictjson

_TYPES: dict[str, tuple[type, ...]] = {
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "object": (dict,),
    "array": (list,),
    "string": (str,),
}
_LIKE = {"boolean": "true or false", "integer": "a whole number", "number": "a number", "object": '{"key": …}'}


def parse(method_name: str, words: Sequence[str]) -> dict[str, Any]:
    """The parameters that ``words`` give to the method. Raises UsageError, naming what would be right."""
    method = _method(method_name)
    params: dict[str, Any] = {}
    for word in words:
        key, found, value = word.partition("=")
        if not found:
            raise UsageError(f"{word!r} is not key=value", _signature(method))
        if key in params:
            raise UsageError(f"{key} is given twice")
        params[key] = _convert(_param(method, key), value)
    _check_complete(method, params)
    return params


def _method(name: str) -> Method:
    if name in BY_NAME:
        return BY_NAME[name]
    names = [method.name for method in METHODS]
    raise UsageError(f"there is no method {name!r}", _nearest(name, names) or "one of: " + " ".join(names))


def _param(method: Method, key: str) -> Param:
    for param in method.params:
        if param.name == key:
            return param
    nearest = _nearest(key, [param.name for param in method.params])
    raise UsageError(f"{method.name} has no parameter {key!r}", nearest or _signature(method))


def _check_complete(method: Method, params: dict[str, Any]) -> None:
    missing = [param.name for param in method.params if param.required and param.name not in params]
    if missing:
        raise UsageError(f"{method.name} also needs {' and '.join(missing)}", _signature(method))


def _nearest(name: str, names: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(name, list(names), n=1)
    return close[0] if close else None


def _signature(method: Method) -> str:
    words = (f"{p.name}=…" if p.required else f"[{p.name}=…]" for p in method.params)
    return " ".join(["volattach call", method.name, *words])


def _convert(param: Param, written: str) -> Any:
    types = param.schema.get("type", "string")
    value = _source(param.name, written)
    if isinstance(types, list):  # a whole number, or else a name
        return int(value) if value.isascii() and value.isdigit() else value
    return value if types == "string" else _from_json(param.name, types, value)


def _source(name: str, written: str) -> str:
    if not written.startswith("@"):
        return written
    return written[1:] if written.startswith("@@") else _read(name, written[1:])


def _read(name: str, path: str) -> str:
    """The text of a file without its last newline. It may be as long as a message, and no longer."""
    try:
        data = _bytes(path)
        return data.decode().removesuffix("\n")
    except OSError as error:
        raise UsageError(f"{name}: cannot read {path!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: {path!r} is not UTF-8") from error


def _bytes(path: str) -> bytes:
    limit = strictjson.MAX_BYTES + 1
    if path == "-":
        data = sys.stdin.buffer.read(limit)
    else:
        with open(path, "rb") as file:
            data = file.read(limit)
    if len(data) == limit:
        raise UsageError(f"{path!r} is longer than a message may be ({strictjson.MAX_BYTES} bytes)")
    return data


def _from_json(name: str, kind: str, written: str) -> Any:
    try:
        value = strictjson.loads(written.encode())
    except strictjson.Refused as error:
        raise UsageError(f"{name}: {error.reason}", _example(name, kind)) from error
    if isinstance(value, bool) and kind != "boolean":
        raise UsageError(f"{name} takes {kind}s and no boolean", _example(name, kind))
    if value is not None and not isinstance(value, _TYPES[kind]):
        raise UsageError(f"{name} takes {kind}s, and {written!r} is none", _example(name, kind))
    return value


def _example(name: str, kind: str) -> str:
    return f"{name}={_LIKE.get(kind, 'JSON')}"
