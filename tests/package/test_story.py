"""The life of one installation under a real systemd: installed, used, restarted, upgraded, broken, rebooted, purged.

The tests are one story in their order, on one guest: each begins where the one before it ended.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cli.shells import BASH
from tests.figures import RecordFigure
from tests.guest.expected import LIFE, calls_told
from tests.guest.harness.channel import Process
from tests.guest.harness.guest import Guest
from tests.guest.storage import log_in
from tests.package.debian import NEXT, ROOT
from tests.package.installed import CONNECTOR, SERVICE, SOCKET, Installed, install
from tests.support import wait_until

pytestmark = pytest.mark.guest

MODULES = ("configfs", "target_core_mod", "target_core_iblock", "target_core_file", "iscsi_target_mod")
VOLUME = "/dev/ubdb"
WATCHDOG = 6  # seconds, so that its time passes in a test's
#: Where the guest's image has what is not in Debian, once it is out of the package's sight.
ELSEWHERE = "/opt/elsewhere"
#: The modules that run in the sandbox of the unit: all with LIO that know the daemon by its socket alone.
SANDBOXED = ("cycle", "devices", "calls", "drift", "portals", "stalled", "wire")
AS_CONNECTOR = f"connector={json.dumps(CONNECTOR)}"
METRICS = "volattachd-metrics"
TEXTFILES = Path("/var/lib/prometheus/node-exporter")
#: Reads the figures all the time while they are written, and tells how often, and how many files it saw.
READER = f"""
import os, pathlib, prometheus_client.parser as parser
reads, seen = 0, set()
while not os.path.exists("/root/read-enough"):
    with open("{TEXTFILES}/volattachd.prom") as file:
        text, inode = file.read(), os.fstat(file.fileno()).st_ino
    names = [family.name for family in parser.text_string_to_metric_families(text)]
    assert text.endswith("\\n") and "volattachd_calls" in names and "volattachd_info" in names, text
    reads, seen = reads + 1, seen | {{inode}}
print(reads, len(seen))
"""
#: What others leave: the backup copies of the user database, multipath, which sees each disk that appears, and apt.
OTHERS = re.compile(
    r"/etc/(group|gshadow|passwd|shadow|subuid|subgid)-|/etc/\.pwd\.lock|/etc/multipath(/.*)?|/var/lib/(apt|systemd)/.*"
)


@pytest.fixture(scope="module")
def host(guest_image: Path, packages: Path) -> Iterator[Installed]:
    """The guest, with nothing of ours installed: what its image has from elsewhere must not help the package."""
    with Guest(guest_image, init="systemd", extra_disks=["64M"], share={"packages": packages}) as guest:
        guest.run("rm /etc/dpkg/dpkg.cfg.d/99mmdebstrap", check=True)  # it leaves documents and completions out
        guest.run(f"mv /usr/local/lib/python3*/dist-packages {ELSEWHERE}", check=True)
        guest.run("adduser --quiet --disabled-password --gecos '' member", check=True)
        guest.run("adduser --quiet --disabled-password --gecos '' other", check=True)
        yield Installed(guest)


@pytest.fixture(scope="module")
def before(host: Installed) -> set[str]:
    """Every file of the guest before the first installation."""
    return host.files()


@pytest.fixture(scope="module")
def disk(host: Installed) -> str:
    """The initiator's disk of an attached volume."""
    host.call("register_volume", volume="busy", path=VOLUME)
    host.call("reserve_volume", volume="busy")
    info = host.call("initialize_connection", volume="busy", connector=CONNECTOR)
    host.call("attach", volume="busy", host_name="guest")
    (host.guest.out / "secret").write_text(info["data"]["auth_password"])
    return log_in(host.guest, info, patience=3)


@pytest.fixture(scope="module")
def writer(host: Installed, disk: str) -> Process:
    """Writes to the volume all the time, past every cache; ends with its first error."""
    dd = f"dd if=/dev/zero of={disk} bs=64k count=16 oflag=direct"
    writing = host.guest.start(f"while {dd} 2>>/root/dd.log; do sleep 0.3; done")  # others need the one processor too
    host.wait_for("grep -qs copied /root/dd.log")
    return writing


