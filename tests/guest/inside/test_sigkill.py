"""The daemon is killed by the kernel at its N-th system call of a kind, over a whole life of a volume.

This is the truth that the sweeps of test_faults.py are a model of: a real process, a real SIGKILL (strace delivers
it as the call is entered), the socket and configfs looked at from outside. strace counts for each thread.
"""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import oracle
from tests.faults.sweep import Clock
from tests.faults.target import PORTAL, PREFIX, KernelReader, expected_target, read_target, unguarded, users
from tests.faults.world import HOST_A, Rows, Stage
from tests.figures import RecordFigure
from tests.guest.inside.program import OUT, connector
from tests.soak import PART
from volattachd.client.sync import Client
from volattachd.state.journal import Journal

GUEST = {"timeout": 86400.0 if PART else 600.0}

PATIENCE = 60.0  # seconds, and never waited for where nothing is wrong
#: The calls that change configfs and the journal, and how often at most each is struck.
SYSCALLS = {"mkdir": 20, "rmdir": 20, "symlink": 5, "unlink": 5, "fdatasync": 12, "pwrite64": 20, "write": 24}
AT_LEAST = 60
#: The devices whose volumes are struck: in turns as the numbers go up, in the long form each at every number.
KINDS = [["file"], ["block"]] if PART else [["file", "block"]]
VOLUME = "killed"
#: Each call of a life, and where it leads.
STEPS: list[tuple[str, dict[str, Any], Stage]] = [
    ("register_volume", {}, Stage.AVAILABLE),
    ("reserve_volume", {}, Stage.RESERVED),
    ("initialize_connection", {"connector": connector(HOST_A)}, Stage.CONNECTED),
    ("attach", {"host_name": "guest"}, Stage.ATTACHED),
    ("begin_detaching", {}, Stage.DETACHING),
    ("roll_detaching", {}, Stage.ATTACHED),
    ("begin_detaching", {}, Stage.DETACHING),
    ("terminate_connection", {"connector": connector(HOST_A)}, Stage.DISCONNECTED),
    ("detach", {}, Stage.AVAILABLE),
    ("unregister_volume", {}, Stage.UNREGISTERED),
]


class Nursery:
    """One daemon after another, on one state directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "volattachd.sock"
        self.config = directory / "volattachd.toml"
        self.config.write_text(f'[target]\ndriver = "lio"\niqn_prefix = "{PREFIX}"\nportals = ["{PORTAL}"]\n')
        words = [sys.executable, "-m", "tests.faults.forkserver"]
        with (OUT / "volattachd.log").open("ab") as log:
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd="/host/repo", text=True
            )
        self.pid = 0

    def _ask(self, line: str) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self) -> None:
        """A daemon that serves."""
        words = ["--config", str(self.config), "--socket", str(self.socket)]
        self.pid = self._ask("start " + json.dumps([*words, "--state-dir", str(self.directory / "state")]))
        deadline = time.monotonic() + PATIENCE
        while not self._serves():
            assert time.monotonic() < deadline, "the daemon does not serve"
            time.sleep(0.01)

    def _serves(self) -> bool:
        try:
            with Client(str(self.socket)) as client:
                return bool(client.call("get_status", {})["ready"])
        except Exception as error:
            if is_gone(error):
                return False
            raise

    def ended(self) -> int:
        """How the daemon ended; waits for it."""
        return self._ask(f"wait {self.pid}")

    def close(self) -> None:
        """End the daemon and the fork server."""
        subprocess.run(["kill", str(self.pid)], check=True)
        assert self.ended() == 0
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)


def is_gone(error: Exception) -> bool:
    """Whether a call had no answer because nobody is there (any more)."""
    return isinstance(error, OSError) or type(error).__name__ in ("Unreachable", "NoAnswer")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        made = Nursery(Path(name))
        made.start()
        yield made
        made.close()


class Life:
    """The life of one volume, call by call."""

    def __init__(self, nursery: Nursery, path: str, number: int) -> None:
        self.nursery = nursery
        self.path = path
        self.attachment_id = f"00000000-0000-4000-8000-{number:012x}"
        self.done = 0
        self.answers: list[Any] = []

    def go_on(self) -> bool:
        """The calls that are left; False where the daemon was gone before the last of them was answered."""
        with Client(str(self.nursery.socket)) as client:
            for method, params, _ in STEPS[self.done :]:
                try:
                    answer = client.call(method, {"volume": VOLUME, **self._own(method), **params})
                except Exception as error:
                    if is_gone(error):
                        return False
                    raise
                self.answers.append(oracle.normal(answer, self.attachment_id))
                self.done += 1
        return True

    def _own(self, method: str) -> dict[str, Any]:
        if method == "register_volume":
            return {"path": self.path}
        return {} if method == "unregister_volume" else {"attachment_id": self.attachment_id}

    def stages(self) -> list[Stage]:
        """Where the volume may be: before or after the call that had no answer."""
        before = STEPS[self.done - 1][2] if self.done else Stage.UNREGISTERED
        return [before, STEPS[self.done][2]]


def attach_strace(pid: int, syscall: str, number: int) -> subprocess.Popen[str]:
    """strace on a running daemon, that will kill it at the ``number``-th such call of a thread."""
    words = ["strace", "-f", "-p", str(pid), "-o", "/dev/null", "-e", f"trace={syscall}"]
    words += ["-e", f"inject={syscall}:signal=KILL:when={number}"]
    strace = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert strace.stderr is not None
    line = strace.stderr.readline()
    assert "attached" in line, line
    return strace


def durable(state_dir: Path) -> Rows:
    """What the journal's files say, whatever the daemon says; read from a copy while it is idle."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        for file in state_dir.iterdir():
            shutil.copyfile(file, Path(name, file.name))
        journal = Journal(Path(name))
        rows = Rows(dict(journal.volumes), {row.id: row for row in journal.attachments.all()})
        journal.close()
        return rows


