"""The strict JSON of the wire, against the daemon with a real target: each case answered with its code."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from tests.guest.inside.program import Program, configfs

GUEST = {"together": "calls"}

CALL = b'{"jsonrpc": "2.0", "method": "show_volume", "params": {"volume": "x"}, "id": %s}'
CASES: list[tuple[str, bytes, int, bool]] = [
    ("nesting of 1000", b"[" * 1000 + b"]" * 1000, -32600, False),
    ("4301 digits", CALL % (b"9" * 4301), -32600, False),
    ("past 64 bits", CALL % b"18446744073709551616", -32600, False),
    ("NaN", CALL % b"NaN", -32700, True),
    ("Infinity", CALL % b"-Infinity", -32700, True),
    ("a float past all bounds", CALL % b"1e400", -32600, False),
    ("duplicate keys", b'{"jsonrpc": "2.0", "method": "a", "method": "b", "id": 1}', -32600, False),
    ("a lone surrogate", CALL % b'"\\ud800"', -32600, False),
    ("UTF-16", (CALL % b"1").decode().encode("utf-16"), -32700, True),
    ("not UTF-8", CALL % b'"\xff"', -32700, True),
    ("a byte order mark", b"\xef\xbb\xbf" + CALL % b"1", -32700, True),
    ("no JSON", b"hello", -32700, True),
    ("a message past 1 MiB", CALL % (b'"' + b"x" * (1 << 20) + b'"'), -32600, True),
    ("True is no integer", CALL.replace(b'"volume": "x"', b'"volume": true') % b"1", 1004, False),
    ("a boolean as id", CALL % b"true", -32600, False),
    ("an empty batch", b"[]", -32600, False),
    ("a scalar", b"17 ", -32600, False),
]  # fmt: skip


@pytest.mark.parametrize(("what", "message", "code", "closed"), CASES, ids=[case[0] for case in CASES])
def test_what_is_not_strict_json_is_refused(
    what: str, message: bytes, code: int, closed: bool, program: Program
) -> None:
    before = configfs()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(program.socket))
        connection.sendall(message)
        answers = connection.makefile("rb")
        answer = json.loads(answers.readline())
        assert (answer["error"]["code"], bool(answer["error"]["message"])) == (code, True), answer
        if closed:
            assert answers.read() == b"", "a broken stream is closed after the answer"
        else:
            connection.sendall(b'{"jsonrpc": "2.0", "method": "get_status", "id": 2}')
            assert json.loads(answers.readline())["result"]["ready"]
    assert configfs() == before


def test_values_in_any_white_space_are_answered_in_order(program: Program) -> None:
    call: dict[str, Any] = {"jsonrpc": "2.0", "method": "list_volumes", "params": {}}
    stream = b"".join(json.dumps({**call, "id": i}, indent=i % 3 or None).encode() for i in range(20))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(program.socket))
        connection.sendall(stream)
        answers = connection.makefile("rb")
        assert [json.loads(answers.readline())["id"] for _ in range(20)] == list(range(20))
