from __future__ import annotations

import inspect
from typing import Any

import fastjsonschema
import pytest

from tests.support import Rig
from volattachd.api.methods import ATTACHMENT, BY_NAME, METHODS, STATUS, VOLUME, Method, Role
from volattachd.lifecycle import Call

#: DESIGN section 3, in the order of their parameters; "?" marks an optional one.
SIGNATURES = {
    "reserve_volume": "volume attachment_id? mode? instance_uuid? ttl? owner?",
    "initialize_connection": "volume connector attachment_id?",
    "attach": "volume instance_uuid? host_name? mount_point? mode? attachment_id?",
    "begin_detaching": "volume attachment_id?",
    "terminate_connection": "volume connector force? attachment_id?",
    "detach": "volume attachment_id?",
    "unreserve_volume": "volume attachment_id?",
    "roll_detaching": "volume attachment_id?",
    "register_volume": "volume path multiattach? read_only?",
    "unregister_volume": "volume",
    "list_volumes": "limit? marker?",
    "show_volume": "volume",
    "list_attachments": "volume? limit? marker?",
    "show_attachment": "attachment_id",
    "get_history": "volume? attachment_id? since? limit? before?",
    "reconcile": "dry_run?",
    "get_status": "",
    "get_metrics": "",
    "rpc.discover": "",
}

LIFE_CYCLE = {call.value.partition(" ")[0] for call in Call}
ADMIN = {"register_volume", "unregister_volume", "reconcile"}


def accepts(method: str, param: str, value: Any) -> bool:
    (schema,) = [p.schema for p in BY_NAME[method].params if p.name == param]
    try:
        fastjsonschema.compile(schema)(value)
    except fastjsonschema.JsonSchemaValueException:
        return False
    return True


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_call_takes_what_the_design_says_in_that_order(name: str) -> None:
    words = [param.name + ("" if param.required else "?") for param in BY_NAME[name].params]
    assert words == SIGNATURES[name].split()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_required_parameters_come_first_and_names_are_unique(method: Method) -> None:
    required = [param.required for param in method.params]
    assert required == sorted(required, reverse=True)
    assert len({param.name for param in method.params}) == len(method.params)


@pytest.mark.parametrize("method", [m for m in METHODS if m.name in SIGNATURES and m.name != "rpc.discover"],
                         ids=lambda method: method.name)  # fmt: skip
def test_the_handler_has_the_same_parameters_and_defaults(method: Method, rig: Rig) -> None:
    handlers = rig.service.handlers
    parameters = list(inspect.signature(handlers[method.name]).parameters.values())[1:]
    assert [p.name for p in parameters] == [p.name for p in method.params]
    for mine, told in zip(parameters, method.params, strict=True):
        if mine.default is inspect.Parameter.empty:
            assert told.required or mine.name in ("dry_run",)
        else:
            assert (told.required, told.default) == (False, mine.default)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_changes_need_at_least_an_agent_and_looking_a_reader(method: Method) -> None:
    if method.name in LIFE_CYCLE:
        assert (method.role, method.changes) == (Role.AGENT, True)
    elif method.name in ADMIN:
        assert (method.role, method.changes) == (Role.ADMIN, True)
    else:
        assert method.role >= Role.READER
        assert not method.changes
    assert method.summary.endswith(".")


def test_each_role_includes_the_ones_below_it() -> None:
    assert Role.NOBODY < Role.READER < Role.AGENT < Role.ADMIN


@pytest.mark.parametrize("value", ["a", "0", "vol-1", "a.b", "a" * 63])
def test_a_volumes_name(value: str) -> None:
    assert accepts("show_volume", "volume", value)


