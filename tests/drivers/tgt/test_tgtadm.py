"""tgtd's management protocol: the bytes, the answers, and the text that tgtd prints."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volattachd.drivers.tgt import tgtadm
from volattachd.drivers.tgt.tgtadm import Lun, Mode, Op, Request

TARGETS = """\
Target 3: iqn.2026-11.x:a
    System information:
        Driver: iscsi
        State: ready
    I_T nexus information:
        I_T nexus: 1
            Initiator: iqn.2026-11.x:host alias: none
            Connection: 0
                IP Address: 127.0.0.1
    LUN information:
        LUN: 0
            Type: controller
            SCSI ID: IET     00030000
            SCSI SN: beaf30
            Size: 0 MB, Block size: 1
            Readonly: No
            Backing store type: null
            Backing store path: None
            Backing store flags: 
        LUN: 1
            Type: disk
            SCSI ID: 6001405aaa
            SCSI SN: a-serial
            Size: 17 MB, Block size: 512
            Readonly: Yes
            Backing store type: rdwr
            Backing store path: /a path: with colon
            Backing store flags: sync
    Account information:
        volattachd-guard
        user
    ACL information:
        grant iqn.2026-11.x:host user 0123
        iqn.2026-11.x:host
Target 9: iqn.2026-11.x:b
    System information:
    LUN information:
    Account information:
    ACL information:
"""  # noqa: W291 - tgtd prints the blank

IDS = {"iqn.2026-11.x:b": 9, "iqn.2026-11.x:a": 3}


def test_the_header_is_as_long_as_tgtds() -> None:
    assert tgtadm.REQUEST.size == 120
    assert tgtadm.RESPONSE.size == 8


def test_a_request_holds_its_length_and_ends_with_nul() -> None:
    message = Request(Mode.ACCOUNT, Op.NEW).encode("user=a")
    assert len(message) == tgtadm.REQUEST.size + len(b"user=a\0")
    assert tgtadm.REQUEST.unpack(message[:120])[:5] == (7, 0, b"iscsi".ljust(64, b"\0"), len(message), -1)
    assert len(Request(Mode.TARGET, Op.SHOW).encode()) == tgtadm.REQUEST.size


@pytest.mark.parametrize("parameters", ["a\0b", "a" * tgtadm.MAX_PARAMETERS])
def test_parameters_that_tgtd_would_cut_are_refused(parameters: str) -> None:
    with pytest.raises(ValueError, match="no such parameters"):
        Request(Mode.ACCOUNT, Op.NEW).encode(parameters)


def test_a_requests_repr_holds_no_parameters() -> None:
    assert "password" not in repr(Request(Mode.ACCOUNT, Op.NEW))


def test_target_ids_come_from_the_list_of_drivers() -> None:
    text = "LLDs:\n    iscsi: ready\n        Target 3: iqn.x:a\n        Target 9: iqn.x:b\n    iser: error\n"
    assert tgtadm.parse_target_ids(text) == {"iqn.x:a": 3, "iqn.x:b": 9}


def test_a_target_is_parsed_out_of_its_own_description() -> None:
    texts = tgtadm.split_targets(TARGETS, IDS)
    assert "".join(texts[name] for name in sorted(texts)) == TARGETS
    target = tgtadm.parse_target("iqn.2026-11.x:a", 3, texts["iqn.2026-11.x:a"])
    assert target.accounts == ("volattachd-guard", "user")
    assert target.acl == ("grant iqn.2026-11.x:host user 0123", "iqn.2026-11.x:host")
    expected = Lun(1, "6001405aaa", "a-serial", True, "rdwr", "/a path: with colon", "sync")
    assert [lun.number for lun in target.luns] == [0, 1]
    assert target.luns[1] == expected
    bare = tgtadm.parse_target("iqn.2026-11.x:b", 9, texts["iqn.2026-11.x:b"])
    assert (bare.luns, bare.accounts, bare.acl) == ((), (), ())


LINES = [*TARGETS.splitlines(), "Target 9: iqn.2026-11.x:forged", "x"]


@given(st.lists(st.sampled_from([line for line in LINES if line != "Target 9: iqn.2026-11.x:b"]), max_size=30))
def test_no_text_of_an_initiator_changes_a_target_whose_identifier_it_does_not_know(lines: list[str]) -> None:
    """It knows the identifier of its own target, 3, and every other line that tgtd prints."""
    alias = "\n".join(["x", *lines])
    honest = tgtadm.split_targets(TARGETS, IDS)
    forged = tgtadm.split_targets(TARGETS.replace("alias: none", f"alias: {alias}"), IDS)
    for name, tid in IDS.items():
        assert tgtadm.parse_target(name, tid, forged[name]) == tgtadm.parse_target(name, tid, honest[name])


def test_a_target_that_went_while_it_was_listed_is_left_out() -> None:
    assert set(tgtadm.split_targets(TARGETS, {**IDS, "iqn.2026-11.x:gone": 5})) == set(IDS)
    assert tgtadm.split_targets("", IDS) == {}


def test_connections_are_parsed_with_and_without_an_address() -> None:
    text = (
        "Session: 2\n    Connection: 0\n        Initiator: iqn.x:a\n        IP Address: ::1\n"
        "Session: 7\n    Connection: 1\n        Initiator: iqn.x:b\n        \n"
    )
    found = tgtadm.parse_connections(text)
    assert [(c.session, c.connection, c.initiator, c.address) for c in found] == [
        (2, 0, "iqn.x:a", "::1"),
        (7, 1, "iqn.x:b", None),
    ]


def test_accounts_and_portals_are_parsed() -> None:
    assert tgtadm.parse_accounts("Account list:\n    b\n    a\n") == ["b", "a"]
    assert tgtadm.parse_accounts("") == []
    text = "Portal: [::1]:3260,1\nPortal: 0.0.0.0:3260,1\n"
    assert tgtadm.parse_portals(text) == ["[::1]:3260", "0.0.0.0:3260"]


@pytest.mark.parametrize("system", ["", "Sys", "System:\n    State: ready\nLLDs:\n    iscsi: error\n"])
def test_a_tgtd_that_is_not_as_we_know_it_is_refused(system: str) -> None:
    with pytest.raises(tgtadm.ProtocolFailed):
        tgtadm.check_answer(system)


Serve = Callable[[bytes], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A socket that answers one request with these bytes and hangs up; nothing keeps it silent for a second."""
    threads = []
    with tempfile.TemporaryDirectory(prefix="tgtadm-") as directory:

        def start(answer: bytes) -> str:
            path = str(Path(directory) / "socket")
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            listener.listen()
            threads.append(threading.Thread(target=_answer, args=(listener, answer)))
            threads[-1].start()
            return path

        yield start
        for thread in threads:
            thread.join(10)


