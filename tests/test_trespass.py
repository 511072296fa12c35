"""No user trespasses on another: every call, by every other user, with the ids, initiators and hosts of the victim.

The daemon runs in a process of its own. A connection is made by a process that has become the user, so the kernel
tells the daemon a real uid. ROWS has one entry for each row of the method table: a method without one fails the test.
After every call the victim's attachments must be what they were, no line of history may be new (except where a
row says that the attacker makes something of its own), and no answer may contain a secret of the victim.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import PATIENCE, Wire, attachment_id, connector, make_file, request
from tests.test_daemon import Running
from volattachd.api.methods import BY_NAME, METHODS, Role

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")

ALICE, BOB, CAROL, NOBODY, ANN, PROVISIONER = 54401, 54402, 54403, 54404, 54405, 54406
#: A user that the host knows, for whom the provisioner reserves.
OWNER = 1
CONFIG = f"""
[access]
agent = ["{ALICE}", "{BOB}", "{OWNER}"]
reader = ["{CAROL}"]
provisioner = ["{PROVISIONER}"]
admin = ["{ANN}"]
[initiators]
"iqn.2026-11.org.example:bound" = "{ALICE}"
"""
ATTACKERS = {BOB: Role.AGENT, PROVISIONER: Role.PROVISIONER, CAROL: Role.READER}
HOST, BOUND = "iqn.2026-11.org.example:alice", "iqn.2026-11.org.example:bound"
STATES = ("reserved", "connected", "attached", "detaching", "disconnected", "gone")
GRANTED = ("connected", "attached", "detaching")

DENIED, READ, INVALID = "PermissionDenied", None, "InvalidVolume"


def connect_as(path: Path, uid: int) -> Wire:
    """A connection that a process of this user has made: what the kernel tells of it stays so, whoever holds it."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            with socket.socket(socket.AF_UNIX) as made:
                made.connect(str(path))
                socket.send_fds(theirs, [b"."], [made.fileno()])
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        ours.settimeout(PATIENCE)
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    os.waitpid(pid, 0)
    wire = Wire.__new__(Wire)
    wire.socket = socket.socket(fileno=descriptors[0])
    wire.socket.settimeout(PATIENCE)
    wire._received = b""
    return wire


@dataclass(frozen=True)
class Victim:
    """An attachment of alice: alone on its volume, or on one that takes several."""

    volume: str
    id: str
    state: str

    @property
    def has_ended(self) -> bool:
        return self.state == "gone"


@dataclass(frozen=True)
class Try:
    """One call of an attacker that has the role for it, and the error that it must get (None: an answer)."""

    params: dict[str, Any]
    error: str | None


Row = Callable[[Victim], list[Try]]


def on_attachment(*more: dict[str, Any]) -> Row:
    """A call that acts on an attachment. One that has ended is nobody's: the answer is what everybody may read."""

    def tries(victim: Victim) -> list[Try]:
        error = READ if victim.has_ended else DENIED
        found = []
        for members in more or ({},):
            found.append(Try({"volume": victim.volume, "attachment_id": victim.id, **members}, error))
            found.append(Try({"volume": victim.volume, **members}, error))
        return found

    return tries


def starts_anew(*more: dict[str, Any]) -> Row:
    """The same of a call that an ended attachment does not allow."""

    def tries(victim: Victim) -> list[Try]:
        return [Try(t.params, INVALID if victim.has_ended else DENIED) for t in on_attachment(*more)(victim)]

    return tries


def reading(*names: str) -> Row:
    return lambda victim: [
        Try({}, READ),
        *(Try({name: victim.id if name == "attachment_id" else victim.volume}, READ) for name in names),
    ]


def for_admins(victim: Victim) -> list[Try]:
    """What no agent may call, whatever it is about."""
    return [Try({}, DENIED), Try({"volume": victim.volume, "path": "/etc/passwd"}, DENIED)]


CONNECTORS = [
    connector(HOST),
    connector(HOST.upper(), host="alice"),
    connector(BOUND),
    {"do_local_attach": True, "host": socket.gethostname()},
    {"driver_volume_type": "local", "host": "alice", "initiator": HOST},
]
AS_CONNECTOR = [{"connector": told} for told in CONNECTORS]
FORCED = [{"connector": told, "force": True} for told in CONNECTORS]

