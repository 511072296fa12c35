from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docgen.reference import example_result
from volattachd.api.methods import BY_NAME
from volattachd.cli.output import RENDERERS, machine, masked, moment, render, size, table, text

HOSTILE = "\x1b[2J\r\n\x07\x9b31m\u202egnp\u2028\x7f\ufeff\udcff"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)


def poisoned(value: Any) -> Any:
    """``value`` with the terminal's controls in every string and every name that is not looked for."""
    if isinstance(value, dict):
        return {key: poisoned(inner) for key, inner in value.items()} | {HOSTILE: HOSTILE}
    if isinstance(value, list):
        return [poisoned(inner) for inner in value]
    return value + HOSTILE if isinstance(value, str) else value


def result_of(method: str) -> Any:
    return example_result(BY_NAME[method]) if method in BY_NAME else {}


def wrong_volume(**members: Any) -> dict[str, Any]:
    condition = {"kind": "device-missing", "message": "/dev/vg0/a is gone", "since": 0}
    return {**result_of("show_volume"), "conditions": [condition], **members}


@pytest.mark.parametrize("method", sorted(BY_NAME))
def test_nothing_that_a_terminal_obeys_comes_out(method: str) -> None:
    shown = render(method, poisoned(result_of(method)), show_secret=True)
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert "\\x1b[2J" in shown or method in ("unregister_volume",)


@pytest.mark.parametrize("method", ["get_metrics", "unknown_method", *sorted(RENDERERS)])
@given(value=JSON)
def test_any_scalar_or_outline_is_safe_to_print(method: str, value: Any) -> None:
    if method in RENDERERS and isinstance(value, (dict, list)):
        return
    shown = render(method, value)
    assert all(char.isprintable() or char == "\n" for char in shown)


@pytest.mark.parametrize("method", sorted(RENDERERS))
def test_what_another_version_leaves_out_is_no_error(method: str) -> None:
    whole = result_of(method)
    bare: Any = [{}] if isinstance(whole, list) else {}
    assert render(method, bare)


@pytest.mark.parametrize("method", sorted(RENDERERS))
def test_a_member_that_is_null_is_no_error(method: str) -> None:
    whole = result_of(method)
    nulls: Any = [dict.fromkeys(whole[0])] if isinstance(whole, list) else dict.fromkeys(whole)
    assert render(method, nulls)


@given(JSON)
def test_json_is_exactly_the_result_in_one_line_of_ascii(value: Any) -> None:
    line = machine(value)
    assert json.loads(line) == value
    assert line.isascii() and line.isprintable()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (10 * 1024**3, "10.0 GiB"),
        (1024**4, "1.0 TiB"),
        (2**64, "16384.0 PiB"),
        (None, "-"),
        ("big", "big"),
    ],
)
def test_sizes_are_in_binary_units(value: Any, shown: str) -> None:
    assert size(value) == shown


