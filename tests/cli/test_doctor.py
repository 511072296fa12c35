from __future__ import annotations

import json
import logging
import os
import shlex
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.fake_daemon import failure, result
from tests.support import AGENT, Rig
from tests.support import serving as served
from volattachd.api.access import Access, Peer
from volattachd.api.methods import Role
from volattachd.cli import doctor, facts
from volattachd.cli.doctor import CHECKS, Finding
from volattachd.cli.facts import Daemon, Host, Session
from volattachd.client.connection import Connection
from volattachd.client.protocol import AccessRefused, Unreachable
from volattachd.config import Config

NAME = "iqn.1993-08.org.debian:01:host1"
TARGET = "iqn.2026-11.org.volattachd:vol-1.12345678"
STATUS = {"ready": True, "degraded": [], "version": "0.1.0", "driver": "lio", "portals": ["10.0.0.1:3260"]}
VOLUME: dict[str, Any] = {"volume": "vol-1", "target_name": TARGET, "conditions": []}
ROW: dict[str, Any] = {
    "volume": "vol-1",
    "state": "attached",
    "owner": 0,
    "connector": {"initiator": NAME, "host": "host1"},
}

DAEMON = Daemon("/run/d.sock", status=STATUS, volumes=(VOLUME,), attachments=(ROW,), role="agent", uid=0)
HOST = Host(
    name="host1",
    version="0.1.0",
    loaded=frozenset({"target_core_mod", "iscsi_target_mod", "iscsi_tcp"}),
    configfs=True,
    initiator=NAME,
    has_iscsiadm=True,
    services=frozenset({"iscsid"}),
    sessions=(Session("session1", TARGET, NAME),),
    records=(TARGET,),
    portals={"10.0.0.1:3260": None},
)

Change = Mapping[str, Any]


def status(**changes: Any) -> Change:
    return {"status": {**STATUS, **changes}}


#: What is broken, how the facts change, and the level and the words of the one new finding.
BROKEN: list[tuple[str, Change, Change, str, str]] = [
    ("daemon", {"error": Unreachable("cannot reach it", "start it")}, {}, "problem", "cannot reach it; start it"),
    ("daemon", {"error": AccessRefused("may not", "join")}, {}, "problem", "may not; join"),
    ("daemon", status(degraded=["vol-1: DeviceMissing"]), {}, "problem", "degraded: vol-1: DeviceMissing"),
    ("daemon", status(ready=False), {}, "warning", "still starting; wait"),
    ("version", status(version="0.2.0"), {}, "warning", "the daemon is 0.2.0, this command is 0.1.0; install"),
    ("role", {"role": "reader"}, {}, "warning", "this user is reader; become a member"),
    (
        "volumes",
        {"volumes": ({**VOLUME, "conditions": [{"kind": "DeviceMissing", "message": "no /dev/x", "since": 1}]},)},
        {},
        "problem",
        "volume 'vol-1': DeviceMissing: no /dev/x; volattach reconcile",
    ),
    (
        "target",
        {},
        {"loaded": frozenset({"target_core_mod"}), "loadable": frozenset({"iscsi_target_mod", "iscsi_tcp"})},
        "warning",
        "iscsi_target_mod is not loaded; modprobe iscsi_target_mod",
    ),
    ("target", {}, {"loaded": HOST.loaded - {"target_core_mod"}}, "problem", "this kernel has no target_core_mod; run"),
    ("target", {}, {"configfs": False}, "problem", "configfs is not mounted; mount -t configfs"),
    (
        "portals",
        {},
        {"portals": {"10.0.0.1:3260": "No route to host"}},
        "problem",
        "10.0.0.1:3260 cannot be reached: No route to host; see the addresses",
    ),
    (
        "initiator",
        {"address": "ssh://storage1"},
        {"has_iscsiadm": False},
        "warning",
        "no iscsiadm on this host; apt install open-iscsi",
    ),
    ("initiator", {}, {"loaded": HOST.loaded - {"iscsi_tcp"}}, "problem", "this kernel has no iscsi_tcp; run"),
    ("initiator", {}, {"services": frozenset()}, "warning", "iscsid does not run; systemctl enable"),
    ("initiator", {}, {"initiator": None}, "problem", "names no initiator; echo"),
    ("initiator", {}, {"initiator": "host 1"}, "problem", "is no iSCSI name; echo"),
    (
        "initiator",
        {"attachments": (ROW, {**ROW, "connector": {"initiator": NAME.upper(), "host": "host2"}})},
        {},
        "problem",
        "host 'host2' attached 'vol-1' with this host's initiator name; the copy needs a name",
    ),
    (
        "initiator",
        {"attachments": (ROW, {**ROW, "owner": 1001, "connector": {"initiator": NAME, "host": "host2"}})},
        {},
        "problem",
        "with this host's initiator name, as uid 1001; bind the name to its user: [initiators]",
    ),
    (
        "initiator",
        {},
        {"initiator": None, "hidden": True},
        "warning",
        "may not read /etc/iscsi/initiatorname.iscsi; run",
    ),
    (
        "multipath",
        status(portals=["10.0.0.1:3260", "10.0.1.1:3260"]),
        {},
        "warning",
        "several portals, and no multipathd runs here: one path that is lost stops the I/O; apt install",
    ),
    (
        "leftovers",
        {},
        {"sessions": (*HOST.sessions, Session("session2", TARGET.replace("1234", "0000"), NAME))},
        "problem",
        "session2 is logged in",
    ),
    (
        "leftovers",
        {},
        {"sessions": (*HOST.sessions, Session("session2", TARGET, "iqn.2026-11.org.example:other"))},
        "problem",
        "session2 is logged in",
    ),
    ("leftovers", {}, {"records": (TARGET, TARGET + "0")}, "warning", f"node record of {TARGET}0, and no"),
    ("leftovers", {}, {"records": None}, "warning", "may not read the node records of open-iscsi; run it as root"),
]


