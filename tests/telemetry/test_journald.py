from __future__ import annotations

import fcntl
import io
import logging
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import PATIENCE, in_thread
from volattachd.telemetry import messages
from volattachd.telemetry.journald import JournalHandler, LineFormatter, LineHandler, encode, is_journal
from volattachd.telemetry.messages import Kind, Told

CONTROLS = [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029]


def record(message: str, level: int = logging.INFO, failure: BaseException | None = None) -> logging.LogRecord:
    info = None if failure is None else (type(failure), failure, failure.__traceback__)
    return logging.LogRecord("volattachd", level, __file__, 1, "%s", (message,), info)


@pytest.mark.parametrize("under_systemd", [True, False])
@pytest.mark.parametrize("code", CONTROLS)
def test_no_character_that_somebody_sent_begins_another_line(code: int, under_systemd: bool) -> None:
    line = LineFormatter(under_systemd).format(record(f"a{chr(code)}<0>forged"))
    assert chr(code) not in line
    assert len(line.splitlines()) == 1
    assert line.endswith("<0>forged")


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (logging.DEBUG, 7),
        (logging.INFO, 6),
        (logging.WARNING, 4),
        (logging.ERROR, 3),
        (logging.CRITICAL, 2),
        (25, 6),
    ],
)
def test_under_systemd_a_line_begins_with_its_priority_and_has_no_time(level: int, priority: int) -> None:
    assert LineFormatter(under_systemd=True).format(record("text", level)) == f"<{priority}>text"


def test_in_a_terminal_a_line_has_time_and_level() -> None:
    assert LineFormatter(under_systemd=False).format(record("text", logging.WARNING)).endswith(" WARNING text")


def test_the_lines_of_a_traceback_are_indented() -> None:
    try:
        raise ValueError("first\n<0>forged")
    except ValueError as error:
        lines = LineFormatter(under_systemd=True).format(record("text", logging.ERROR, error)).split("\n")
    assert lines[0] == "<3>text"
    assert all(line.startswith("    ") for line in lines[1:])
    assert "    <0>forged" in lines


# Where they go.


