"""A storage host that answers with evil values, one at a time, in every place: the agent and the command line hold.

Each place is tried with values drawn by a fixed seed. Of values that can reach a command or a file all are tried in
``test_answers.py``; with real commands and a real initiator in ``tests/guest/inside/agent/test_hostile.py``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cli.hostile_daemon import EVIL, HARMLESS, PASSWORD, SERIAL, TARGET, VOLUME, Honest, Place, hostile, places
from volattachd.agent import Agent, SentAgain
from volattachd.agent.connectors.base import Connection, Device, Report
from volattachd.agent.connectors.qemu import QemuConnector
from volattachd.agent.errors import UntrustedAnswer
from volattachd.agent.identity import new_id
from volattachd.cli import main
from volattachd.cli.exit_codes import EXITS
from volattachd.client.sync import Client, ClientError
from volattachd.errors import VolattachError

SEED = 20
DRAWN = 6
HOST = "host-a"
ID = new_id(HOST, VOLUME)
GOOD = {VOLUME, "/srv/vol-1", "available", TARGET, SERIAL, "127.0.0.1:3260", "[::1]:3260", "volattach-1", PASSWORD}


class Recorder(QemuConnector):
    """QEMU's connector, and every value that it was given."""

    def __init__(self, report: Report, directory: Path, given: set[Any]) -> None:
        super().__init__(report, directory)
        self._given = given

    @classmethod
    def made(cls, directory: Path, given: set[Any], name: str, report: Report) -> Recorder:
        return cls(report, directory, given)

    def connect(self, connection: Connection) -> Device:
        self._given.update(leaves(connection))
        return super().connect(connection)

    def disconnect(self, connection: Connection, force: bool = False) -> list[str]:
        self._given.update(leaves(connection))
        return super().disconnect(connection, force)


def leaves(value: Any) -> Iterator[str]:
    if is_dataclass(value):
        for field in fields(value):
            yield from leaves(getattr(value, field.name))
    elif isinstance(value, tuple):
        for inner in value:
            yield from leaves(inner)
    elif isinstance(value, str):
        yield value


def all_places(*methods: str) -> list[Place]:
    found = {place for method in methods for place in places(Honest(state="attached", attachment_id=ID).answer(
        method, {"connector": {"host": HOST}, "attachment_id": ID}), method)}  # fmt: skip
    return sorted(found, key=str)


def drawn(place: Place) -> list[Any]:
    return random.Random(f"{SEED} {place}").sample(EVIL, DRAWN)


ATTACH = ("get_status", "show_volume", "list_attachments", "reserve_volume", "initialize_connection", "attach")
DETACH = ("get_status", "show_volume", "list_attachments", "begin_detaching", "terminate_connection", "detach")
WAYS = [("attach", place) for place in all_places(*ATTACH)] + [("detach", place) for place in all_places(*DETACH)]


@pytest.mark.parametrize(("command", "place"), WAYS, ids=lambda value: str(value))
def test_nothing_but_the_agents_own_files_changes_and_no_connector_sees_an_evil_value(
    command: str, place: Place, tmp_path: Path
) -> None:
    runtime = tmp_path / "a/b/c/runtime"
    runtime.mkdir(parents=True)
    (tmp_path / "victim").write_text("untouched")
    for evil in drawn(place):
        given = struck(command, place, evil, tmp_path / "d.sock", runtime)
        unknown = {value for value in given if value and value not in GOOD and not is_uuid(value)}
        assert unknown <= {"rw", "ro", *HARMLESS}, (place, evil)
        assert {path.name for path in tmp_path.iterdir()} == {"a", "d.sock", "victim"}
        assert (tmp_path / "victim").read_text() == "untouched"
        assert {path.name for path in runtime.parent.rglob("*")} <= {"runtime", "volumes.lock", f"{VOLUME}.secret"}


