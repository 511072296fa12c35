"""The way through ssh, with a stand-in for ssh that does to its words what ssh and a far shell do.

The real one, with a real sshd, is in tests/guest/inside/agent/test_ssh.py.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fake_daemon import result, serving
from tests.support import PATIENCE, Rig
from tests.support import serving as served
from volattachd.cli import exit_codes, main
from volattachd.cli.parser import HOST_VARIABLE, SOCKET_VARIABLE
from volattachd.client import aio, ssh
from volattachd.client.sync import AccessRefused, BadAnswer, Client, NoAnswer, Unreachable
from volattachd.errors import Busy

#: What ssh does: everything behind the host is one line for the far side's shell.
SSH = """\
#!/bin/sh
printf '%s\\n' "$@" >"$SSH_WORDS"
[ -z "$SSH_FAILS" ] || {{ echo "ssh: $SSH_FAILS" >&2; exit 255; }}
while [ "$1" != -- ]; do shift; done
shift 2
PATH="{far}" exec /bin/sh -c "$*"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "d.sock"


@pytest.fixture(autouse=True)
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-ins on the PATH; the answer is the file that gets the words of ssh."""
    near, far = tmp_path / "near", tmp_path / "far"
    near.mkdir()
    far.mkdir()
    program(near / "ssh", SSH.format(far=far))
    root = Path(__file__).parents[2]
    python = f"PYTHONPATH={shlex.quote(str(root))} exec {shlex.quote(sys.executable)}"
    program(far / "volattach", f'#!/bin/sh\n{python} -m volattachd.cli "$@"\n')
    monkeypatch.setenv("PATH", f"{near}:{os.environ['PATH']}")
    monkeypatch.setenv("SSH_WORDS", str(tmp_path / "words"))
    monkeypatch.setenv("SSH_FAILS", "")
    return tmp_path / "words"


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def address(path: Path) -> str:
    return f"ssh://ops@storage1:2222{path}"


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("ssh://storage1", ssh.Host("storage1")),
        ("ssh://storage1/", ssh.Host("storage1")),
        ("ssh://ops@storage1:2222", ssh.Host("storage1", "ops", 2222)),
        ("ssh://ops@example.org@storage1", ssh.Host("storage1", "ops@example.org")),
        ("ssh://10.0.0.1:22/run/x y.sock", ssh.Host("10.0.0.1", None, 22, "/run/x y.sock")),
        ("ssh://[fd00::1%eth0]:22", ssh.Host("fd00::1%eth0", None, 22)),
    ],
)
def test_an_address_names_user_host_port_and_socket(text: str, host: ssh.Host) -> None:
    assert ssh.parse_address(text) == host


@pytest.mark.parametrize(
    "text",
    [
        "storage1",
        "ssh://",
        "ssh:///run/x.sock",
        "ssh://-oProxyCommand=reboot",
        "ssh://-l@storage1",
        "ssh://ops@-oProxyCommand=reboot",
        "ssh://[-1]",
        "ssh://a b",
        "ssh://a;reboot",
        "ssh://$(reboot)",
        "ssh://`reboot`@a",
        "ssh://a\nb",
        "ssh://a/run/x\n",
        "ssh://a:0",
        "ssh://a:65536",
        "ssh://a:ssh",
        "ssh://a:",
        "ssh://@a",
        "ssh://ops:password@a",
        "SSH://a",
        "tcp://a:1",
    ],
)
def test_what_is_no_address_starts_nothing(text: str, words: Path) -> None:
    with pytest.raises(ValueError, match="is not ssh://"):
        ssh.parse_address(text)
    if text.startswith("ssh://"):
        with pytest.raises(Unreachable):
            Client(text).list_volumes()
    assert not words.exists()


def test_the_words_of_ssh() -> None:
    """As they stand: a change here is a change of what operators rely on."""
    host = ssh.Host("storage1", "ops", 2222, "/run/it's.sock")
    assert shlex.join(ssh.command(host, 10.0, interactive=False)) == (
        "ssh -T -a -x -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=15 -o ClearAllForwardings=yes"
        " -o RemoteCommand=none -l ops -p 2222 -- storage1"
        """ 'volattach --socket '"'"'/run/it'"'"'"'"'"'"'"'"'s.sock'"'"' dial-stdio'"""
    )
    assert "BatchMode=no" in ssh.command(host, 10.0, interactive=True)


def test_ssh_itself_takes_every_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ssh -G reads command line and configuration, prints what it would do, and connects nowhere."""
    monkeypatch.setenv("PATH", os.environ["PATH"].partition(":")[2])
    _, *options = ssh.command(ssh.Host("storage1", "ops", 2222), 10.0, interactive=False)
    done = subprocess.run(["ssh", "-F", "/dev/null", "-G", *options], capture_output=True, text=True, check=True)
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    told = {key: said[key] for key in ("user", "hostname", "port", "batchmode", "connecttimeout", "requesttty")}
    assert told == {
        "user": "ops",
        "hostname": "storage1",
        "port": "2222",
        "batchmode": "yes",
        "connecttimeout": "10",
        "requesttty": "false",
    }


