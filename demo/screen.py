"""How the demo is shown: aligned lines, in colour on a terminal only, and never a secret."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

WIDTH = 78
MASK = "********"

#: What says nothing to a person who watches.
_LEFT_OUT = ("created_at", "updated_at")
#: What an answer is about: shown even where it did not change.
_ALWAYS = ("state", "status")
_BOLD, _GREEN, _RED, _DIM, _PLAIN = "\033[1m", "\033[32m", "\033[31m", "\033[2m", "\033[0m"


class Screen:
    """Where the demo writes. ``secrets`` are masked in whatever is written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._colours = stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._shown: dict[str, str] = {}
        self.secrets: set[str] = set()

    def title(self, text: str) -> None:
        """The head of a part."""
        self._write("")
        self._write(text, _BOLD)

    def line(self, text: str) -> None:
        """Something to know."""
        self._write(f"   {text}")

    def good(self, text: str) -> None:
        """Something that was checked, and is so."""
        self._write(f"   ok  {text}", _GREEN)

    def bad(self, text: str) -> None:
        """What went wrong."""
        self._write(text, _RED)

    def quote(self, text: str) -> None:
        """What another program said."""
        for line in text.splitlines():
            self._write(f"   | {line}", _DIM)

    def call(self, mark: str, method: str, params: Mapping[str, Any], result: Any, seconds: float) -> None:
        """One call: what was asked, what is new in the answer, and how long that took."""
        self._write("")
        time = f"{seconds * 1000:.1f} ms"
        self._write(f"{mark}{method}{time:>{WIDTH - len(mark) - len(method)}}", _BOLD)
        asked = list(members(params))
        self._shown.update(asked)
        answered = [row for row in members(result) if row[0] in _ALWAYS or self._shown.get(row[0]) != row[1]]
        self._shown.update(answered)
        width = max(len(name) for name, _ in [*asked, *answered])
        for arrow, rows in (("->", asked), ("<-", answered)):
            for number, (name, value) in enumerate(rows):
                self._write(f"   {arrow if number == 0 else '  '} {name:<{width}}  {value}")

    def _write(self, text: str, colour: str = "") -> None:
        for secret in self.secrets:
            text = text.replace(secret, MASK)
        shown = f"{colour}{text}{_PLAIN}" if colour and self._colours else text
        print(shown, file=self._stream, flush=True)


def members(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The members of a request or an answer, one line each. Nulls and timestamps are left out."""
    for name, member in value.items():
        if isinstance(member, dict):
            yield from members(member, f"{prefix}{name}.")
        elif member is not None and name not in _LEFT_OUT:
            yield f"{prefix}{name}", member if isinstance(member, str) else json.dumps(member)