@pytest.fixture(scope="module")
def caller(host: Installed) -> Process:
    """Calls all the time, each on a connection of its own."""
    words = ["python3", "-m", "tests.guest.callers", "/root/calls.json"]
    return host.guest.start(words, cwd="/host/repo", env={"PYTHONPATH": "/host/repo"})


def calls(host: Installed) -> dict[str, Any]:
    """What the caller has seen so far."""
    host.wait_for("test -s /root/calls.json")
    read: dict[str, Any] = json.loads(host.run("cat /root/calls.json"))
    return read


def wait_for_more(host: Installed) -> None:
    """Until a few more writes and calls than now have come through."""
    written, answered = int(host.run("grep -c copied /root/dd.log")), calls(host)["answered"]
    host.wait_for(f"test $(grep -c copied /root/dd.log) -gt {written + 2}")
    wait_until(lambda: calls(host)["answered"] > answered + 2)


def sessions(host: Installed) -> str:
    """The sessions of the guest's initiator, by their numbers."""
    return host.run("ls /sys/class/iscsi_session")


def targets(host: Installed) -> list[str]:
    """The targets that the kernel has."""
    return [name for name in host.run("ls /sys/kernel/config/target/iscsi").split() if name.startswith("iqn.")]


def main_pid(host: Installed) -> str:
    return host.show("MainPID")


def test_installing_makes_the_socket_the_group_and_loads_the_modules(host: Installed, before: set[str]) -> None:
    assert before
    install(host, "/host/packages/now")
    assert (host.show("ActiveState", SOCKET), host.show("ActiveState")) == ("active", "inactive")
    assert host.run("stat -c '%a %U %G' /run/volattachd/volattachd.sock") == "660 root volattach"
    assert host.run("getent group volattach | cut -d: -f4") == "", "nobody is in it"
    for module in MODULES:
        host.run(f"test -d /sys/module/{module}")
    assert host.run("systemctl is-enabled volattachd.socket volattachd.service").split() == ["enabled"] * 2


def test_the_units_are_sound_and_the_exposure_is_low(host: Installed, record_figure: RecordFigure) -> None:
    units = "/lib/systemd/system/volattachd*"
    assert host.run(f"systemd-analyze --man=no verify {units} 2>&1") == ""
    assert host.guest.run("systemctl is-enabled volattachd-metrics.timer").stdout.strip() == "disabled"
    told = host.run(f"systemd-analyze security {SERVICE} | tail -n 1")
    exposure = re.search(r"Overall exposure level for volattachd\.service: ([0-9.]+)", told)
    assert exposure, told
    record_figure("exposure of volattachd.service", exposure[1])
    assert float(exposure[1]) <= 2.0


def test_the_first_call_of_a_member_starts_the_daemon_and_nobody_else_gets_in(host: Installed) -> None:
    outside = host.guest.run("runuser -u other -- volattach list")
    assert outside.returncode != 0
    assert "volattach" in outside.stderr, "it names the group"
    assert host.show("ActiveState") == "inactive"
    host.run("adduser --quiet member volattach")
    host.run("runuser -u member -- volattach list")
    assert (host.show("ActiveState"), host.show("SubState")) == ("active", "running")
    assert host.show("StatusText") == "0 volumes, 0 attachments, 0 degraded"
    assert host.guest.run("runuser -u other -- volattach list").returncode == outside.returncode
    assert host.run("stat -c '%a %U %G' /var/lib/volattachd /var/lib/volattachd/journal.db").split("\n") == [
        "700 root root",
        "600 root root",
    ]


