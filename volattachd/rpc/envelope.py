"""jsonrpcserver's dispatch of a request, without what its package imports beside it.

``import jsonrpcserver`` runs asyncio, an HTTP server and jsonschema for ways of serving that we do not have: half of
the daemon's imports, and a quarter of its memory. So the package's ``__init__`` does not run; its modules do.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


@contextmanager
def _without_init(package: str) -> Iterator[None]:
    """Imports of a package's modules find them, and the package itself is not run.

    Afterwards it is as if nobody had asked for the package: who imports it then gets all of it.
    """
    if package in sys.modules:  # all of it was imported by somebody else
        yield
        return
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    sys.modules[package] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[package]


with _without_init("jsonrpcserver"):
    from jsonrpcserver.dispatcher import call, create_request, get_method, to_response
    from jsonrpcserver.response import InvalidRequestResponse, serialize_error, to_serializable_one
    from jsonrpcserver.result import Error, Result, Success
    from jsonrpcserver.sentinels import NOID

__all__ = ["Error", "Result", "Success", "answer_request", "refuse_request"]


def answer_request(methods: dict[str, Callable[..., Result]], context: object, message: dict[str, Any]) -> Any:
    """The response to a request whose form was checked, as JSON's own types; None for a notification.

    ``context`` is the methods' first argument. jsonrpcserver's own ``dispatch`` does the same, and binds the parameters
    to the method's signature before, only to see whether that fails. The method table checks ours: see dispatch.py.
    """
    request = create_request(message)
    result = get_method(methods, request.method).bind(partial(call, request, context))
    return None if request.id is NOID else to_serializable_one(to_response(request, result))


def refuse_request() -> Any:
    """The response to what has not the form of a request."""
    return serialize_error(InvalidRequestResponse("The request failed schema validation"))