def found(daemon: Daemon, host: Host) -> list[Finding]:
    return [finding for check in CHECKS for finding in check(daemon, host)]


def test_on_a_healthy_host_everything_is_ok() -> None:
    assert {(finding.level, finding.correction) for finding in found(DAEMON, HOST)} == {("ok", None)}
    assert {finding.check for finding in found(DAEMON, HOST)} == {"daemon", "role", "target", "portals", "initiator"}


@pytest.mark.parametrize(("check", "daemon", "host", "level", "words"), BROKEN)
def test_what_is_broken_is_named_with_what_to_do(
    check: str, daemon: Change, host: Change, level: str, words: str
) -> None:
    bad = [finding for finding in found(replace(DAEMON, **daemon), replace(HOST, **host)) if finding.level != "ok"]
    (finding,) = bad
    assert (finding.check, finding.level) == (check, level)
    assert words in f"{finding.message}; {finding.correction}"


def test_every_check_is_broken_once() -> None:
    for check in CHECKS:
        assert any(
            list(check(replace(DAEMON, **daemon), replace(HOST, **host))) != list(check(DAEMON, HOST))
            for _, daemon, host, _, _ in BROKEN
        ), check.__name__


@pytest.mark.parametrize(
    ("daemon", "host"),
    [
        ({"address": "ssh://storage1"}, {"loaded": frozenset({"iscsi_tcp"}), "configfs": False}),
        (status(driver="tgt"), {"loaded": frozenset({"iscsi_tcp"}), "configfs": False}),
        ({}, {"has_iscsiadm": False, "initiator": None, "services": frozenset()}),
        ({}, {"sessions": (*HOST.sessions, Session("session2", "iqn.2003-01.com.example:disk", NAME))}),
        ({}, {"records": (TARGET, "iqn.2003-01.com.example:disk")}),
        ({"attachments": ()}, {"portals": {"10.0.0.1:3260": "refused"}, "sessions": (), "records": ()}),
    ],
    ids=[
        "target elsewhere",
        "no kernel target",
        "serves only",
        "foreign session",
        "foreign record",
        "nothing exported",
    ],
)
def test_what_is_nobodys_fault_is_no_finding(daemon: Change, host: Change) -> None:
    assert {finding.level for finding in found(replace(DAEMON, **daemon), replace(HOST, **host))} == {"ok"}


@pytest.mark.parametrize("initiator", [None, "host 1", NAME])
@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("owner", [0, 1001])
def test_a_user_is_never_given_a_command_that_renames_the_initiator(
    initiator: str | None, hidden: bool, owner: int
) -> None:
    copied = {**ROW, "owner": owner, "connector": {"initiator": NAME, "host": "host2"}}
    host = replace(HOST, initiator=initiator, hidden=hidden, is_root=False)
    for finding in found(replace(DAEMON, attachments=(copied,)), host):
        assert "iscsi-iname" not in f"{finding.correction}"


def test_a_name_in_a_proposed_command_is_one_word_of_a_shell(tmp_path: Path) -> None:
    evil = f"{TARGET.partition(':')[0]}:x; touch y"
    host = replace(HOST, sessions=(Session("session9", evil, NAME),), records=(evil,))
    commands = [finding.correction for finding in found(DAEMON, host) if finding.check == "leftovers"]
    assert len(commands) == 2
    for command in commands:
        assert evil in shlex.split(str(command).rpartition("then: ")[2])


def test_without_the_daemon_the_hosts_own_faults_are_still_told() -> None:
    gone = Daemon("/run/d.sock", Unreachable("cannot reach it"))
    bare = replace(HOST, has_daemon=True, loaded=frozenset(), configfs=False, initiator=None)
    told = [finding.check for finding in found(gone, bare) if finding.level == "problem"]
    assert told == ["daemon", "target", "target", "target", "initiator", "initiator"]


def test_the_default_prefix_is_the_daemons() -> None:
    assert Config().iqn_prefix == doctor._DEFAULT_PREFIX


# The facts.


