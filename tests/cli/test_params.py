from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from volattachd.api.methods import METHODS
from volattachd.cli.exit_codes import UsageError
from volattachd.cli.params import parse
from volattachd.rpc.strictjson import MAX_BYTES

INITIATOR = {"initiator": "iqn.2026-11.com.example:a"}


def test_values_are_taken_by_their_declared_types() -> None:
    words = ["volume=vol-1", "connector=" + json.dumps(INITIATOR), "force=true"]
    assert parse("terminate_connection", words) == {"volume": "vol-1", "connector": INITIATOR, "force": True}
    assert parse("reserve_volume", ["volume=v", "ttl=1.5"]) == {"volume": "v", "ttl": 1.5}
    assert parse("reserve_volume", ["volume=v", "ttl=60"]) == {"volume": "v", "ttl": 60}
    assert parse("get_history", ["since=3"]) == {"since": 3}


@pytest.mark.parametrize("value", ["5", "true", "null", '"x"', "{}", "a=b", "", " x", "ä", "@@at", "-x"])
def test_a_string_stands_as_it_is(value: str) -> None:
    expected = value[1:] if value.startswith("@@") else value
    assert parse("show_volume", [f"volume={value}"]) == {"volume": expected}


def test_null_leaves_out_what_is_no_string() -> None:
    assert parse("reconcile", ["dry_run=null"]) == {"dry_run": None}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_type_of_the_table_is_understood(method: Any) -> None:
    samples = {"string": "x", "boolean": "true", "integer": "1", "number": "1", "object": "{}", "array": "[]"}
    kinds = [param.schema["type"] for param in method.params]
    words = [
        f"{param.name}={samples[kind if isinstance(kind, str) else kind[0]]}"
        for param, kind in zip(method.params, kinds, strict=True)
    ]
    assert set(parse(method.name, words)) == {param.name for param in method.params}


@pytest.mark.parametrize(
    ("word", "said", "instead"),
    [
        ("force=yes", "force: not JSON", "force=true or false"),
        ("force=1", "force takes booleans", "force=true or false"),
        ("force=", "force: not JSON", "force=true or false"),
        ("connector=[]", "connector takes objects", 'connector={"key": …}'),
        ('connector={"a":1,"a":2}', "connector: the key 'a' stands twice", "connector={"),
        ("connector=NaN", "connector: not JSON: NaN", "connector={"),
    ],
)
def test_a_value_of_another_type_is_refused_with_an_example(word: str, said: str, instead: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse("terminate_connection", ["volume=v", word])
    assert said in caught.value.message
    assert instead in str(caught.value.correction)


@pytest.mark.parametrize(("name", "written"), [("since", "true"), ("limit", "1.5"), ("since", '"1"')])
def test_a_boolean_a_fraction_or_a_string_is_no_integer(name: str, written: str) -> None:
    with pytest.raises(UsageError, match=f"{name} takes integers"):
        parse("get_history", [f"{name}={written}"])


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="'reserve_volum'") as caught:
        parse("reserve_volum", [])
    assert caught.value.correction == "reserve_volume"


def test_a_method_like_no_other_names_them_all() -> None:
    with pytest.raises(UsageError) as caught:
        parse("zzz", [])
    assert all(method.name in str(caught.value.correction) for method in METHODS)


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="attach has no parameter 'mountpoint'") as caught:
        parse("attach", ["mountpoint=/dev/vdb"])
    assert caught.value.correction == "mount_point"


def test_a_key_like_no_other_shows_the_call() -> None:
    with pytest.raises(UsageError) as caught:
        parse("show_volume", ["zzz=1"])
    assert caught.value.correction == "volattach call show_volume volume=…"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["vol-1"], "'vol-1' is not key=value"),
        (["volume=a", "volume=b"], "volume is given twice"),
        ([], "initialize_connection also needs volume and connector"),
        (["volume=a"], "initialize_connection also needs connector"),
    ],
)
def test_words_that_make_no_call_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse("initialize_connection", words)
    assert caught.value.message == said


def test_a_value_may_come_from_a_file_without_its_last_newline(tmp_path: Path) -> None:
    (tmp_path / "connector").write_text(json.dumps(INITIATOR, indent=2) + "\n")
    (tmp_path / "name").write_text("vol-1\n")
    words = [f"volume=@{tmp_path}/name", f"connector=@{tmp_path}/connector"]
    assert parse("initialize_connection", words) == {"volume": "vol-1", "connector": INITIATOR}


def test_a_value_may_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(INITIATOR).encode())))
    assert parse("initialize_connection", ["volume=v", "connector=@-"])["connector"] == INITIATOR


def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    for name, content, said in [
        ("missing", None, "cannot read"),
        ("latin", b"\xe4", "is not UTF-8"),
        ("long", b"x" * (MAX_BYTES + 1), "longer than a message may be"),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=said):
            parse("show_volume", [f"volume=@{tmp_path / name}"])


@pytest.mark.parametrize(("word", "owner"), [("owner=1001", 1001), ("owner=alice", "alice")])
def test_an_owner_is_a_uid_or_a_name(word: str, owner: Any) -> None:
    assert parse("reserve_volume", ["volume=vol-1", word])["owner"] == owner