ROWS: dict[str, Row] = {
    "reserve_volume": lambda victim: [
        Try({"volume": victim.volume, "attachment_id": victim.id}, "InvalidInput" if victim.has_ended else DENIED),
    ],
    "initialize_connection": starts_anew(*AS_CONNECTOR),
    "attach": starts_anew({"host_name": "alice"}, {"host_name": "bob", "instance_uuid": "i", "mode": "rw"}),
    "begin_detaching": starts_anew(),
    "terminate_connection": lambda victim: [
        *on_attachment(*AS_CONNECTOR)(victim),
        *(Try(t.params, DENIED) for t in on_attachment(*FORCED)(victim)),
    ],
    "detach": on_attachment(),
    "unreserve_volume": on_attachment(),
    "roll_detaching": on_attachment(),
    "register_volume": for_admins,
    "unregister_volume": for_admins,
    "reconcile": for_admins,
    "backup_journal": for_admins,
    "list_volumes": reading(),
    "show_volume": lambda victim: [Try({"volume": victim.volume}, READ)],
    "list_attachments": reading("volume"),
    "show_attachment": lambda victim: [Try({"attachment_id": victim.id}, READ)],
    "get_history": reading("volume", "attachment_id"),
    "get_status": reading(),
    "get_metrics": reading(),
    "subscribe": lambda victim: [Try({"since": 0}, READ)],
    "unsubscribe": reading(),
    "rpc.discover": reading(),
}


def test_every_method_has_a_row() -> None:
    assert set(ROWS) == {method.name for method in METHODS}, "say what an attacker may try with the new method"


@dataclass
class House:
    """The daemon, and a connection of each user."""

    directory: Path
    wires: dict[int, Wire]
    daemon: Running
    secrets: set[str]

    def ask(self, uid: int, method: str, **params: Any) -> dict[str, Any]:
        wire = self.wires[uid]
        answer = wire.ask(request(method, **params))
        while "method" in answer:  # a notification of a subscription
            answer = wire.answer()
        return dict(answer)

    def call(self, uid: int, method: str, **params: Any) -> Any:
        answer = self.ask(uid, method, **params)
        assert "error" not in answer, answer
        return answer["result"]

    def kind(self, uid: int, method: str, **params: Any) -> str | None:
        error = self.ask(uid, method, **params).get("error")
        return None if error is None else str(error["data"]["kind"])

    def victim(self, state: str, number: int, volume: str, initiator: str = HOST, uid: int = ALICE) -> Victim:
        """Bring an attachment into a state, and remember its secret."""
        at = {"volume": volume, "attachment_id": attachment_id(number)}
        told = connector(initiator, host="alice")
        steps: list[tuple[str, dict[str, Any]]] = [
            ("reserve_volume", at),
            ("initialize_connection", {**at, "connector": told}),
            ("attach", {**at, "host_name": "alice"}),
            ("begin_detaching", at),
            ("terminate_connection", {**at, "connector": told}),
            ("detach", at),
        ]
        for method, params in steps[: STATES.index(state) + 1]:
            answer = self.call(uid, method, **params)
            if method == "initialize_connection":
                self.secrets |= {answer["data"]["auth_password"], answer["data"]["auth_username"]}
        return Victim(volume, at["attachment_id"], state)

    def world(self) -> tuple[Any, ...]:
        """What an attacker must leave as it is."""
        own = [row for row in self.call(0, "list_attachments") if row["owner"] == ALICE]
        return own, self.call(0, "list_volumes"), self.call(0, "get_status")["seq"]


@pytest.fixture
def house() -> Iterator[House]:
    with ExitStack() as stack:
        # Not pytest's own directory: each run of pytest closes that to other users.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o711)
        daemon = Running(directory, config=CONFIG)
        stack.callback(daemon.end)
        daemon.ready()
        daemon.socket.chmod(0o666)
        wires = {uid: connect_as(daemon.socket, uid) for uid in (0, ALICE, BOB, CAROL, ANN, PROVISIONER, OWNER)}
        for wire in wires.values():
            stack.callback(wire.socket.close)
        yield House(directory, wires, daemon, set())


def test_a_user_without_a_role_is_refused_before_it_can_call(house: House) -> None:
    with connect_as(house.daemon.socket, NOBODY) as wire:
        assert wire.answer()["error"]["data"]["kind"] == DENIED
        assert wire.answer() is None


@pytest.mark.parametrize("multiattach", [False, True])
@pytest.mark.parametrize("state", STATES)
def test_no_call_of_another_user_touches_or_reads_what_is_not_its_own(
    house: House, state: str, multiattach: bool
) -> None:
    file = make_file(house.directory / "v.img")
    house.call(0, "register_volume", volume="vol-1", path=file, multiattach=multiattach)
    victim = house.victim(state, 1, "vol-1")
    before, tried = house.world(), 0
    for attacker, role in ATTACKERS.items():
        for method in METHODS:
            for attempt in ROWS[method.name](victim):
                answer = house.ask(attacker, method.name, **attempt.params)
                what = f"uid {attacker}: {method.name} {attempt.params}: {answer}"
                error = answer.get("error")
                if role >= method.role:
                    assert (error and error["data"]["kind"]) == attempt.error, what
                else:
                    assert error and error["data"]["kind"] in (DENIED, "Busy"), what
                assert not any(secret in str(answer) for secret in house.secrets), what
                assert house.world() == before, what
                tried += 1
    assert tried >= len(ATTACKERS) * len(METHODS)
    assert house.call(0, "reconcile", dry_run=True)["volumes"] == []