def lay_out(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_facts_of_a_host(tmp_path: Path) -> None:
    lay_out(
        tmp_path,
        {
            "sys/module/target_core_mod/refcnt": "1\n",
            f"lib/modules/{os.uname().release}/modules.dep": "kernel/drivers/target/iscsi/iscsi_target_mod.ko: a.ko\n",
            f"lib/modules/{os.uname().release}/modules.builtin": "kernel/drivers/scsi/iscsi_tcp.ko\n",
            "proc/self/mounts": "none /sys/kernel/config configfs rw 0 0\n",
            "proc/net/unix": "Num RefCount\n000: 00000002 00000000 00010000 0001 01 1 @ISCSIADM_ABSTRACT_NAMESPACE\n",
            "etc/iscsi/initiatorname.iscsi": f"## DO NOT EDIT\n#InitiatorName=old\nInitiatorName={NAME}\n",
            "usr/sbin/iscsiadm": "",
            "sys/class/iscsi_session/session3/targetname": TARGET + "\n",
            "sys/class/iscsi_session/session3/initiatorname": NAME + "\n",
            f"etc/iscsi/nodes/{TARGET}/10.0.0.1,3260,1": "",
        },
    )
    seen = facts.look({}, str(tmp_path))
    assert seen == Host(
        name=socket.gethostname(),
        is_root=os.geteuid() == 0,
        loaded=frozenset({"target_core_mod"}),
        loadable=frozenset({"iscsi_target_mod", "iscsi_tcp"}),
        configfs=True,
        initiator=NAME,
        has_iscsiadm=True,
        services=frozenset({"iscsid"}),
        sessions=(Session("session3", TARGET, NAME),),
        records=(TARGET,),
    )


def test_a_host_with_nothing_is_a_fact_too(tmp_path: Path) -> None:
    assert facts.look({}, str(tmp_path)) == Host(name=socket.gethostname(), is_root=os.geteuid() == 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become another user")
def test_a_name_that_this_user_may_not_read_is_not_one_that_is_missing() -> None:
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        lay_out(Path(root), {"etc/iscsi/initiatorname.iscsi": f"InitiatorName={NAME}\n"})
        Path(root, "etc/iscsi/initiatorname.iscsi").chmod(0o600)
        os.seteuid(65534)
        try:
            seen, bare = facts.look({}, root), facts.look({}, f"{root}/none")
        finally:
            os.seteuid(0)
    assert (seen.hidden, seen.initiator, seen.is_root) == (True, None, False)
    assert (bare.hidden, bare.initiator) == (False, None)


def test_a_portal_is_tried() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        listener.listen()
        assert facts.look({"p": address}).portals == {"p": None}
        listener.close()
        assert "refused" in str(facts.look({"p": address}).portals["p"])


@pytest.mark.parametrize(
    ("portal", "address", "tried"),
    [
        ("10.0.0.1:3260", "ssh://storage1", "10.0.0.1:3260"),
        ("[fd00::1]:3261", "/run/d.sock", "[fd00::1]:3261"),
        ("0.0.0.0:3260", "/run/d.sock", "127.0.0.1:3260"),
        ("[::]:3260", "/run/d.sock", "[::1]:3260"),
        ("0.0.0.0:3260", "ssh://ops@storage1:22", "storage1:3260"),
        ("[::]:3260", "ssh://[fd00::1]", "[fd00::1]:3260"),
    ],
)
def test_a_portal_on_every_address_is_tried_where_the_daemon_is(portal: str, address: str, tried: str) -> None:
    assert facts.reachable_at(portal, address) == tried


class Everybody(Access):
    """Gives every caller one role."""

    def __init__(self, role: Role) -> None:
        super().__init__(Config())
        self._role = role

    def role_of(self, peer: Peer) -> Role:
        return self._role


@pytest.mark.parametrize("role", Role)
def test_the_role_is_shown_and_nothing_happens(role: Role, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(tmp_path)
    rig.register("vol-1")
    rig.service.reserve_volume(AGENT, "vol-1")
    before = rig.journal.history(limit=100)
    path = tmp_path / "d.sock"
    with served(path, rig.service, access=Everybody(role)), Connection(str(path)) as connection:
        daemon = facts.ask(connection)
    assert rig.journal.history(limit=100) == before
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == (1 if role is Role.NOBODY else 0), "no call fails to find out the role"
    if role is Role.NOBODY:
        assert type(daemon.error).__name__ == "PermissionDenied"
    else:
        assert (daemon.role, len(daemon.volumes), len(daemon.attachments)) == (role.name.lower(), 1, 1)


# The command.


def test_the_command_ends_with_9_where_there_is_a_problem(run: Run) -> None:
    ran = run("doctor", script=[failure(1009, "starting", correction="wait")])
    assert ran.code == 9
    assert "problem  daemon: starting; try: wait\n" in ran.out


def test_the_command_as_json(run: Run) -> None:
    caller = {"uid": 1000, "role": "agent"}
    script = [result({**STATUS, "driver": "memory", "portals": [], "caller": caller}), result([]), result([])]
    ran = run("--json", "doctor", script=script)
    told = json.loads(ran.out)
    assert all(set(finding) == {"level", "check", "message", "correction"} for finding in told)
    assert {"level": "ok", "check": "role", "message": "this user is agent", "correction": None} in told
    assert [method for method, _ in ran.asked] == ["get_status", "list_volumes", "list_attachments"]
