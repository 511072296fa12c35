"""jsonrpcserver's dispatch of a request, without what its package imports beside it.

That would be half of the daemon's imports, and a quarter of its memory after them, for ways of serving that we do not
have.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from volattachd.lean import without_init

with without_init("jsonrpcserver"):
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