def struck(command: str, place: Place, evil: Any, path: Path, runtime: Path) -> set[Any]:
    """Run a command against a daemon with an evil value; the answer is what connectors were given."""
    given: set[Any] = set()
    honest = Honest(state="attached", attachment_id=ID) if command == "detach" else Honest()
    with hostile(path, honest, place, evil) as daemon:
        calls = SentAgain(lambda: Client(daemon.path), timeout=0.01)
        make = partial(Recorder.made, runtime, given)
        agent = Agent(calls, HOST, make=make, runtime=runtime, timeout=0.01)
        try:
            getattr(agent, command)(VOLUME, connector="qemu")
        except (VolattachError, ClientError) as error:
            assert error.message.isprintable(), repr(error.message)
    return given


def is_uuid(value: str) -> bool:
    return len(value) == 36 and value.count("-") == 4 and all(char in "0123456789abcdef-" for char in value)


def test_without_an_evil_value_the_same_daemon_gives_and_takes_a_device(tmp_path: Path) -> None:
    given: set[Any] = set()
    with hostile(tmp_path / "d.sock", Honest()) as daemon:
        agent = Agent(
            SentAgain(lambda: Client(daemon.path)), HOST, make=partial(Recorder.made, tmp_path, given),
            runtime=tmp_path,
        )  # fmt: skip
        assert agent.attach(VOLUME, connector="qemu").path == f"iscsi://127.0.0.1:3260/{TARGET}/0"
        assert (tmp_path / f"{VOLUME}.secret").read_text() == PASSWORD
        assert agent.detach(VOLUME).status == "available"
    assert GOOD - {"available"} <= given
    assert [method for method, _ in daemon.asked].count("detach") == 1


def test_the_error_says_what_was_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Place("show_volume", ("target_name",))
    with hostile(tmp_path / "d.sock", Honest(), place, "/../../../tmp/x") as daemon:
        assert main(["--socket", daemon.path, "attach", VOLUME, "--connector", "qemu"]) == 1
    said = capsys.readouterr().err
    assert "target_name is '/../../../tmp/x', and must be an iSCSI name" in said
    assert "see whether the storage host can still be trusted" in said
    assert not {"reserve_volume", "initialize_connection"} & {method for method, _ in daemon.asked}


def test_a_connector_for_the_daemons_own_host_is_refused_where_the_daemon_is_elsewhere(tmp_path: Path) -> None:
    """Its path would be one of this host: a storage host could have root's own disk handed out, or flushed away."""
    with hostile(tmp_path / "d.sock", Honest("local", "attached", ID, made_by="local")) as daemon:
        agent = Agent(SentAgain(lambda: Client(daemon.path)), HOST, runtime=tmp_path, elsewhere=True)
        for command in ("attach", "detach"):
            with pytest.raises(VolattachError, match="and the daemon is on another one"):
                getattr(agent, command)(VOLUME, connector="local")
    assert {method for method, _ in daemon.asked} <= {"get_status", "show_volume", "list_attachments"}


COMMANDS = {
    "status": ("get_status",),
    "list": ("list_volumes",),
    "list --attachments": ("list_attachments",),
    f"show {VOLUME}": ("show_volume",),
    "show ID": ("show_volume",),
    "history": ("get_history",),
    "metrics": ("get_metrics",),
    "reconcile --dry-run": ("reconcile",),
    "doctor": ("get_status", "list_volumes", "list_attachments"),
    "call show_attachment attachment_id=ID": ("show_attachment",),
    f"call attach volume={VOLUME}": ("attach",),
}
SHOWN = [(line, place) for line, methods in COMMANDS.items() for place in all_places(*methods)]


@pytest.mark.parametrize(("line", "place"), SHOWN, ids=lambda value: str(value))
def test_no_answer_breaks_a_command_or_reaches_the_terminal_as_a_control(
    line: str, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for evil in drawn(place):
        with hostile(tmp_path / "d.sock", Honest(state="attached", attachment_id=ID), place, evil) as daemon:
            code = main(["--socket", daemon.path, *line.replace("ID", ID).split()])
        assert code in {row.code for row in EXITS}, (place, evil)
        assert daemon.struck
        said = "".join(capsys.readouterr())
        assert all(char.isprintable() or char == "\n" for char in said), (place, evil)


def test_an_untrusted_answer_is_one_of_the_clients_errors() -> None:
    assert issubclass(UntrustedAnswer, ClientError)