def _answer(listener: socket.socket, answer: bytes) -> None:
    with listener, listener.accept()[0] as connection:
        connection.recv(65536)
        connection.sendall(answer)
        if not answer:
            time.sleep(1)


def test_an_answer_is_read_whole(serve: Serve) -> None:
    text = b"x" * 300_000 + b"\0"
    path = serve(tgtadm.RESPONSE.pack(0, 8 + len(text)) + text)
    assert tgtadm.ask(path, Request(Mode.TARGET, Op.SHOW)) == "x" * 300_000


@pytest.mark.parametrize(("code", "words"), [(4, "no target"), (99, "error 99")])
def test_a_refusal_is_told_in_words(serve: Serve, code: int, words: str) -> None:
    path = serve(tgtadm.RESPONSE.pack(code, 8))
    with pytest.raises(tgtadm.Refusal, match=words) as caught:
        tgtadm.ask(path, Request(Mode.TARGET, Op.DELETE, 1))
    assert caught.value.code == code


@pytest.mark.parametrize("answer", [b"\0" * 8, b"\0\0\0\0\xff\xff\xff\xff", tgtadm.RESPONSE.pack(0, 20) + b"short"])
def test_an_answer_that_makes_no_sense_is_told(serve: Serve, answer: bytes) -> None:
    path = serve(answer)
    with pytest.raises(tgtadm.ProtocolFailed):
        tgtadm.ask(path, Request(Mode.TARGET, Op.SHOW))


def test_a_tgtd_that_says_nothing_is_not_waited_for_for_ever(serve: Serve) -> None:
    path = serve(b"")
    with pytest.raises(tgtadm.ProtocolFailed, match="no answer"):
        tgtadm.ask(path, Request(Mode.TARGET, Op.SHOW), timeout=0.2)


def test_nobody_on_the_socket_is_not_running() -> None:
    with pytest.raises(tgtadm.NotRunning):
        tgtadm.ask("/nonexistent/socket", Request(Mode.SYSTEM, Op.SHOW))
