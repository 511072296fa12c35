"""State files as each released schema version wrote them, and what is to be read from them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.support import attachment_id
from volattachd.state.journal import Journal

HERE = Path(__file__).parent


def state_file(version: int) -> Path:
    """The file of a version."""
    return HERE / f"journal-{version}.db"


def facts(journal: Journal) -> Any:
    """All that a journal knows, as JSON gives it back."""
    told = {
        "seq": journal.seq,
        "kept": journal.kept(),
        "volumes": [asdict(volume) for volume in journal.volumes.values()],
        "attachments": [asdict(row) for row in journal.attachments.all()],
        "history": journal.history(since=0, limit=1000),
        "ended": [journal.last_of(attachment_id(number)) for number in (1, 2, 8)],
        "unregistered": [journal.was_unregistered(name) for name in ("vol-gone", "vol-never")],
    }
    return json.loads(json.dumps(told))
