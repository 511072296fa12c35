"""A hostile storage host and the real commands, as root: no command is given an evil value, and no file changes."""

from __future__ import annotations

import os
import random
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.hostile_daemon import EVIL, HARMLESS, TARGET, VOLUME, Honest, Place, hostile
from tests.guest.inside.agent.compute import rename_initiator
from volattachd.agent.identity import new_id
from volattachd.cli import main

GUEST = {"timeout": 600.0}

SEED, DRAWN = 20, 10
#: A user name or secret may be one of the others: a real login with it takes half a minute to fail.
REFUSED = [evil for evil in EVIL if evil not in HARMLESS]

COMMANDS = ("iscsiadm", "multipath", "multipathd", "losetup")
WATCHED = ("/etc", "/var/lib/iscsi", "/root", "/tmp", "/run/volattach", "/srv", "/opt")
#: Locks without content, and what commands of the host rewrite by themselves.
QUIET = {"volumes.lock", "open-iscsi.lock"}

_DATA = ("target_portal", "target_iqn", "target_lun", "auth_method", "auth_username", "auth_password")
_INFO = [Place("initialize_connection", ("data", name)) for name in _DATA]
_INFO += [
    Place("initialize_connection", ("data", name, 0)) for name in ("target_portals", "target_iqns", "target_luns")
]
_VOLUME = [Place("show_volume", (name,)) for name in ("volume", "target_name", "serial", "multiattach")]
_ROW = [Place("list_attachments", (0, name)) for name in ("attachment_id", "volume", "state", "owner")]
WAYS = [("attach", place) for place in (*_VOLUME, *_INFO, Place("reserve_volume", ("attachment_id",)))]
WAYS += [("detach", place) for place in (*_VOLUME, *_ROW)]


@pytest.fixture(scope="module")
def argv(base: Path) -> Iterator[Path]:
    """What commands are given: each leads to the real one, and leaves its words here."""
    rename_initiator("iqn.2026-11.com.example:hostile")
    log, programs = base / "argv", base / "bin"
    programs.mkdir()
    for name in COMMANDS:
        real = shutil.which(name)
        stand_in = programs / name
        stand_in.write_text(f'#!/bin/sh\nprintf "%s\\n" "{name}" "$@" >>{log}\nexec {real or "/bin/false"} "$@"\n')
        stand_in.chmod(0o755)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{programs}:{before}"
    yield log
    os.environ["PATH"] = before


def files() -> dict[str, tuple[int, int]]:
    """Every file that matters, by its size and the time of its last change."""
    found = (path for place in WATCHED for path in Path(place).rglob("*") if path.name not in QUIET)
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found if not path.is_dir()}


@pytest.mark.parametrize(("command", "place"), WAYS, ids=lambda value: str(value))
def test_no_command_is_given_an_evil_value_and_no_file_changes(
    command: str, place: Place, argv: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files()
    attachment = new_id(socket.gethostname(), VOLUME)
    for evil in random.Random(f"{SEED} {command} {place}").sample(REFUSED, DRAWN):
        argv.write_text("")
        honest = (
            Honest(state="attached", attachment_id=attachment, made_by="iscsi") if command == "detach" else Honest()
        )
        with hostile(base / "hostile.sock", honest, place, evil) as daemon:
            code = main(["--socket", daemon.path, "--timeout", "5", command, VOLUME])
        assert daemon.struck
        said = capsys.readouterr()
        assert code in range(10), (evil, said)
        assert set(argv.read_text().splitlines()) & texts(evil) == set(), evil
        assert not [line for line in argv.read_text().splitlines() if line.startswith("iqn.") and line != TARGET]
    assert files() == before


def texts(evil: Any) -> set[str]:
    """The lines that an argument with this value would have left."""
    return {line for line in str(evil).splitlines() if line.strip()} - {"127.0.0.1:3260", "0", "1"}
