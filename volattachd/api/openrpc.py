"""The calls as an OpenRPC document (https://spec.open-rpc.org), made from the method table.

It is what ``rpc.discover`` answers: a client in any language can be generated from it, and since the same
table validates the calls, the two cannot disagree.
"""

from __future__ import annotations

from typing import Any

from volattachd import __version__
from volattachd.api.methods import METHODS, Method, Param, Schema
from volattachd.errors import VolattachError, kinds

OPENRPC_VERSION = "1.3.2"


def document() -> dict[str, Any]:
    """The whole document. Each call gives a new one."""
    return {
        "openrpc": OPENRPC_VERSION,
        "info": {
            "title": "volattachd",
            "version": __version__,
            "description": "Attach and detach volumes: JSON-RPC 2.0 over a Unix socket, one answer a line.",
            "license": {"name": "Apache-2.0"},
        },
        "methods": [_method(method) for method in METHODS],
        "components": {"errors": {kind.__name__: _error(kind) for kind in kinds()}},
    }


def _method(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "summary": method.summary,
        "paramStructure": "either",
        "params": [_param(param) for param in method.params],
        "result": {"name": _result_name(method), "schema": portable(method.result)},
        "errors": [{"$ref": f"#/components/errors/{kind.__name__}"} for kind in kinds()],
        "x-role": method.role.name.lower(),
        "x-changes": method.changes,
    }


def _param(param: Param) -> dict[str, Any]:
    schema = portable(param.schema)
    if param.default is not None:
        schema["default"] = param.default
    return {"name": param.name, "summary": param.summary, "required": param.required, "schema": schema}


def _result_name(method: Method) -> str:
    """The noun of a verb_noun: what the method answers with."""
    return method.name.partition("_")[2] or "result"


def _error(kind: type[VolattachError]) -> dict[str, Any]:
    return {
        "code": kind.code,
        "message": (kind.__doc__ or "").partition("\n")[0],
        "data": {"kind": kind.__name__, "retriable": kind.retriable},
    }


def portable(schema: Schema) -> Schema:
    """A copy of ``schema`` that means the same outside Python.

    The table's patterns end in ``\\Z`` because Python's ``$`` also matches before a last newline. In the
    regular expressions that JSON Schema speaks of (ECMA 262) ``\\Z`` is the letter Z, and ``$`` is the end.
    """
    return {key: _portable_value(key, value) for key, value in schema.items()}


def _portable_value(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return portable(value)
    if isinstance(value, list):
        return [_portable_value("", item) for item in value]
    if key == "pattern" and isinstance(value, str) and value.endswith(r"\Z"):
        return value.removesuffix(r"\Z") + "$"
    return value
