"""The agent, real: LIO on one side, open-iscsi on the other, ``volattach attach`` and ``volattach detach`` between."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.guest.inside.agent.compute import Compute, leftovers, rename_initiator
from tests.guest.inside.initiator import run
from tests.guest.inside.program import Program
from volattachd.agent import Agent, SentAgain, attached
from volattachd.agent.connectors.base import Connection, Connector, Report
from volattachd.agent.connectors.iscsi import IscsiConnector
from volattachd.agent.connectors.registry import make_connector
from volattachd.agent.errors import AttachedElsewhere, ConnectFailed, DeviceInUse, WrongDevice
from volattachd.client.sync import Client

GUEST = {"timeout": 900.0}

FIRST, SECOND = "iqn.2026-11.com.example:first", "iqn.2026-11.com.example:second"
PLACE = Path("/mnt")
LOST_ELSEWHERE = "guest is cut off: what it had not yet written is lost, its device there dead"


@pytest.fixture(scope="module")
def compute(program: Program) -> Compute:
    rename_initiator(FIRST)
    return Compute(program)


@pytest.fixture(autouse=True)
def nothing_left(compute: Compute) -> Iterator[None]:
    yield
    assert leftovers() == []


def new_agent(program: Program, report: Report = lambda line: None, **made: Any) -> Agent:
    """An agent whose iscsi connector has other settings."""

    def make(name: str, told: Report) -> Connector:
        return IscsiConnector(told, **made) if made else make_connector(name, told)

    return Agent(SentAgain(lambda: Client(str(program.socket))), report=report, make=make)


def test_what_one_host_writes_another_one_reads(compute: Compute, volume: str) -> None:
    device = compute.attach(volume)["device"]
    run("mkfs.ext4", "-q", device)
    run("mount", device, str(PLACE))
    (PLACE / "file").write_text("from the first host")
    run("umount", str(PLACE))
    assert compute.detach(volume) == {"volume": volume, "status": "available", "lost": []}
    assert leftovers() == []
    rename_initiator(SECOND)
    try:
        run("mount", compute.attach(volume)["device"], str(PLACE))
        assert (PLACE / "file").read_text() == "from the first host"
        sessions = Path("/sys/class/iscsi_session").glob("*/initiatorname")
        assert [path.read_text().strip() for path in sessions] == [SECOND]
        run("umount", str(PLACE))
        compute.detach(volume)
    finally:
        rename_initiator(FIRST)


def test_a_command_that_is_sent_again_finds_its_work_done(compute: Compute, volume: str) -> None:
    first = compute.attach(volume)
    assert compute.attach(volume) == first
    assert compute.detach(volume)["status"] == "available"
    assert compute.detach(volume)["status"] == "available"


def test_read_only_is_read_only(compute: Compute, volume: str) -> None:
    device = compute.attach(volume, "--mode", "ro")["device"]
    assert run("blockdev", "--getro", device).stdout.strip() == "1"
    compute.detach(volume)


def test_no_secret_is_in_a_process_list_or_in_a_file_that_others_can_read(
    program: Program, compute: Compute, volume: str
) -> None:
    """Every process that is made while the agent works is looked at, by the kernel's word and not by sampling."""
    trace = Path("/root/trace")
    words = [sys.executable, "-m", "volattachd.cli", "--socket", str(program.socket), "attach", volume]
    traced = ["strace", "-f", "-qq", "-s", "4096", "-e", "trace=execve,openat", "-o", str(trace), *words]
    subprocess.run(traced, check=True, cwd="/host/repo", timeout=180)
    row = program.call("list_attachments", volume=volume)[0]
    info = program.call("initialize_connection", volume=volume, connector=row["connector"])
    secret = info["data"]["auth_password"]
    text = trace.read_text(errors="replace")
    assert 'iscsiadm", "-m", "node"' in text, "the trace has seen iscsiadm"
    assert secret not in text
    readers = [path for base in ("/etc/iscsi", "/run") for path in Path(base).rglob("*") if path.is_file()]
    holding = [path for path in readers if secret.encode() in path.read_bytes()]
    assert holding and all(path.stat().st_mode & 0o077 == 0 for path in holding)
    assert all(row["node.startup"] == "manual" for row in map(record, holding))
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    nobody = run(*drop, "sh", "-c", "cat /sys/class/iscsi_session/*/*word", check=False)
    assert secret not in nobody.stdout
    compute.detach(volume)


def record(path: Path) -> dict[str, str]:
    pairs = (line.split(" = ", 1) for line in path.read_text().splitlines() if " = " in line)
    return dict(pairs)


def test_a_mounted_device_is_refused_by_its_mount_and_goes_by_force(
    program: Program, compute: Compute, volume: str
) -> None:
    device = compute.attach(volume)["device"]
    run("mkfs.ext4", "-q", device)
    run("mount", device, str(PLACE))
    refused = compute.volattach("detach", volume)
    assert refused.returncode == 4
    assert f"{device} is mounted at {PLACE}" in refused.stderr
    assert compute.status(volume) == "in-use", "the refusal was rolled back"
    (PLACE / "file").write_text("still there")
    done = compute.detach(volume, "--force")
    assert done["status"] == "available"
    assert any(f"{device} is mounted at {PLACE}" in what for what in done["lost"])
    run("umount", "-l", str(PLACE))


