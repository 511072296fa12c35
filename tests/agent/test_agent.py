"""The workflow against the real service over a socket, with a connector whose devices are files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.agent.plain import PlainConnector
from tests.support import ADMIN, OTHER_AGENT, Rig, attachment_id, connector, serving
from volattachd.agent import Agent, SentAgain, attached
from volattachd.agent.agent import ATTACH, DETACH, View
from volattachd.agent.connectors.base import Waiting
from volattachd.agent.errors import AttachedElsewhere, ConnectFailed, ConnectorUnusable, DeviceInUse
from volattachd.agent.identity import new_id
from volattachd.client.sync import Client, NoAnswer, Unreachable
from volattachd.errors import DriverError, InvalidVolume, InvalidVolumeAttachMode, SessionActive, VolumeNotFound
from volattachd.model import Caller

VOLUME = "vol-1"


class Death(BaseException):
    """The agent's process ends here: nothing of its own runs any more."""


class Host:
    """One compute host, and its way to the daemon."""

    def __init__(self, directory: Path, socket_path: Path, name: str = "host-a") -> None:
        self.name = name
        self.directory = directory / name
        self.directory.mkdir()
        self.connector = PlainConnector(self.directory, f"iqn.2026-11.com.example:{name}")
        self.told: list[str] = []
        self.before: dict[str, Any] = {}
        self._socket_path = socket_path

    def call(self, method: str, params: View) -> Any:
        """Carries a call; a test may have something happen before or after it."""
        self._strike(f"before {method}")
        with Client(str(self._socket_path)) as client:
            result = client.call(method, params)
        self._strike(f"after {method}")
        return result

    def _strike(self, moment: str) -> None:
        error = self.before.get(moment)
        if error is not None:
            raise error

    @property
    def agent(self) -> Agent:
        return Agent(self, self.name, self._report, lambda name, report: self.connector, self.directory)

    def _report(self, line: str) -> None:
        self.told.append(line.partition(": ")[2])
        self._strike(f"step {self.told[-1]}")

    def devices(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir() if path.suffix not in (".lock", ".used"))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path)
    made.register(VOLUME)
    return made


@pytest.fixture
def socket_path(rig: Rig, tmp_path: Path) -> Iterator[Path]:
    with serving(tmp_path / "d.sock", rig.service):
        yield tmp_path / "d.sock"


@pytest.fixture
def host(tmp_path: Path, socket_path: Path) -> Host:
    return Host(tmp_path, socket_path)


@pytest.fixture
def other(tmp_path: Path, socket_path: Path) -> Host:
    return Host(tmp_path, socket_path, "host-b")


def status(rig: Rig) -> str:
    return str(rig.service.show_volume(ADMIN, VOLUME)["status"])


def test_attach_and_detach_go_through_their_steps_in_order(rig: Rig, host: Host) -> None:
    found = host.agent.attach(VOLUME, mount_point="/dev/vdb")
    assert host.told == [step.name for step in ATTACH]
    assert (found.path, status(rig), host.devices()) == (str(host.directory / VOLUME), "in-use", [VOLUME])
    row = rig.service.show_attachment(ADMIN, found.attachment_id)
    assert (row["host_name"], row["mount_point"], row["connector"]["host"]) == ("host-a", "/dev/vdb", "host-a")
    host.told.clear()
    assert host.agent.detach(VOLUME).view() == {"volume": VOLUME, "status": "available", "lost": []}
    assert host.told == [step.name for step in DETACH]
    assert (status(rig), host.devices(), rig.granted()) == ("available", [], set())


def test_the_same_command_again_gives_the_same_answer(rig: Rig, host: Host) -> None:
    first = host.agent.attach(VOLUME)
    assert host.agent.attach(VOLUME) == first
    assert host.agent.detach(VOLUME) == host.agent.detach(VOLUME)
    assert host.agent.attach(VOLUME).attachment_id != first.attachment_id, "an id that has ended is not used again"