def test_a_record_is_one_write_whatever_the_stream_holds_back(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        stream.write("held back")
        LineHandler(stream).handle(record("told"))
        assert (tmp_path / "log").read_text() == "told\n"


def test_a_long_record_goes_out_whole_through_a_narrow_pipe(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    text = "x" * 300_000
    with open(reading, "rb") as far, open(writing, "w") as stream:
        telling = in_thread(lambda: LineHandler(stream).handle(record(text)))
        assert far.read(len(text) + 1) == text.encode() + b"\n"
        telling()


def test_a_log_that_cannot_be_written_harms_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w") as stream:
        LineHandler(stream).handle(record("told"))
    assert "No space left on device" in capfd.readouterr().err


class FakeJournald:
    """A socket like journald's, and what its native protocol says of each entry."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(PATIENCE)
        self.socket.bind(str(path))
        self.seals: int | None = None

    def entry(self) -> dict[str, str]:
        """The next entry's fields; from a file where one was sent."""
        data, fds, _, _ = socket.recv_fds(self.socket, 1 << 20, 1)
        if fds:
            assert data == b""
            self.seals = fcntl.fcntl(fds[0], fcntl.F_GET_SEALS)
            with open(fds[0], "rb") as file:
                file.seek(0)
                data = file.read()
        return parse(data)


def parse(data: bytes) -> dict[str, str]:
    """The fields of one entry, read as journald does: a name and a value on a line, or a name, a length and a value."""
    fields: dict[str, str] = {}
    while data:
        head, _, data = data.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if not equals:
            (size,) = struct.unpack_from("<Q", data)
            value, end, data = data[8 : 8 + size], data[8 + size : 9 + size], data[9 + size :]
            assert end == b"\n"
        assert name.decode() not in fields, "a field is there twice"
        fields[name.decode()] = value.decode()
    return fields


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[FakeJournald]:
    made = FakeJournald(tmp_path / "journal")
    yield made
    made.socket.close()


@pytest.fixture
def handler(tmp_path: Path) -> JournalHandler:
    """The handler before that socket, with lines in a text as its way out."""
    fallback = logging.StreamHandler(io.StringIO())
    fallback.setFormatter(LineFormatter(under_systemd=True))
    return JournalHandler(str(tmp_path / "journal"), fallback)


def told(kind: Kind, **members: object) -> logging.LogRecord:
    return logging.LogRecord("volattachd", kind.level, __file__, 1, Told(kind, members), None, None)


def test_an_entry_has_its_kind_its_priority_and_its_members(journald: FakeJournald, handler: JournalHandler) -> None:
    handler.handle(told(messages.DEVICE_MISSING, volume="vol-1", condition="DeviceMissing", reason="no such file"))
    assert journald.entry() == {
        "MESSAGE": "volume vol-1: DeviceMissing: no such file",
        "MESSAGE_ID": messages.DEVICE_MISSING.id,
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "volattachd",
        "VOLATTACH_VOLUME": "vol-1",
        "VOLATTACH_CONDITION": "DeviceMissing",
    }


def test_an_entry_of_somebody_else_has_no_kind(journald: FakeJournald, handler: JournalHandler) -> None:
    handler.handle(record("a library's words", logging.ERROR))
    assert journald.entry() == {
        "MESSAGE": "a library's words",
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "volattachd",
    }


@pytest.mark.parametrize("code", CONTROLS)
def test_no_character_that_somebody_sent_forges_a_line_or_a_field(
    code: int, journald: FakeJournald, handler: JournalHandler
) -> None:
    forged = f"x{chr(code)}PRIORITY=0{chr(code)}MESSAGE_ID=f{chr(code)}"
    handler.handle(told(messages.ORPHAN_STAYS, target=forged, reason=forged))
    entry = journald.entry()
    names = {"MESSAGE", "MESSAGE_ID", "PRIORITY", "SYSLOG_IDENTIFIER", "VOLATTACH_TARGET"}
    assert (set(entry), entry["PRIORITY"], entry["MESSAGE_ID"]) == (names, "4", messages.ORPHAN_STAYS.id)
    assert not any(chr(code) in value for value in entry.values())
    assert all(len(value.splitlines()) == 1 for value in entry.values())


@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z_]{0,20}", fullmatch=True), st.text(), min_size=1))
def test_whatever_a_value_holds_is_that_fields_value(fields: dict[str, str]) -> None:
    assert parse(encode(fields)) == {
        name: value.encode("utf-8", "backslashreplace").decode() for name, value in fields.items()
    }


def test_a_traceback_is_part_of_the_message(journald: FakeJournald, handler: JournalHandler) -> None:
    try:
        raise ValueError("first\nPRIORITY=0")
    except ValueError as error:
        handler.handle(record("text", logging.ERROR, error))
    entry = journald.entry()
    lines = entry["MESSAGE"].split("\n")
    assert lines[0] == "text"
    assert "    PRIORITY=0" in lines
    assert all(line.startswith("    ") for line in lines[1:])
    assert entry["PRIORITY"] == "3"


def test_an_entry_that_no_datagram_holds_goes_as_a_sealed_file(journald: FakeJournald, handler: JournalHandler) -> None:
    text = "x" * (1 << 22)
    handler.handle(logging.LogRecord("volattachd", logging.ERROR, __file__, 1, text, None, None))
    assert journald.entry()["MESSAGE"] == text
    assert journald.seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    handler.handle(told(messages.PASS_FAILED, reason="a short one again"))
    assert journald.entry()["MESSAGE"] == "cannot look at the target: a short one again"


def test_while_journald_is_away_lines_go_to_its_stream(journald: FakeJournald, handler: JournalHandler) -> None:
    journald.socket.close()
    handler.handle(told(messages.PASS_FAILED, reason="gone"))
    assert isinstance(handler.fallback, logging.StreamHandler)
    assert handler.fallback.stream.getvalue() == "<4>cannot look at the target: gone\n"


PROGRAM = """
import logging, os, sys
from volattachd.telemetry import journald, messages
if sys.argv[2] == "journald":
    found = os.fstat(2)
    os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
for _ in range(2):
    journald.set_up(journal_socket=sys.argv[1])
messages.PORTALS_CHANGED.tell(portals="told")
messages.LOOKED.tell(call="not told")
logging.getLogger("foreign").info("not told")
logging.getLogger("foreign").warning("foreign")
"""


def run(tmp_path: Path, where: str, **environment: str) -> list[str]:
    """What a program that tells two records wrote to stderr."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "journal"), where]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == ""
    return done.stderr.splitlines()


@pytest.mark.parametrize(
    "environment", [{}, {"JOURNAL_STREAM": "1:2"}, {"JOURNAL_STREAM": ""}, {"JOURNAL_STREAM": "x"}]
)
def test_without_journald_at_stderr_lines_go_there_alone(
    environment: dict[str, str], tmp_path: Path, journald: FakeJournald
) -> None:
    """Also where systemd started it, and stderr was redirected since."""
    lines = run(tmp_path, "file", **environment)
    assert [line.split(" ", 2)[2] for line in lines] == ["INFO portals are now told", "WARNING foreign"]


def test_with_journald_at_stderr_entries_go_to_its_socket_alone(tmp_path: Path, journald: FakeJournald) -> None:
    assert run(tmp_path, "journald") == []
    assert journald.entry()["MESSAGE_ID"] == messages.PORTALS_CHANGED.id
    assert journald.entry()["MESSAGE"] == "foreign"


def test_a_stream_that_is_no_file_is_not_journald() -> None:
    assert not is_journal(io.StringIO(), "1:2")
