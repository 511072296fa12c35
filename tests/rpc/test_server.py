from __future__ import annotations

import grp
import json
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import (
    LIMITS,
    PATIENCE,
    Gate,
    Rig,
    Wire,
    attachment_id,
    connector,
    in_thread,
    make_file,
    request,
    serving,
)
from volattachd.api.access import Access
from volattachd.api.methods import BY_NAME, METHODS
from volattachd.config import Config
from volattachd.errors import ConfigError
from volattachd.rpc.server import activated_socket, bind_socket


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "d.sock"


#: A value for each parameter that some method needs.
REQUIRED: dict[str, Any] = {"volume": "v", "connector": connector(), "path": "/v"}


def handlers(**special: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """For each method one that answers with its parameters."""
    return {method.name: lambda caller, *_, **params: params for method in METHODS} | special


@pytest.fixture
def echo(path: Path) -> Iterator[Path]:
    """A server of such handlers."""
    with serving(path, handlers()):
        yield path


# The stream.


def test_a_call_needs_no_newline_and_gets_one_line(echo: Path) -> None:
    with Wire(echo) as wire:
        assert wire.ask(request("show_volume", volume="v")) == {"jsonrpc": "2.0", "id": 1, "result": {"volume": "v"}}


@pytest.mark.parametrize("between", [b"", b"\n", b"\r\n", b" \t\n\r ", b"\n" * 5000])
def test_calls_that_are_sent_at_once_are_answered_in_order(echo: Path, between: bytes) -> None:
    with Wire(echo) as wire:
        wire.send(between.join(json.dumps(request("get_status", call_id=n)).encode() for n in range(100)))
        wire.end()
        assert [wire.answer()["id"] for _ in range(100)] == list(range(100))
        assert wire.answer() is None


@pytest.mark.parametrize("method", [method.name for method in METHODS if method.changes] + ["backup_journal"])
def test_what_is_answered_does_not_wait_for_the_next_call_of_the_same_packet(path: Path, method: str) -> None:
    gate = Gate()
    arguments = {param.name: REQUIRED[param.name] for param in BY_NAME[method].params if param.required}
    with serving(path, handlers(**{method: lambda *_, **__: gate()})), Wire(path) as wire:
        calls = [request("get_status", call_id=1), request(method, call_id=2, **arguments)]
        wire.send(b"".join(json.dumps(call).encode() for call in calls))
        assert gate.reached.wait(PATIENCE)
        assert wire.answer()["id"] == 1
        gate.open()
        assert wire.answer()["id"] == 2


def test_answers_that_are_long_together_are_not_held_back(path: Path) -> None:
    """A packet of short calls may have any number of megabytes of answers."""
    gate, asked = Gate(), iter(range(1000))

    def answer(*_: Any) -> str:
        if next(asked) == 10:
            gate()
        return "x" * 10000

    with serving(path, handlers(get_status=answer)), Wire(path) as wire:
        wire.send(b"".join(json.dumps(request("get_status", call_id=n)).encode() for n in range(100)))
        assert gate.reached.wait(PATIENCE)
        assert [wire.answer()["id"] for _ in range(7)] == list(range(7))
        gate.open()
        assert [wire.answer()["id"] for _ in range(93)] == list(range(7, 100))


@pytest.mark.parametrize("indent", [0, 2, "\t"])
def test_calls_may_be_pretty_printed(echo: Path, indent: Any) -> None:
    text = json.dumps([request("show_volume", volume="v"), request("get_status", call_id=2)], indent=indent)
    with Wire(echo) as wire:
        answers = wire.ask(text.encode())
        assert [answer["id"] for answer in answers] == [1, 2]


def test_a_call_may_come_byte_by_byte(echo: Path) -> None:
    with Wire(echo) as wire:
        for byte in json.dumps(request("show_volume", volume="é")).encode()[:-1] + b"}":
            wire.send(bytes([byte]))
        assert wire.answer()["error"]["data"]["kind"] == "InvalidInput"


def test_notifications_are_not_answered_and_have_their_effect(path: Path) -> None:
    seen: list[str] = []
    show = handlers(show_volume=lambda caller, volume: seen.append(volume))
    note = {"jsonrpc": "2.0", "method": "show_volume", "params": {"volume": "a"}}
    with serving(path, show), Wire(path) as wire:
        wire.send(note)
        wire.send([note, note])
        assert wire.ask(request("get_status", call_id="after"))["id"] == "after"
    assert seen == ["a", "a", "a"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"x", -32700),
        (b"]", -32700),
        (b"}", -32700),
        (b",", -32700),
        (b"\xff", -32700),
        (b"\x00", -32700),
        (b"\xef\xbb\xbf{}", -32700),
        (b"\x16\x03\x01\x02\x00", -32700),
        (b"GET / HTTP/1.1\r\n\r\n", -32700),
        (b"{]", -32700),
        (b'{"a":NaN}', -32700),
        (b'{"a" 1}', -32700),
        (b'"\xff"', -32700),
        (b"nul ", -32700),
        (b" " * (1 << 20) + b"[" + b" " * (1 << 20) + b"]", -32600),
        (b'"' + b"a" * (1 << 20) + b'"', -32600),
    ],
)
def test_a_broken_stream_is_answered_and_then_closed(echo: Path, data: bytes, code: int) -> None:
    with Wire(echo) as wire:
        assert wire.call("get_status") == {}
        sending = in_thread(lambda: send_all(wire, data + json.dumps(request("get_status")).encode()))
        answer = wire.answer()
        assert (answer["error"]["code"], answer["id"]) == (code, None)
        assert wire.answer() is None
        sending()
    with Wire(echo) as wire:
        assert wire.call("get_status") == {}


