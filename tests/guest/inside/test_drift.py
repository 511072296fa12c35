"""Whatever somebody else changes in our targets is seen, told with its kind, and mended without hurting a session."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.figures import RecordFigure
from tests.guest.inside.initiator import Initiator, read_back, write_pattern
from tests.guest.inside.program import OUT, TARGET, Program, configfs, connector

GUEST = {"together": "calls"}

FOREIGN = "iqn.2001-04.com.example:foreign"


@pytest.fixture(scope="module")
def program(base: Path) -> Iterator[Program]:
    """A daemon that looks as often as it does by default."""
    made = Program(base, '[target]\ndriver = "lio"\n')
    made.start()
    yield made
    assert made.stop() == 0


@pytest.fixture(scope="module")
def attached(program: Program, host1: Initiator, new_device: Callable[[str], str]) -> Iterator[Any]:
    """A volume with a live session."""
    program.call("register_volume", volume="vol", path=new_device("block"))
    program.call("reserve_volume", volume="vol")
    info = program.call("initialize_connection", volume="vol", connector=connector(host1.name))
    assert host1.login(info)
    yield info
    host1.logout(info)
    program.call("terminate_connection", volume="vol", connector=connector(host1.name))
    program.call("unregister_volume", volume="vol")


def ours() -> dict[str, str]:
    """The target without what is nobody's export: clearing it also rewrites the discovery secrets."""
    return {path: value for path, value in configfs().items() if "/discovery_auth/" not in path}


def tpg_of(info: dict[str, Any]) -> Path:
    return TARGET / "iscsi" / str(info["data"]["target_iqn"]) / "tpgt_1"


def unlink_lun(tpg: Path, initiator: str) -> None:
    (tpg / f"acls/{initiator}/lun_0/lun").unlink()


def drop_acl(tpg: Path, initiator: str) -> None:
    unlink_lun(tpg, initiator)
    (tpg / f"acls/{initiator}/lun_0").rmdir()
    (tpg / f"acls/{initiator}").rmdir()


def clear_everything(tpg: Path, initiator: str) -> None:
    from rtslib_fb import RTSRoot

    RTSRoot().clear_existing(confirm=True)


def write(path: str, value: str) -> Callable[[Path, str], None]:
    def drift(tpg: Path, initiator: str) -> None:
        (tpg / path.format(initiator)).write_text(value)

    return drift


#: What somebody does, how it is told, and whether a session that is right lives through it.
DRIFTS: dict[str, tuple[Callable[[Path, str], Any], str, bool]] = {
    "rogue ACL": (lambda tpg, i: (tpg / "acls/iqn.2026-11.com.example:rogue").mkdir(), "GrantUnexpected", True),
    "authentication off": (write("attrib/authentication", "0"), "ExportDiffers", True),
    "open to anybody": (write("attrib/generate_node_acls", "1"), "ExportDiffers", True),
    "another secret": (write("acls/{}/auth/password", "known-to-somebody"), "GrantDiffers", True),
    "read-only": (write("acls/{}/lun_0/write_protect", "1"), "GrantDiffers", True),
    "another portal": (lambda tpg, i: (tpg / "np/127.0.0.1:3299").mkdir(), "PortalUnexpected", True),
    "another LUN": (lambda tpg, i: (tpg / "lun/lun_7").mkdir(), "ExportDiffers", True),
    "mapping gone": (unlink_lun, "GrantDiffers", True),
    "ACL gone": (drop_acl, "GrantMissing", False),
    "portal gone": (lambda tpg, i: (tpg / "np/[::]:3260").rmdir(), "PortalMissing", False),
    "targetctl clear": (clear_everything, "ExportMissing", False),
}


@pytest.mark.parametrize("what", DRIFTS)
def test_drift_is_seen_told_and_mended(
    what: str, program: Program, host1: Initiator, attached: Any, record_figure: RecordFigure
) -> None:
    drift, kind, session_lives = DRIFTS[what]
    before, session = ours(), host1.sessions(attached["data"]["target_iqn"])
    log = OUT / "volattachd.log"
    told = log.read_text().count(f"mended {kind}")
    drift(tpg_of(attached), host1.name)
    began = time.monotonic()
    while ours() != before:
        assert time.monotonic() - began < 30, f"{what} is not mended: {set(ours().items()) ^ set(before.items())}"
        time.sleep(0.05)
    seconds = time.monotonic() - began
    record_figure("drift", f"{what}: mended after {seconds:.1f} s")
    while log.read_text().count(f"mended {kind}") == told:  # the line comes after the last step
        assert time.monotonic() - began < 30, f"{what} is mended, but nothing tells of it"
        time.sleep(0.05)
    if session_lives:
        assert host1.sessions(attached["data"]["target_iqn"]) == session
    disk = host1.disk(attached)
    wait_for_io(disk)
    data = write_pattern(disk, 5)
    assert read_back(disk, len(data)) == data


def wait_for_io(disk: Path) -> None:
    """Where the session was cut, the initiator logs in again by itself."""
    deadline = time.monotonic() + 60
    while subprocess.run(
        ["dd", f"of={disk}", "if=/dev/zero", "bs=4k", "count=1", "oflag=direct"], check=False
    ).returncode:
        assert time.monotonic() < deadline, "the session does not recover"
        time.sleep(0.2)


def test_a_target_of_ours_that_the_journal_does_not_know_goes(program: Program) -> None:
    orphan = TARGET / "iscsi/iqn.2026-11.org.volattachd:lost.12345678"
    store = TARGET / "core/fileio_1073741824/volattach-lost.12345678"
    (orphan / "tpgt_1").mkdir(parents=True)
    store.mkdir(parents=True)
    foreign = TARGET / "iscsi" / FOREIGN
    foreign.mkdir()
    deadline = time.monotonic() + 30
    while orphan.exists() or store.parent.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert foreign.exists(), "what is not ours stays"
    foreign.rmdir()


def test_a_dry_run_tells_kind_and_steps_and_changes_nothing(program: Program, host1: Initiator, attached: Any) -> None:
    program.stop()
    config = program.config.read_text()
    program.config.write_text(config + "[reconcile]\ninterval = 3600\n")
    program.start()
    try:
        assert program.call("reconcile", dry_run=True)["volumes"] == []
        tpg = tpg_of(attached)
        (tpg / "attrib/authentication").write_text("0")
        (tpg / "acls/iqn.2026-11.com.example:rogue").mkdir()
        drifted = configfs()
        [line] = program.call("reconcile", dry_run=True)["volumes"]
        assert line["differences"] == ["ExportDiffers", "GrantUnexpected"]
        base = f"iscsi/{attached['data']['target_iqn']}/tpgt_1"
        assert line["steps"] == [
            f"write {base}/acls/iqn.2026-11.com.example:rogue/auth/userid = (secret)",
            f"write {base}/acls/iqn.2026-11.com.example:rogue/cmdsn_depth = 1",
            f"rmdir {base}/np/[::]:3260",
            f"rmdir {base}/acls/iqn.2026-11.com.example:rogue",
            f"write {base}/attrib/authentication = 1",
            f"mkdir {base}/np/[::]:3260",
        ]
        assert configfs() == drifted
        [mended] = program.call("reconcile")["volumes"]
        assert mended == line
        assert program.call("reconcile", dry_run=True)["volumes"] == []
    finally:
        program.stop()
        program.config.write_text(config)
        program.start()