def test_the_shells_have_their_completions(host: Installed) -> None:
    """tests/package/test_build.py asks all three; here bash asks the installed command, about the daemon's volumes."""
    for path in ("bash-completion/completions/volattach", "zsh/vendor-completions/_volattach"):
        host.run(f"test -s /usr/share/{path}")
    host.run("test -s /usr/share/fish/vendor_completions.d/volattach.fish")
    host.run("truncate -s 16M /srv/completed.img")
    host.call("register_volume", volume="completed", path="/srv/completed.img")
    ready = "source /usr/share/bash-completion/completions/volattach"
    script = BASH.format(ready=ready, line=shlex.quote("volattach unregister comp"))
    assert host.run(f"bash --norc -c {shlex.quote(script)}") == "completed"
    host.run("volattach unregister completed; rm /srv/completed.img")


def test_the_daemon_runs_under_its_modules_name_too(host: Installed) -> None:
    assert "driver lio" in host.run("cd / && python3 -m volattachd --check-config")


def test_the_packages_own_test_passes(host: Installed, record_figure: RecordFigure) -> None:
    """The six calls with a CHAP login and I/O, by autopkgtest.

    It needs no archive: what the test depends on is installed. That the guest is a machine of its own, which the test
    asks for, is more than the runner for "no other machine" (null) can know, and so it is told.
    """
    words = "autopkgtest --no-built-binaries --ignore-restrictions=isolation-machine /host/packages/source -- null"
    said = host.run(f"{words} 2>&1", timeout=300)
    verdicts = re.findall(r"^(\S+) +(PASS|FAIL.*|SKIP.*)$", said.rpartition("summary")[2], re.MULTILINE)
    record_figure("autopkgtest", ", ".join(" ".join(verdict) for verdict in verdicts))
    assert verdicts == [("six-calls", "PASS")]
    assert host.call("list_volumes") == []


def test_the_user_space_target_serves_in_the_sandbox_with_the_drop_in(host: Installed) -> None:
    """The six calls again, as docs/install.md has it for driver = "tgt"."""
    drop_in = f"/etc/systemd/system/{SERVICE}.d"
    host.run(f"mkdir {drop_in} && cp /usr/share/doc/volattachd/examples/tgt.conf {drop_in} && systemctl daemon-reload")
    host.run("cp -p /etc/volattachd/volattachd.toml /root")
    settings = 's/^# \\[target\\]/[target]/; s/^# driver = .*/driver = "tgt"/'
    host.run(f"sed -i {shlex.quote(settings)} /etc/volattachd/volattachd.toml && systemctl restart {SERVICE}")
    assert host.call("get_status")["driver"] == "tgt"
    host.run("/host/packages/source/debian/tests/six-calls 2>&1", timeout=300)
    tgtd = host.run("pgrep -x tgtd")
    assert f"/{SERVICE}" in host.run(f"cat /proc/{tgtd}/cgroup")
    assert "Seccomp:\t2" in host.run(f"cat /proc/{tgtd}/status"), "it is in the sandbox"
    host.run(f"systemctl restart {SERVICE}")
    assert host.run("pgrep -x tgtd") == tgtd, "the daemon's restart leaves it alone"
    host.run(f"systemctl stop {SOCKET} {SERVICE}")
    host.run("TGT_IPC_SOCKET=/run/volattachd/tgt/socket tgtadm --mode system --op delete")
    host.wait_for(f"! test -e /proc/{tgtd}")
    host.run(f"rm -r {drop_in} && systemctl daemon-reload")
    host.run(f"cp -p /root/volattachd.toml /etc/volattachd && systemctl start {SOCKET}")
    assert host.call("get_status")["driver"] == "lio"