def send_all(wire: Wire, data: bytes) -> None:
    """Send to a server that may hang up in the middle."""
    try:
        wire.send(data)
    except OSError:
        pass


@pytest.mark.parametrize(
    "data",
    [b"[" * 33 + b"]" * 33, b"18446744073709551616 ", b'{"a":1,"a":2}', b'"\\ud800"', b"1e400 ", b"{}", b"[]", b"5 "],
)
def test_a_value_that_is_not_taken_is_answered_and_the_stream_goes_on(echo: Path, data: bytes) -> None:
    with Wire(echo) as wire:
        assert wire.ask(data)["error"]["code"] == -32600
        assert wire.call("get_status") == {}


@pytest.mark.parametrize("data", [b"{", b'{"jsonrpc":"2.0"', b'"abc', b"[1,", b"12", b"tru"])
def test_half_a_message_at_the_end_of_the_stream_is_told(echo: Path, data: bytes) -> None:
    with Wire(echo) as wire:
        wire.send(data)
        wire.end()
        assert wire.answer()["error"]["code"] in (-32700, -32600)
        assert wire.answer() is None


def test_a_client_that_says_nothing_is_answered_nothing(echo: Path) -> None:
    with Wire(echo) as wire:
        wire.end()
        assert wire.answer() is None


def test_a_client_that_goes_away_in_the_middle_harms_nobody(echo: Path) -> None:
    for data in (b"", b"{", json.dumps(request("get_status")).encode() * 50):
        with Wire(echo) as wire:
            wire.send(data)
    with Wire(echo) as wire:
        assert wire.call("get_status") == {}


def test_a_bug_in_a_handler_is_told_without_its_text_and_the_connection_goes_on(path: Path) -> None:
    def broken(caller: Any) -> Any:
        raise KeyError("hidden")

    with serving(path, handlers(get_status=broken)), Wire(path) as wire:
        answer = wire.ask(request("get_status"))
        assert answer["error"]["code"] == -32603
        assert "hidden" not in json.dumps(answer)
        assert wire.call("list_volumes") == {}


def test_a_call_that_hangs_holds_up_its_own_connection_alone(path: Path) -> None:
    gate = Gate()
    with serving(path, handlers(get_status=lambda caller: gate())), Wire(path) as stuck, Wire(path) as free:
        stuck.send(json.dumps(request("get_status")).encode() + json.dumps(request("list_volumes", call_id=2)).encode())
        assert gate.reached.wait(PATIENCE)
        assert free.call("list_volumes") == {}
        gate.open()
        assert [stuck.answer()["id"] for _ in range(2)] == [1, 2]


