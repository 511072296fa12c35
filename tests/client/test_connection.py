from __future__ import annotations

import grp
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fake_daemon import failure, result, serving
from volattachd.client.connection import Connection
from volattachd.client.protocol import AccessRefused, BadAnswer, NoAnswer, RemoteError, Unreachable
from volattachd.errors import Busy, InvalidVolume, VolattachError, kinds


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "d.sock"


def test_a_call_gives_its_result(path: Path) -> None:
    with serving(path, result({"volume": "vol-1"})) as daemon, Connection(daemon.path) as client:
        assert client.call("show_volume", {"volume": "vol-1"}) == {"volume": "vol-1"}
    assert daemon.requests == [{"jsonrpc": "2.0", "id": 1, "method": "show_volume", "params": {"volume": "vol-1"}}]


def test_a_null_is_a_result_like_any_other(path: Path) -> None:
    with serving(path, result(None)) as daemon, Connection(daemon.path) as client:
        assert client.call("get_status") is None


def test_one_connection_serves_many_calls_with_rising_ids(path: Path) -> None:
    with serving(path, *[result(n) for n in range(5)]) as daemon, Connection(daemon.path) as client:
        assert [client.call("list_volumes") for _ in range(5)] == list(range(5))
    assert [request["id"] for request in daemon.requests] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_daemon_is_raised_as_its_class(path: Path, kind: type[VolattachError]) -> None:
    data = {"kind": kind.__name__, "retriable": kind.retriable, "correction": "do this", "candidates": ["a"]}
    reply = failure(kind.code, "cannot", **data)
    with serving(path, reply) as daemon, Connection(daemon.path) as client, pytest.raises(kind) as caught:
        client.call("attach", {"volume": "v"})
    assert type(caught.value) is kind
    assert caught.value.message == "cannot"
    assert caught.value.correction == "do this"
    assert caught.value.details == {"candidates": ["a"]}


def test_details_may_have_any_name(path: Path) -> None:
    data = {"message": "other", "self": 1, "correction": 5}
    reply = {"error": {"code": 1003, "message": "cannot", "data": data}}
    with serving(path, reply) as daemon, Connection(daemon.path) as client, pytest.raises(InvalidVolume) as caught:
        client.call("attach")
    assert caught.value.message == "cannot"
    assert caught.value.correction is None
    assert caught.value.details == {"message": "other", "self": 1}


@pytest.mark.parametrize("data", [None, "text", 5, []])
def test_an_errors_data_may_be_anything(path: Path, data: Any) -> None:
    reply = {"error": {"code": 1009, "message": "busy", "data": data}}
    with serving(path, reply) as daemon, Connection(daemon.path) as client, pytest.raises(Busy) as caught:
        client.call("attach")
    assert caught.value.details == {}


@pytest.mark.parametrize("code", [-32700, -32600, -32601, -32603, -32000, 4711])
def test_a_code_without_a_class_is_a_remote_error(path: Path, code: int) -> None:
    reply = failure(code, "it went wrong", detail="x")
    with serving(path, reply) as daemon, Connection(daemon.path) as client, pytest.raises(RemoteError) as caught:
        client.call("attach")
    assert (caught.value.code, caught.value.data) == (code, {"detail": "x"})
    assert str(caught.value) == f"it went wrong ({code})"


def test_after_an_error_the_connection_serves_the_next_call(path: Path) -> None:
    with serving(path, failure(1003, "cannot"), result(1)) as daemon, Connection(daemon.path) as client:
        with pytest.raises(InvalidVolume):
            client.call("attach")
        assert client.call("attach") == 1


def test_many_calls_give_their_outcomes_in_order_and_raise_no_error_of_one_call(path: Path) -> None:
    with serving(path, result(1), failure(1003, "cannot"), result(3)) as daemon, Connection(daemon.path) as client:
        first, second, third = client.call_many([("detach", {"volume": "a"}), ("detach", None), ("detach", {})])
    assert (first, third) == (1, 3)
    assert isinstance(second, InvalidVolume)