def test_a_device_that_a_process_has_open_is_refused_by_its_name(compute: Compute, volume: str) -> None:
    device = compute.attach(volume)["device"]
    with subprocess.Popen(["sleep", "600"], stdin=Path(device).open("rb")) as holder:
        refused = compute.volattach("detach", volume)
        assert refused.returncode == 4
        assert f"{device} is open in sleep (pid {holder.pid})" in refused.stderr
        holder.kill()
    compute.detach(volume)


def test_what_lies_on_a_device_is_named(compute: Compute, volume: str) -> None:
    device = compute.attach(volume)["device"]
    run("dmsetup", "create", "upon", "--table", f"0 2048 linear {device} 0")
    refused = compute.volattach("detach", volume)
    assert f"{device} is held by upon" in refused.stderr
    run("dmsetup", "remove", "upon")
    compute.detach(volume)


# Each step fails in turn.


class Breaking:
    """Connects through the real connector, after breaking something."""

    def __init__(self, program: Program, before_connect: Callable[[Any], Any], **made: Any) -> None:
        outer = self
        self.before_connect = before_connect

        class Broken(IscsiConnector):
            def connect(self, connection: Any) -> Any:
                return super().connect(outer.before_connect(connection))

        self.agent = Agent(SentAgain(lambda: Client(str(program.socket))), make=lambda name, told: Broken(told, **made))


def changed(connection: Connection, **members: Any) -> Connection:
    return replace(connection, info=replace(connection.iscsi, **members))


def test_a_wrong_secret_leaves_nothing(program: Program, compute: Compute, volume: str) -> None:
    broken = Breaking(program, lambda c: changed(c, password="s" + "0" * 31))
    with pytest.raises(ConnectFailed, match="refused the name or the secret"):
        broken.agent.attach(volume)
    assert compute.status(volume) == "available"


@pytest.mark.parametrize(
    ("portal", "why"), [("127.0.0.1:3999", "."), ("192.0.2.200:3260", ".")], ids=["refused", "unreachable"]
)
def test_a_portal_that_cannot_be_reached_leaves_nothing(
    portal: str, why: str, program: Program, compute: Compute, volume: str
) -> None:
    broken = Breaking(program, lambda c: changed(c, portals=(portal,)))
    with pytest.raises(ConnectFailed, match=why) as raised:
        broken.agent.attach(volume)
    assert portal in raised.value.message
    assert compute.status(volume) == "available"


def test_a_device_that_never_appears_leaves_nothing(program: Program, compute: Compute, volume: str) -> None:
    broken = Breaking(program, lambda c: changed(c, lun=7), appears_within=2.0)
    with pytest.raises(ConnectFailed, match="LUN 7 did not appear"):
        broken.agent.attach(volume)
    assert compute.status(volume) == "available"


def test_another_volumes_device_is_never_handed_out(program: Program, compute: Compute, volume: str) -> None:
    def exchange(connection: Connection) -> Connection:
        return replace(connection, volume=replace(connection.volume, serial="0" * 8 + connection.serial[8:]))

    with pytest.raises(WrongDevice, match="is not the volume"):
        Breaking(program, exchange).agent.attach(volume)
    assert compute.status(volume) == "available"


def test_a_unit_that_was_exchanged_below_a_live_session_is_noticed(
    program: Program, compute: Compute, volume: str, new_device: Callable[[str], str]
) -> None:
    """The stale device of CVE-2023-2088: the same session, LUN and node, and another volume behind them."""
    compute.attach(volume)
    other = make_store(new_device("file"))

    def exchange(connection: Any) -> Any:
        """After initialize_connection, which would mend it."""
        unit = Path("/sys/kernel/config/target/iscsi", connection.target_name, "tpgt_1/lun/lun_0")
        mapped = next(unit.parents[1].glob("acls/*/lun_0"))
        for directory in (mapped, unit):
            link_in(directory).unlink()
        (unit / "volattachd").symlink_to(other)
        (mapped / "volattachd").symlink_to(unit)
        return connection

    with pytest.raises(WrongDevice, match="is not the volume"):
        Breaking(program, exchange).agent.attach(volume)
    assert compute.status(volume) == "in-use", "what was attached before is not taken back"
    assert compute.attach(volume)["volume"] == volume, "the daemon has mended its target"
    compute.detach(volume)
    other.rmdir()
    other.parent.rmdir()


def link_in(directory: Path) -> Path:
    return next(path for path in directory.iterdir() if path.is_symlink())


def make_store(path: str) -> Path:
    store = Path("/sys/kernel/config/target/core/fileio_77/other")
    store.mkdir(parents=True)
    (store / "control").write_text(f"fd_dev_name={path},fd_dev_size={16 << 20}")
    (store / "enable").write_text("1")
    return store


# Deaths.

ATTACH_LINES, DETACH_LINES = 6, 5