@pytest.mark.parametrize("value", ["", "A", "-a", "a-", "a_b", "a" * 64, "a\n", "ä", 5, None, True, [], {}])
def test_what_is_no_volumes_name(value: Any) -> None:
    assert not accepts("show_volume", "volume", value)


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ("00000000-0000-4000-8000-00000000000a", True),
        ("00000000-0000-4000-8000-00000000000A", False),
        ("00000000000040008000000000000000", False),
        ("{00000000-0000-4000-8000-000000000000}", False),
        ("00000000-0000-4000-8000-000000000000\n", False),
        ("", False),
        (0, False),
    ],
)
def test_an_attachments_id(value: Any, fits: bool) -> None:
    assert accepts("show_attachment", "attachment_id", value) is fits


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029])
@pytest.mark.parametrize("param", ["instance_uuid", "host_name", "mount_point"])
def test_free_text_has_no_control_characters(code: int, param: str) -> None:
    assert not accepts("attach", param, f"a{chr(code)}b")
    assert not accepts("attach", param, chr(code))
    assert not accepts("attach", param, f"a{chr(code)}")


@pytest.mark.parametrize(
    ("value", "fits"), [("a", True), ("é €", True), ("a" * 255, True), ("", False), ("a" * 256, False)]
)
def test_free_text_has_a_length(value: str, fits: bool) -> None:
    assert accepts("attach", "host_name", value) is fits


@pytest.mark.parametrize(
    ("value", "fits"),
    [("/a", True), ("/", True), ("/é b", True), ("a", False), ("", False), ("/a\n", False), ("/a\0", False),
     ("/" + "a" * 4094, True), ("/" + "a" * 4095, False)],
)  # fmt: skip
def test_a_path(value: str, fits: bool) -> None:
    assert accepts("register_volume", "path", value) is fits


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ({"initiator": "iqn"}, True),
        ({"initiator": "iqn", "unknown": [1, {}]}, True),
        ({"initiator": "iqn", "multipath": None, "do_local_attach": None}, True),
        ({"initiator": "iqn", "multipath": True}, True),
        ({"initiator": "iqn", "multipath": "yes"}, False),
        ({"initiator": "iqn", "ip": 5}, False),
        ({"initiator": "iqn", "host": None}, False),
        ({"initiator": None}, False),
        ({"initiator": 5}, False),
        ({}, True),  # of a local one; of any other the service says what is missing
        ([], False),
        ("iqn", False),
    ],
)
def test_a_connector(value: Any, fits: bool) -> None:
    assert accepts("initialize_connection", "connector", value) is fits


@pytest.mark.parametrize(
    ("method", "param", "value", "fits"),
    [
        ("reserve_volume", "ttl", 1, True),
        ("reserve_volume", "ttl", 1.5, True),
        ("reserve_volume", "ttl", 86400, True),
        ("reserve_volume", "ttl", 0.9, False),
        ("reserve_volume", "ttl", 86400.1, False),
        ("reserve_volume", "ttl", True, False),
        ("reserve_volume", "ttl", "60", False),
        ("reserve_volume", "mode", "rw", True),
        ("reserve_volume", "mode", "ro", True),
        ("reserve_volume", "mode", "RW", False),
        ("reserve_volume", "mode", "", False),
        ("get_history", "since", 0, True),
        ("get_history", "since", -1, False),
        ("get_history", "since", 0.5, False),
        ("get_history", "since", True, False),
        ("get_history", "limit", 1, True),
        ("get_history", "limit", 1000, True),
        ("get_history", "limit", 0, False),
        ("get_history", "limit", 1001, False),
        ("terminate_connection", "force", True, True),
        ("terminate_connection", "force", 1, False),
        ("terminate_connection", "force", "true", False),
        ("reconcile", "dry_run", 0, False),
    ],
)
def test_the_edges_of_the_other_values(method: str, param: str, value: Any, fits: bool) -> None:
    assert accepts(method, param, value) is fits


@pytest.mark.parametrize("schema", [VOLUME, ATTACHMENT, STATUS], ids=["volume", "attachment", "status"])
def test_no_result_has_a_member_for_a_secret(schema: dict[str, Any]) -> None:
    assert not [name for name in schema["properties"] if "secret" in name or "password" in name or "auth" in name]
