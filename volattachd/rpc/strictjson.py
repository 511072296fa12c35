"""JSON without leniency: what two parsers could read differently is refused, and each refusal says why.

Rules:

1. UTF-8 only, without a byte order mark; nothing is guessed.
2. What is not JSON (RFC 8259), Python's own NaN and Infinity included, is NotJson: -32700 on the wire.
3. What is JSON but means different things to different readers is NotAllowed: -32600. These are duplicate
   keys, integers past 64 bits, numbers that overflow a double, lone surrogates, and nesting past the limit.
4. ``loads(dumps(value)) == value`` for every value that ``loads`` can give.

Neither the time nor the memory of a refusal grows with more than the length of what is refused.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

#: Levels of arrays and objects in one another.
MAX_DEPTH = 32

#: Bytes of one message.
MAX_BYTES = 1024 * 1024

_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
#: No integer of 64 bits is written longer than this; so int() never sees thousands of digits.
_INT_MAX_CHARS = 20
_QUOTED_MAX_CHARS = 64


class Refused(ValueError):
    """A message that is not taken; ``reason`` says what is wrong, and where as far as that is known."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NotJson(Refused):
    """The bytes are not JSON in UTF-8: correct the program that wrote them."""


class NotAllowed(Refused):
    """The bytes are JSON, but beyond what is taken here: send a value that means one thing to everybody."""


def loads(data: bytes, max_depth: int = MAX_DEPTH) -> Any:
    """The value of one JSON text. Raises NotJson or NotAllowed."""
    text = _decode(data)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise NotJson(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise NotAllowed(_too_deep(max_depth)) from error
    if _needs_a_walk(text, max_depth):
        _walk(value, max_depth)
    return value


def dumps(value: Any) -> bytes:
    """``value`` as one line of JSON in UTF-8. Raises ValueError for NaN and the infinities.

    A lone surrogate (out of a file name that is not UTF-8, say, inside an error's message) has no form in
    UTF-8: U+FFFD stands in for it, so that the answer can still be given.
    """
    text = _ENCODER.encode(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udfff]", "\ufffd", text).encode()


def _decode(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise NotJson(f"not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}") from error
    if text.startswith("\ufeff"):
        raise NotJson("not JSON: it begins with a byte order mark")
    return text


def _quoted(text: str) -> str:
    """``text`` for a reason: shortened, and (as repr does it) without a character that could not be sent."""
    return repr(text if len(text) <= _QUOTED_MAX_CHARS else text[:_QUOTED_MAX_CHARS] + "…")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        _refuse_duplicate(pairs)
    return value


def _refuse_duplicate(pairs: list[tuple[str, Any]]) -> NoReturn:
    seen: set[str] = set()
    twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    raise NotAllowed(f"the key {_quoted(twice)} stands twice in one object")


def _integer(text: str) -> int:
    if len(text) <= _INT_MAX_CHARS and _INT_MIN <= (value := int(text)) <= _INT_MAX:
        return value
    raise NotAllowed(f"the integer {_quoted(text)} does not fit in 64 bits")


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise NotAllowed(f"the number {_quoted(text)} is too large for a double")
    return value


def _constant(name: str) -> NoReturn:
    raise NotJson(f"not JSON: {name}")


def _too_deep(max_depth: int) -> str:
    return f"arrays and objects are nested more than {max_depth} levels deep"


def _needs_a_walk(text: str, max_depth: int) -> bool:
    """Whether a value of this text could break a rule that only a walk over the value can see.

    Strict UTF-8 has no surrogates, so only an escape can make one; and a value nests no deeper than it has
    opening brackets. Nearly every message is spared the walk.
    """
    return "\\u" in text or text.count("[") + text.count("{") > max_depth


def _walk(root: Any, max_depth: int) -> None:
    """Raises NotAllowed for nesting past the limit and for lone surrogates, in keys and in values."""
    waiting: list[tuple[Any, int, str]] = [(root, 1, "")]
    while waiting:
        value, depth, path = waiting.pop()
        if isinstance(value, str):
            _check_text(value, path)
        elif isinstance(value, (dict, list)):
            if depth > max_depth:
                raise NotAllowed(_too_deep(max_depth))
            waiting.extend((child, depth + 1, where) for child, where in _children(value, path))


def _children(value: dict[str, Any] | list[Any], path: str) -> list[tuple[Any, str]]:
    if isinstance(value, list):
        return [(child, f"{path}[{index}]") for index, child in enumerate(value)]
    for key in value:
        _check_text(key, path)
    prefix = f"{path}." if path else ""
    return [(child, prefix + _quoted(key)[1:-1]) for key, child in value.items()]


def _check_text(text: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f" in {path}" if path else ""
        raise NotAllowed(f"the string {_quoted(text)}{where} has a lone surrogate") from error


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_number, parse_constant=_constant
)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
