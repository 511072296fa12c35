from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support import HOST_A, PATIENCE, Wire, attachment_id, connector, insist, make_file, request, wait_until
from volattachd import __version__

Start = Callable[..., "Running"]


#: As systemd does it: the descriptor is 3, and LISTEN_PID the process's own number.
HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.set_inheritable(3, True)
os.execve(sys.argv[2], sys.argv[2:], {**os.environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
"""


class Running:
    """A daemon in a process of its own, with the simulated target."""

    def __init__(
        self, directory: Path, *words: str, config: str = "", notify: bool = True, fds: tuple[int, ...] = (), **env: str
    ) -> None:
        self.directory = directory
        self.socket = directory / "run" / "d.sock"
        self.log = directory / "log"
        self._notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notifications.settimeout(PATIENCE)
        name = directory / "notify"
        name.unlink(missing_ok=True)
        self._notifications.bind(str(name))
        file = directory / "volattachd.toml"
        file.write_text(config)
        command = [
            sys.executable, "-m", "volattachd", "--config", str(file), "--state-dir", str(directory / "state"),
            "--socket", str(self.socket), "--driver", "memory", *words,
        ]  # fmt: skip
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("LISTEN_", "WATCHDOG", "PYTHONUN"))
        }
        environment |= env | ({"NOTIFY_SOCKET": str(name)} if notify else {})
        with open(self.log, "ab") as log:
            if fds:
                command = [sys.executable, "-c", HAND_OVER, str(fds[0]), *command]
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=environment, pass_fds=fds)

    def told(self, word: str) -> str:
        """The next notification that begins with ``word``; others on the way to it are passed over."""
        while True:
            text = self._notifications.recv(4096).decode()
            if text.startswith(word):
                return text

    def ready(self) -> Running:
        ended = self.process.poll
        while not select.select([self._notifications], [], [], 0.05)[0]:
            assert ended() is None, self.text()
        self.told("READY=1")
        return self

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def text(self) -> str:
        return self.log.read_text()

    def call(self, method: str, *args: Any, **params: Any) -> Any:
        with Wire(self.socket) as wire:
            return wire.call(method, *args, **params)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)
        self._notifications.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts daemons, all over one state directory unless another is given, and ends them with the test."""
    with ExitStack() as running:

        def starts(*words: str, directory: Path = tmp_path, **members: Any) -> Running:
            daemon = Running(directory, *words, **members)
            running.callback(daemon.close)
            return daemon

        yield starts


def check(tmp_path: Path, config: str | None, *words: str) -> subprocess.CompletedProcess[str]:
    """The program with --check-config."""
    file = tmp_path / "volattachd.toml"
    if config is not None:
        file.write_text(config)
    command = [sys.executable, "-m", "volattachd", "--config", str(file), "--check-config", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# The command line.


def test_a_good_configuration_is_told_and_nothing_is_made(tmp_path: Path) -> None:
    state, path = tmp_path / "state", tmp_path / "d.sock"
    done = check(tmp_path, f'[daemon]\nstate_dir = "{state}"\nsocket = "{path}"\n[target]\ndriver = "memory"\n')
    assert (done.returncode, done.stderr) == (0, "")
    assert "configuration is good: driver memory" in done.stdout
    assert sorted(tmp_path.iterdir()) == [tmp_path / "volattachd.toml"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("\n[daemon]\nstate_dir = 5\n", ":3: daemon.state_dir: must be an absolute path, not 5"),
        ("[deamon]\n", ":1: unknown section [deamon]"),
        ("[access]\nadmin = ['no-such-user']\n", "access.admin: there is no user 'no-such-user'"),
        ("[target]\nportals = ['nonsense/']\n", "target.portals: "),
        ("[target]\ndriver = 'nonsense'\n", "unknown driver 'nonsense'"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_configuration_is_told_with_exit_code_78(tmp_path: Path, config: str | None, told: str) -> None:
    words = [] if config and "driver" in config else ["--driver", "memory"]
    done = check(tmp_path, config, *words)
    assert done.returncode == 78
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("config", ["\n[daemon]\nstate_dir = 5\n", "[access]\nadmin = ['no-such-user']\n"])
def test_a_start_with_a_bad_configuration_ends_in_the_same_way(start: Start, config: str) -> None:
    daemon = start(config=config)
    assert daemon.process.wait(PATIENCE) == 78
    assert not (daemon.directory / "state").exists()


def test_the_version_is_told() -> None:
    done = subprocess.run([sys.executable, "-m", "volattachd", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"volattachd {__version__}\n"


@pytest.mark.parametrize("words", [["--nonsense"], ["positional"], ["--state-dir"]])
def test_a_command_line_that_makes_no_sense_is_refused(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "volattachd", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2


# A life.


def test_a_daemon_starts_serves_and_ends(start: Start) -> None:
    daemon = start().ready()
    status = daemon.call("get_status")
    assert (status["ready"], status["driver"], status["degraded"]) == (True, "memory", [])
    assert (daemon.socket.stat().st_mode & 0o777, (daemon.directory / "state").stat().st_mode & 0o777) == (0o660, 0o700)
    assert daemon.end() == 0
    assert "Traceback" not in daemon.text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(start: Start, number: int) -> None:
    daemon = start().ready()
    daemon.process.send_signal(number)
    assert daemon.told("STOPPING=1")
    assert daemon.process.wait(PATIENCE) == 0


def test_the_first_error_of_a_call_is_an_increase_from_0(start: Start) -> None:
    running = start().ready()
    assert 'volattachd_calls_total{call="attach",outcome="DriverError"} 0.0' in running.call("get_metrics")


def test_a_hangup_is_survived_and_users_are_looked_up_again(start: Start) -> None:
    daemon = start().ready()
    with Wire(daemon.socket) as wire:
        wire.call("get_status")
        for count in range(1, 4):
            daemon.process.send_signal(signal.SIGHUP)
            wait_until(lambda n=count: daemon.text().count("looked up the users and groups") == n)  # type: ignore[misc]
            assert wire.call("get_status")["ready"] is True
    assert daemon.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_acknowledged_is_there_after_the_next_start(start: Start, number: int) -> None:
    daemon = start().ready()
    name = attachment_id(1)
    daemon.call("register_volume", "vol-1", make_file(daemon.directory / "a.img"))
    daemon.call("reserve_volume", "vol-1", name)
    info = daemon.call("initialize_connection", "vol-1", connector())
    before = daemon.call("show_volume", "vol-1"), daemon.call("show_attachment", name), daemon.call("get_history")
    assert daemon.end(number) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    daemon = start().ready()
    after = daemon.call("show_volume", "vol-1"), daemon.call("show_attachment", name), daemon.call("get_history")
    assert after == before
    assert daemon.call("initialize_connection", "vol-1", connector()) == info
    assert daemon.call("terminate_connection", "vol-1", {"initiator": HOST_A})["state"] == "gone"


def test_a_second_daemon_on_the_state_directory_refuses_and_the_first_lives_on(start: Start) -> None:
    first = start().ready()
    second = start("--socket", str(first.directory / "other.sock"))
    assert second.process.wait(PATIENCE) == 1
    assert f"another volattachd (pid {first.process.pid}) works on {first.directory}/state" in second.text()
    assert not (first.directory / "other.sock").exists()
    assert first.call("get_status")["ready"] is True


def test_a_second_daemon_on_the_socket_refuses_and_the_first_lives_on(start: Start) -> None:
    first = start().ready()
    second = start("--state-dir", str(first.directory / "other-state"))
    assert second.process.wait(PATIENCE) == 78
    assert f"another process serves {first.socket}" in second.text()
    assert first.call("get_status")["ready"] is True


@pytest.mark.parametrize(
    ("break_it", "told", "code"),
    [
        (lambda state: state.chmod(0o755), "must be a directory of uid", 1),
        (lambda state: (state / "journal.db").write_bytes(b"nonsense" * 1000), "restore it from a backup", 65),
    ],
)
def test_a_journal_that_cannot_be_used_ends_the_start_with_its_reason(
    start: Start, tmp_path: Path, break_it: Callable[[Path], Any], told: str, code: int
) -> None:
    (tmp_path / "state").mkdir(0o700)
    break_it(tmp_path / "state")
    daemon = start()
    assert daemon.process.wait(PATIENCE) == code
    assert told in daemon.text()
    assert told in daemon.told("STATUS="), "systemctl status shows it"
    assert "Traceback" not in daemon.text()
    assert not daemon.socket.exists()


def test_a_journal_that_fails_ends_the_daemon_and_nothing_is_acknowledged(start: Start) -> None:
    daemon = start().ready()
    daemon.call("register_volume", "vol-1", make_file(daemon.directory / "a.img"))
    with Wire(daemon.socket) as wire:
        wire.call("get_status")
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (0, 0))  # every write to a file fails now
        answer = wire.ask(request("reserve_volume", "vol-1", attachment_id(1)))
        assert answer is None or answer["error"]["code"] == 1009
    assert daemon.process.wait(PATIENCE) == 1
    daemon = start().ready()
    assert daemon.call("show_volume", "vol-1")["status"] == "available"
    assert daemon.call("reserve_volume", "vol-1", attachment_id(1))["state"] == "reserved"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_log_that_cannot_be_written_changes_neither_service_nor_exit_code(
    start: Start, tmp_path: Path, unbuffered: str
) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    daemon = start(PYTHONUNBUFFERED=unbuffered).ready()
    daemon.call("register_volume", "vol-1", make_file(daemon.directory / "a.img"))
    assert daemon.call("show_volume", "vol-1")["status"] == "available"
    assert daemon.end() == 0


def test_a_reservation_ends_by_itself(start: Start) -> None:
    daemon = start(config="[reconcile]\ninterval = 0.5\n[reservations]\nttl = 1\n").ready()
    daemon.call("register_volume", "vol-1", make_file(daemon.directory / "a.img"))
    daemon.call("reserve_volume", "vol-1", attachment_id(1))
    wait_until(lambda: daemon.call("show_volume", "vol-1")["status"] == "available")
    assert insist(lambda: daemon.call("get_history", attachment_id=attachment_id(1)))[-1]["pid"] == 0


def test_no_secret_is_in_the_log(start: Start) -> None:
    daemon = start("--debug").ready()
    daemon.call("register_volume", "vol-1", make_file(daemon.directory / "a.img"))
    daemon.call("reserve_volume", "vol-1", attachment_id(1))
    password = daemon.call("initialize_connection", "vol-1", connector())["data"]["auth_password"]
    assert "initialize_connection" in daemon.text()
    assert password not in daemon.text()


# With systemd.


def test_readiness_is_told_when_calls_are_answered(start: Start) -> None:
    daemon = start().ready()
    assert daemon.call("get_status")["ready"] is True
    assert daemon.told("STATUS=") == "STATUS=0 volumes, 0 attachments, 0 degraded"


def test_the_watchdog_is_fed(start: Start) -> None:
    daemon = start(WATCHDOG_USEC="100000").ready()
    for _ in range(3):
        assert daemon.told("WATCHDOG=1") == "WATCHDOG=1"
    daemon.call("register_volume", "vol-1", make_file(daemon.directory / "a.img"))
    while daemon.told("STATUS=") != "STATUS=1 volumes, 0 attachments, 0 degraded":
        pass
    assert daemon.end() == 0


def test_without_systemd_nothing_is_missed(start: Start) -> None:
    daemon = start(notify=False)
    wait_until(daemon.socket.exists)
    wait_until(lambda: "ready: serving" in daemon.text())
    assert daemon.call("get_status")["ready"] is True
    assert daemon.end() == 0


@pytest.fixture
def activated(tmp_path: Path) -> Iterator[socket.socket]:
    """The listening socket that systemd would hold."""
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "run" / "d.sock"))
        listener.listen()
        yield listener


def test_a_socket_that_is_handed_over_is_served_and_a_call_may_come_before_the_start(
    start: Start, activated: socket.socket, tmp_path: Path
) -> None:
    with Wire(tmp_path / "run" / "d.sock") as early:
        early.send(request("get_status"))
        daemon = start(fds=(activated.fileno(),)).ready()
        assert early.answer()["result"]["driver"] == "memory"
    assert daemon.call("get_status")["ready"] is True
    assert daemon.end() == 0
    assert daemon.socket.exists()


def test_a_socket_that_is_handed_over_outlives_the_daemon(
    start: Start, activated: socket.socket, tmp_path: Path
) -> None:
    assert start(fds=(activated.fileno(),)).ready().end() == 0
    with Wire(tmp_path / "run" / "d.sock") as between:
        between.send(request("get_status"))
        start(fds=(activated.fileno(),)).ready()
        assert between.answer()["result"]["driver"] == "memory"


def test_another_kind_of_socket_is_refused(start: Start) -> None:
    with socket.socket(socket.AF_INET) as wrong:
        daemon = start(fds=(wrong.fileno(),))
        assert daemon.process.wait(PATIENCE) == 78
    assert "not a Unix stream socket" in daemon.text()
    assert json.dumps(daemon.text()).count("Traceback") == 0


def test_a_signal_that_another_thread_takes_is_heard(start: Start) -> None:
    """The kernel may give a signal to any thread, and that wakes no lock on which the main thread waits."""
    daemon = start().ready()
    pid = daemon.process.pid
    libc = ctypes.CDLL(None, use_errno=True)
    threads = [int(name) for name in os.listdir(f"/proc/{pid}/task") if int(name) != pid]
    assert threads
    for count, thread in enumerate(threads, start=1):
        assert libc.tgkill(pid, thread, int(signal.SIGHUP)) == 0
        wait_until(lambda n=count: daemon.text().count("looked up the users and groups") == n)  # type: ignore[misc]
    assert libc.tgkill(pid, threads[0], int(signal.SIGTERM)) == 0
    assert daemon.process.wait(PATIENCE) == 0