@pytest.mark.parametrize("state", STATES)
def test_an_attachment_of_ones_own_is_no_way_into_anothers_access(house: House, state: str) -> None:
    """On a volume that both may attach, with the victim's initiator and the victim's host."""
    file = make_file(house.directory / "v.img")
    house.call(0, "register_volume", volume="vol-1", path=file, multiattach=True)
    victim = house.victim(state, 1, "vol-1")
    own = house.call(BOB, "reserve_volume", volume="vol-1")["attachment_id"]
    before = house.world()
    for told in (connector(HOST, host="alice"), connector(HOST.upper()), connector(HOST, mode="ro")):
        if state in GRANTED:
            assert house.kind(BOB, "initialize_connection", volume="vol-1", connector=told, attachment_id=own) == DENIED
            assert house.world() == before
    bound = connector(BOUND, host="alice")
    assert house.kind(BOB, "initialize_connection", volume="vol-1", connector=bound, attachment_id=own) == DENIED
    if state not in GRANTED:
        answer = house.call(BOB, "initialize_connection", volume="vol-1", connector=connector(HOST), attachment_id=own)
        assert not any(secret in str(answer) for secret in house.secrets)
        assert house.world()[0] == before[0]
    assert not victim.has_ended or state == "gone"


def test_a_bound_name_cannot_be_squatted_while_its_user_is_away(house: House) -> None:
    file = make_file(house.directory / "v.img")
    house.call(0, "register_volume", volume="vol-1", path=file, multiattach=True)
    for squatter in (BOB, ANN, 0):
        own = house.call(squatter, "reserve_volume", volume="vol-1")["attachment_id"]
        at = {"volume": "vol-1", "attachment_id": own, "connector": connector(BOUND)}
        assert house.kind(squatter, "initialize_connection", **at) == DENIED
    house.victim("attached", 1, "vol-1", BOUND)


def test_the_same_calls_succeed_for_the_owner_and_for_an_admin_that_acts_for_it(house: House) -> None:
    """Or else the refusals above would prove nothing."""
    file = make_file(house.directory / "v.img")
    house.call(0, "register_volume", volume="vol-1", path=file)
    for number, who in enumerate((ALICE, ANN, 0), start=1):
        house.victim("reserved", number, "vol-1")
        at = {"volume": "vol-1", "attachment_id": attachment_id(number)}
        told = connector(HOST, host="alice")
        password = house.call(who, "initialize_connection", **at, connector=told)["data"]["auth_password"]
        assert password
        for method in ("attach", "begin_detaching", "roll_detaching", "begin_detaching"):
            more = {"host_name": "alice"} if method == "attach" else {}
            assert house.call(who, method, **at, **more)["owner"] == ALICE
        house.call(who, "terminate_connection", **at, connector=told)
        house.call(who, "detach", **at)


def test_a_provisioner_drives_what_it_reserved_for_another_and_never_sees_the_secret(house: House) -> None:
    file = make_file(house.directory / "v.img")
    house.call(0, "register_volume", volume="vol-1", path=file)
    at = {"volume": "vol-1", "attachment_id": attachment_id(1)}
    told = connector(HOST)
    for uid in (BOB, CAROL):
        assert house.kind(uid, "reserve_volume", **at, owner=OWNER) == DENIED
    for _ in range(2):
        assert house.call(PROVISIONER, "reserve_volume", **at, owner=OWNER)["owner"] == OWNER
    answers = [house.call(PROVISIONER, "initialize_connection", **at, connector=told) for _ in range(2)]
    assert [answer["data"]["auth_password"] for answer in answers] == [None, None]
    password = house.call(OWNER, "initialize_connection", **at, connector=told)["data"]["auth_password"]
    assert password
    for method in ("attach", "begin_detaching", "roll_detaching", "begin_detaching"):
        more = {"host_name": "node"} if method == "attach" else {}
        answers.append(house.call(PROVISIONER, method, **at, **more))
    assert house.kind(PROVISIONER, "terminate_connection", **at, connector=told, force=True) == DENIED
    answers.append(house.call(PROVISIONER, "get_history", attachment_id=attachment_id(1)))
    answers.append(house.call(PROVISIONER, "terminate_connection", **at, connector=told))
    answers.append(house.call(PROVISIONER, "detach", **at))
    assert password not in str(answers)


def test_an_owner_must_be_a_user_of_the_host(house: House) -> None:
    file = make_file(house.directory / "v.img")
    house.call(0, "register_volume", volume="vol-1", path=file)
    for nobody in ("no-such-user", 54499, "54499"):
        assert house.kind(PROVISIONER, "reserve_volume", volume="vol-1", owner=nobody) == "InvalidInput"


def test_a_reader_is_below_an_agent_then_come_provisioners_and_admins() -> None:
    roles = [Role.READER, Role.AGENT, Role.PROVISIONER, Role.ADMIN]
    assert roles == sorted(set(roles))
    assert (BY_NAME["list_attachments"].role, BY_NAME["backup_journal"].role) == (roles[0], roles[-1])