@pytest.mark.parametrize("step", range(1, ATTACH_LINES + 1))
@pytest.mark.parametrize("then", ["attach", "detach"])
def test_an_agent_that_is_killed_while_it_attaches(
    step: int, then: str, program: Program, compute: Compute, volume: str
) -> None:
    assert killed_at(step, program, "attach", volume)
    assert (compute.attach(volume) if then == "attach" else compute.detach(volume))["volume"] == volume
    assert compute.status(volume) == ("in-use" if then == "attach" else "available")
    compute.detach(volume)


@pytest.mark.parametrize("step", range(1, DETACH_LINES + 1))
@pytest.mark.parametrize("then", ["attach", "detach"])
def test_an_agent_that_is_killed_while_it_detaches(
    step: int, then: str, program: Program, compute: Compute, volume: str
) -> None:
    compute.attach(volume)
    assert killed_at(step, program, "detach", volume)
    (compute.attach if then == "attach" else compute.detach)(volume)
    assert compute.status(volume) == ("in-use" if then == "attach" else "available")
    compute.detach(volume)


def test_the_sweeps_above_have_struck_every_step(program: Program, compute: Compute, volume: str) -> None:
    assert not killed_at(ATTACH_LINES + 1, program, "attach", volume)
    assert not killed_at(DETACH_LINES + 1, program, "detach", volume)


def killed_at(step: int, program: Program, command: str, volume: str) -> bool:
    """Run a command that is to die as its step begins; whether it did."""
    words = [
        sys.executable,
        "-m",
        "tests.guest.inside.agent.agent_run",
        str(program.socket),
        str(step),
        command,
        volume,
    ]
    done = subprocess.run(words, cwd="/host/repo", timeout=180, check=False)
    assert done.returncode in (0, -9)
    return done.returncode == -9


@pytest.mark.parametrize("step", range(1, ATTACH_LINES + 1))
def test_a_daemon_that_is_killed_while_the_agent_attaches(
    step: int, program: Program, compute: Compute, volume: str
) -> None:
    new_agent(program, Restarting(program, step)).attach(volume)
    assert compute.status(volume) == "in-use"
    compute.detach(volume)


@pytest.mark.parametrize("step", range(1, DETACH_LINES + 1))
def test_a_daemon_that_is_killed_while_the_agent_detaches(
    step: int, program: Program, compute: Compute, volume: str
) -> None:
    compute.attach(volume)
    new_agent(program, Restarting(program, step)).detach(volume)
    assert compute.status(volume) == "available"


class Restarting:
    """Kills the daemon as a step begins; it comes back while the agent goes on."""

    def __init__(self, program: Program, step: int) -> None:
        self._program, self._left = program, step

    def __call__(self, line: str) -> None:
        self._left -= 1
        if self._left == 0:
            self._program.stop(9)
            threading.Thread(target=self._program.start).start()


# The other host.


def test_a_host_that_is_dead_is_cut_off_from_another_one(program: Program, compute: Compute, volume: str) -> None:
    """Its initiator cannot be asked any more; the target ends its session. Later it comes back, and cleans up."""
    device = compute.attach(volume)["device"]
    elsewhere = Agent(SentAgain(lambda: Client(str(program.socket))), host="elsewhere")
    with pytest.raises(AttachedElsewhere, match="belongs to guest"):
        elsewhere.detach(volume)
    assert compute.status(volume) == "in-use"
    done = elsewhere.detach(volume, force=True)
    assert (done.status, done.lost) == ("available", (LOST_ELSEWHERE,))
    assert Path(device).exists(), "nobody has touched it there"
    assert compute.detach(volume)["status"] == "available", "and there it is cleared away"


def test_a_dead_device_of_an_earlier_attachment_is_not_handed_out(
    program: Program, compute: Compute, volume: str
) -> None:
    """It is still there by its name; the new attachment has a session, and a secret, of its own."""
    compute.attach(volume)
    session = next(Path("/sys/class/iscsi_session").iterdir()).name
    Agent(SentAgain(lambda: Client(str(program.socket))), host="elsewhere").detach(volume, force=True)
    run("dd", f"of={compute.attach(volume)['device']}", "if=/dev/zero", "bs=4096", "count=1", "oflag=direct")
    assert [path.name for path in Path("/sys/class/iscsi_session").iterdir()] != [session]
    compute.detach(volume)


def test_the_python_api_attaches_for_the_length_of_a_with(program: Program, compute: Compute, volume: str) -> None:
    with attached(volume, new_agent(program)) as found:
        assert Path(found.path).is_block_device()
        assert compute.status(volume) == "in-use"
    assert compute.status(volume) == "available"


def test_the_python_api_refuses_to_leave_a_mount_behind(program: Program, compute: Compute, volume: str) -> None:
    agent = new_agent(program)
    with pytest.raises(DeviceInUse, match="is mounted at"), attached(volume, agent) as found:
        run("mkfs.ext4", "-q", found.path)
        run("mount", found.path, str(PLACE))
    run("umount", str(PLACE))
    agent.detach(volume)
