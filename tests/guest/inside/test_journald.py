"""journald as the monitor: a real one, with the catalogue installed, and the daemon connected as systemd does it.

tests/package runs the same against the installed package, where systemd runs both.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.expected import LIFE, Entry, calls_told
from tests.guest.inside.conftest import remove_volume
from tests.guest.inside.initiator import Initiator, run
from tests.guest.inside.program import Program, connector, is_installed
from volattachd.client.protocol import RemoteError
from volattachd.telemetry import messages
from volattachd.telemetry.journald import JOURNAL_SOCKET, JournalHandler
from volattachd.telemetry.messages import Told

REPO = Path(__file__).parents[3]
RUNTIME = Path("/run/systemd/journal")
CATALOGUE = REPO / "packaging/systemd/catalog/volattachd.catalog"
MONITORING = REPO / "docs/monitoring.md"


class Journald:
    """systemd-journald, run by systemd."""

    def start(self) -> None:
        wait_until(lambda: subprocess.run(["journalctl", "--sync"], check=False, capture_output=True).returncode == 0)

    def kill(self) -> None:
        """systemd starts another, at once or when somebody has something to tell."""
        run("systemctl", "kill", "--signal=KILL", "systemd-journald.service")

    def stop(self) -> None:
        pass

    def entries(self, *words: str) -> list[Entry]:
        """What journalctl gives for these words."""
        run("journalctl", "--sync")
        lines = run("journalctl", "-q", "--all", "-o", "json", *words).stdout.splitlines()
        return [json.loads(line) for line in lines]


class JournaldAlone(Journald):
    """systemd-journald, without systemd, and with the catalogue of the tree."""

    def __init__(self) -> None:
        RUNTIME.mkdir(parents=True, exist_ok=True)
        run("systemd-machine-id-setup")
        if not Path("/sys/fs/cgroup/cgroup.procs").exists():  # journald asks there whose each record is
            run("mount", "-t", "cgroup2", "none", "/sys/fs/cgroup")
        shutil.copy(CATALOGUE, "/usr/lib/systemd/catalog/")
        run("journalctl", "--update-catalog")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(["/lib/systemd/systemd-journald"])
        super().start()

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)

    def stop(self) -> None:
        self.kill()


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def journald() -> Iterator[Journald]:
    made = Journald() if is_installed() else JournaldAlone()
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def program(base: Path, journald: Journald) -> Iterator[Program]:
    """The daemon, connected to journald as a service is."""
    settings = (
        '[target]\ndriver = "lio"\n[limits]\ncall_seconds = 5\nmax_logged_refusals = 10000\n'
        '[access]\nreader = ["nobody"]\n[reconcile]\ninterval = 1\n'
    )
    made = Program(base, settings, journald=True)
    made.start()
    yield made
    assert made.stop() == 0


@pytest.fixture(scope="module")
def story(program: Program, host1: Initiator, new_device: Callable[[str], str]) -> Iterator[list[str]]:
    """What the queries of the documentation ask about; the answer is the secrets that were in use on the way.

    vol-1 goes through the six calls with a login, vol-2 loses its device, and a call is refused.
    """
    program.call("register_volume", volume="vol-1", path=new_device("file"))
    program.call("reserve_volume", volume="vol-1")
    info = program.call("initialize_connection", volume="vol-1", connector=connector(host1.name))
    assert host1.login(info)
    program.call("attach", volume="vol-1", host_name="guest")
    assert (
        program.refused("terminate_connection", volume="vol-1", connector=connector(host1.name)).kind == "InvalidVolume"
    )
    program.call("begin_detaching", volume="vol-1")
    secret = info["data"]["auth_password"]
    logged_in = program.refused("terminate_connection", volume="vol-1", connector=connector(host1.name))
    assert logged_in.kind == "SessionActive"
    host1.logout(info)
    program.call("terminate_connection", volume="vol-1", connector=connector(host1.name))
    program.call("detach", volume="vol-1")

    path = new_device("file")
    program.call("register_volume", volume="vol-2", path=path)
    program.call("reserve_volume", volume="vol-2")
    os.rename(path, path + ".away")
    assert (
        program.refused("initialize_connection", volume="vol-2", connector=connector(host1.name)).kind == "DriverError"
    )
    os.rename(path + ".away", path)
    other = program.call("initialize_connection", volume="vol-2", connector=connector(host1.name))
    denied = "from volattachd.client.sync import Client; Client(sys.argv[1], 9).call('reconcile')"
    program.socket.chmod(0o666)
    program.socket.parent.chmod(0o711)
    as_nobody = f"import os, sys; sys.path.insert(0, '/host/repo'); os.setuid(65534); {denied}"
    done = subprocess.run([sys.executable, "-c", as_nobody, str(program.socket)], capture_output=True, check=False)
    assert b"PermissionDenied" in done.stderr
    secrets = [secret, other["data"]["auth_password"]]
    assert len(set(secrets)) == 2 and all(len(secret) == 32 for secret in secrets)
    assert not [word for word in secrets if word in str(logged_in.details) + logged_in.message]
    yield secrets
    for name in ("vol-1", "vol-2"):
        remove_volume(program, name)


def test_the_life_of_a_volume_is_told_call_by_call(story: list[str], journald: Journald) -> None:
    entries = journald.entries("_UID=0", "VOLATTACH_VOLUME=vol-1")
    assert calls_told(entries) == LIFE
    refused = [e["VOLATTACH_ERROR"] for e in entries if e["MESSAGE_ID"] == messages.CALL_REFUSED.id]
    assert refused == ["InvalidVolume", "SessionActive"]
    done = [e.get("VOLATTACH_ATTACHMENT") for e in entries if e["MESSAGE_ID"] == messages.CALL_DONE.id]
    assert done[0] is None and done[1] is not None and len(set(done[1:])) == 1
    for entry in entries:
        assert (entry["_UID"], entry["VOLATTACH_PEER_UID"], entry["PRIORITY"]) == ("0", "0", "6")
        assert int(entry["VOLATTACH_DURATION_USEC"]) > 0


def test_calls_that_look_are_not_told(story: list[str], program: Program, journald: Journald) -> None:
    before = journald.entries("-t", "volattachd")
    for _ in range(20):
        program.call("list_volumes")
        program.call("get_status")
        program.call("get_metrics")
        assert program.refused("show_volume", volume="no-such").kind == "VolumeNotFound"
    assert journald.entries("-t", "volattachd") == before


def test_every_record_is_of_a_kind_of_the_table_and_has_its_priority(story: list[str], journald: Journald) -> None:
    by_id = {kind.id: kind for kind in messages.kinds().values()}
    entries = journald.entries("-t", "volattachd")
    assert {by_id[entry["MESSAGE_ID"]].id for entry in entries} >= {
        kind.id
        for kind in (
            messages.STARTING, messages.READY, messages.CALL_DONE, messages.CALL_REFUSED, messages.CALL_FAILED,
            messages.CALL_DENIED, messages.DEVICE_MISSING, messages.CONDITION_OVER,
        )
    }  # fmt: skip
    for entry in entries:
        level = by_id[entry["MESSAGE_ID"]].level
        assert entry["PRIORITY"] == {20: "6", 30: "4", 40: "3", 50: "2"}[level]
        assert {name for name in entry if name.startswith("VOLATTACH_")} <= set(messages.FIELDS.values())


def test_journalctl_explains_what_it_means_and_what_to_do(story: list[str], journald: Journald) -> None:
    journald.entries()
    shown = run("journalctl", "-x", "--no-pager", "VOLATTACH_CONDITION=DeviceMissing").stdout
    assert "The device of volume vol-2 is missing" in shown, "the record's own fields are filled in"
    assert "Bring the device back under that path" in " ".join(shown.split())
    listed = run("journalctl", "--list-catalog", *[kind.id for kind in messages.kinds().values()]).stdout
    assert [line.split(" ", 1)[0] for line in listed.splitlines()] == [kind.id for kind in messages.kinds().values()]


def queries() -> list[str]:
    """The commands of the documentation as they are written there; what is indented further goes on."""
    blocks = re.findall(r"(?:^ {4}.*\n)+", MONITORING.read_text(), re.MULTILINE)
    found = []
    for block in blocks:
        if re.match(r" {4}(journalctl |volattach |id=)", block):
            found.append("".join(line[4:] + "\n" for line in block.splitlines()))
    return found


QUERIES = queries()


@pytest.mark.parametrize("query", QUERIES, ids=[str(number) for number in range(len(QUERIES))])
def test_a_query_of_the_documentation_answers(query: str, story: list[str], program: Program, tmp_path: Path) -> None:
    Path("/var/lib/prometheus/node-exporter").mkdir(parents=True, exist_ok=True)
    run("journalctl", "--sync")
    where = {"PATH": command_path(tmp_path), "VOLATTACHD_SOCKET": str(program.socket), "SYSTEMD_PAGER": ""}
    for command in split_commands(query):
        script = f"set -e\n{command}"
        shell = ["sh", "-c", f"{assignments(query)}{script}"]
        done = subprocess.run(shell, env=where, capture_output=True, text=True, timeout=90, check=False)
        assert (done.returncode, done.stderr) == (0, ""), command
        if "--textfile" in command:
            assert "volattachd_calls_total" in Path(command.split()[-1]).read_text()
        elif not command.startswith("id="):
            assert done.stdout.strip(), f"it shows nothing: {command}"
            assert "-- No entries --" not in done.stdout, command


def command_path(directory: Path) -> str:
    """PATH with a command ``volattach``: the installed one, or the tree's."""
    path = os.environ["PATH"]
    if is_installed():
        return path
    command = directory / "volattach"
    command.write_text(f'#!/bin/sh\ncd {REPO}\nexec {sys.executable} -m volattachd.cli "$@"\n')
    command.chmod(0o755)
    return f"{directory}:{path}"


