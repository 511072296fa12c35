"""Many volumes with an attachment each, written straight into the journal: what a host with a history looks like.

The next start makes their exports, as it does after a reboot. A call for each of them would take minutes.
"""

from __future__ import annotations

from pathlib import Path

from tests.support import connector, make_file
from volattachd.host.devices import inspect_device
from volattachd.model import DAEMON, Attachment, Mode, Secret, State, Volume, now
from volattachd.state.journal import Change, Journal

SIZE = 1 << 20


def add_crowd(journal: Journal, directory: Path, prefix: str, numbers: range) -> None:
    """Attached volumes with these numbers, each on a sparse file of its own in ``directory``."""
    for number in numbers:
        volume = _volume(directory, prefix, number)
        journal.commit(Change("register_volume", DAEMON, volume.id, put=volume))
        row = _attachment(volume, number)
        journal.commit(Change("attach", DAEMON, volume.id, row.id, put=row))


def _volume(directory: Path, prefix: str, number: int) -> Volume:
    name = f"crowd-{number}"
    path = make_file(directory / f"{name}.img", SIZE)
    serial = f"{number:07x}0-0000-4000-8000-000000000000"
    return Volume(
        id=name,
        path=path,
        device=inspect_device(path),
        multiattach=False,
        read_only=False,
        target_name=f"{prefix}:{name}.{serial[:8]}",
        serial=serial,
        created_at=now(),
    )


def _attachment(volume: Volume, number: int) -> Attachment:
    at = now()
    return Attachment(
        f"cccccccc-0000-4000-8000-{number:012x}",
        volume.id,
        State.ATTACHED,
        Mode.RW,
        0,
        at,
        at,
        connector=connector(f"iqn.2026-11.com.example:crowd-{number}"),
        secret=Secret(f"user-{number}", f"password-{number}"),
        host_name="crowd",
    )