def test_the_timer_hands_figures_to_the_node_exporter(host: Installed, record_figure: RecordFigure) -> None:
    """The timer of the package with a shorter time; the file is read all the while, and is whole each time."""
    written = TEXTFILES / "volattachd.prom"
    often = "[Timer]\\nOnCalendar=\\nOnCalendar=*:*:*\\nAccuracySec=100ms\\n"
    drop_in = f"/run/systemd/system/{METRICS}.timer.d"
    host.run(f"mkdir -p {drop_in} && printf '{often}' >{drop_in}/test.conf && systemctl daemon-reload")
    host.run(f"systemctl enable --now {METRICS}.timer")
    host.wait_for(f"test -e {written}")
    reader = host.guest.start(["python3", "-c", READER])
    sequence = f"journalctl --quiet --output=cat --unit={METRICS}.service | grep -c Finished"
    runs = int(host.run(sequence))
    host.wait_for(f"test $({sequence}) -gt {runs + 3}")
    host.run(f"touch /root/read-enough && systemctl disable --now {METRICS}.timer")
    done = reader.wait(60)
    assert done.returncode == 0, done.stderr
    reads, files = map(int, done.stdout.split())
    assert reads > files > 1, "it was replaced while it was read"
    record_figure("figures under the timer", f"read whole {reads} times while the file was replaced")
    assert host.run(f"stat -c '%a %U' {written}") == "644 root"
    assert host.run(f"ls -A {TEXTFILES}") == written.name, "nothing half-written is left"
    scraped = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9100/metrics').read().decode())"
    assert "\nvolattachd_passes_total " in host.run(f"python3 -c {shlex.quote(scraped)}")
    host.run(f"rm -r {drop_in} && systemctl daemon-reload")


def test_the_sandbox_lets_nothing_else_through(host: Installed) -> None:
    """What the tests with LIO do not show: the walls are there."""
    status = host.run(f"cat /proc/{main_pid(host)}/status")
    assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert re.search(r"^CapBnd:\s+0000000000200002$", status, re.MULTILINE), "SYS_ADMIN and DAC_OVERRIDE"
    for path in ("/etc", "/usr", "/home", "/proc/sys/kernel"):
        refused = host.guest.run(f"nsenter --mount --target {main_pid(host)} -- touch {path}/volattachd-test")
        assert refused.returncode != 0, path


def test_the_daemon_without_its_socket_unit_says_what_is_missing(host: Installed) -> None:
    """In the sandbox it can make a socket, and cannot give it away."""
    alone = "/run/systemd/system/volattachd-alone.service"
    host.run(f"systemctl stop {SOCKET} {SERVICE}")
    host.run(f"sed 's/ *volattachd[.]socket//; /^Requires=$/d' /lib/systemd/system/{SERVICE} >{alone}")
    host.run("systemctl daemon-reload")
    assert host.guest.run(f"systemctl start {Path(alone).name}").returncode != 0
    assert host.show("ExecMainStatus", Path(alone).name) == "78"
    assert "start volattachd.socket" in host.show("StatusText", Path(alone).name)
    assert "Traceback" not in host.run(f"journalctl --no-pager --unit={Path(alone).name}")
    host.run(f"rm {alone} && systemctl daemon-reload && systemctl start {SOCKET}")


def run_inside(host: Installed, names: Sequence[str]) -> str:
    """Modules that other guests run against the tree, here against the installed daemon in its unit's sandbox."""
    host.run(f"systemctl stop {SOCKET} {SERVICE}")
    modules = " ".join(f"/host/repo/tests/guest/inside/test_{name}.py" for name in names)
    words = f"python3 -m pytest -q -c /host/ctl/pytest.ini --rootdir=/host/repo --durations=5 {modules}"
    environment = {"VOLATTACHD_SANDBOX": f"/lib/systemd/system/{SERVICE}", "PYTHONPATH": f"/host/repo:{ELSEWHERE}"}
    done = host.guest.run(words, timeout=900, env=environment, cwd="/host/repo")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    host.run(f"systemctl start {SOCKET}")
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    return f"{passed[1]} passed of {', '.join(names)}"


def test_the_installed_daemon_is_watched_by_journald(host: Installed, record_figure: RecordFigure) -> None:
    """The life of a volume, the installed catalogue's words, forged records, secrets, each documented query."""
    record_figure("under systemd's journald", run_inside(host, ["journald"]))


def test_calls_and_devices_work_inside_the_sandbox(host: Installed, record_figure: RecordFigure) -> None:
    record_figure("in the sandbox", run_inside(host, SANDBOXED))
    host.run("dmesg --clear")  # what these tests broke on purpose


