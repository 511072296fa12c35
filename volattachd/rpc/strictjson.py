"""JSON without leniency: what two parsers could read differently is refused, and each refusal says why.

Rules:

1. UTF-8 only, without a byte order mark; nothing is guessed.
2. What is not JSON (RFC 8259), Python's own NaN and Infinity included, is NotJson: -32700 on the wire.
3. What is JSON but means different things to different readers is NotAllowed: -32600. These are duplicate
   keys, integers past 64 bits, numbers that overflow a double, lone surrogates, and nesting past the limit.
4. ``loads(dumps(value)) == value`` for every value that ``loads`` can give.
5. Reading and refusing take time and memory linear in the length of the text. The memory of the value is bounded apart
   from the length, since two bytes (``[]``) can become a hundred: by the number of commas and opening brackets, which
   is never less than the number of values.
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

#: Commas and opening brackets of one message, those inside strings included. Each stands for 208 bytes at most.
MAX_PARTS = 32 * 1024

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


class Written(bytes):
    """JSON that is written already: ``dumps`` takes it as it is, as the value of a member of an object."""


def loads(data: bytes, max_depth: int = MAX_DEPTH, max_parts: int = MAX_PARTS) -> Any:
    """The value of one JSON text. Raises NotJson or NotAllowed."""
    if data.count(b",") + data.count(b"[") + data.count(b"{") > max_parts:
        raise NotAllowed(f"the message has more than {max_parts} commas and opening brackets")
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
    if isinstance(value, dict) and any(isinstance(member, Written) for member in value.values()):
        return b"{" + b",".join(_encode(key) + b":" + _member(member) for key, member in value.items()) + b"}"
    return _encode(value)


def abridged(value: Any, length: int) -> str:
    """How the JSON of ``value`` begins, in ASCII. What follows is not made: it may be very long."""
    if isinstance(value, str):
        value = value[: length + 1]
    text = ""
    for piece in _PIECES.iterencode(value):
        text += piece[: length + 1]
        if len(text) > length:
            return text[: length - 3] + "..."
    return text


def _member(value: Any) -> bytes:
    return value if isinstance(value, Written) else _encode(value)


def _encode(value: Any) -> bytes:
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
    """Raises NotAllowed for nesting past the limit and for lone surrogates, in keys and in values.

    The way to what is wrong is put together on the way out of it: it costs nothing while nothing is wrong.
    """
    try:
        _check(root, max_depth)
    except _TooDeep:
        raise NotAllowed(_too_deep(max_depth)) from None
    except _LoneSurrogate as found:
        where = f" in {found.way}" if found.way else ""
        raise NotAllowed(f"the string {_quoted(found.text)}{where} has a lone surrogate") from None


class _TooDeep(Exception):
    """Nested past the limit."""


class _LoneSurrogate(Exception):
    """A text that cannot be sent, and the way to it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text
        self.way = ""

    def inside(self, place: str) -> _LoneSurrogate:
        between = "." if self.way and not self.way.startswith("[") else ""
        self.way = f"{place}{between}{self.way}"
        return self


def _check(value: Any, levels: int) -> None:
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, (dict, list)):
        if levels == 0:
            raise _TooDeep
        _check_list(value, levels - 1) if isinstance(value, list) else _check_object(value, levels - 1)


def _check_list(value: list[Any], levels: int) -> None:
    for index, child in enumerate(value):
        try:
            _check(child, levels)
        except _LoneSurrogate as found:
            raise found.inside(f"[{index}]") from None


def _check_object(value: dict[str, Any], levels: int) -> None:
    for key, child in value.items():
        _check_text(key)
        try:
            _check(child, levels)
        except _LoneSurrogate as found:
            raise found.inside(_quoted(key)[1:-1]) from None


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _LoneSurrogate(text) from None


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_number, parse_constant=_constant
)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_PIECES = json.JSONEncoder(allow_nan=False)
