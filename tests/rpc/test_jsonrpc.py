from __future__ import annotations

import json
import subprocess
import sys
import warnings
from typing import Any

import pytest

from volattachd.rpc import jsonrpc

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of what all of it imports
    from jsonrpcserver import Error, Success, dispatch_to_serializable

#: What jsonrpcserver's package imports for ways of serving that we do not have.
NOT_OURS = ("jsonrpcserver", "jsonrpcserver.server", "asyncio", "http.server", "jsonschema")


def run(program: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_only_the_dispatch_is_imported() -> None:
    """Where this fails the daemon works, and its start takes twice as long."""
    loaded = run("import sys; from volattachd.rpc import jsonrpc; print(*sys.modules)").split()
    assert "jsonrpcserver.dispatcher" in loaded
    assert not set(NOT_OURS) & set(loaded)


def test_whoever_imports_the_package_afterwards_gets_all_of_it() -> None:
    program = "from volattachd.rpc import jsonrpc; import jsonrpcserver; print(jsonrpcserver.Success(1)._value)"
    assert run(program + "; print(jsonrpcserver.Success is jsonrpc.Success)").split() == ["SuccessResult(1)", "True"]


def test_a_package_that_is_there_already_is_left_as_it_is() -> None:
    program = "import sys, jsonrpcserver as whole; from volattachd.rpc import jsonrpc"
    assert run(program + "; print(sys.modules['jsonrpcserver'] is whole, jsonrpc.Success is whole.Success)") == (
        "True True\n"
    )


def add(context: str, /, *terms: int, **more: int) -> Any:
    if not terms and not more:
        return Error(7, f"{context}: nothing to add", {"kind": "Nothing"})
    return Success(sum(terms) + sum(more.values()))


@pytest.mark.parametrize("params", [[1, 2], [], {"a": 1, "b": 5}, {}, None])
@pytest.mark.parametrize("method", ["add", "subtract"])
@pytest.mark.parametrize("id_", [1, "x", None, 2.5, ...])
def test_the_answers_are_those_of_the_librarys_own_dispatch(method: str, params: Any, id_: Any) -> None:
    message = {"jsonrpc": "2.0", "method": method}
    message |= {} if params is None else {"params": params}
    message |= {} if id_ is ... else {"id": id_}
    theirs = dispatch_to_serializable(json.dumps(message), methods={"add": add}, context="sum")
    assert jsonrpc.answer_request({"add": add}, "sum", message) == theirs
    assert (theirs is None) == (id_ is ...)


@pytest.mark.parametrize("message", [7, "add", {}, {"jsonrpc": "1.0", "method": "add"}, []])
def test_a_refusal_is_the_librarys_own(message: Any) -> None:
    assert jsonrpc.refuse_request() == dispatch_to_serializable(json.dumps(message), methods={"add": add})