def split_commands(query: str) -> list[str]:
    """Command by command: a line that begins with white space belongs to the one before."""
    return [command.strip() for command in re.split(r"\n(?=\S)", query) if command.strip()]


def assignments(query: str) -> str:
    return "".join(command + "\n" for command in split_commands(query) if command.startswith("id="))


def test_what_a_query_shows_is_what_was_asked(story: list[str], program: Program, journald: Journald) -> None:
    assert {e["VOLATTACH_CALL"] for e in journald.entries("_UID=0", "VOLATTACH_ERROR=DriverError")} == {
        "initialize_connection"
    }
    denied = journald.entries("_UID=0", "VOLATTACH_ERROR=PermissionDenied")
    assert [(e["VOLATTACH_PEER_UID"], e["VOLATTACH_CALL"], e["PRIORITY"]) for e in denied] == [
        ("65534", "reconcile", "4")
    ]
    assert "vol-1" in run("journalctl", "-F", "VOLATTACH_VOLUME").stdout.split()
    names = set(re.findall(r"volattachd_\w+", MONITORING.read_text()))
    there = program.call("get_metrics")
    assert names and all(name in there for name in names)


#: What an attacker would write to make one record look like two, or like somebody else's.
FORGED = "vol-1\nPRIORITY=0\nMESSAGE_ID=00000000000040008000000000000000\nVOLATTACH_VOLUME=forged\n\x00\x1b[2J\u2028x"


