from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volattachd.rpc.strictjson import MAX_DEPTH, NotAllowed, NotJson, dumps, loads

#: Every value that loads can give.
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_what_dumps_writes_loads_reads_back(value: object) -> None:
    written = dumps(value)
    assert loads(written) == value
    assert b"\n" not in written


@given(st.binary(max_size=40))
def test_any_bytes_give_a_value_or_one_of_the_two_refusals(data: bytes) -> None:
    try:
        loads(data)
    except (NotJson, NotAllowed) as refusal:
        assert refusal.reason


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b'{"a":1,}',
        b"{'a':1}",
        b"{a:1}",
        b"01",
        b"+1",
        b".5",
        b"1.",
        b"-",
        b"1 2",
        b"nul",
        b"True",
        b"[1 2]",
        b'"\x00"',
        b'"\n"',
        b'"\\x41"',
        b'"\\u12g4"',
        b'"\\u 123"',
        b'"abc',
        b"// comment\n1",
        "\uff11".encode(),
        "\u00a01".encode(),
    ],
)
def test_what_is_not_json_is_refused_with_its_place(data: bytes) -> None:
    with pytest.raises(NotJson, match=r"line \d+, column \d+"):
        loads(data)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "[NaN]", '{"a":-Infinity}'])
def test_pythons_own_constants_are_not_json(word: str) -> None:
    with pytest.raises(NotJson, match=r"NaN|Infinity"):
        loads(word.encode())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "latin-1"])
def test_no_encoding_but_utf8_without_mark_is_guessed(encoding: str) -> None:
    with pytest.raises(NotJson):
        loads('{"name": "Ä"}'.encode(encoding))


def test_a_byte_that_is_not_utf8_is_named_with_its_offset() -> None:
    with pytest.raises(NotJson, match="byte 0xff at offset 2"):
        loads(b'["\xff"]')


def test_a_surrogate_in_utf8_form_is_not_utf8() -> None:
    with pytest.raises(NotJson, match="not UTF-8"):
        loads(b'"\xed\xa0\x80"')


@pytest.mark.parametrize(
    "data", [b'{"a":1,"a":1}', b'{"b":{"a":1,"x":2,"a":3}}', b'[{"a":1,"\\u0061":2}]', b'{"a":{},"a":[]}']
)
def test_a_key_that_stands_twice_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(NotAllowed, match="key 'a' stands twice"):
        loads(data)


def test_a_very_long_key_is_shortened_in_the_reason() -> None:
    key = b'"' + b"k" * 100_000 + b'"'
    with pytest.raises(NotAllowed) as caught:
        loads(b"{" + key + b":1," + key + b":2}")
    assert len(caught.value.reason) < 200


@pytest.mark.parametrize("value", [0, -1, 2**63, 2**64 - 1, -(2**63)])
def test_integers_of_64_bits_are_taken(value: int) -> None:
    assert loads(str(value).encode()) == value


@pytest.mark.parametrize(
    "digits", [str(2**64), str(-(2**63) - 1), "1" + "0" * 20, "-1" + "0" * 20, "9" * 4301, "-" + "9" * 100_000]
)
def test_integers_past_64_bits_are_refused(digits: str) -> None:
    with pytest.raises(NotAllowed, match="64 bits"):
        loads(digits.encode())


@pytest.mark.parametrize("data", [b"1e400", b"-1e400", b"[1e309]", b"1e99999999999"])
def test_a_number_past_a_double_is_refused(data: bytes) -> None:
    with pytest.raises(NotAllowed, match="too large for a double"):
        loads(data)


def test_a_number_that_rounds_to_zero_is_taken() -> None:
    assert loads(b"1e-400") == 0


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b'"\\ud800"', ""),
        (b'["\\udfff"]', r" in \[0\]"),
        (b'{"a":[1,{"b":"x\\ud800y"}]}', r" in a\[1\]\.b"),
        (b'{"a":{"\\ud83d":1}}', " in a"),
        (b'"\\ude00\\ud83d"', ""),
        (b'{"\\uDC00":1}', ""),
    ],
)
def test_a_lone_surrogate_is_refused_with_its_place(data: bytes, where: str) -> None:
    with pytest.raises(NotAllowed, match=rf"'{where} has a lone surrogate"):
        loads(data)


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert loads(b'{"\\ud83d\\ude00":"\\uD83D\\uDE00"}') == {"😀": "😀"}


def test_an_escaped_backslash_before_a_u_is_no_escape() -> None:
    assert loads(b'"\\\\ud800"') == "\\ud800"


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_nesting_is_taken_up_to_the_limit_and_refused_past_it(opening: str, closing: str) -> None:
    levels = sum(opening.count(bracket) for bracket in "[{")
    for depth in (MAX_DEPTH, MAX_DEPTH + levels):
        repeat = depth // levels
        data = (opening * repeat + "1" + closing * repeat).encode()
        if depth <= MAX_DEPTH:
            loads(data)
        else:
            with pytest.raises(NotAllowed, match="more than 32 levels"):
                loads(data)


@pytest.mark.parametrize("data", [b"[" * 30_000 + b"]" * 30_000, b"[" * 30_000, b'{"a":' * 30_000])
def test_nesting_past_pythons_own_limit_is_the_same_refusal(data: bytes) -> None:
    with pytest.raises(NotAllowed, match="levels"):
        loads(data)


def test_many_brackets_side_by_side_are_no_nesting() -> None:
    assert loads(b"[" + b"[]," * 100 + b'"[[[["]') == [[]] * 100 + ["[[[["]


def test_a_caller_may_allow_more_nesting() -> None:
    assert loads(b"[" * 40 + b"]" * 40, max_depth=40)


def test_a_reason_can_always_be_sent() -> None:
    with pytest.raises(NotAllowed) as caught:
        loads(b'{"\\ud800":1,"\\ud800":2}')
    assert json.loads(dumps(caught.value.reason)) == caught.value.reason


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")]])
def test_dumps_never_writes_what_is_not_json(value: object) -> None:
    with pytest.raises(ValueError):
        dumps(value)


def test_dumps_puts_a_replacement_for_a_lone_surrogate() -> None:
    assert loads(dumps({"path": "/dev/\udcff"})) == {"path": "/dev/\ufffd"}


def test_dumps_writes_one_compact_line_without_escapes() -> None:
    assert dumps({"a": [1, "ä\n"]}) == '{"a":[1,"ä\\n"]}'.encode()


@pytest.mark.parametrize(
    "data",
    [
        b"1" * 10**6,
        b"0." + b"1" * 10**6,
        b"1e" + b"9" * 10**6,
        b"[" * 10**6,
        b'"' + b"\\ud83d\\ude00" * 80_000 + b'"',
    ],
)
def test_hostile_lengths_cost_no_more_than_their_length(data: bytes) -> None:
    begun = time.monotonic()
    try:
        loads(data)
    except (NotJson, NotAllowed):
        pass
    assert time.monotonic() - begun < 2
