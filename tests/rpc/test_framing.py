from __future__ import annotations

import json
import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from volattachd.rpc.framing import Decoder, Frame
from volattachd.rpc.strictjson import NotAllowed, NotJson, dumps

SPACE = st.text(" \t\n\r", max_size=3)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.text('"\\[]{},:'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('"\\[]{}a', max_size=3), inner, max_size=4),
    max_leaves=15,
)
#: What hostile or broken clients send: the bytes that matter to the scanner, in any order.
NOISE = st.text('[]{}"\\ \n1-a,:', max_size=40).map(str.encode)


def told(frames: list[Frame]) -> list[tuple[bytes, str]]:
    """Frames in a form that compares: exceptions only equal themselves."""
    return [(frame.data, "" if frame.error is None else repr(frame.error)) for frame in frames]


def decode(data: bytes, cuts: list[int] | None = None, **limits: int) -> list[tuple[bytes, str]]:
    decoder = Decoder(**limits)
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts or []), len(data)]
    frames = [frame for start, end in pairwise(places) for frame in decoder.feed(data[start:end])]
    return told(frames + decoder.close())


def as_written(value: object, indent: int | None, ascii_only: bool) -> bytes:
    return json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "replace")


@given(
    st.lists(st.tuples(VALUES, st.sampled_from([None, 1]), st.booleans(), SPACE), max_size=5),
    st.lists(st.integers(0, 10_000), max_size=20),
)
def test_any_values_in_any_chunks_give_the_same_frames(
    written: list[tuple[object, int | None, bool, str]], cuts: list[int]
) -> None:
    texts = [as_written(value, indent, escaped) for value, indent, escaped, _ in written]
    # Two scalars need white space between them; brackets and strings end by themselves.
    stream = b"".join(
        text + (space or " " if text[-1:] not in b']}"' else space).encode()
        for text, (*_, space) in zip(texts, written, strict=True)
    )
    assert decode(stream, cuts, max_depth=1000) == [(text, "") for text in texts]


@given(NOISE, st.lists(st.integers(0, 100), max_size=10), st.integers(1, 20), st.integers(1, 4))
@example(b'[}"', [1, 2], 1, 1)
def test_no_chunking_changes_what_a_hostile_stream_gives(
    data: bytes, cuts: list[int], max_bytes: int, max_depth: int
) -> None:
    whole = decode(data, max_bytes=max_bytes, max_depth=max_depth)
    assert decode(data, cuts, max_bytes=max_bytes, max_depth=max_depth) == whole
    assert decode(data, list(range(len(data))), max_bytes=max_bytes, max_depth=max_depth) == whole


@pytest.mark.parametrize(
    ("stream", "frames"),
    [
        (b"", []),
        (b" \n\t\r ", []),
        (b"{}{}[][]", [b"{}", b"{}", b"[]", b"[]"]),
        (b"1 2\n3", [b"1", b"2", b"3"]),
        (b'"a""b"', [b'"a"', b'"b"']),
        (b'1"a"[2]null{}true', [b"1", b'"a"', b"[2]", b"null", b"{}", b"true"]),
        (b'{"a":"}]\\"{"}\n\n{"b":[1,{"c":"\\\\"}]}', [b'{"a":"}]\\"{"}', b'{"b":[1,{"c":"\\\\"}]}']),
        (b'{\n  "a": [\n    1\n  ]\n}\n', [b'{\n  "a": [\n    1\n  ]\n}']),
        ('"ä" ["→"]'.encode(), ['"ä"'.encode(), '["→"]'.encode()]),
    ],
)
def test_values_need_no_newline_between_them(stream: bytes, frames: list[bytes]) -> None:
    assert decode(stream) == [(frame, "") for frame in frames]


def test_a_frame_comes_with_its_last_byte() -> None:
    decoder = Decoder()
    assert decoder.feed(b'{"a":1') == []
    assert decoder.feed(b"}") == [Frame(b'{"a":1}')]


def test_a_number_waits_for_what_ends_it() -> None:
    decoder = Decoder()
    assert decoder.feed(b"12") == []
    assert decoder.feed(b"3\n") == [Frame(b"123")]
    assert decoder.feed(b"4") == []
    assert decoder.close() == [Frame(b"4")]


def test_pending_counts_the_bytes_of_an_incomplete_message_only() -> None:
    decoder = Decoder()
    seen = []
    for chunk in (b"  \n", b'{"a"', b":1", b"}\n", b"  ", b"[1][2", b"]"):
        decoder.feed(chunk)
        seen.append(decoder.pending)
    assert seen == [0, 4, 6, 0, 0, 2, 0]


@pytest.mark.parametrize("byte", [byte for byte in range(256) if byte not in b' \t\n\r{["-0123456789tfn'])
def test_a_byte_that_begins_no_value_breaks_the_stream(byte: int) -> None:
    decoder = Decoder()
    frames = decoder.feed(b"[1] " + bytes([byte]) + b"[2]")
    assert frames[0] == Frame(b"[1]")
    assert isinstance(frames[1].error, NotJson)
    assert "at offset 4 of the stream cannot begin a JSON value" in frames[1].error.reason
    assert decoder.broken