def test_nothing_that_a_caller_sends_forges_a_record(story: list[str], program: Program, journald: Journald) -> None:
    before = len(journald.entries("-t", "volattachd"))
    sent: list[tuple[str, dict[str, Any]]] = [
        ("reserve_volume", {"volume": FORGED}),
        ("reserve_volume", {"volume": "vol-1", "attachment_id": FORGED}),
        ("reserve_volume", {"volume": "vol-1", "instance_uuid": FORGED}),
        ("reserve_volume", {"volume": "vol-1", "mode": FORGED}),
        ("unregister_volume", {"volume": FORGED}),
        ("attach", {"volume": "vol-1", "host_name": FORGED}),
        ("attach", {"volume": "vol-1", "mount_point": FORGED, "host_name": "h"}),
        ("register_volume", {"volume": "vol-9", "path": "/" + FORGED}),
        ("register_volume", {"volume": "vol-9", "path": FORGED}),
        ("initialize_connection", {"volume": "vol-2", "connector": connector(FORGED)}),
        ("initialize_connection", {"volume": "vol-2", "connector": connector("iqn.2026-11.com.example:x", a=FORGED)}),
        ("terminate_connection", {"volume": "vol-2", "connector": connector("iqn.2026-11.com.example:y", host=FORGED)}),
        ("detach", {"volume": "vol-1", FORGED: FORGED}),
    ]  # fmt: skip
    for method, params in sent:
        program.refused(method, **params)
    with pytest.raises(RemoteError, match="Method not found"):
        program.call(FORGED, volume=FORGED)
    entries = journald.entries("-t", "volattachd")
    assert len(entries) == before + len(sent), "a record for each call, and no other"
    known = {kind.id for kind in messages.kinds().values()}
    for entry in entries:
        assert entry["MESSAGE_ID"] in known
        assert entry.get("VOLATTACH_VOLUME") != "forged"
        for name, value in entry.items():
            assert isinstance(value, str), f"{name} is there twice, or is not text: {value!r}"
            assert value.isprintable(), f"{name}: {value!r}"
    assert {entry["PRIORITY"] for entry in entries[before:]} <= {"4", "6"}
    assert journald.entries("VOLATTACH_VOLUME=forged") == []
    assert journald.entries("PRIORITY=0", "SYSLOG_IDENTIFIER=volattachd") == []
    shown = run("journalctl", "-q", "--no-pager", "-t", "volattachd").stdout.splitlines()
    assert len(shown) == len(entries), "each record is one line"


