"""Text in the language of man pages (man(7)): every function gives lines."""

from __future__ import annotations

import re
from collections.abc import Iterable

from volattachd import __version__

#: Of the last change to the texts: a page must not differ by the day on which it was made.
_DATE = "2026-11-22"


def page(name: str, section: int, *parts: Iterable[str]) -> str:
    """A whole page."""
    head = [
        ".\\\" Made by `python -m docgen` from the program's own tables: change those.",
        f'.TH {name.upper()} {section} {_DATE} "volattachd {__version__}"',
        ".nh",
        ".ad l",
    ]
    return "\n".join([*head, *(line for part in parts for line in part)]) + "\n"


def section(title: str, *parts: Iterable[str]) -> list[str]:
    """A section with what is in it."""
    return [f".SH {title}", *_body(parts)]


def subsection(title: str, *parts: Iterable[str]) -> list[str]:
    """A part of a section."""
    return [f'.SS "{escape(title)}"', *_body(parts)]


def _body(parts: Iterable[Iterable[str]]) -> list[str]:
    """What stands under a title, which begins a paragraph already."""
    lines = [line for part in parts for line in part]
    return lines[1:] if lines[:1] == [".PP"] else lines


def text(*sentences: str) -> list[str]:
    """A paragraph, a sentence on each line. ``*word*`` is bold."""
    return [".PP", *map(_marked, sentences)]


def entry(term: str, *sentences: str) -> list[str]:
    """A term and what it means."""
    return [".TP", f"\\fB{escape(term)}\\fR", *map(_marked, sentences)]


def example(*lines: str) -> list[str]:
    """Lines as they are typed."""
    return [".PP", ".nf", ".RS 4", *map(_line, lines), ".RE", ".fi"]


def escape(words: str) -> str:
    """Words as they are: what roff would take for its own is written so that it does not."""
    return words.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")


def _line(words: str) -> str:
    """A line of text: a line that begins with a dot or a quote would be a command, and groff warns of a blank line."""
    escaped = escape(words)
    return f"\\&{escaped}" if escaped[:1] in ("", ".", "'") else escaped


def _marked(words: str) -> str:
    return re.sub(r"\*(\S.*?)\*", r"\\fB\1\\fR", _line(words))