def test_pipelining_never_waits_for_a_daemon_that_waits_for_its_answers_to_be_read(path: Path) -> None:
    """More than both socket buffers hold, in both directions."""
    answer = result("x" * 100_000)
    with serving(path, *[answer] * 100) as daemon, Connection(daemon.path, timeout=30) as client:
        outcomes = client.call_many([("show_volume", {"volume": "y" * 20_000})] * 100)
    assert [len(outcome) for outcome in outcomes] == [100_000] * 100


def test_a_request_larger_than_the_window_is_sent_all_the_same(path: Path) -> None:
    with serving(path, result(1), result(2)) as daemon, Connection(daemon.path, timeout=30) as client:
        assert client.call_many([("attach", {"a": "y" * 900_000}), ("attach", {})]) == [1, 2]


def test_notifications_between_answers_are_passed_over(path: Path) -> None:
    note = b'{"jsonrpc":"2.0","method":"volume_changed","params":{}}\n'
    reply = note + note + b'{"jsonrpc":"2.0","id":1,"result":7}\n'
    with serving(path, reply) as daemon, Connection(daemon.path) as client:
        assert client.call("get_status") == 7


@pytest.mark.parametrize(
    "reply",
    [
        b"nonsense\n",
        b"\n",
        b"[]\n",
        b'{"id":1,"result":1}\n',
        b'{"jsonrpc":"2.0","id":2,"result":1}\n',
        b'{"jsonrpc":"2.0","id":true,"result":1}\n',
        b'{"jsonrpc":"2.0","id":"1","result":1}\n',
        b'{"jsonrpc":"2.0","result":1}\n',
        b'{"jsonrpc":"2.0","id":1}\n',
        b'{"jsonrpc":"2.0","id":1,"error":"x"}\n',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":"1","message":"x"}}\n',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":true,"message":"x"}}\n',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":1003}}\n',
        b'{"jsonrpc":"2.0","id":1,"result":1,"result":2}\n',
        b'{"jsonrpc":"2.0","id":1,"result":NaN}\n',
        b"HTTP/1.1 400 Bad Request\r\n",
    ],
)
def test_what_is_no_answer_to_the_call_ends_the_connection(path: Path, reply: bytes) -> None:
    with serving(path, reply) as daemon, Connection(daemon.path) as client:
        with pytest.raises(BadAnswer, match="does not answer as volattachd"):
            client.call("get_status")
        with pytest.raises(Unreachable, match="closed"):
            client.call("get_status")


def test_an_answer_may_nest_deeper_than_a_request(path: Path) -> None:
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    with serving(path, result(deep)) as daemon, Connection(daemon.path) as client:
        assert client.call("list_attachments") == deep


def test_an_answer_without_end_is_not_held_for_ever(path: Path) -> None:
    with serving(path, b"x" * 300_000) as daemon, Connection(daemon.path, max_answer=100_000) as client:
        with pytest.raises(BadAnswer, match="longer than 100000 bytes"):
            client.call("list_volumes")
        with pytest.raises(Unreachable, match="closed"):
            client.call("list_volumes")


def test_an_error_of_the_connection_is_raised_and_ends_it(path: Path) -> None:
    """The daemon refuses a connection, or a stream, with an error that carries no id."""
    reply = b'{"jsonrpc":"2.0","id":null,"error":{"code":1009,"message":"too many connections"}}\n'
    with serving(path, reply) as daemon, Connection(daemon.path) as client:
        with pytest.raises(Busy, match="too many connections"):
            client.call_many([("get_status", None), ("get_status", None)])
        with pytest.raises(Unreachable, match="closed"):
            client.call("get_status")