def test_no_secret_is_in_the_journal_or_in_the_process_list(
    story: list[str], program: Program, journald: Journald
) -> None:
    """Also with every call told, and while the attachment lives."""
    journald.entries()
    everything = subprocess.run(["journalctl", "--all", "-o", "export"], capture_output=True, check=True).stdout
    assert b"VOLATTACH_CALL=initialize_connection" in everything
    places = {"journal": everything}
    for path in [*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/environ")]:
        try:
            places[str(path)] = path.read_bytes()
        except OSError:
            continue  # it has ended, or is the kernel's
    own = f"/proc/{(program.state_dir / 'lock').read_text().strip()}/cmdline"
    assert b"volattachd" in places[own]
    places["metrics"] = program.call("get_metrics").encode()
    places["status"] = json.dumps([program.call("get_status"), program.call("list_attachments")]).encode()
    places["history"] = json.dumps(program.call("get_history", limit=1000)).encode()
    hits = [(place, number) for place, text in places.items() for number, s in enumerate(story) if s.encode() in text]
    assert hits == []


def test_of_a_record_of_any_size_the_beginning_arrives(journald: Journald) -> None:
    reason = "0123456789abcdef" * (1 << 16)
    handler = JournalHandler(JOURNAL_SOCKET, logging.NullHandler())
    told = Told(messages.PASS_FAILED, {"reason": reason, "target": "large"})
    handler.handle(logging.LogRecord("volattachd", 30, __file__, 1, told, None, None))
    (entry,) = journald.entries("VOLATTACH_TARGET=large")
    assert entry["MESSAGE"] == f"cannot look at the target: {reason[:2000]}… ({len(reason)} characters)"


def test_calls_go_on_while_journald_is_away_and_are_told_again_when_it_is_back(
    story: list[str], program: Program, journald: Journald
) -> None:
    journald.kill()
    for _ in range(50):
        assert program.refused("detach", volume="no-such").kind == "VolumeNotFound"
    journald.start()
    assert program.refused("detach", volume="back-again").kind == "VolumeNotFound"
    (entry,) = journald.entries("_UID=0", "VOLATTACH_VOLUME=back-again")
    assert entry["MESSAGE_ID"] == messages.CALL_REFUSED.id
    # Its stderr ended with the journald that was killed (systemd would have kept it open): the others get a new one.
    program.restart()
    assert journald.entries("_UID=0", f"MESSAGE_ID={messages.READY.id}")