def test_a_host_is_known_by_the_name_that_sshs_configuration_gives_it(tmp_path: Path) -> None:
    program(tmp_path / "near/ssh", "#!/bin/sh\necho user ops\necho hostname 10.1.2.3\necho port 22\n")
    assert ssh.resolve("ssh://storage1") == "10.1.2.3"
    program(tmp_path / "near/ssh", "#!/bin/sh\nexit 255\n")
    assert ssh.resolve("ssh://storage1") == "storage1"


@pytest.mark.parametrize("name", ["d.sock", "it's; touch x $(touch y) `touch z`.sock"])
def test_calls_go_to_the_socket_on_the_far_side(tmp_path: Path, name: str) -> None:
    """Whatever the socket's name is, the far shell makes one word of it."""
    rig = Rig(tmp_path)
    rig.register("vol-1")
    before = set(os.listdir())
    with served(tmp_path / name, rig.service), Client(address(tmp_path / name), PATIENCE) as client:
        assert [volume["volume"] for volume in client.list_volumes()] == ["vol-1"]
        assert client.reserve_volume("vol-1")["state"] == "reserved"
    assert set(os.listdir()) == before


def test_nothing_is_left_when_the_client_is_closed(path: Path, tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    with served(path, rig.service), Client(address(path), PATIENCE) as client:
        client.list_volumes()
        children = running()
        assert len(children) == 1
        client.close()
        assert running() == []


def running() -> list[str]:
    """The children of this process, zombies too."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_asyncio_has_the_same_way(path: Path, tmp_path: Path) -> None:
    import asyncio

    async def body() -> Any:
        async with aio.Client(address(path), PATIENCE) as client:
            return await client.list_volumes()

    rig = Rig(tmp_path)
    rig.register("vol-1")
    with served(path, rig.service):
        assert [volume["volume"] for volume in asyncio.run(body())] == ["vol-1"]
    assert running() == []


def test_ssh_that_fails_is_told_in_its_words_and_nothing_was_sent(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_FAILS", "Could not resolve hostname storage1")
    with Client(address(path)) as client, pytest.raises(Unreachable) as caught:
        client.list_volumes()
    assert not isinstance(caught.value, NoAnswer)
    assert "ssh ended with status 255: ssh: Could not resolve hostname storage1" in caught.value.message
    assert caught.value.correction == "try it by hand: ssh -l ops -p 2222 -- storage1 volattach status"
    assert running() == []


def test_a_host_without_the_command_is_told(path: Path, tmp_path: Path) -> None:
    (tmp_path / "far/volattach").unlink()
    with Client(address(path)) as client, pytest.raises(Unreachable, match=r"status 127: .*not found") as caught:
        client.list_volumes()
    assert caught.value.correction == "install volattach on that host, where ssh's PATH finds it"


def test_a_daemon_that_does_not_run_there_is_told_with_the_far_sides_words(path: Path) -> None:
    with Client(address(path)) as client, pytest.raises(Unreachable, match=r"status 8: .*No such file") as caught:
        client.list_volumes()
    assert not isinstance(caught.value, AccessRefused)


def test_the_far_sides_refusal_is_a_refusal() -> None:
    assert exit_codes.code_of(AccessRefused("x")) == ssh._REFUSED


def test_a_shell_that_prints_something_is_named_as_the_fault(path: Path, tmp_path: Path) -> None:
    program(tmp_path / "far/volattach", "#!/bin/sh\necho Welcome to storage1\ncat >/dev/null\n")
    with Client(address(path)) as client, pytest.raises(BadAnswer, match="not JSON") as caught:
        client.list_volumes()
    assert "start-up file" in str(caught.value.correction)


def test_a_far_side_that_says_nothing_is_given_up_in_time(path: Path, tmp_path: Path) -> None:
    program(tmp_path / "far/volattach", "#!/bin/sh\nexec /bin/cat >/dev/null\n")
    with Client(address(path), timeout=0.5) as client, pytest.raises(Unreachable, match=r"within 0\.5 s"):
        client.list_volumes()
    assert running() == []


def test_a_way_that_ends_after_the_call_was_sent_is_no_answer(path: Path) -> None:
    with (
        serving(path, result({}), b"") as daemon,
        Client(address(path)) as client,
        pytest.raises(NoAnswer, match="ssh ended with status 0"),
    ):
        client.call("detach", {"volume": "vol-1"})
    assert [request["method"] for request in daemon.requests] == ["get_status", "detach"]


def test_what_the_daemon_says_of_the_connection_is_raised_as_it_is(path: Path) -> None:
    refusal = b'{"jsonrpc":"2.0","id":null,"error":{"code":1009,"message":"too many connections"}}\n'
    with serving(path, refusal), Client(address(path)) as client, pytest.raises(Busy, match="too many"):
        client.list_volumes()


def test_there_is_no_ssh(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "far"))
    with Client(address(path)) as client, pytest.raises(Unreachable, match="cannot start ssh"):
        client.list_volumes()


def test_the_command_takes_a_host(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: Path) -> None:
    rig = Rig(tmp_path)
    rig.register("vol-1")
    with served(path, rig.service):
        assert main(["--host", address(path), "--json", "show", "vol-1"]) == 0
    assert json.loads(capsys.readouterr().out)["volume"] == "vol-1"
    assert "BatchMode=yes" in words.read_text().splitlines(), "nobody sits at a terminal here"


@pytest.mark.parametrize("line", ["register v vol.img", "backup copy.db"])
def test_a_path_of_another_host_is_absolute(line: str, capsys: pytest.CaptureFixture[str], words: Path) -> None:
    assert main(["--host", "ssh://storage1", *line.split()]) == 2
    assert "is relative, and the daemon is on another host" in capsys.readouterr().err
    assert not words.exists()


# The far side alone: volattach dial-stdio.


@pytest.fixture
def relay(path: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    rig = Rig(tmp_path)
    rig.register("vol-1")
    with served(path, rig.service):
        process = dialled(path)
        yield process
        process.kill()
        process.communicate()


def dialled(path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "volattachd.cli", "--socket", str(path), "dial-stdio"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


CALL = b'{"jsonrpc":"2.0","id":1,"method":"list_volumes"}'


def test_the_far_side_takes_no_host_from_its_environment(
    path: Path, monkeypatch: pytest.MonkeyPatch, words: Path
) -> None:
    """Set for every user of a host, the variable would make that host call itself for ever."""
    monkeypatch.setenv(HOST_VARIABLE, "ssh://storage1")
    monkeypatch.setenv(SOCKET_VARIABLE, str(path))
    command = [sys.executable, "-m", "volattachd.cli", "dial-stdio"]
    done = subprocess.run(command, input=b"", capture_output=True, check=False)
    assert str(path).encode() in done.stderr
    assert not words.exists(), "no ssh was started"


def test_the_end_of_the_input_still_gets_its_answers(relay: subprocess.Popen[bytes]) -> None:
    out, err = relay.communicate(CALL * 50, PATIENCE)
    assert [len(json.loads(line)["result"]) for line in out.splitlines()] == [1] * 50
    assert (err, relay.returncode) == (b"", 0)


def test_it_ends_when_the_daemon_hangs_up_though_the_input_goes_on(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        process = dialled(path)
        connection, _ = listener.accept()
        connection.sendall(b"last words")
        connection.close()
        assert process.wait(PATIENCE) == 0
        assert process.stdout and process.stdout.read() == b"last words"
        process.communicate()


def test_it_ends_when_nobody_takes_the_output(relay: subprocess.Popen[bytes]) -> None:
    assert relay.stdin and relay.stdout and relay.stderr
    relay.stdout.close()
    relay.stdin.write(CALL)
    relay.stdin.flush()
    assert relay.wait(PATIENCE) == 141
    assert relay.stderr.read() == b""


def test_a_slow_reader_of_the_output_does_not_hold_up_the_input(path: Path) -> None:
    """More both ways than every buffer between holds."""
    size = 4 << 20
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        process = dialled(path)
        assert process.stdin and process.stdout
        connection, _ = listener.accept()
        feeding = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import os\nleft = {size}\nwhile left: left -= os.write(1, b'x' * min(left, 65536))",
            ],
            stdout=connection.fileno(),
        )
        sending = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import os\nleft = {size}\nwhile left: left -= os.write(1, b'y' * min(left, 65536))",
            ],
            stdout=process.stdin.fileno(),
        )
        got = 0
        while got < size:
            got += len(connection.recv(1 << 16))
        assert sending.wait(PATIENCE) == 0
        process.stdin.close()
        assert connection.recv(1) == b"", "the end of the input"
        assert len(process.stdout.read(size)) == size
        assert feeding.wait(PATIENCE) == 0
        connection.close()
        assert process.wait(PATIENCE) == 0
        process.stdout.close()
        assert process.stderr
        process.stderr.close()


def test_a_socket_that_is_not_there_is_told_on_standard_error(path: Path) -> None:
    process = dialled(path)
    out, err = process.communicate(b"", PATIENCE)
    assert (process.returncode, out) == (8, b"")
    assert b"cannot reach the daemon" in err