def check_recovered(life: Life) -> None:
    """What holds from outside once a new daemon serves."""
    rows, tree = durable(life.nursery.directory / "state"), read_target(KernelReader())
    row = rows.attachments.get(life.attachment_id)
    stage = Stage.AVAILABLE if VOLUME in rows.volumes else Stage.UNREGISTERED
    stage = stage if row is None else Stage(row.state.value)
    assert stage in life.stages(), f"{stage} is neither of {life.stages()}"
    assert tree == expected_target(rows.volumes.values(), rows.attachments.values())
    with Client(str(life.nursery.socket)) as client:
        shown = {view["attachment_id"]: view["state"] for view in client.call("list_attachments", {})}
        assert shown == {name: found.state.value for name, found in rows.attachments.items()}
        assert client.call("reconcile", {})["volumes"] == [], "a second pass has nothing to do"


def check_moment_of_death(life: Life) -> None:
    """Before anybody cleans up: no grant without a row, nothing enabled that is not complete."""
    tree = read_target(KernelReader())
    assert {oracle.attachment_of(user) for user in users(tree)} <= {life.attachment_id}
    assert unguarded(tree) == []


def test_a_kill_at_every_system_call_that_changes_something(
    nursery: Nursery, new_device: Callable[[str], str], record_figure: RecordFigure
) -> None:
    paths, ids, clock = {kind: new_device(kind) for kind in ("file", "block")}, itertools.count(1), Clock()
    normal = {}
    for kind, path in paths.items():
        life = Life(nursery, path, next(ids))
        assert life.go_on()
        normal[kind] = life.answers
    struck: Counter[str] = Counter()
    for (syscall, most), kinds in itertools.product(SYSCALLS.items(), KINDS):
        for number in numbers(most):
            kind = kinds[number % len(kinds)]
            life = Life(nursery, paths[kind], next(ids))
            if not killed_once(life, syscall, number):
                break
            assert life.answers == normal[kind], f"{syscall} {number}, {kind}: the normal answers"
            struck[syscall] += 1
    record_figure("faults", f"SIGKILL: {struck.total()} points in {clock}: {dict(struck)}")
    assert struck.total() >= (AT_LEAST if PART is None else 1)


def numbers(most: int) -> Iterable[int]:
    """Which of a thread's calls are struck: in the long form there is no last one but where a life has no more."""
    return range(1, most + 1) if PART is None else PART.choose(itertools.count(1))


def killed_once(life: Life, syscall: str, number: int) -> bool:
    """A life with one kill in it; False where no thread made so many of the calls."""
    nursery = life.nursery
    strace = attach_strace(nursery.pid, syscall, number)
    whole = life.go_on()
    if whole:
        strace.terminate()
    strace.communicate(timeout=PATIENCE)
    if whole:
        return False
    assert nursery.ended() == -signal.SIGKILL
    check_moment_of_death(life)
    nursery.start()
    check_recovered(life)
    assert life.go_on(), "sent again, the call is answered, and so are those after it"
    assert read_target(KernelReader()) == {}
    return True
