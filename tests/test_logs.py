from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from volattachd.logs import LineFormatter

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


@pytest.mark.parametrize("systemd", [True, False])
def test_lines_go_to_stderr_alone(systemd: bool) -> None:
    program = (
        "import logging; from volattachd import logs; logs.set_up(); logs.set_up()\n"
        "logging.getLogger('volattachd.x').info('told'); logging.getLogger('volattachd.x').debug('not told')\n"
        "logging.getLogger('foreign').info('not told'); logging.getLogger('foreign').warning('foreign')\n"
    )
    environment = {"JOURNAL_STREAM": "1:2"} if systemd else {}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == ""
    told = done.stderr.splitlines()
    assert [line.rpartition(" ")[2] if not systemd else line for line in told] == (
        ["<6>told", "<4>foreign"] if systemd else ["told", "foreign"]
    )
