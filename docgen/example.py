"""The example of the configuration: every key with its default, and a line on what it means."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from volattachd import config

_HEAD = f"""\
# {config.DEFAULT_FILE}: every key with its default. An empty file does the same.
# Times are in seconds. More on each: volattachd.toml(5), docs/configuration.md. After a change:
# volattachd --check-config, then a restart of the daemon, which touches no session.
"""


_INITIATORS = """\
[initiators]
# Binds the names of initiators to the users that may connect with them. Nobody else can use a bound name.
# "iqn.2026-11.com.example:alpha" = "alice"
# "iqn.2026-11.com.example:beta" = ["alice", "bob"]
"""


def write_example() -> str:
    """The text of the file."""
    sections = groupby(config.keys(), key=lambda row: row[0])
    return "\n".join([_HEAD, *("\n".join(_section(name, rows)) for name, rows in sections), _INITIATORS])


def _section(name: str, rows: Any) -> list[str]:
    lines = [f"[{name}]"]
    for _, key, summary, default in rows:
        lines += [f"# {summary[0].upper()}{summary[1:]}.", f"{key} = {toml(default)}"]
    return [*lines, ""]


def toml(value: Any) -> str:
    """A value as it is written in the file."""
    if isinstance(value, Path):
        return json.dumps(str(value))
    return json.dumps(list(value) if isinstance(value, tuple) else value)
