from __future__ import annotations

import stat
from pathlib import Path

import pytest

from volattachd.agent.answers import IscsiInfo
from volattachd.agent.errors import ConnectFailed, ConnectorUnusable, PortalBusy, PortalSilent
from volattachd.agent.open_iscsi import Node, initiator_name, settings_for, with_settings

RECORD = """\
# BEGIN RECORD 2.1.8
node.name = iqn.2026-11.org.example:vol-1
node.startup = automatic
node.session.auth.authmethod = None
node.session.auth.username_in = kept
node.conn[0].address = 127.0.0.1
# END RECORD
"""
INFO = IscsiInfo("iqn.2026-11.org.example:vol-1", ("127.0.0.1:3260",), 0, "volattach-1", "s3cret")


def test_a_record_is_changed_where_it_must_be_and_nowhere_else() -> None:
    changed = with_settings(RECORD, settings_for("iqn.2026-11.com.example:host", INFO))
    lines = changed.splitlines()
    assert (lines[0], lines[-1]) == ("# BEGIN RECORD 2.1.8", "# END RECORD")
    told = dict(line.split(" = ", 1) for line in lines[1:-1])
    assert len(told) == len(lines) - 2, "no name stands twice"
    assert told["node.session.auth.authmethod"] == "CHAP"
    assert told["node.session.auth.password"] == "s3cret"
    assert told["iface.initiatorname"] == "iqn.2026-11.com.example:host"
    assert told["node.startup"] == "manual", "nothing logs in by itself after a reboot"
    assert told["node.session.auth.username_in"] == "kept"
    assert with_settings(changed, settings_for("iqn.2026-11.com.example:host", INFO)) == changed


def test_a_record_is_exchanged_for_one_that_root_alone_reads(tmp_path: Path) -> None:
    path = tmp_path / "nodes/iqn.x/127.0.0.1,3260"
    path.parent.mkdir(parents=True)
    path.write_text(RECORD)
    path.chmod(0o644)
    (tmp_path / ".iqn.x.new").write_text("of an agent that died here")
    Node("iqn.x", [tmp_path])._exchange(tmp_path, path, {"a": "b"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and "a = b" in path.read_text()
    assert not (tmp_path / ".iqn.x.new").exists()


def test_what_an_agent_left_that_died_while_it_wrote_is_known(tmp_path: Path) -> None:
    assert not Node("iqn.x", [tmp_path]).is_known()
    (tmp_path / ".iqn.x.new").touch()
    assert Node("iqn.x", [tmp_path]).is_known()


def test_the_initiators_name_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "name"
    with pytest.raises(ConnectorUnusable, match="this host has no"):
        initiator_name(file)
    file.write_text("## comment\nInitiatorAlias=x\n")
    with pytest.raises(ConnectorUnusable, match="has no line InitiatorName="):
        initiator_name(file)
    file.write_text("## comment\nInitiatorName=iqn.1993-08.org.debian:01:abc\n")
    assert initiator_name(file) == "iqn.1993-08.org.debian:01:abc"


@pytest.fixture
def iscsiadm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for iscsiadm: each command takes the next exit code from a file, and 0 when there is none left."""
    codes = tmp_path / "codes"
    program = tmp_path / "bin" / "iscsiadm"
    program.parent.mkdir()
    script = f'code=$(sed -n 1p {codes}); sed -i 1d {codes}; echo "said $code"; exit ${{code:-0}}'
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return codes


@pytest.mark.parametrize("code", [0, 15])
def test_a_session_that_is_there_already_is_as_good_as_a_new_one(iscsiadm: Path, code: int) -> None:
    iscsiadm.write_text(f"{code}\n")
    Node("iqn.2026-11.org.example:vol-1").log_in("127.0.0.1:3260")
    assert iscsiadm.read_text() == ""


@pytest.mark.parametrize(
    ("code", "kind"),
    [(8, PortalSilent), (11, PortalBusy), (4, ConnectFailed), (19, ConnectFailed), (24, ConnectFailed)],
)
def test_a_login_that_ran_out_of_time_is_no_refusal(iscsiadm: Path, code: int, kind: type[Exception]) -> None:
    iscsiadm.write_text(f"{code}\n0\n")
    with pytest.raises(ConnectFailed, match="cannot log in to") as raised:
        Node("iqn.2026-11.org.example:vol-1").log_in("127.0.0.1:3260")
    assert type(raised.value) is kind
    assert iscsiadm.read_text() == "0\n", "whoever asked decides about another try"