# Limits.


def test_a_connection_past_the_limit_is_told_busy_and_a_place_that_is_free_again_is_given(path: Path) -> None:
    limits = replace(LIMITS, connections=3)
    with serving(path, handlers(), limits):
        wires = [Wire(path) for _ in range(3)]
        assert all(wire.call("get_status") == {} for wire in wires)
        with Wire(path) as refused:
            answer = refused.answer()
            assert (answer["error"]["code"], answer["id"]) == (1009, None)
            assert answer["error"]["data"]["retriable"] is True
            assert "all 3 connections" in answer["error"]["message"]
            assert refused.answer() is None
        wires.pop().socket.close()
        served(path)
        for wire in wires:
            assert wire.call("get_status") == {}
            wire.socket.close()


def served(path: Path) -> None:
    """Try again until there is a place: the server needs a moment to see that one is free."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with Wire(path) as wire:
            try:
                wire.send(request("get_status"))
            except OSError:
                continue
            if "result" in (wire.answer() or {}):
                return
    raise AssertionError("no place became free")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_one_user_cannot_take_all_connections(tmp_path: Path) -> None:
    for directory in [tmp_path, *tmp_path.parents][:-2]:
        directory.chmod(0o711)
    path = tmp_path / "d.sock"
    program = (
        "import os, socket, sys\n"
        "os.setgroups([]); os.setgid(54321); os.setuid(54321)\n"
        "wires = [socket.socket(socket.AF_UNIX) for _ in range(3)]\n"
        "for wire in wires: wire.settimeout(20); wire.connect(sys.argv[1])\n"
        "wires[0].sendall(b'1 '); wires[1].sendall(b'1 ')\n"
        "for wire in wires: print(wire.recv(65536).decode().strip(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    agents = Access(replace(Config(), agent=("54321",)))
    with serving(path, handlers(), replace(LIMITS, connections_per_uid=2), agents):
        command = [sys.executable, "-c", program, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as greedy:
            assert greedy.stdout is not None
            answers = [json.loads(greedy.stdout.readline()) for _ in range(3)]
            assert [answer["error"]["code"] for answer in answers] == [-32600, -32600, 1009]
            assert "uid 54321 has all of its 2 connections open" in answers[2]["error"]["message"]
            with Wire(path) as first, Wire(path) as second:
                assert first.call("get_status") == second.call("get_status") == {}
            greedy.communicate("")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_root_is_served_while_other_users_hold_all_that_they_can(tmp_path: Path) -> None:
    for directory in [tmp_path, *tmp_path.parents][:-2]:
        directory.chmod(0o711)
    path = tmp_path / "d.sock"
    program = (
        "import os, socket, sys\n"
        "os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))\n"
        "wires = [socket.socket(socket.AF_UNIX) for _ in range(20)]\n"
        "for wire in wires: wire.settimeout(20); wire.connect(sys.argv[1]); wire.send(b'1 ')\n"
        "print(sum(b'-32600' in wire.recv(65536) for wire in wires), flush=True)\n"
        "sys.stdin.read()\n"
    ).replace("wire.send(b'1 ')", "begin(wire)")
    program = "def begin(wire):\n try: wire.send(b'1 ')\n except OSError: pass\n" + program
    agents = Access(replace(Config(), agent=("54321", "54322")))
    with serving(path, handlers(), replace(LIMITS, connections=16, admin_connections=4), agents), ExitStack() as greedy:
        held = []
        for uid in ("54321", "54322", "54323"):
            command = [sys.executable, "-c", program, str(path), uid]
            child = greedy.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            assert child.stdin is not None and child.stdout is not None
            greedy.callback(child.stdin.close)
            held.append(int(child.stdout.readline()))
        assert held == [12, 0, 0], "one user takes all that is not reserved, and nobody else gets more"
        with ExitStack() as roots:
            for _ in range(4):
                assert roots.enter_context(Wire(path)).call("get_status") == {}


@pytest.mark.parametrize(
    "begun", [b"{", b'{"jsonrpc": "2.0"', b'"', b"[[[", b"12", json.dumps(request("get_status")).encode() + b"{"]
)
def test_a_message_that_is_not_completed_in_time_is_told_busy_and_ends_the_connection(path: Path, begun: bytes) -> None:
    with serving(path, handlers(), replace(LIMITS, message_seconds=0.1)), Wire(path) as wire:
        wire.send(begun)
        answers = []
        while (answer := wire.answer()) is not None:
            answers.append(answer)
        assert answers[-1]["error"]["code"] == 1009
        assert answers[-1]["error"]["data"]["retriable"] is True
        assert "not complete after 0.1 s" in answers[-1]["error"]["message"]


def test_a_client_may_be_silent_between_messages_for_as_long_as_it_likes(path: Path) -> None:
    with serving(path, handlers(), replace(LIMITS, message_seconds=0.05)), Wire(path) as quiet:
        assert quiet.call("get_status") == {}
        with Wire(path) as slow:  # its end shows that the time of a message has passed
            slow.send(b"{")
            assert slow.answer()["error"]["code"] == 1009
        assert quiet.call("get_status") == {}


def test_each_message_has_the_whole_time_to_itself(path: Path) -> None:
    """One that begins in the packet that ends the one before is not charged for that one, nor for its call."""
    seconds = 2.0
    gate = Gate()

    def slow(caller: Any) -> str:
        gate()
        return "slow"

    first = json.dumps(request("get_status")).encode()
    second = json.dumps(request("list_volumes", call_id=2)).encode()
    with serving(path, handlers(get_status=slow), replace(LIMITS, message_seconds=seconds)), Wire(path) as wire:
        wire.send(first[:5])
        with Wire(path) as clock:  # as slow as the first message: when it is refused, the time has passed
            clock.send(b"{")
            wire.send(first[5:] + second[:5])
            assert gate.reached.wait(PATIENCE)
            assert clock.answer()["error"]["code"] == 1009
        gate.open()
        assert wire.answer()["result"] == "slow"
        for _ in range(50):  # time for the server to look at the connection again
            with Wire(path) as other:
                other.call("list_volumes")
        wire.send(second[5:])
        answer = wire.answer()
        assert answer.get("id") == 2, answer


def test_a_client_that_does_not_read_is_dropped_and_others_go_on(path: Path) -> None:
    big = "x" * (1 << 20)
    with serving(path, handlers(get_status=lambda caller: big), replace(LIMITS, unread_seconds=0.2)):
        with Wire(path) as deaf, Wire(path) as other:
            deaf.socket.settimeout(PATIENCE)
            call = json.dumps(request("get_status")).encode()
            with pytest.raises(OSError):  # EPIPE or ECONNRESET: it hung up
                while True:
                    deaf.send(call)
                    assert other.call("list_volumes") == {}
        with Wire(path) as wire:
            assert wire.call("get_status") == big


def test_an_answer_that_is_larger_than_the_sockets_buffer_is_sent_whole(path: Path) -> None:
    big = ["é" * 1000] * 4000
    with serving(path, handlers(get_status=lambda caller: big)), Wire(path) as wire:
        assert wire.call("get_status") == big


def test_without_descriptors_left_the_server_waits_and_goes_on(echo: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    waiting = socket.socket(socket.AF_UNIX)
    waiting.settimeout(PATIENCE)
    with open(os.devnull) as lowest:
        limit = lowest.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        waiting.connect(str(echo))
        waiting.sendall(json.dumps(request("get_status")).encode())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with waiting:
        assert json.loads(waiting.makefile().readline())["result"] == {}


# The end.


def test_a_server_that_stops_finishes_the_answer_that_is_being_made(path: Path) -> None:
    gate = Gate()

    def slow(caller: Any) -> str:
        gate()
        return "done"

    with serving(path, handlers(get_status=slow)) as server, Wire(path) as wire, Wire(path) as idle:
        assert idle.call("list_volumes") == {}
        wire.send(request("get_status"))
        assert gate.reached.wait(PATIENCE)
        stopping = in_thread(server.stop)
        assert idle.answer() is None
        gate.open()
        stopping()
        assert wire.answer()["result"] == "done"
        assert wire.answer() is None
        server.stop = lambda: None  # type: ignore[method-assign]


def test_a_server_that_stops_leaves_systemds_socket_to_the_next_one(path: Path) -> None:
    """With socket activation the same listening socket outlives the daemon: who connects meanwhile only waits."""
    with socket.socket(socket.AF_UNIX) as systemds:
        systemds.bind(str(path))
        systemds.listen()
        for _ in range(2):
            code = (
                "import socket, sys, threading\n"
                "from tests.support import *\n"
                "from tests.rpc.test_server import handlers\n"
                "listener = socket.socket(fileno=int(sys.argv[1]))\n"
                "server = Server(listener, Dispatcher(handlers(), Audit()), Access(Config()), LIMITS)\n"
                "threading.Thread(target=server.run, daemon=True).start()\n"
                "print('ready', flush=True); sys.stdin.read(); server.stop()\n"
            )
            fd = systemds.fileno()
            with subprocess.Popen(
                [sys.executable, "-c", code, str(fd)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                pass_fds=[fd],
            ) as daemon:
                assert daemon.stdout is not None
                assert daemon.stdout.readline() == "ready\n"
                try:
                    with Wire(path) as wire:
                        assert wire.call("get_status") == {}
                finally:
                    daemon.communicate("")


# The whole service behind it.


def test_64_clients_live_64_lives_side_by_side_without_an_error(quick_path: Path, path: Path) -> None:
    rig = Rig(quick_path)
    count = 64
    for number in range(count):
        make_file(quick_path / f"vol-{number}.img", 4096)
    start = threading.Barrier(count)

    def live(number: int) -> list[str]:
        volume, name = f"vol-{number}", attachment_id(number)
        with Wire(path) as wire:
            start.wait(PATIENCE)
            wire.call("register_volume", volume, str(quick_path / f"{volume}.img"))
            wire.call("reserve_volume", volume, name)
            info = wire.call("initialize_connection", volume, connector(), name)
            wire.call("attach", volume=volume, host_name="h")
            states = [wire.call("show_attachment", name)["state"]]
            wire.call("list_volumes")
            wire.call("begin_detaching", volume)
            wire.call("roll_detaching", volume)
            wire.call("begin_detaching", volume)
            states.append(wire.call("terminate_connection", volume, connector())["state"])
            wire.call("get_history", volume)
            states.append(wire.call("detach", volume)["status"])
            wire.call("get_status")
            wire.call("unregister_volume", volume)
            assert info["data"]["volume_id"] == volume
            return states

    with serving(path, rig.service):
        lives = [in_thread(lambda n=n: live(n)) for n in range(count)]  # type: ignore[misc]
        assert [life() for life in lives] == [["attached", "disconnected", "available"]] * count
    assert rig.driver.exports == {}
    assert len(rig.journal.volumes) == len(rig.journal.attachments) == 0
    assert rig.journal.seq == count * 10
    rig.journal.close()


# The listening socket.


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_the_socket_has_its_mode_and_its_group_and_listens(path: Path) -> None:
    with bind_socket(path):
        found = path.stat()
        connect(path)
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o660
    groups = {group.gr_name: group.gr_gid for group in grp.getgrall()}
    assert found.st_gid == groups.get("volattach", found.st_gid)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o177])
def test_the_socket_is_never_open_to_others_and_the_umask_comes_back(path: Path, umask: int) -> None:
    """Its mode changes by bind and chmod alone, and each of them is seen here: before it happens, and after."""
    program = (
        "import os, stat, sys\n"
        "from pathlib import Path\n"
        "from volattachd.rpc import server\n"
        "path, umask = Path(sys.argv[1]), int(sys.argv[2])\n"
        "def hook(event, args):\n"
        "    if event in ('os.chmod', 'os.chown') and os.fspath(args[0]) == str(path):\n"
        "        print(event, oct(stat.S_IMODE(os.stat(path).st_mode)))\n"
        "os.umask(umask)\n"
        "sys.addaudithook(hook)\n"
        "listener = server.bind_socket(path)\n"
        "print('end', oct(stat.S_IMODE(os.stat(path).st_mode)), os.umask(0) == umask)\n"
    )
    command = [sys.executable, "-c", program, str(path), str(umask)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *steps, end = done.stdout.splitlines()
    assert end == "end 0o660 True"
    assert [step for step in steps if step.startswith("os.chmod")] == ["os.chmod 0o600"]
    assert {step.split()[1] for step in steps} == {"0o600"}


def test_a_socket_that_nobody_serves_any_more_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    before = path.stat().st_ino
    with bind_socket(path):
        connect(path)
    with bind_socket(path):
        connect(path)
    assert before


def test_a_path_that_another_process_serves_is_left_to_it(path: Path) -> None:
    program = (
        "import socket, sys\n"
        "listener = socket.socket(socket.AF_UNIX); listener.bind(sys.argv[1]); listener.listen()\n"
        "print('ready', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        before = path.stat()
        with pytest.raises(ConfigError, match=f"another process serves {path}"):
            bind_socket(path)
        after = path.stat()
        assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
        connect(path)
        other.communicate("")


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "link", "dangling link"])
def test_what_is_no_socket_is_left_alone(path: Path, kind: str) -> None:
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        target = path.with_name("target")
        if kind == "link":
            target.write_text("precious")
        path.symlink_to(target)
    before = path.lstat()
    with pytest.raises(ConfigError, match="exists and is not a socket"):
        bind_socket(path)
    after = path.lstat()
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)


def test_the_directory_of_the_socket_is_made_where_it_is_missing(tmp_path: Path) -> None:
    with bind_socket(tmp_path / "run" / "d.sock"):
        assert stat.S_IMODE((tmp_path / "run").stat().st_mode) & 0o022 == 0


@pytest.mark.parametrize("name", ["x" * 200, "missing/missing/d.sock"])
def test_a_path_that_cannot_be_a_socket_is_told_with_its_reason(tmp_path: Path, name: str) -> None:
    umask = os.umask(0o022)
    os.umask(umask)
    with pytest.raises(ConfigError, match="cannot listen on") as caught:
        bind_socket(tmp_path / name)
    assert "None" not in str(caught.value)
    assert os.umask(umask) == umask


def test_who_may_not_give_the_socket_away_is_told_what_to_do(path: Path) -> None:
    """As in the unit's sandbox, where the daemon has to make the socket itself."""
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from volattachd.errors import ConfigError\n"
        "from volattachd.rpc import server\n"
        "def refuse(event, args):\n"
        "    if event == 'os.chmod' and os.fspath(args[0]) == sys.argv[1]:\n"
        "        raise PermissionError(1, 'Operation not permitted', sys.argv[1])\n"
        "sys.addaudithook(refuse)\n"
        "try:\n"
        "    server.bind_socket(Path(sys.argv[1]))\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", program, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"cannot listen on {path}: cannot give it to the group volattach: Operation not permitted;"
        " start volattachd.socket, which makes it\n"
    )
    assert done.stderr == "", "the socket is closed"


@pytest.mark.parametrize("step", ["mkdir", "look", "bind"])
def test_every_refusal_of_the_system_on_the_way_is_an_error_of_the_configuration(tmp_path: Path, step: str) -> None:
    """A directory that cannot be made, a file in its place, a directory in which nothing can be made."""
    path = tmp_path / "run" / "d.sock"
    if step == "mkdir":
        (tmp_path / "run").symlink_to("run")
    elif step == "look":
        (tmp_path / "run").write_text("")
    else:
        path = Path("/proc/self/fd/d.sock")
    with pytest.raises(ConfigError, match=f"cannot listen on {path}: .*") as caught:
        bind_socket(path)
    assert "None" not in str(caught.value)


@pytest.mark.parametrize(
    ("pid", "count"), [(None, None), ("0", "1"), ("1", "1"), ("self", "0"), ("self", None), ("", ""), ("x", "1")]
)
def test_without_a_socket_for_this_process_none_is_taken(
    monkeypatch: pytest.MonkeyPatch, pid: str | None, count: str | None
) -> None:
    for name, value in (("LISTEN_PID", str(os.getpid()) if pid == "self" else pid), ("LISTEN_FDS", count)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert activated_socket() is None