@pytest.mark.parametrize(
    ("zone", "shown"), [("UTC", "2026-09-21T14:13:20+00:00"), ("XYZ-5:30", "2026-09-21T19:43:20+05:30")]
)
def test_times_are_local_with_their_offset(monkeypatch: pytest.MonkeyPatch, zone: str, shown: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert moment(1790000000) == shown
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("value", [None, "soon", 1e300, -1e300, [1]])
def test_what_is_no_time_is_shown_as_it_is(value: Any) -> None:
    assert moment(value) == text(value)


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table(("A", "BB", "C"), [("long", "x", "y")]) == "A     BB  C\nlong  x   y"


def test_secrets_are_masked_however_deep_they_stand_and_are_called() -> None:
    value = {
        "data": {"auth_password": "p1", "discovery_auth_password": "p2", "Secret": "p3", "list": [{"password": "p4"}]}
    }
    assert "p" not in "".join(str(v) for v in masked(value)["data"].values() if isinstance(v, str))
    assert masked(value)["data"]["list"] == [{"password": "********"}]


def test_the_connection_is_shown_without_its_password_unless_it_is_asked_for() -> None:
    result = {"driver_volume_type": "iscsi", "data": {"auth_username": "me", "auth_password": "hunter2"}}
    assert "hunter2" not in render("initialize_connection", result)
    assert "auth_password: ********" in render("initialize_connection", result)
    assert "auth_password: hunter2" in render("initialize_connection", result, show_secret=True)


def test_volumes_are_a_table_with_what_is_wrong_below() -> None:
    lines = render("list_volumes", [wrong_volume(volume="a", multiattach=True, read_only=True)]).splitlines()
    assert lines[0].split() == ["VOLUME", "SIZE", "STATUS", "ATTACHMENTS", "OPTIONS", "PATH"]
    assert lines[1].split() == ["a", "10.0", "GiB", "in-use", "1", "multiattach,read_only", "/dev/vg0/vol-1"]
    assert lines[2].startswith("! a: device-missing since ") and lines[2].endswith(": /dev/vg0/a is gone")


def test_a_volume_shows_its_conditions_and_attachments() -> None:
    shown = render("show_volume", wrong_volume(attachments=["x", "y"]))
    assert "condition:   device-missing since" in shown
    assert "attachment:  x" in shown and "attachment:  y" in shown


def test_attachments_fall_back_to_the_connectors_host() -> None:
    attachment = {**result_of("show_attachment"), "host_name": None, "connector": {"host": "compute7"}}
    assert "compute7" in render("list_attachments", [attachment])


def test_history_tells_each_change_of_state() -> None:
    shown = render(
        "get_history",
        [{"seq": 1, "call": "attach", "before": {"state": "connected"}, "after": {"state": "attached"}}],
    )
    assert "connected -> attached" in shown
    assert "none -> registered" in render("get_history", [{"before": None, "after": {"size": 1}}])


@pytest.mark.parametrize(
    ("result", "state"),
    [
        ({"ready": True, "degraded": []}, "ready"),
        ({"ready": True, "degraded": ["no portal"]}, "degraded"),
        ({"ready": False, "degraded": []}, "starting"),
    ],
)
def test_status_begins_with_the_state_and_why(result: dict[str, Any], state: str) -> None:
    first, *rest = render("get_status", result).splitlines()
    assert first.split() == ["state:", state]
    assert not result["degraded"] or rest[0].endswith("no portal")


def test_a_reconciliation_tells_its_steps_and_errors() -> None:
    entry = {"volume": "a", "steps": ["create portal p"], "error": "EBUSY"}
    orphan = {"volume": None, "target_name": "iqn.x", "steps": ["remove target iqn.x"], "error": None}
    shown = render("reconcile", {"dry_run": True, "volumes": [entry, orphan]})
    assert shown.splitlines() == [
        "would do:",
        "a",
        "  create portal p",
        "  ! EBUSY",
        "no volume (target iqn.x)",
        "  remove target iqn.x",
    ]
    assert render("reconcile", {"dry_run": False, "volumes": [entry]}).startswith("did:\n")


@pytest.mark.parametrize(
    ("method", "result", "shown"),
    [
        ("list_volumes", [], "no volumes"),
        ("list_attachments", [], "no attachments"),
        ("get_history", [], "nothing happened"),
        ("reconcile", {"volumes": []}, "journal and target agree"),
        ("unknown", {}, "{}"),
        ("unknown", None, "None"),
    ],
)
def test_nothing_is_said_in_words(method: str, result: Any, shown: str) -> None:
    assert render(method, result) == shown


def test_text_of_several_lines_keeps_them() -> None:
    assert render("get_metrics", "# HELP a\na 1\n\nb\t2\n") == "# HELP a\na 1\n\nb\\t2"


def test_an_unknown_result_is_an_outline() -> None:
    result = {"a": 1, "b": {"c": [True, {"d": "e"}], "f": {}}}
    assert render("unknown", result).splitlines() == [
        "a: 1",
        "b:",
        "  c:",
        "    - yes",
        "    -",
        "      d: e",
        "  f: {}",
    ]
