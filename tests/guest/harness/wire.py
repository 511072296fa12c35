"""How the harness and the guest's agent talk: one JSON object a line. No I/O here; the agent imports this file too.

Bytes travel as base64 in pieces that are small beside a serial line's buffers.
"""

from __future__ import annotations

import binascii
import json

# Imports that only types need are left out where it counts: each costs the guest's boot some 30 ms.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Message = dict[str, Any]

PIECE = 3072


def encode(message: Message) -> bytes:
    """One message as one line."""
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


def pieces(ident: int, stream: str, data: bytes) -> Iterator[Message]:
    """The output of one command as messages."""
    for at in range(0, len(data), PIECE):
        text = binascii.b2a_base64(data[at : at + PIECE], newline=False).decode()
        yield {"id": ident, "event": "data", "stream": stream, "data": text}


def piece_bytes(message: Message) -> bytes:
    """The bytes in one message that `pieces` made."""
    return binascii.a2b_base64(message["data"])


class Decoder:
    """Cuts a stream of bytes into messages, however the stream was cut on its way."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that these bytes complete. A line that is no JSON object is a ValueError."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if not isinstance(message, dict):
                raise ValueError(f"not an object: {line[:80]!r}")
            yield message