def test_the_offset_in_a_reason_counts_from_the_streams_first_byte() -> None:
    refusal = NotJson("'?' at offset 8 of the stream cannot begin a JSON value")
    assert decode(b"[1]\n[2] ?", [4, 6]) == [(b"[1]", ""), (b"[2]", ""), (b"", repr(refusal))]


@pytest.mark.parametrize("stream", [b"[1}", b'{"a":1]', b'[{"a":[}]]'])
def test_a_bracket_that_closes_another_one_breaks_the_stream(stream: bytes) -> None:
    decoder = Decoder()
    (frame,) = decoder.feed(stream)
    assert isinstance(frame.error, NotJson)
    assert "is due" in frame.error.reason
    assert decoder.broken


def test_a_broken_stream_gives_one_refusal_and_nothing_more() -> None:
    decoder = Decoder()
    assert len(decoder.feed(b"? {} ?")) == 1
    assert decoder.feed(b"{}") == []
    assert decoder.close() == []
    assert decoder.pending == 0


@pytest.mark.parametrize("depth", [1, 31, 32, 33, 34, 1000])
def test_a_value_past_the_depth_is_passed_over_and_the_stream_goes_on(depth: int) -> None:
    value = b"[" * depth + b"]" * depth
    decoder = Decoder()
    first, second = decoder.feed(value + b"{}")
    if depth <= 32:
        assert first == Frame(value)
    else:
        assert isinstance(first.error, NotAllowed)
        assert first.data == b""
        assert "more than 32 levels" in first.error.reason
    assert second == Frame(b"{}")
    assert not decoder.broken


def test_brackets_in_strings_are_no_depth() -> None:
    value = dumps(["[" * 100, {"{" * 100: "\\[" * 50}])
    assert Decoder().feed(value) == [Frame(value)]


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b" ]"), (b'"', b'"'), (b'["\\', b'"]'), (b"[[", b"]]")])
def test_the_limit_of_bytes_is_exact(chunk: int, opening: bytes, closing: bytes) -> None:
    for size in (49, 50, 51):
        filling = (b"n" * 50 if opening == b'["\\' else b" " * 50)[: size - len(opening) - len(closing)]
        value = opening + filling + closing
        decoder = Decoder(max_bytes=50)
        frames = [f for i in range(0, size, chunk) for f in decoder.feed(value[i : i + chunk])]
        if size <= 50:
            assert frames == [Frame(value)]
        else:
            assert [repr(f.error) for f in frames] == [repr(NotAllowed("the message is longer than 50 bytes"))]
            assert decoder.broken


def test_a_message_that_never_ends_is_held_only_up_to_the_limit() -> None:
    decoder = Decoder(max_bytes=1000)
    frames = []
    while not decoder.broken:
        frames += decoder.feed(b'["' + b"x" * 98)
        assert decoder.pending <= 1000
    assert len(frames) == 1
    assert isinstance(frames[0].error, NotAllowed)


def test_white_space_between_messages_is_never_held() -> None:
    decoder = Decoder(max_bytes=10)
    for _ in range(100):
        assert decoder.feed(b" \n" * 50) == []
    assert decoder.pending == 0
    assert not decoder.broken


@pytest.mark.parametrize("half", [b"[1", b'"abc', b'"\\', b'{"a":'])
def test_the_end_of_the_stream_inside_a_message_is_told(half: bytes) -> None:
    decoder = Decoder()
    decoder.feed(half)
    (frame,) = decoder.close()
    assert isinstance(frame.error, NotJson)
    assert "ended inside a message" in frame.error.reason


MEGABYTE = 1 << 20


@pytest.mark.parametrize("chunk", [1, 1000, 65536, 2 * MEGABYTE])
@pytest.mark.parametrize(
    "data",
    [
        b"[" * (MEGABYTE // 2) + b"]" * (MEGABYTE // 2),
        b'"' + b"\\n" * (MEGABYTE // 2) + b'"',
        b'["' + b"x" * MEGABYTE + b'"]',
        b"[" + b'"",' * (MEGABYTE // 3) + b"1]",
        b"[" + b'"xxxxxxxxxx\\n",' * (MEGABYTE // 16) + b"1]",
        b"1" * MEGABYTE,
    ],
    ids=["deep", "escapes", "one string", "strings", "mixed", "digits"],
)
def test_the_time_grows_with_the_length_whatever_the_chunks(data: bytes, chunk: int) -> None:
    """A scan that began again with each chunk would take minutes here."""
    decoder = Decoder(max_bytes=2 * MEGABYTE)
    begun = time.monotonic()
    for start in range(0, len(data), chunk):
        decoder.feed(data[start : start + chunk])
    decoder.close()
    assert time.monotonic() - begun < 20
