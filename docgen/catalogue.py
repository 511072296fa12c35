"""The message catalogue: what ``journalctl -x`` says of each kind of record (systemd.io/CATALOG)."""

from __future__ import annotations

import textwrap

from volattachd.telemetry.messages import Kind, kinds

_HEAD = """\
# What `journalctl -x` says of volattachd's records. Made by `make docs`; change volattachd/telemetry/messages.py.
"""


def write_catalogue() -> str:
    """The text of the file, an entry for each kind."""
    return "\n".join([_HEAD, *(_entry(kind) for kind in kinds().values())])


def _entry(kind: Kind) -> str:
    return "\n".join(
        [
            f"-- {kind.id}",
            f"Subject: {kind.subject}",
            "Defined-By: volattachd",
            "Documentation: man:volattachd(8)",
            "",
            textwrap.fill(kind.explanation, 78, break_long_words=False, break_on_hyphens=False),
            "",
        ]
    )
