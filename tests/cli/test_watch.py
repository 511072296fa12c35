from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.fake_daemon import failure, result
from tests.support import AGENT, LIMITS, PATIENCE, Rig, attachment_id, connector, serving, wait_until
from volattachd.cli import main
from volattachd.model import State


class Watch:
    """``volattach watch`` as a process; what it prints is read as it comes."""

    def __init__(self, path: Path, *words: str) -> None:
        command = [sys.executable, "-m", "volattachd.cli", "--socket", str(path), "watch", *words]
        environment = {**os.environ, "TZ": "UTC"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self._queues = [queue.Queue[str](), queue.Queue[str]()]
        for stream, lines in zip((self.process.stdout, self.process.stderr), self._queues, strict=True):
            threading.Thread(target=lambda s=stream, q=lines: [q.put(line) for line in s], daemon=True).start()

    def line(self) -> str:
        return self._queues[0].get(timeout=PATIENCE)

    def said(self) -> str:
        return self._queues[1].get(timeout=PATIENCE)

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE)


@contextmanager
def watching(path: Path, *words: str) -> Iterator[Watch]:
    watch = Watch(path, *words)
    try:
        yield watch
    finally:
        watch.process.kill()
        watch.process.wait()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "d.sock"


def test_each_change_is_a_line_and_an_interrupt_ends_it(rig: Rig, path: Path) -> None:
    rig.register()
    with serving(path, rig.service), watching(path, "--since", "0") as watch:
        assert " register_volume  vol-1  -  none -> registered  uid=0 pid=1\n" in watch.line()
        name = rig.reach(State.CONNECTED)
        assert f" reserve_volume  vol-1  {name}  none -> reserved  uid=1000 pid=2\n" in watch.line()
        assert watch.line().startswith("3  20")
        assert watch.interrupt() == 130


def test_json_is_one_row_of_the_journal_a_line(rig: Rig, path: Path) -> None:
    rig.register()
    rig.reach(State.ATTACHED)
    with serving(path, rig.service), watching(path, "--since", "1", "--json") as watch:
        assert [json.loads(watch.line()) for _ in range(3)] == rig.journal.history(since=1)


def test_it_survives_a_restart_of_the_daemon_and_misses_nothing(rig: Rig, path: Path) -> None:
    rig.register()
    with watching_over_a_restart(rig, path) as watch:
        assert "going on after 3" in watch.said()
        rig.reach(State.GONE, number=2)
        rig.restart()
        path.unlink()
        with serving(path, rig.service):
            assert watch.said() == "volattach: connected again, after 3\n"
            assert [json.loads(watch.line())["seq"] for _ in range(6)] == list(range(4, 10))
            rig.register("vol-2")
            assert json.loads(watch.line())["seq"] == 10


@contextmanager
def watching_over_a_restart(rig: Rig, path: Path) -> Iterator[Watch]:
    with serving(path, rig.service):
        watch = Watch(path, "--since", "0", "--json")
        name = rig.reach(State.RESERVED)
        rig.service.unreserve_volume(AGENT, "vol-1", name)
        assert [json.loads(watch.line())["seq"] for _ in range(3)] == [1, 2, 3]
    try:
        yield watch
    finally:
        watch.process.kill()
        watch.process.wait()


def test_where_the_daemon_no_longer_has_the_rows_it_says_so_and_ends(rig: Rig, path: Path) -> None:
    rig.register()
    with watching_over_a_restart(rig, path) as watch:
        assert "going on after 3" in watch.said()
        rig.reach(State.GONE, number=2)
        rig.journal.trim(1, 2, 100)
        path.unlink()
        with serving(path, rig.service):
            assert watch.process.wait(PATIENCE) == 5
            assert "the journal has the numbers 8 to 9" in watch.said()
            assert watch.said().startswith("try: ")


def test_one_that_was_too_slow_connects_again_and_goes_on(rig: Rig, path: Path) -> None:
    """Its own reader does not read for a while; the daemon drops it, and nothing is lost all the same."""
    rig.register()
    with serving(path, rig.service, replace(LIMITS, unread_seconds=0.2)) as server:
        command = [sys.executable, "-m", "volattachd.cli", "--socket", str(path), "watch", "--since", "0", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stderr is not None
            try:
                first = json.loads(process.stdout.readline())["seq"]
                for number in range(100):
                    rig.service.reserve_volume(AGENT, "vol-1", attachment_id(number))
                    rig.service.initialize_connection(AGENT, "vol-1", connector(more="x" * 4000))
                    rig.service.terminate_connection(AGENT, "vol-1", connector())
                wait_until(lambda: not server._open)  # its own reader does not read: it was dropped
                seen = [first, *(json.loads(process.stdout.readline())["seq"] for _ in range(rig.journal.seq - 1))]
                told = process.stderr.readline()
            finally:
                process.kill()
    assert "the daemon ended the notifications: notifications were not read in time" in told
    assert seen == list(range(1, rig.journal.seq + 1))


def test_a_daemon_that_is_not_there_at_first_is_code_8(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--socket", str(path), "watch"]) == 8
    assert "cannot reach the daemon" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "exit_code"), [(1004, 5), (1008, 6), (1009, 7)])
def test_a_refusal_ends_it_with_the_code_of_the_refusal(run: Run, code: int, exit_code: int) -> None:
    ran = run("watch", "--since", "7", script=[failure(code, "no")])
    assert (ran.code, ran.asked) == (exit_code, [("subscribe", {"since": 7})])


def test_without_a_number_it_asks_for_what_is_new(run: Run) -> None:
    ran = run("watch", script=[result({})])
    assert ran.asked == [("subscribe", {})]
    assert ran.code == 1


def test_backup_makes_one_call_with_an_absolute_path(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("copy.db", f"{tmp_path}/copy.db"):
        ran = run("backup", word, script=[result({"path": f"{tmp_path}/copy.db", "seq": 4, "size": 9})])
        assert ran.asked == [("backup_journal", {"path": f"{tmp_path}/copy.db"})]
        assert ran.code == 0
        assert "seq: 4" in ran.out


def test_backup_over_the_socket_makes_the_file(rig: Rig, path: Path, tmp_path: Path) -> None:
    rig.register()
    with serving(path, rig.service):
        words = ["--socket", str(path), "backup", str(tmp_path / "copy.db")]
        assert main(words) == 0
        assert main(words) == 4
    assert (tmp_path / "copy.db").stat().st_size > 0