def test_a_refusal_is_read_even_where_the_daemon_hung_up_before_the_call_was_sent(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        client = Connection(str(path))
        client.open()
        connection, _ = listener.accept()
        connection.sendall(b'{"jsonrpc":"2.0","id":null,"error":{"code":1009,"message":"full"}}\n')
        connection.close()
        with pytest.raises(Busy, match="full"):
            client.call("get_status")


def test_a_daemon_that_does_not_answer_in_time_is_told_with_what_to_do(path: Path) -> None:
    with serving(path, None) as daemon, Connection(daemon.path, timeout=0.1) as client:
        begun = time.monotonic()
        with pytest.raises(NoAnswer, match=r"no answer within 0\.1 s") as caught:
            client.call("attach")
        assert time.monotonic() - begun < 5
        assert caught.value.correction == "send the call again: every call is idempotent"


def test_a_late_answer_never_meets_the_next_call(path: Path) -> None:
    with serving(path, None) as daemon, Connection(daemon.path, timeout=0.1) as client:
        with pytest.raises(NoAnswer):
            client.call("attach")
        with pytest.raises(Unreachable, match="closed") as caught:
            client.call("attach")
        assert not isinstance(caught.value, NoAnswer)


def test_the_timeout_is_for_the_whole_answer_and_not_for_each_piece(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        client = Connection(str(path), timeout=0.3)
        client.open()
        connection, _ = listener.accept()
        drip = subprocess.Popen(
            [sys.executable, "-c", "import os, time\nfor _ in range(100): os.write(1, b'x'); time.sleep(0.05)"],
            stdout=connection.fileno(),
            stderr=subprocess.DEVNULL,
        )
        begun = time.monotonic()
        with pytest.raises(NoAnswer):
            client.call("get_status")
        assert time.monotonic() - begun < 3
        drip.kill()
        drip.wait()
        connection.close()


@pytest.mark.parametrize("reply", [b"", b'{"jsonrpc":"2.0","id":1'])
def test_a_daemon_that_hangs_up_gives_no_answer(path: Path, reply: bytes) -> None:
    script = [reply] if reply else []
    with serving(path, *script) as daemon, Connection(daemon.path, 1) as client, pytest.raises(NoAnswer):
        client.call("attach")


def test_a_socket_that_is_not_there_is_told_with_how_to_start_the_daemon(path: Path) -> None:
    with pytest.raises(Unreachable, match="No such file or directory") as caught:
        Connection(str(path)).call("get_status")
    assert "start volattachd" in str(caught.value.correction)
    assert str(path) in caught.value.message


def test_a_socket_that_nobody_serves_is_unreachable(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
        with pytest.raises(Unreachable, match="refused"):
            Connection(str(path)).call("get_status")


@pytest.mark.parametrize("name", ["/dev/null/x", "/" + "x" * 200, "a\0b", "/"])
def test_a_path_that_can_be_no_socket_is_unreachable(name: str) -> None:
    with pytest.raises(Unreachable, match="cannot reach the daemon"):
        Connection(name).call("get_status")


@pytest.mark.skipif(os.geteuid() != 0, reason="root may become a user whom the permissions keep out")
def test_a_socket_that_may_not_be_opened_names_its_group(path: Path) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    program = (
        "import os, socket\n"
        "from volattachd.client.connection import Connection\n"
        "from volattachd.client.protocol import AccessRefused\n"
        "os.chdir('/'); os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"try: Connection({str(path)!r}).call('get_status')\n"
        "except AccessRefused as error: print(error.correction)\n"
    )
    for directory in [path.parent, *path.parent.parents][:-2]:
        os.chmod(directory, 0o711)
    with serving(path):
        os.chmod(path, 0o660)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert group in done.stdout, done.stderr
    assert issubclass(AccessRefused, Unreachable)


def test_a_full_backlog_is_waited_for_and_then_told(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        waiting = [Connection(str(path), timeout=0.1) for _ in range(3)]
        with pytest.raises(Unreachable, match="too many clients wait"):
            for client in waiting:
                client.open()


def test_a_closed_connection_stays_closed(path: Path) -> None:
    with serving(path, result(1)) as daemon:
        with Connection(daemon.path) as client:
            client.call("get_status")
        client.close()
        with pytest.raises(Unreachable, match="this connection is closed"):
            client.call("get_status")