def test_restarts_and_an_upgrade_under_io_break_no_session_and_refuse_no_connection(
    host: Installed, disk: str, writer: Process, caller: Process, record_figure: RecordFigure
) -> None:
    wait_for_more(host)
    session, pid = sessions(host), main_pid(host)
    steps = (
        f"systemctl restart {SERVICE}",
        f"systemctl kill --signal=KILL {SERVICE}",
        "DEBIAN_FRONTEND=noninteractive dpkg -i /host/packages/next/*.deb",
    )
    for step in steps:
        host.run(step, timeout=180)
        wait_for_more(host)
        assert writer.running(), step
        assert sessions(host) == session, step
        assert main_pid(host) not in ("0", pid), f"{step}: another daemon"
        assert calls(host)["refused"] == [], step
        pid = main_pid(host)
    host.run(f"systemctl reload {SERVICE}")
    wait_for_more(host)
    assert main_pid(host) == pid, "a reload keeps the daemon"
    assert "looked up the users and groups" in host.log()
    assert host.run("dpkg-query -W -f '${Version}' volattachd") == NEXT
    assert host.call("show_volume", volume="busy")["status"] == "in-use"
    assert host.call("reconcile", dry_run=True)["volumes"] == []
    assert writer.running()
    assert "I/O error" not in host.run("dmesg")
    seen = calls(host)
    record_figure(
        "restart, kill -9, upgrade, reload under I/O",
        f"{seen['answered']} calls answered, {len(seen['refused'])} refused, {len(seen['unanswered'])} to send again",
    )
    caller.kill()


def test_a_daemon_that_hangs_is_killed_and_started_again(host: Installed, writer: Process) -> None:
    host.settle(f"WatchdogSec={WATCHDOG}\\nTimeoutStopSec=10")
    host.run(f"systemctl restart {SERVICE}")
    session, pid = sessions(host), main_pid(host)
    host.run(f"kill -STOP {pid}")
    host.wait_for(f"test $(systemctl show -P NRestarts {SERVICE}) -ge 1 -a $(systemctl is-active {SERVICE}) = active")
    assert main_pid(host) != pid
    assert "Watchdog timeout" in host.log()
    assert host.call("show_volume", volume="busy")["status"] == "in-use"
    assert (writer.running(), sessions(host)) == (True, session)


def test_a_device_that_does_not_answer_is_no_reason_to_kill_the_daemon(host: Installed) -> None:
    """The watchdog's time passes several times while a volume waits for its device."""
    host.run("truncate -s 16M /srv/stalled.img && losetup /dev/loop7 /srv/stalled.img")
    host.run("dmsetup create stall --table '0 32768 linear /dev/loop7 0'")
    host.call("register_volume", volume="stalled", path="/dev/mapper/stall")
    host.call("reserve_volume", volume="stalled")
    info = host.call("initialize_connection", volume="stalled", connector=CONNECTOR)
    stalled = log_in(host.guest, info, patience=3)
    pid, restarts = main_pid(host), host.show("NRestarts")
    host.run("dmsetup suspend --noflush stall")
    write = host.guest.start(f"dd if=/dev/zero of={stalled} bs=4k count=1 oflag=direct")
    host.wait_for(f"! grep -q '^ *0 *0$' /sys/block/{Path(stalled).name}/inflight")
    ending = host.guest.start(
        f"volattach call terminate_connection volume=stalled connector='{json.dumps(CONNECTOR)}' force=true"
    )
    host.wait_for("volattach --json call show_volume volume=stalled | grep -q Pending")
    stalled_at = int(host.show("WatchdogTimestampMonotonic"))
    wait_until(lambda: int(host.show("WatchdogTimestampMonotonic")) > stalled_at + 2 * WATCHDOG * 10**6)
    assert (main_pid(host), host.show("NRestarts")) == (pid, restarts)
    assert host.call("list_volumes")
    host.run("dmsetup resume stall")
    write.wait(60)
    ending.wait(60)
    host.wait_for("! volattach --json call show_volume volume=stalled | grep -q Pending")
    node = f"iscsiadm -m node -T {info['data']['target_iqn']} -p {info['data']['target_portal']}"
    host.guest.run(f"{node} --logout; {node} -o delete")
    host.call("terminate_connection", volume="stalled", connector=CONNECTOR, force=True)
    host.call("detach", volume="stalled")
    host.call("unregister_volume", volume="stalled")
    host.run("udevadm settle; dmsetup remove --retry stall && losetup -d /dev/loop7 && rm /srv/stalled.img")


