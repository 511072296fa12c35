"""Guests as such: what a power cut keeps and what it leaves behind, the link between two of them."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.guest.harness.errors import GuestDied, GuestError
from tests.guest.harness.guest import REPO, Guest
from tests.guest.harness.link import Link

pytestmark = pytest.mark.guest
MakeGuest = Callable[..., Guest]


@pytest.fixture(scope="module")
def guest(guest_image: Path) -> Iterator[Guest]:
    """One guest for the tests that leave it as it was."""
    with Guest(guest_image) as booted:
        yield booted


def processes_with(word: str) -> list[str]:
    """The command lines on this host that have the word in them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        if word in line:
            found.append(line)
    return found


def test_power_cut_keeps_what_was_synced(new_guest: MakeGuest, tmp_path: Path) -> None:
    """Synced bytes survive, on the root disk and on an extra one; unsynced ones that never left the cache do not."""
    guest = new_guest(disk=tmp_path / "disk", extra_disks=["16M"])
    guest.run("echo kept >/root/kept && sync && echo raw | dd of=/dev/ubdb conv=fsync", check=True)
    guest.run("mount -o remount,commit=600 / && echo lost >/root/lost", check=True)  # no journal commit in between
    guest.kill()
    guest.boot()
    assert guest.run("cat /root/kept; head -c 3 /dev/ubdb").stdout == "kept\nraw"
    assert guest.run(["test", "-e", "/root/lost"]).returncode == 1


def test_a_named_disk_outlives_its_guest(new_guest: MakeGuest, tmp_path: Path) -> None:
    """Another guest object on the same disk sees what the first one wrote before its orderly end."""
    first = new_guest(disk=tmp_path / "disk")
    first.run("echo kept >/root/kept", check=True)
    first.poweroff()
    assert new_guest(disk=tmp_path / "disk").run(["cat", "/root/kept"]).stdout == "kept\n"


def test_nothing_is_left_on_the_host(new_guest: MakeGuest) -> None:
    """A closed guest leaves no process and no directory."""
    guest = new_guest()
    scratch = guest.out.parent
    assert processes_with(str(scratch))
    guest.close()
    assert not processes_with(str(scratch))
    assert not scratch.exists()


def test_a_killed_owner_takes_its_guest_along(new_guest: MakeGuest, tmp_path: Path) -> None:
    """SIGKILL to the process that booted a guest: the guest dies with it, and its scratch directory goes."""
    code = (
        "import os, time\nfrom tests.guest.harness.guest import Guest\n"
        "guest = Guest().boot()\nprint(guest.out.parent, guest._supervisor.pid, flush=True)\ntime.sleep(300)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPO, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        scratch, supervisor = owner.stdout.readline().split()
        watched = _pidfd(int(supervisor))
        owner.kill()
    watched()
    assert not processes_with(scratch)
    assert not Path(scratch).exists()


def _pidfd(pid: int) -> Callable[[], None]:
    """A wait for the end of a process that is no child of ours."""
    fd = os.pidfd_open(pid)

    def wait() -> None:
        with os.fdopen(fd):
            assert select.select([fd], [], [], 30)[0], f"process {pid} is still there after 30 s"

    return wait


def test_commands_see_the_repository_and_cannot_write_it(guest: Guest) -> None:
    """And what they write to /host/out is there for the host as soon as they end."""
    assert guest.run(["cat", "/host/repo/tests/guest/test_boot.py"]).stdout == Path(__file__).read_text()
    assert guest.run(["touch", "/host/repo/written"]).returncode == 1
    guest.run("echo seen >/host/out/seen", check=True)
    assert (guest.out / "seen").read_text() == "seen\n"


def test_run_reports_as_subprocess_does(guest: Guest) -> None:
    """Status, both outputs, environment, time limit, and a large output whole."""
    done = guest.run("echo $WORD; echo err >&2; exit 7", env={"WORD": "out"})
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert guest.run("kill -9 $$").returncode == -9
    assert len(guest.run("seq 1 200000").stdout.splitlines()) == 200000
    with pytest.raises(subprocess.TimeoutExpired) as late:
        guest.run("echo before; sleep 60", timeout=1)
    assert str(late.value.stdout) == "before\n"
    with pytest.raises(GuestError, match="exit 1"):
        guest.run(["false"], check=True)
    with pytest.raises(GuestError, match="No such file"):
        guest.run(["/no/such/command"])


def test_background_processes(new_guest: MakeGuest) -> None:
    """A started command can be killed, and dies with the guest; whoever waits for it then is told."""
    guest = new_guest()
    sleeper, other = guest.start(["sleep", "300"]), guest.start(["sleep", "300"])
    assert guest.run(["cat", f"/proc/{sleeper.pid}/comm"]).stdout == "sleep\n"
    sleeper.kill()
    assert sleeper.wait(10).returncode == -9
    assert other.running()
    guest.kill()
    with pytest.raises(GuestDied):
        other.wait(10)


def test_a_panic_is_told(new_guest: MakeGuest) -> None:
    """A kernel that ends in the middle of a command: the caller is told at once, with the console."""
    guest = new_guest()
    with pytest.raises(GuestDied, match=r"(?s)console.*sysrq"):
        guest.run("echo c >/proc/sysrq-trigger", timeout=20)
    guest.kill()
    assert guest.boot().run(["true"]).returncode == 0


def test_two_guests_reach_each_other(new_guest: MakeGuest, link: Link) -> None:
    """Over IPv4 and IPv6, and again after one of them was cut off and came back."""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda name: new_guest(network=link, name=name), ("first", "second"))
    assert second.end and first.end
    for address in (second.end.ipv4, second.end.ipv6):
        first.run(["ping", "-c", "2", "-W", "5", address], check=True)
    second.kill()
    assert first.run(["ping", "-c", "1", "-W", "1", second.end.ipv4]).returncode == 1
    second.boot()
    second.run(["ping", "-c", "2", "-W", "5", first.end.ipv6], check=True)
