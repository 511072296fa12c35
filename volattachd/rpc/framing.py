"""Where one JSON value of a stream ends and the next begins. Sans-I/O: bytes in, frames out.

Rules:

1. A stream is JSON values with any white space, or none, between them: newlines mean nothing.
2. The frames depend on the bytes alone, never on how they were cut into chunks.
3. Each byte is looked at a fixed number of times: what was scanned is never scanned again.
4. A value that is too deep is passed over as a whole, and the stream goes on. After a message that is too
   long, a byte that can begin no value, or a bracket that closes another one, nobody can say where the next
   message begins: the stream is broken. It gives that one refusal and never a frame again.

Only brackets and quotes are looked at here; whether a frame is JSON is for ``strictjson`` to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from volattachd.rpc.strictjson import MAX_BYTES, MAX_DEPTH, NotAllowed, NotJson, Refused

_SPACE = re.compile(rb"[ \t\n\r]*")
_SCALAR_END = re.compile(rb'[ \t\n\r\[\]{}",:]')
_STRING_STOP = re.compile(rb'["\\]')
#: What needs no decision inside an object or array. Strings without escapes are taken along for speed, a
#: bounded number at a time since the matcher keeps a way back for each; others are left to ``_string``.
_PLAIN = re.compile(rb'[^\[\]{}"]*(?:"[^"\\]*"[^\[\]{}"]*){0,64}')

_QUOTE, _BACKSLASH = b'"\\'
_OPENING = b"[{"
_SCALAR_STARTS = b"-0123456789tfn"


class Frame(NamedTuple):
    """The bytes of one value, or why a value was refused (``data`` is then empty)."""

    data: bytes
    error: Refused | None = None


class Decoder:
    """Cuts one stream into frames. Feed it what arrives, in any pieces, and close it at the stream's end."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> None:
        self.broken = False
        self._max_bytes = max_bytes
        self._max_depth = max_depth
        self._frames: list[Frame] = []
        self._held = bytearray()  # the current value's bytes out of earlier chunks
        self._from = 0  # where in this chunk the current value's bytes begin
        self._offset = 0  # of this chunk in the stream
        self._closers = bytearray()  # the brackets that are still to come, innermost last
        self._too_deep = False
        # A plain function, no bound method: a decoder is no reference cycle and is freed with its connection.
        self._scan: Callable[[Decoder, bytes, int], int] = Decoder._between

    @property
    def pending(self) -> int:
        """How many bytes of an incomplete message are held; 0 between messages."""
        return len(self._held)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes."""
        self._from = position = 0
        while position < len(data) and not self.broken:
            position = self._scan(self, data, position)
        if self._inside and self._fits(len(data)):
            self._held += data[self._from :]
        self._offset += len(data)
        return self._take()

    def close(self) -> list[Frame]:
        """The frame that the stream's end completes (a number, say), or the refusal of half a message."""
        if self._scan is Decoder._scalar:
            self._from = 0
            self._finish(b"", 0)
        elif self._inside:
            self._break(NotJson(f"the stream ended inside a message, after {self.pending} bytes of it"))
        self.broken = True
        return self._take()

    @property
    def _inside(self) -> bool:
        return not self.broken and self._scan is not Decoder._between

    def _take(self) -> list[Frame]:
        frames, self._frames = self._frames, []
        return frames

    def _between(self, data: bytes, position: int) -> int:
        """Between values: finds the first byte of the next one."""
        start = self._from = _end(_SPACE, data, position)
        if start == len(data):
            return start
        if data[start] in _OPENING:
            self._scan = Decoder._body
        elif data[start] == _QUOTE:
            self._scan = Decoder._string
            return start + 1
        elif data[start] in _SCALAR_STARTS:
            self._scan = Decoder._scalar
        else:
            self._break(NotJson(f"{self._describe(data, start)} cannot begin a JSON value"))
        return start

    def _scalar(self, data: bytes, position: int) -> int:
        """In a number or a word: it ends before the first byte that cannot be part of it."""
        found = _SCALAR_END.search(data, position)
        if found is None:
            return len(data)
        if self._fits(found.start()):
            self._finish(data, found.start())
        return found.start()

    def _string(self, data: bytes, position: int) -> int:
        """After an opening quote: finds the closing one."""
        found = _STRING_STOP.search(data, position)
        if found is None:
            return len(data)
        end = found.end()
        if not self._fits(end):
            return end
        if data[end - 1] == _BACKSLASH:
            self._scan = Decoder._escaped
        elif self._closers:
            self._scan = Decoder._body
        else:
            self._finish(data, end)
        return end

    def _escaped(self, data: bytes, position: int) -> int:
        """After a backslash: whatever comes next, it ends no string."""
        self._scan = Decoder._string
        return position + 1

    def _body(self, data: bytes, position: int) -> int:
        """In an object or array and outside strings: finds the next bracket or quote."""
        stop = _end(_PLAIN, data, position)
        if stop == len(data) or not self._fits(stop + 1):
            return stop
        if data[stop] == _QUOTE:
            self._scan = Decoder._string
        elif data[stop] in _OPENING:
            self._closers.append(data[stop] + 2)  # in ASCII "]" is "[" + 2, and "}" is "{" + 2
            self._too_deep = self._too_deep or len(self._closers) > self._max_depth
        else:
            self._close_bracket(data, stop)
        return stop + 1

    def _close_bracket(self, data: bytes, position: int) -> None:
        expected = self._closers.pop()
        if data[position] != expected:
            self._break(NotJson(f"{self._describe(data, position)} stands where {chr(expected)!r} is due"))
        elif not self._closers:
            self._finish(data, position + 1)

    def _finish(self, data: bytes, end: int) -> None:
        if self._too_deep:
            reason = f"arrays and objects are nested more than {self._max_depth} levels deep"
            self._frames.append(Frame(b"", NotAllowed(reason)))
        else:
            self._frames.append(Frame(bytes(self._held) + data[self._from : end]))
        self._reset()

    def _fits(self, end: int) -> bool:
        """Whether the current value is within the limit up to ``end``.

        Asked before anything is decided there: of two refusals the one that comes first is given.
        """
        if len(self._held) + end - self._from <= self._max_bytes:
            return True
        self._break(NotAllowed(f"the message is longer than {self._max_bytes} bytes"))
        return False

    def _break(self, error: Refused) -> None:
        self._frames.append(Frame(b"", error))
        self._reset()
        self.broken = True

    def _reset(self) -> None:
        self._held = bytearray()
        self._closers.clear()
        self._too_deep = False
        self._scan = Decoder._between

    def _describe(self, data: bytes, position: int) -> str:
        byte = data[position]
        shown = repr(chr(byte)) if 0x20 < byte < 0x7F else f"byte 0x{byte:02x}"
        return f"{shown} at offset {self._offset + position} of the stream"


def _end(pattern: re.Pattern[bytes], data: bytes, position: int) -> int:
    """The end of a match of a pattern that matches everywhere."""
    match = pattern.match(data, position)
    return position if match is None else match.end()
