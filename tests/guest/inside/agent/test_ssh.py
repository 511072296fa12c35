"""Calls from another host: a real ssh, a real sshd, users of their own, and the permissions of the daemon's socket."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.inside.agent.compute import leftovers, rename_initiator
from tests.guest.inside.initiator import Initiator, read_back, run, write_pattern
from tests.guest.inside.program import Program, connector
from volattachd.client.sync import AccessRefused, Client, NoAnswer, Unreachable

PORT = "2222"
FAR_SIDE = '#!/bin/sh\nPYTHONPATH=/host/repo exec python3 -m volattachd.cli "$@"\n'
NEAR_SIDE = """\
Host storage1 stranger
    HostName 127.0.0.1
    IdentityFile {home}/id
    UserKnownHostsFile {home}/known_hosts
Host storage1
    HostKeyAlias storage1
Host stranger
    HostKeyAlias stranger
"""


@pytest.fixture(scope="module")
def base() -> Path:
    """The daemon's socket lies where everybody can see it: only its own permissions keep people out."""
    path = Path("/var/lib/volattachd-ssh")
    path.mkdir(mode=0o755, exist_ok=True)
    run("groupadd", "--system", "volattach")
    return path


@pytest.fixture(scope="module")
def sshd(program: Program) -> Iterator[subprocess.Popen[bytes]]:
    """sshd with two users: ops in the daemon's group, visitor in no group but its own. Root has the key of both."""
    home, run_dir = Path("/root/.ssh"), Path("/run/sshd")
    for directory in (home, run_dir):
        directory.mkdir(mode=0o700, exist_ok=True)
    for key in ("id", "host"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / key))
    (home / "known_hosts").write_text("storage1 " + (home / "host.pub").read_text())
    (home / "config").write_text(NEAR_SIDE.format(home=home))
    add_user("ops", home, "--groups", "volattach")
    add_user("visitor", home)
    command = Path("/usr/local/bin/volattach")
    command.write_text(FAR_SIDE)
    command.chmod(0o755)
    options = [f"HostKey={home}/host", "UsePAM=no", "PasswordAuthentication=no", "PidFile=none", "PrintMotd=no"]
    words = ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-p", PORT, *[f"-o{option}" for option in options]]
    with Path("/host/out/sshd.log").open("ab") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    until(lambda: b"SSH-2.0" in banner(), "sshd serves")
    yield process
    process.terminate()
    process.wait(30)


def add_user(name: str, keys: Path, *options: str) -> None:
    """A user with a shell who logs in with root's key."""
    run("useradd", "--create-home", "--shell", "/bin/sh", "--password", "*", *options, name)
    directory = Path("/home", name, ".ssh")
    directory.mkdir()
    (directory / "authorized_keys").write_text((keys / "id.pub").read_text())
    run("chown", "-R", f"{name}:", str(directory))


def banner() -> bytes:
    done = subprocess.run(["busybox", "nc", "-w", "1", "127.0.0.1", PORT], capture_output=True, check=False)
    return done.stdout


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.1)


@pytest.fixture
def address(program: Program, sshd: subprocess.Popen[bytes]) -> str:
    return f"ssh://ops@storage1:{PORT}{program.socket}"


def far_sides() -> list[str]:
    """The processes of the far side."""
    done = run("pgrep", "-f", "volattachd.cli.*dial-stdio", check=False)
    return done.stdout.split()


def test_the_six_calls_with_a_real_session_between_them(
    program: Program, address: str, host1: Initiator, volume: str
) -> None:
    ops = pwd.getpwnam("ops").pw_uid
    with Client(address) as client:
        at: dict[str, Any] = {"volume": volume, "attachment_id": client.reserve_volume(volume)["attachment_id"]}
        info = client.initialize_connection(**at, connector=connector(host1.name))
        assert host1.login(dict(info))
        written = write_pattern(host1.disk(dict(info)), 5)
        assert read_back(host1.disk(dict(info)), len(written)) == written
        assert client.attach(**at, host_name="guest")["owner"] == ops, "the SSH user's, as the kernel tells the daemon"
        client.begin_detaching(**at)
        host1.logout(dict(info))
        client.terminate_connection(**at, connector=connector(host1.name))
        assert client.detach(**at)["status"] == "available"
        assert {row["uid"] for row in client.get_history(attachment_id=at["attachment_id"])} == {ops}
    until(lambda: not far_sides(), "the far side ends with the client")


