"""python -m tests.golden: makes the state file of the present schema version, and what is to be read from it.

Done once for each version, when it is released. Files of released versions are never made again: that they open is
what they are for.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from tests.golden import HERE, facts, state_file
from tests.support import ADMIN, Rig
from volattachd.model import State
from volattachd.state.journal import SCHEMA_VERSION

IN_EACH_STATE = (State.RESERVED, State.CONNECTED, State.ATTACHED, State.DETACHING, State.DISCONNECTED)


def fill(rig: Rig) -> None:
    """A bit of everything: each state, ended attachments and volumes, with and without their history."""
    rig.register("vol-gone")
    rig.reach(State.GONE, "vol-gone", 1)
    rig.service.unregister_volume(ADMIN, "vol-gone")
    rig.register("vol-old")
    rig.reach(State.GONE, "vol-old", 2)
    rig.journal.count_hour()
    rig.journal.trim(hours=0, rows=1_000_000, at_most=1000)
    rig.journal.count_hour()
    rig.register("vol-shared", multiattach=True)
    for number, state in enumerate(IN_EACH_STATE, start=3):
        rig.reach(state, "vol-shared", number, initiator=f"iqn.2026-11.org.example:host-{number}")
    rig.register("vol-new", read_only=True)
    rig.service.reserve_volume(ADMIN, "vol-new", mode="ro", ttl=60.0)
    rig.reach(State.GONE, "vol-old", 8)


def main() -> None:
    path = state_file(SCHEMA_VERSION)
    directory = Path(tempfile.gettempdir()) / "volattachd-golden"  # a fixed name: it is in the file
    directory.mkdir()
    try:
        rig = Rig(directory)
        fill(rig)
        rig.service.backup_journal(ADMIN, str(path))
        told = facts(rig.journal)
        rig.journal.close()
    finally:
        shutil.rmtree(directory)
    path.with_suffix(".json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"made {path.relative_to(HERE.parents[1])}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
