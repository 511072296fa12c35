"""rtslib-fb and targetcli, which share no line with our driver, see what we say we built; foreign targets stay."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.inside.conftest import SIZE
from tests.guest.inside.initiator import Initiator
from tests.guest.inside.program import TARGET, Program, configfs, connector

GUEST = {"together": "calls"}

FOREIGN = "iqn.2001-04.com.example:somebody-else"


@pytest.fixture(params=["file", "block"])
def exported(
    request: pytest.FixtureRequest,
    program: Program,
    host1: Initiator,
    host2: Initiator,
    new_device: Callable[[str], str],
) -> Any:
    """A volume with a grant for each of two hosts, one of them read-only."""
    name = f"oracle-{request.param}"
    shown = program.call("register_volume", volume=name, path=new_device(request.param), multiattach=True)
    infos = {}
    for host, mode in ((host1, "rw"), (host2, "ro")):
        at = {
            "volume": name,
            "attachment_id": program.call("reserve_volume", volume=name, mode=mode)["attachment_id"],
        }
        infos[host.name] = program.call("initialize_connection", **at, connector=connector(host.name))
    yield shown, infos
    for host in (host1, host2):
        at = {"volume": name, "attachment_id": infos[host.name]["attachment_id"]}
        program.call("terminate_connection", **at, connector=connector(host.name))
    program.call("unregister_volume", volume=name)


def test_rtslib_sees_exactly_what_we_say_we_built(exported: Any) -> None:
    from rtslib_fb import RTSRoot

    shown, infos = exported
    root = RTSRoot()
    [target] = [t for t in root.targets if t.wwn == shown["target_name"]]
    [tpg] = target.tpgs
    assert (tpg.enable, tpg.tag) == (True, 1)
    wanted = {"authentication": "1", "generate_node_acls": "0", "demo_mode_write_protect": "1"}
    assert {name: tpg.get_attribute(name) for name in wanted} == wanted
    assert [(p.ip_address.strip("[]"), p.port) for p in tpg.network_portals] == [("::", 3260)]
    [lun] = tpg.luns
    store = lun.storage_object
    assert (lun.lun, store.udev_path, store.wwn) == (0, shown["path"], shown["serial"])
    assert store.size in (shown["size"], None) or store.size * 512 == shown["size"]
    assert store.get_attribute("emulate_3pc") == "0"
    assert {acl.node_wwn for acl in tpg.node_acls} == set(infos)
    for acl in tpg.node_acls:
        data = infos[acl.node_wwn]["data"]
        assert (acl.chap_userid, acl.chap_password) == (data["auth_username"], data["auth_password"])
        [mapped] = acl.mapped_luns
        assert (mapped.mapped_lun, mapped.tpg_lun.lun) == (0, 0)
        assert mapped.write_protect == (data["access_mode"] == "ro")


@pytest.fixture
def system_bus() -> Iterator[None]:
    """What targetcli insists on."""
    Path("/run/dbus").mkdir(exist_ok=True)
    bus = subprocess.Popen(
        ["dbus-daemon", "--system", "--nofork", "--nopidfile", "--print-address"], stdout=subprocess.PIPE
    )
    assert bus.stdout is not None
    assert bus.stdout.readline(), "the bus tells its address when it listens"
    yield
    bus.terminate()
    bus.wait(10)


def test_targetcli_lists_our_target(exported: Any, system_bus: None) -> None:
    shown, infos = exported
    done = subprocess.run(["targetcli", "ls", "/"], capture_output=True, text=True, timeout=60, check=True)
    for word in (shown["target_name"], shown["path"], *infos):
        assert word in done.stdout


def test_a_foreign_target_stays_byte_for_byte(
    program: Program, host1: Initiator, new_device: Callable[[str], str]
) -> None:
    from rtslib_fb import LUN, TPG, FabricModule, FileIOStorageObject, NetworkPortal, NodeACL, Target

    store = FileIOStorageObject("foreign", dev=new_device("file"), size=SIZE)
    target = Target(FabricModule("iscsi"), FOREIGN)
    tpg = TPG(target, 1)
    LUN(tpg, 0, store)
    NetworkPortal(tpg, "127.0.0.1", 3261)
    acl = NodeACL(tpg, host1.name)
    acl.chap_userid, acl.chap_password = "foreign", "foreign-secret"
    tpg.enable = True
    before = foreign_part()
    assert before
    program.call("register_volume", volume="beside", path=new_device("file"))
    at = {"volume": "beside", "attachment_id": program.call("reserve_volume", volume="beside")["attachment_id"]}
    program.call("initialize_connection", **at, connector=connector(host1.name))
    assert foreign_part() == before
    program.restart()
    assert program.call("reconcile", dry_run=True)["volumes"] == []
    program.call("terminate_connection", **at, connector=connector(host1.name))
    program.call("reconcile")
    program.call("unregister_volume", volume="beside")
    assert foreign_part() == before
    target.delete()
    store.delete()


def foreign_part() -> dict[str, str]:
    """Everything in the target that is not ours."""
    return {p: v for p, v in configfs().items() if FOREIGN in p or "/fileio_0" in p}


def test_a_target_of_ours_that_no_volume_accounts_for_is_removed(program: Program) -> None:
    orphan = TARGET / "iscsi/iqn.2026-11.org.volattachd:lost.12345678"
    (orphan / "tpgt_1").mkdir(parents=True)
    [line] = program.call("reconcile", dry_run=True)["volumes"]
    assert (line["volume"], line["target_name"]) == (None, orphan.name)
    assert [step.split()[0] for step in line["steps"]] == ["rmdir", "rmdir"]
    assert orphan.exists(), "a dry run changes nothing"
    program.call("reconcile")
    assert not orphan.exists()
