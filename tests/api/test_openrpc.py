from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from volattachd.api.methods import METHODS, Method
from volattachd.api.openrpc import document, portable
from volattachd.errors import kinds
from volattachd.rpc.strictjson import dumps, loads


def patterns(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (found for key, found in value.items() if key == "pattern")
        value = list(value.values())
    for inner in value if isinstance(value, list) else []:
        yield from patterns(inner)


def described(method: Method) -> dict[str, Any]:
    (found,) = (row for row in document()["methods"] if row["name"] == method.name)
    return dict(found)


def test_the_document_has_what_openrpc_requires() -> None:
    made = document()
    assert re.fullmatch(r"1\.\d+\.\d+", made["openrpc"])
    assert made["info"]["title"] and made["info"]["version"]
    assert [method["name"] for method in made["methods"]] == [method.name for method in METHODS]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_is_described_as_the_table_has_it(method: Method) -> None:
    made = described(method)
    assert made["summary"] == method.summary
    assert made["paramStructure"] == "either"
    assert [(p["name"], p["required"], p["summary"]) for p in made["params"]] == [
        (p.name, p.required, p.summary) for p in method.params
    ]
    assert made["result"]["name"] and made["result"]["schema"] == portable(method.result)
    assert (made["x-role"], made["x-changes"]) == (method.role.name.lower(), method.changes)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_required_parameters_come_first_as_positions_demand(method: Method) -> None:
    """A required parameter after an optional one could not be given by position alone."""
    required = [param["required"] for param in described(method)["params"]]
    assert required == sorted(required, reverse=True)


def test_a_default_is_part_of_the_schema() -> None:
    (force,) = (
        param
        for method in document()["methods"]
        if method["name"] == "terminate_connection"
        for param in method["params"]
        if param["name"] == "force"
    )
    assert force["schema"]["default"] is False


def test_every_kind_of_error_is_there_and_every_reference_leads_to_one() -> None:
    made = document()
    errors = made["components"]["errors"]
    assert {(name, error["code"]) for name, error in errors.items()} == {(k.__name__, k.code) for k in kinds()}
    for method in made["methods"]:
        for error in method["errors"]:
            assert error["$ref"].removeprefix("#/components/errors/") in errors


def test_patterns_mean_the_same_in_other_languages() -> None:
    found = list(patterns(document()))
    assert found
    for pattern in found:
        assert r"\Z" not in pattern
        assert pattern.startswith("^") and pattern.endswith("$")


def test_the_table_itself_is_not_touched() -> None:
    before = repr(METHODS)
    document()["methods"][0]["params"][0]["schema"]["pattern"] = "changed"
    assert repr(METHODS) == before


def test_the_document_can_be_sent_and_read_back() -> None:
    assert loads(dumps(document())) == json.loads(json.dumps(document()))