def test_the_command_line_does_the_same(program: Program, address: str, volume: str) -> None:
    words = [sys.executable, "-m", "volattachd.cli", "--json"]
    environment = {**os.environ, "VOLATTACH_HOST": address, "PYTHONPATH": "/host/repo"}
    done = subprocess.run([*words, "show", volume], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == program.call("show_volume", volume=volume)


def test_doctor_looks_at_both_sides(program: Program, address: str, host1: Initiator, volume: str) -> None:
    """The portal, on every address of its host, is tried at the one that ssh's configuration has for the name."""
    program.call("reserve_volume", volume=volume)
    program.call("initialize_connection", volume=volume, connector=connector(host1.name))
    words = [sys.executable, "-m", "volattachd.cli", "--host", address, "--json", "doctor"]
    done = subprocess.run(words, cwd="/host/repo", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = [(finding["level"], finding["check"], finding["message"]) for finding in json.loads(done.stdout)]
    assert ("ok", "role", "this user is agent") in found
    portals = [f"{portal} can be reached" for portal in program.call("get_status")["portals"]]
    assert portals and [words for _, check, words in found if check == "portals"] == portals
    assert {level for level, _, _ in found} == {"ok"}


def test_an_agent_by_ssh_is_no_admin(address: str, volume: str) -> None:
    with Client(address) as client, pytest.raises(Exception, match="needs the role admin") as caught:
        client.unregister_volume(volume)
    assert type(caught.value).__name__ == "PermissionDenied"


def test_who_is_not_in_the_group_is_refused_by_the_sockets_permissions(program: Program, address: str) -> None:
    with Client(address.replace("ops@", "visitor@")) as client, pytest.raises(AccessRefused) as caught:
        client.list_volumes()
    assert "Permission denied" in caught.value.message
    assert "member of the group 'volattach'" in caught.value.message


def test_a_host_that_is_not_known_is_refused_in_sshs_words(address: str) -> None:
    with Client(address.replace("storage1", "stranger")) as client, pytest.raises(Unreachable) as caught:
        client.list_volumes()
    assert not isinstance(caught.value, NoAnswer)
    assert "status 255: " in caught.value.message and "Host key verification failed" in caught.value.message


def test_a_user_without_a_key_is_refused_in_sshs_words(address: str) -> None:
    with Client(address.replace("ops@", "nobody@")) as client, pytest.raises(Unreachable, match=r"255: .*Permission"):
        client.list_volumes()


def test_a_port_that_nobody_serves_is_told(address: str) -> None:
    with Client(address.replace(PORT, "1")) as client, pytest.raises(Unreachable, match="Connection refused"):
        client.list_volumes()


def test_a_way_that_is_cut_is_made_again_and_nothing_happens_twice(program: Program, address: str, volume: str) -> None:
    name = str(uuid.uuid4())
    with Client(address) as client:
        client.reserve_volume(volume, name)
        rows = client.get_history(volume)
        for process in far_sides():
            os.kill(int(process), signal.SIGKILL)
        assert client.reserve_volume(volume, name)["state"] == "reserved"
        assert client.get_history(volume) == rows


def test_a_restart_of_the_daemon_is_waited_for(program: Program, address: str, volume: str) -> None:
    with Client(address) as client:
        before: Any = client.show_volume(volume)
        program.restart()
        assert client.show_volume(volume) == before


def test_the_agent_attaches_and_detaches_through_ssh(program: Program, address: str, volume: str) -> None:
    """Root here, for the devices; ops there, who is in the daemon's group and no more."""
    rename_initiator("iqn.2026-11.com.example:through-ssh")
    before = leftovers()

    def volattach(*words: str) -> dict[str, Any]:
        done = run(sys.executable, "-m", "volattachd.cli", "--host", address, "--json", *words)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    device = Path(volattach("attach", volume)["device"])
    [row] = program.call("list_attachments", volume=volume)
    assert (row["state"], row["owner"]) == ("attached", pwd.getpwnam("ops").pw_uid)
    written = write_pattern(device, 11)
    assert read_back(device, len(written)) == written
    assert volattach("attach", volume)["attachment_id"] == row["attachment_id"], "the same command again finds it"
    assert volattach("detach", volume) == {"volume": volume, "status": "available", "lost": []}
    assert leftovers() == before
    until(lambda: not far_sides(), "the far sides have ended")