CALLS = ("reserve_volume", "initialize_connection", "attach")
BACK = ("begin_detaching", "terminate_connection", "detach")


@pytest.mark.parametrize(("moment", "call"), list(itertools.product(("before", "after"), CALLS)))
def test_an_attach_that_fails_at_a_call_is_taken_back(moment: str, call: str, rig: Rig, host: Host) -> None:
    host.before[f"{moment} {call}"] = DriverError("it fails")
    with pytest.raises(DriverError, match=r"^it fails$"):
        host.agent.attach(VOLUME)
    assert (status(rig), host.devices(), rig.exported()) == ("available", [], False)


def test_a_connection_that_fails_is_terminated(rig: Rig, host: Host) -> None:
    host.connector.fails = ConnectFailed("no such portal")
    with pytest.raises(ConnectFailed, match=r"^no such portal$"):
        host.agent.attach(VOLUME)
    assert (status(rig), host.devices(), rig.exported()) == ("available", [], False)
    assert host.told == ["reserve", "initialize", "connect", "undo connect", "undo initialize", "undo reserve"]


def test_an_interrupt_is_a_failure_like_another(rig: Rig, host: Host) -> None:
    host.before["before attach"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        host.agent.attach(VOLUME)
    assert (status(rig), host.devices()) == ("available", [])


def test_an_interrupt_between_two_steps_is_one_too(rig: Rig, host: Host) -> None:
    host.before["step attach"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        host.agent.attach(VOLUME)
    assert (status(rig), host.devices()) == ("available", [])


def test_a_host_that_lacks_what_the_connector_needs_reserves_nothing(rig: Rig, host: Host) -> None:
    host.connector.lacks = ConnectorUnusable("this host has no initiator")
    with pytest.raises(ConnectorUnusable, match="has no initiator"):
        host.agent.attach(VOLUME)
    assert rig.service.get_history(ADMIN)[-1]["call"] == "register_volume"


def test_a_way_back_that_fails_is_told_with_what_goes_on_with_it(rig: Rig, host: Host) -> None:
    host.connector.fails = ConnectFailed("no such portal")
    host.before["before terminate_connection"] = Unreachable("nobody is there")
    with pytest.raises(ConnectFailed, match=r"^no such portal; and the way back failed: nobody is there$") as raised:
        host.agent.attach(VOLUME)
    assert raised.value.correction == f"volattach detach {VOLUME}, which goes on with it"
    host.before.clear()
    host.agent.detach(VOLUME)
    assert (status(rig), host.devices(), rig.exported()) == ("available", [], False)


def test_what_was_attached_before_is_not_taken_back(rig: Rig, host: Host) -> None:
    host.agent.attach(VOLUME)
    host.connector.fails = ConnectFailed("the portal is away for a moment")
    with pytest.raises(ConnectFailed):
        host.agent.attach(VOLUME)
    assert (status(rig), host.devices()) == ("in-use", [VOLUME])


def test_a_device_in_use_is_refused_and_rolled_back(rig: Rig, host: Host) -> None:
    host.agent.attach(VOLUME)
    (host.directory / f"{VOLUME}.used").touch()
    with pytest.raises(DeviceInUse, match="is mounted"):
        host.agent.detach(VOLUME)
    assert (status(rig), host.devices()) == ("in-use", [VOLUME])
    done = host.agent.detach(VOLUME, force=True)
    assert (done.status, done.lost) == ("available", (f"{host.directory / VOLUME} is mounted",))
    assert host.devices() == []


@pytest.mark.parametrize(("moment", "call"), list(itertools.product(("before", "after"), BACK)))
def test_a_detach_that_fails_at_a_call_goes_on_when_it_is_sent_again(
    moment: str, call: str, rig: Rig, host: Host
) -> None:
    host.agent.attach(VOLUME)
    host.before[f"{moment} {call}"] = NoAnswer("the daemon went away")
    with pytest.raises(NoAnswer):
        host.agent.detach(VOLUME)
    if call != "begin_detaching":
        assert host.devices() == [], "the device does not come back"
    host.before.clear()
    assert host.agent.detach(VOLUME).status == "available"
    assert (status(rig), host.devices(), rig.granted()) == ("available", [], set())


MOMENTS = [f"{when} {call}" for call in CALLS for when in ("before", "after")]
MOMENTS += [f"step {step.name}" for step in ATTACH]
LATER = [f"{when} {call}" for call in BACK for when in ("before", "after")]
LATER += [f"step {step.name}" for step in DETACH]


class Struck(Host):
    """A host whose agent's process dies at a moment: not even its way back runs."""

    def _strike(self, moment: str) -> None:
        if self.before.get("dead") or self.before.get(moment):
            self.before["dead"] = True
            raise Death


@pytest.mark.parametrize("then", ["attach", "detach"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_agent_that_died_while_attaching_is_resumed(
    moment: str, then: str, rig: Rig, tmp_path: Path, socket_path: Path
) -> None:
    host = Struck(tmp_path, socket_path)
    host.before[moment] = True
    with pytest.raises(Death):
        host.agent.attach(VOLUME)
    resume(host, then)
    assert (status(rig), host.devices()) == (("in-use", [VOLUME]) if then == "attach" else ("available", []))
    assert len(rig.service.list_attachments(ADMIN, VOLUME)) == (1 if then == "attach" else 0)


@pytest.mark.parametrize("then", ["attach", "detach"])
@pytest.mark.parametrize("moment", LATER)
def test_an_agent_that_died_while_detaching_is_resumed(
    moment: str, then: str, rig: Rig, tmp_path: Path, socket_path: Path
) -> None:
    host = Struck(tmp_path, socket_path)
    host.agent.attach(VOLUME)
    host.before[moment] = True
    with pytest.raises(Death):
        host.agent.detach(VOLUME)
    resume(host, then)
    assert (status(rig), host.devices()) == (("in-use", [VOLUME]) if then == "attach" else ("available", []))


def resume(host: Struck, command: str) -> None:
    assert host.before.pop("dead")
    host.before.clear()
    getattr(host.agent, command)(VOLUME)


@pytest.mark.parametrize("moment", [*MOMENTS, None])
def test_another_host_ends_what_a_dead_one_left_only_by_force(
    moment: str | None, rig: Rig, tmp_path: Path, socket_path: Path, other: Host
) -> None:
    host = Struck(tmp_path, socket_path)
    host.before[str(moment)] = True
    try:
        host.agent.attach(VOLUME)
    except Death:
        pass
    if rig.service.list_attachments(ADMIN, VOLUME):
        with pytest.raises(AttachedElsewhere):
            other.agent.detach(VOLUME)
        with pytest.raises(InvalidVolume):
            other.agent.attach(VOLUME)
    other.agent.detach(VOLUME, force=True)
    assert (status(rig), rig.granted()) == ("available", set())
    assert other.agent.attach(VOLUME).path == str(other.directory / VOLUME)


def test_force_from_elsewhere_says_who_is_cut_off(host: Host, other: Host) -> None:
    host.agent.attach(VOLUME)
    (lost,) = other.agent.detach(VOLUME, force=True).lost
    assert lost.startswith("host-a is cut off")
    assert host.devices() == [VOLUME]
    host.agent.detach(VOLUME)
    assert host.devices() == [], "the host that was cut off clears its device away"


def test_a_session_that_the_target_still_sees_is_cut_by_force_alone(rig: Rig, host: Host) -> None:
    host.agent.attach(VOLUME)
    target = rig.journal.volumes[VOLUME].target_name
    (grant,) = rig.driver.exports[target].grants.values()
    rig.driver.login(target, grant.initiator, grant.secret.username, grant.secret.password)
    with pytest.raises(SessionActive):
        host.agent.detach(VOLUME)
    assert status(rig) == "detaching"
    assert host.agent.detach(VOLUME, force=True).status == "available"


class LateTarget(PlainConnector):
    """A connector that has ended its session for certain, as open-iscsi's has."""

    ends_sessions = True


def linger(rig: Rig, host: Host) -> Callable[[], None]:
    """A session of the host that the target still counts; the answer ends it there."""
    target = rig.journal.volumes[VOLUME].target_name
    (grant,) = rig.driver.exports[target].grants.values()
    rig.driver.login(target, grant.initiator, grant.secret.username, grant.secret.password)
    return lambda: rig.driver.logout(target, grant.initiator)


def test_a_session_that_only_the_target_still_counts_is_waited_for_and_said_so(rig: Rig, host: Host) -> None:
    host.connector = LateTarget(host.directory, host.connector.initiator)
    host.agent.attach(VOLUME)
    end = linger(rig, host)
    waits = []

    def report(line: str) -> None:
        if isinstance(line, Waiting):
            waits.append(line)
            end()

    agent = Agent(host, host.name, report, lambda name, told: host.connector, host.directory)
    assert agent.detach(VOLUME).status == "available"
    (line,) = waits
    assert "no session is left on this host" in line and "is still logged in" in line


def test_a_session_that_the_target_never_ends_leaves_advice_that_can_be_followed(rig: Rig, host: Host) -> None:
    host.connector = LateTarget(host.directory, host.connector.initiator)
    host.agent.attach(VOLUME)
    end = linger(rig, host)
    agent = Agent(host, host.name, make=lambda name, told: host.connector, runtime=host.directory, timeout=0.01)
    with pytest.raises(SessionActive, match="this host has no session left") as raised:
        agent.detach(VOLUME)
    assert "log the initiator out" not in str(raised.value.correction)
    assert f"volattach detach {VOLUME}" in str(raised.value.correction)
    assert (status(rig), host.devices()) == ("detaching", [])
    end()
    assert host.agent.detach(VOLUME).status == "available", "the same command goes on"


# Whose attachment it is.


def forge(rig: Rig, host: str, volume: str, caller: Caller = OTHER_AGENT) -> str:
    """Another user's attachment that says in every way it can that it is the host's; its id."""
    forged = new_id(host, volume)
    rig.service.reserve_volume(caller, volume, forged)
    told = connector("iqn.2026-11.com.example:thief", host=host, volattach_connector="plain")
    rig.service.initialize_connection(caller, volume, told, forged)
    rig.service.attach(caller, volume, host_name=host, attachment_id=forged)
    return forged


def test_an_attachment_that_another_user_made_is_never_handed_out(rig: Rig, host: Host) -> None:
    forge(rig, host.name, VOLUME)
    with pytest.raises(InvalidVolume):
        host.agent.attach(VOLUME)
    with pytest.raises(AttachedElsewhere, match="of uid 1001 was not made by this host's agent"):
        host.agent.detach(VOLUME)
    assert (status(rig), host.devices()) == ("in-use", [])


def test_an_attachment_of_the_same_user_that_this_host_did_not_make_is_not_adopted(rig: Rig, host: Host) -> None:
    rig.service.reserve_volume(ADMIN, VOLUME, attachment_id(7))
    told = connector("iqn.2026-11.com.example:by-hand", host=host.name)
    rig.service.initialize_connection(ADMIN, VOLUME, told, attachment_id(7))
    with pytest.raises(InvalidVolume):
        host.agent.attach(VOLUME)


def test_another_users_row_neither_stops_nor_changes_what_this_host_does_with_a_shared_volume(
    rig: Rig, host: Host
) -> None:
    rig.register("shared", multiattach=True)
    forged = forge(rig, host.name, "shared")
    found = host.agent.attach("shared", connector="plain")
    assert found.attachment_id != forged and host.devices() == ["shared"]
    assert host.agent.detach("shared").status == "in-use"
    assert host.devices() == [], "the device goes, whatever else claims to be this host's"
    assert host.agent.detach("shared").status == "in-use", "sent again it is done"
    assert host.agent.detach("shared", force=True).status == "in-use", "and cuts off nobody else"
    assert rig.service.show_attachment(ADMIN, forged)["state"] == "attached"


def test_others_attachments_of_a_shared_volume_are_cut_off_by_their_id_alone(rig: Rig, host: Host) -> None:
    rig.register("shared", multiattach=True)
    forged = forge(rig, "host-b", "shared")
    with pytest.raises(AttachedElsewhere, match="belongs to host-b"):
        host.agent.detach("shared", attachment_id=forged)
    (lost,) = host.agent.detach("shared", attachment_id=forged, force=True).lost
    assert lost.startswith("host-b is cut off")


def test_another_mode_or_connector_than_the_attachments_is_refused(host: Host) -> None:
    host.agent.attach(VOLUME)
    with pytest.raises(InvalidVolumeAttachMode, match="this host has it as rw"):
        host.agent.attach(VOLUME, mode="ro")
    host.connector.name = "another"  # type: ignore[misc]
    with pytest.raises(InvalidVolume, match="this host has it through plain"):
        host.agent.attach(VOLUME)


def test_a_connector_that_takes_another_kind_of_connection_is_refused(rig: Rig, host: Host) -> None:
    host.connector.volume_type = "local"  # type: ignore[misc]
    with pytest.raises(ConnectorUnusable, match="the daemon offers 'iscsi'"):
        host.agent.attach(VOLUME)
    assert status(rig) == "available"


def test_two_instances_of_a_host_share_the_device_and_the_last_one_takes_it_away(rig: Rig, host: Host) -> None:
    rig.register("shared", multiattach=True)
    first, second = new_id("x", "y"), new_id("x", "z")
    host.agent.attach("shared", instance_uuid=first, connector="plain")
    host.agent.attach("shared", instance_uuid=second, connector="plain")
    with pytest.raises(InvalidVolume, match="2 attachments"):
        host.agent.detach("shared")
    host.agent.detach("shared", instance_uuid=first)
    assert host.devices() == ["shared"]
    host.agent.detach("shared", instance_uuid=second)
    assert host.devices() == []


def test_a_volume_that_nobody_has_here_is_cleared_of_what_is_left_here(rig: Rig, host: Host) -> None:
    (host.directory / VOLUME).write_text("of an attachment that was ended elsewhere")
    assert host.agent.detach(VOLUME).status == "available"
    assert host.devices() == []


def test_an_unknown_volume_is_told(host: Host) -> None:
    with pytest.raises(VolumeNotFound):
        host.agent.attach("nothing")


def test_a_with_attaches_and_detaches(rig: Rig, host: Host) -> None:
    with attached(VOLUME, host.agent, connector="plain") as found:
        assert (status(rig), Path(found.path).exists()) == ("in-use", True)
    assert (status(rig), host.devices()) == ("available", [])


def test_calls_are_sent_again_while_no_daemon_answers(rig: Rig, tmp_path: Path) -> None:
    tries = []

    def connect() -> Client:
        tries.append(1)
        return Client(str(tmp_path / ("nobody" if len(tries) < 3 else "d.sock")))

    with serving(tmp_path / "d.sock", rig.service):
        shown = SentAgain(connect).call("show_volume", {"volume": VOLUME})
    assert (shown["volume"], len(tries)) == (VOLUME, 3)
    with pytest.raises(Unreachable):
        SentAgain(lambda: Client(str(tmp_path / "nobody")), timeout=0).call("show_volume", {"volume": VOLUME})


def test_a_daemon_that_does_not_run_is_reported_at_once_with_what_is_waited_for(rig: Rig, tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "d.sock"
    with ExitStack() as daemons:

        def report(line: str) -> None:
            said.append(line)
            daemons.enter_context(serving(path, rig.service))  # it comes up once somebody has been told

        SentAgain(lambda: Client(str(path)), report=report).call("show_volume", {"volume": VOLUME})
    (line,) = said
    assert isinstance(line, Waiting)
    assert line.startswith(
        f"cannot reach the daemon at {path}: No such file or directory; trying again for 60 s (start"
    )