def test_a_damaged_journal_ends_in_a_clear_status_and_in_no_further_start(host: Installed, writer: Process) -> None:
    host.run("volattach backup /var/lib/volattachd/backup.db && mv /var/lib/volattachd/backup.db /root")
    host.run(f"systemctl stop {SOCKET} {SERVICE}")
    host.run("dd if=/dev/urandom of=/var/lib/volattachd/journal.db bs=512 seek=8 count=64 conv=notrunc 2>/dev/null")
    host.run(f"systemctl start {SOCKET}")
    assert host.guest.run(f"systemctl start {SERVICE}").returncode != 0
    assert (host.show("Result"), host.show("ExecMainStatus"), host.show("NRestarts")) == ("exit-code", "65", "0")
    assert "restore it from a backup" in host.show("StatusText")
    assert "restore it from a backup" in host.guest.run(f"systemctl status {SERVICE}").stdout
    started = host.log().count("Starting volattachd.service")
    client = host.guest.run("volattach list", timeout=60)
    assert client.returncode != 0
    host.wait_for(f"test $(systemctl is-active {SOCKET}) = failed")
    assert host.log().count("Starting volattachd.service") - started <= 5, "callers start it no more often than that"
    assert writer.running(), "exports and sessions go on"
    # As docs/backup.md says.
    host.run("mv /var/lib/volattachd /var/lib/volattachd.old && install -d -m 0700 /var/lib/volattachd")
    host.run("install -m 0600 /root/backup.db /var/lib/volattachd/journal.db")
    host.run(f"systemctl reset-failed {SOCKET} {SERVICE} && systemctl start {SOCKET}")
    assert host.call("show_volume", volume="busy")["status"] == "in-use"
    assert host.call("reconcile", dry_run=True)["volumes"] == []
    host.run("rm -r /var/lib/volattachd.old")
    assert writer.running()


def test_a_reboot_brings_the_exports_back_without_a_call(host: Installed, disk: str, writer: Process) -> None:
    """Also where targetcli's service is enabled, which would clear them."""
    assert host.run("systemctl is-enabled rtslib-fb-targetctl.service") == "enabled"
    writer.kill()
    writer.wait(60)
    host.run(f"printf kept | dd of={disk} conv=fsync")
    shown = host.call("show_volume", volume="busy")
    host.guest.reboot()
    host.wait_for(f"test $(systemctl is-active {SERVICE}) = active")
    assert targets(host) == [shown["target_name"]]
    assert host.guest.run("systemctl is-active rtslib-fb-targetctl.service").stdout.strip() == "inactive"
    assert host.call("show_volume", volume="busy") == shown
    info = host.call("initialize_connection", volume="busy", connector=CONNECTOR)
    assert host.run(f"head -c 4 {log_in(host.guest, info, patience=3)}") == "kept"


def test_removing_keeps_the_state_and_installing_again_finds_it(host: Installed) -> None:
    session = sessions(host)
    host.run("dpkg --remove volattachd", timeout=180)
    assert host.guest.run("systemctl cat volattachd.service volattachd.socket").returncode != 0
    assert host.run("ls /var/lib/volattachd /run/volattachd").count("journal.db") >= 1
    assert host.run("getent group volattach")
    assert sessions(host) == session
    install(host, "/host/packages/next")
    assert host.call("show_volume", volume="busy")["status"] == "in-use"
    assert sessions(host) == session


def test_the_journal_has_told_the_whole_life_of_the_volume_and_no_secret(
    host: Installed, record_figure: RecordFigure
) -> None:
    """Through restarts, an upgrade, a restored journal, a reboot and a removal."""
    refused = host.guest.run(f"volattach --json call terminate_connection volume=busy {shlex.quote(AS_CONNECTOR)}")
    host.call("begin_detaching", volume="busy")
    logged_in = host.guest.run(f"volattach --json call terminate_connection volume=busy {shlex.quote(AS_CONNECTOR)}")
    searched = f"/host/out/secret /proc/{main_pid(host)}/cmdline /proc/{main_pid(host)}/environ"
    daemon = host.run(f"cat {searched} | tr '\\0' '\\n'")
    secret = (host.guest.out / "secret").read_text()
    assert daemon.count(secret) == 1, "the file itself, and nothing of the daemon's"
    host.run("iscsiadm -m node --logout && iscsiadm -m node -o delete")
    host.call("terminate_connection", volume="busy", connector=CONNECTOR)
    host.call("detach", volume="busy")
    for answer in (refused, logged_in):
        assert answer.returncode != 0
        assert secret not in answer.stdout + answer.stderr
    entries = host.run("journalctl --sync; journalctl --quiet --all --output=json _UID=0 VOLATTACH_VOLUME=busy")
    told = calls_told(json.loads(line) for line in entries.splitlines())
    assert [row for row in told if row == LIFE[0] or row[1] is not None] == LIFE, "what moved it, in order"
    host.run("journalctl --all --output=export >/root/exported")
    assert int(host.run("grep -a -c VOLATTACH_VOLUME=busy /root/exported")) >= len(LIFE)
    assert host.guest.run("grep -a -c -F -f /host/out/secret /root/exported").stdout.strip() == "0"
    record_figure(
        "life of a volume in journald",
        f"{len(told)} calls told, 0 secrets in {host.run('wc -c </root/exported')} bytes",
    )


def test_purging_leaves_nothing(host: Installed, before: set[str]) -> None:
    assert host.run(f"ls {TEXTFILES}") == "", "a removed daemon's figures are told no longer"
    host.run("dpkg --purge volattachd volattach-agent python3-volattachd 2>&1", timeout=180)
    left = {path for path in host.files() - before if not OTHERS.fullmatch(path) or "volattach" in path}
    host.run("rm -rf /var/lib/volattachd-test")  # of the tests in the sandbox
    assert sorted(path for path in left if not path.startswith("/var/lib/volattachd-test")) == []
    assert host.guest.run("getent group volattach").returncode == 2
    assert host.run("systemctl list-units --all --no-legend '*volattach*'") == ""
    assert targets(host) == []


def test_without_the_package_the_documented_copy_does_the_same(host: Installed) -> None:
    """The block of docs/install.md for other distributions; what pip would install is this tree here."""
    page = (ROOT / "docs/install.md").read_text()
    block = page.partition("## Other distributions")[2].partition("```sh\n")[2].partition("```")[0]
    venv, pip, *rest = block.splitlines()
    assert (venv.split()[-1], pip.split()[0]) == ("/opt/volattachd", "/opt/volattachd/bin/pip")
    for name, module in (("volattachd", "volattachd"), ("volattach", "volattachd.cli")):
        lines = f'#!/bin/sh\\nPYTHONPATH=/host/repo:{ELSEWHERE} exec python3 -m {module} "$@"\\n'
        host.run(f"mkdir -p /opt/volattachd/bin && printf '{lines}' >/opt/volattachd/bin/{name}")
        host.run(f"chmod +x /opt/volattachd/bin/{name}")
    host.run("cd /host/repo && set -e\n" + "\n".join(rest), timeout=180)
    assert (host.show("ActiveState", SOCKET), host.show("ActiveState")) == ("active", "inactive")
    assert host.run("stat -c '%a %U %G' /run/volattachd/volattachd.sock") == "660 root volattach"
    assert host.call("list_volumes") == []
    assert host.show("ActiveState") == "active"
    assert host.run("systemctl is-enabled volattachd.socket volattachd.service").split() == ["enabled"] * 2
