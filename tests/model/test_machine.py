"""Whatever happens, in whatever order, the service keeps its contract: a state machine against the model.

The short form always makes the same walks, so that what fails fails everywhere; the long form (tests/soak.py) makes
many more, and other ones each time. What they found is kept in test_regressions.py.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.model.contract import (
    ATTACH,
    ATTACHED,
    BEGIN,
    CONNECTED,
    DETACH,
    DETACHING,
    DISCONNECTED,
    FORCE,
    GONE,
    GRANTED,
    INITIALIZE,
    LEAVES,
    RESERVE,
    RESERVED,
    ROLL,
    TERMINATE,
    UNRESERVE,
    WAY_OUT,
    Deed,
    Held,
    Registered,
    Verdict,
    Who,
    World,
)
from tests.model.plant import Died, Plant, Trouble, is_ours
from tests.model.watch import HOSTS, ROGUE, Watch, check_volume_answer, revokes, without_times
from tests.soak import PART, times
from tests.support import ADMIN, IQN_PREFIX, attachment_id, make_file
from volattachd.drivers.memory import SimulatedExport
from volattachd.errors import DriverError, VolattachError
from volattachd.model import Caller, Grant, Mode, Secret

EXAMPLES, STEPS = times(300, 10_000), 100 if PART else 50

VOLUMES = ("vol-a", "vol-b", "vol-c")
NEVER = "never-registered"
ROOT, AGENT, OTHER = Who(0, admin=True), Who(1000), Who(1001)

#: How a client may spell one initiator; the kernel knows one spelling.
SPELLINGS: tuple[Callable[[str], str], ...] = (str, str.upper, str.title)
NO_INITIATORS: tuple[dict[str, Any], ...] = ({}, {"initiator": None}, {"initiator": "host a"}, {"initiator": 7})

#: The counts that the end of a run prints.
TALLY: Counter[str] = Counter()

_FAIL_ONCE = [Trouble(steps=("ok",) * at + ("fail",)) for at in range(3)]
_FAIL_FOR_GOOD = [Trouble(steps=("ok",) * at + ("fail",), rest="fail") for at in range(3)]
_DIE = [Trouble(steps=("ok",) * at + ("die",), reboot=reboot) for at in range(3) for reboot in (False, True)]
_DIE_ON_THE_WAY_BACK = [
    *(Trouble(steps=("ok",) * at + ("fail", "die")) for at in range(2)),
    *(Trouble(steps=("fail",), commit=1, when=when) for when in ("before", "within", "after")),
]
_DIE_AT_COMMIT = [Trouble(commit=0, when=when) for when in ("before", "within", "after")]
_BLIND = [Trouble(plans=plans) for plans in (("fail",), ("ok", "fail"), ("fail", "fail"))]
TROUBLES: list[Trouble] = [
    *_FAIL_ONCE,
    *_FAIL_FOR_GOOD,
    *_DIE,
    *_DIE_ON_THE_WAY_BACK,
    *_DIE_AT_COMMIT,
    *_BLIND,
    Trouble(commit=0, when="after", reboot=True),
]
LOST = "lost"

#: A target with one of our names that no volume accounts for.
_ORPHAN = f"{IQN_PREFIX}:orphan.00000000"

#: The way through life of an attachment that is used.
_NEXT = {RESERVED: INITIALIZE, CONNECTED: ATTACH, ATTACHED: BEGIN, DETACHING: TERMINATE, DISCONNECTED: DETACH}


@dataclass(frozen=True)
class Aim:
    """Which attachment a call is about, who sends it, and how it is named: chosen before there is any."""

    pick: int
    fitting: bool
    who: str
    named: bool
    place: str
    spelling: int


AIMS = st.builds(
    Aim,
    pick=st.integers(0, 5),
    fitting=st.sampled_from((True, True, True, True, False)),
    who=st.sampled_from(("owner",) * 8 + ("admin", "admin", "other")),
    named=st.sampled_from((True, True, False)),
    place=st.sampled_from(("here",) * 15 + ("elsewhere", "nowhere", "ended", "ended", "unknown")),
    spelling=st.integers(0, 2),
)
MANNERS: st.SearchStrategy[Trouble | str | None] = st.one_of(
    st.none(), st.sampled_from((None, None, LOST, LOST)), st.sampled_from(TROUBLES)
)
NAMES = st.sampled_from(VOLUMES)
HOST = st.sampled_from(HOSTS)
FLAGS = st.booleans()


class Life(NamedTuple):
    """A new attachment, how many right calls it is led on, and how the one after them goes, if there is one.

    ``joins``: beside another attachment of the same host.
    """

    volume: str
    who: Who
    host: str
    ro: bool
    far: int
    joins: bool
    logs_in: bool
    manner: Trouble | str | None


LIVES = st.builds(
    Life, NAMES, st.sampled_from((AGENT, OTHER, ROOT)), HOST, FLAGS, st.integers(0, 5), FLAGS, FLAGS, MANNERS
)


class Contract(RuleBasedStateMachine):
    """A storage host with its clients, its bad days, and the model beside it."""

    directory: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(dir=self.directory))
        self.plant = Plant(self.home)
        self.world = World()
        self.watch = Watch(self.plant, self.world)
        self.numbers = 0

    # The registry.

    @initialize(multiattach=st.tuples(FLAGS, FLAGS, FLAGS), read_only=FLAGS, lives=st.lists(LIVES, max_size=5))
    def stock(self, multiattach: tuple[bool, ...], read_only: bool, lives: list[Life]) -> None:
        """Three volumes, and some attachments that are on their way already."""
        for name, flag in zip(VOLUMES, multiattach, strict=True):
            make_file(self.home / name)
            self._register(name, flag, read_only and name == VOLUMES[-1])
        for life in lives:
            self.bring(life)

    def _register(self, name: str, multiattach: bool, read_only: bool) -> None:
        wanted = Registered(name, str(self.home / name), multiattach, read_only)
        outcome = self._try(lambda: self._send_register(wanted), None)
        found = self.world.volumes.get(name)
        if found is not None and (found.multiattach, found.read_only) != (multiattach, read_only):
            assert self._kind(outcome) == "AlreadyExists"
        elif found is None and name in self.watch.missing:
            assert self._kind(outcome) == "InvalidInput"
        else:
            assert isinstance(outcome, dict), outcome
            self.world.volumes[name] = found or replace(wanted, target_name=outcome["target_name"])

    def _send_register(self, volume: Registered) -> dict[str, Any]:
        service: Any = self.plant.service
        return dict(service.register_volume(ADMIN, volume.name, volume.path, volume.multiattach, volume.read_only))

    @rule(name=NAMES, multiattach=FLAGS, manner=MANNERS)
    def unregister_or_register(self, name: str, multiattach: bool, manner: Trouble | str | None) -> None:
        if name in self.world.volumes and (multiattach or not self.world.of_volume(name)):
            self._unregister(name, manner)
        else:
            self._count("register")
            self._register(name, multiattach, False)

    def _unregister(self, name: str, manner: Trouble | str | None) -> None:
        self._count("unregister")
        known = name in self.world.volumes
        outcome = self._try(lambda: self.plant.service.unregister_volume(ADMIN, name), manner, name)
        if isinstance(outcome, Died):
            self._die(manner)
            if known and not self.plant.service.journal.volumes.get(name):
                self._forget(name)
            self._recovered()
        elif known and self.world.of_volume(name):
            assert self._kind(outcome) == "InvalidVolume"
        elif isinstance(outcome, DriverError):
            self._failed(name, "unregister_volume")
        else:
            assert outcome == {"volume": name}
            self._forget(name)
            if manner == LOST:
                assert self.plant.service.unregister_volume(ADMIN, name) == outcome

    def _forget(self, name: str) -> None:
        gone = self.world.volumes.pop(name, None)
        assert gone is None or gone.target_name not in self.plant.target
        for marks in (self.watch.drifted, self.watch.broken):
            marks.discard(name)
        self.watch.old_secrets.pop(name, None)

    # The calls.

    @rule(
        name=NAMES,
        who=st.sampled_from((AGENT, AGENT, OTHER, ROOT)),
        named=FLAGS,
        ro=FLAGS,
        brief=FLAGS,
        manner=MANNERS,
    )
    def reserve(self, name: str, who: Who, named: bool, ro: bool, brief: bool, manner: Trouble | str | None) -> None:
        volume = self.world.volumes.get(name)
        mode = "ro" if ro or (volume is not None and volume.read_only) else None
        self.numbers += 1
        chosen = attachment_id(self.numbers) if named else None
        self._perform(Deed(RESERVE, who, name, chosen, mode=mode, brief=brief), manner)

    @rule(aim=AIMS, manner=MANNERS)
    def reserve_again_or_wrongly(self, aim: Aim, manner: Trouble | str | None) -> None:
        row = self._choose(RESERVE, aim)
        if row is not None:
            deed = self._deed(RESERVE, aim, row)
            self._perform(replace(deed, id=row.id), manner)

    @rule(aim=AIMS, host=HOST, usable=st.sampled_from((True,) * 9 + (False,)), extra=FLAGS, manner=MANNERS)
    def initialize_connection(
        self, aim: Aim, host: str, usable: bool, extra: bool, manner: Trouble | str | None
    ) -> None:
        row = self._choose(INITIALIZE, aim)
        host = row.initiator if row is not None and row.initiator and aim.pick % 3 else host
        connector = self._connector(host, aim, extra) if usable else NO_INITIATORS[aim.pick % 4]
        self._perform(replace(self._deed(INITIALIZE, aim, row), connector=connector), manner)

    @rule(
        aim=AIMS,
        instance=st.sampled_from((None, "instance-1", "instance-2")),
        host=st.sampled_from(("host-1", "host-2", None)),
        mode=st.sampled_from((None, None, "rw", "ro")),
        manner=MANNERS,
    )
    def attach(
        self, aim: Aim, instance: str | None, host: str | None, mode: str | None, manner: Trouble | str | None
    ) -> None:
        row = self._choose(ATTACH, aim)
        if row is not None and row.host is not None and aim.pick % 2:
            instance, host = row.instance, row.host
        deed = replace(self._deed(ATTACH, aim, row), instance=instance, host=host, mode=mode, mount="/dev/vdb")
        self._perform(deed, manner)

    @rule(aim=AIMS, manner=MANNERS)
    def begin_detaching(self, aim: Aim, manner: Trouble | str | None) -> None:
        self._perform(self._deed(BEGIN, aim, self._choose(BEGIN, aim)), manner)

    @rule(aim=AIMS, manner=MANNERS)
    def roll_detaching(self, aim: Aim, manner: Trouble | str | None) -> None:
        self._perform(self._deed(ROLL, aim, self._choose(ROLL, aim)), manner)

    @rule(aim=AIMS, manner=MANNERS)
    def unreserve(self, aim: Aim, manner: Trouble | str | None) -> None:
        self._perform(self._deed(UNRESERVE, aim, self._choose(UNRESERVE, aim)), manner)

    @rule(aim=AIMS, manner=MANNERS)
    def detach(self, aim: Aim, manner: Trouble | str | None) -> None:
        self._perform(self._deed(DETACH, aim, self._choose(DETACH, aim)), manner)

    @rule(aim=AIMS, force=FLAGS, wrong=st.sampled_from((False,) * 7 + (True,)), manner=MANNERS)
    def terminate(self, aim: Aim, force: bool, wrong: bool, manner: Trouble | str | None) -> None:
        call = FORCE if force else TERMINATE
        row = self._choose(call, aim)
        host = HOSTS[aim.pick % 3] if wrong or row is None else str(row.initiator or HOSTS[0])
        deed = replace(self._deed(call, aim, row), connector=self._connector(host, aim, False))
        if force and aim.who == "owner":
            deed = replace(deed, who=ROOT)
        self._perform(deed, manner)

    @rule(life=LIVES)
    def bring(self, life: Life) -> None:
        """A new attachment, some calls into its life: deep states need many right calls in a row."""
        life = self._joined(life) if life.joins else life
        before = set(self.world.held)
        self.reserve(life.volume, life.who, True, life.ro, False, None)
        for row_id in set(self.world.held) - before:
            self._lead_on(row_id, life.host, life.far, None)
            if life.logs_in:
                self._log_in(self.world.held.get(row_id))
            if life.manner is not None:
                self._lead_on(row_id, life.host, 1, life.manner)

    def _joined(self, life: Life) -> Life:
        """The same life beside an attachment that has access, best where its volume is not as it should be."""
        amiss = self.watch.drifted | self.watch.broken
        for row in sorted(self.world.held.values(), key=lambda row: row.volume not in amiss):
            if row.state in GRANTED and self.world.volumes[row.volume].multiattach:
                return life._replace(volume=row.volume, host=str(row.initiator), ro=row.mode == "ro")
        return life

    @rule(aim=AIMS, far=st.integers(1, 3), manner=MANNERS)
    def go_on(self, aim: Aim, far: int, manner: Trouble | str | None) -> None:
        """What a client would do next with its attachment; the first of its calls may meet trouble."""
        rows = list(self.world.held)
        if rows:
            self._lead_on(rows[aim.pick % len(rows)], HOSTS[aim.pick % 3], far, manner)

    def _lead_on(self, row_id: str, host: str, far: int, manner: Trouble | str | None) -> None:
        for _ in range(far):
            row = self.world.held.get(row_id)
            if row is not None:
                self._perform(self._right_deed(row, _NEXT[row.state], host), manner)
            manner = None

    def _right_deed(self, row: Held, call: str, host: str) -> Deed:
        who = ROOT if call == FORCE else Who(row.owner, admin=row.owner == 0)
        connector = {"initiator": row.initiator or host, "ip": "127.0.0.1"}
        return Deed(call, who, row.volume, row.id, connector, host="host-1", mount="/dev/vdb")

    # Choosing.

    def _choose(self, call: str, aim: Aim) -> Held | None:
        """An attachment: for which the call is right, or any, or one that has ended, or none."""
        if aim.place == "ended":
            rows = list(self.world.ended.values())
        else:
            rows = list(self.world.held.values())
            fitting = [row for row in rows if call in LEAVES[row.state]]
            rows = fitting if aim.fitting and fitting else rows
        return rows[aim.pick % len(rows)] if rows else None

    def _deed(self, call: str, aim: Aim, row: Held | None) -> Deed:
        volume = VOLUMES[aim.pick % 3] if row is None else row.volume
        chosen = None if row is None or not aim.named else row.id
        if aim.place == "elsewhere":
            volume = VOLUMES[(VOLUMES.index(volume) + 1) % 3]
        elif aim.place == "nowhere":
            volume = NEVER
        elif aim.place == "unknown":
            chosen = attachment_id(1_000_000)
        owner = Who(row.owner, admin=row.owner == 0) if row is not None else AGENT
        who = {"owner": owner, "admin": ROOT, "other": OTHER if owner.uid == AGENT.uid else AGENT}[aim.who]
        return Deed(call, who, volume, chosen)

    def _connector(self, host: str, aim: Aim, extra: bool) -> dict[str, Any]:
        known = {"initiator": SPELLINGS[aim.spelling](host), "ip": "127.0.0.1"}
        return {**known, "host": "h", "multipath": True, "of our own": [1]} if extra else known

    # Doing.

    def _perform(self, deed: Deed, manner: Trouble | str | None) -> None:
        """Send a call, and hold what becomes of it against the contract."""
        verdict = self.world.judge(deed)
        outcome = self._try(lambda: self._send(deed), manner, deed.volume)
        self._count(deed.call, "refused" if verdict.refusals else "done")
        if isinstance(outcome, Died):
            self._die(manner)
            self._adopt(deed, verdict)
            self._recovered()
        elif isinstance(outcome, DriverError):
            self._count("driver failure")
            self._failed(deed.volume, deed.call, moving=verdict.before != verdict.after)
        elif isinstance(outcome, VolattachError):
            assert outcome.kind in verdict.refusals, (deed, verdict, outcome)
            return
        else:
            assert not verdict.refusals, (deed, verdict, outcome)
            self._accept(deed, verdict, outcome)
            if manner == LOST:
                self._send_again(deed, verdict, outcome)
            return
        self.watch.check()
        if manner is not None and self.numbers % 2:
            self._perform(deed, None)  # nobody knows what became of it: the client sends it again

    def _try(self, call: Callable[[], Any], manner: Trouble | str | None, subject: str = "") -> Any:
        return self.plant.attempt(call, manner if isinstance(manner, Trouble) else Trouble())

    def _send(self, deed: Deed) -> Any:
        service = self.plant.service
        caller = Caller(deed.who.uid, 7, deed.who.admin)
        if deed.call == RESERVE:
            ttl = 1e-9 if deed.brief else None  # so brief that it is over before anybody looks
            return service.reserve_volume(caller, deed.volume, deed.id, deed.mode or "rw", deed.instance, ttl)
        if deed.call == INITIALIZE:
            return service.initialize_connection(caller, deed.volume, deed.connector, deed.id)
        if deed.call == ATTACH:
            return service.attach(
                caller, deed.volume, deed.instance, deed.host, deed.mount, deed.mode, attachment_id=deed.id
            )
        if deed.call in (TERMINATE, FORCE):
            return service.terminate_connection(caller, deed.volume, deed.connector, deed.call == FORCE, deed.id)
        return getattr(service, deed.call)(caller, deed.volume, deed.id)

    def _accept(self, deed: Deed, verdict: Verdict, answer: Mapping[str, Any]) -> None:
        """The call was done: its answer is right, and the model follows."""
        if deed.call == RESERVE and verdict.before is None:
            assert verdict.after is not None
            verdict = replace(verdict, after=replace(verdict.after, id=answer["attachment_id"]))
        self.world.take(verdict)
        if verdict.after is not None and verdict.after.state not in GRANTED:
            self.watch.bury_secret(verdict.before)
        if deed.call == INITIALIZE:
            self._check_connection(verdict, answer)
        elif deed.call in (DETACH, UNRESERVE):
            check_volume_answer(self.world, deed.volume, answer)
        else:
            assert verdict.after is not None
            assert without_times(answer) == verdict.after.shown()
            self.watch.check_secrecy(answer)
        if revokes(deed.call, verdict):
            self._check_revoked(verdict)

    def _check_connection(self, verdict: Verdict, answer: Mapping[str, Any]) -> None:
        """Connection info is right, and opens the target."""
        row = verdict.after
        assert row is not None
        volume, data = self.world.volumes[row.volume], answer["data"]
        assert (answer["driver_volume_type"], answer["attachment_id"]) == ("iscsi", row.id)
        assert (data["target_iqn"], data["volume_id"]) == (volume.target_name, volume.name)
        assert (data["target_portal"], data["target_lun"]) == ("127.0.0.1:3260", 0)
        assert (data["auth_method"], data["access_mode"]) == ("CHAP", row.mode)
        told = (data["auth_username"], data["auth_password"])
        if row.password is None:
            assert self.watch.is_fresh(*told), "a secret was used again"
            self.watch.keep_secret(row, *told)
        row = self.world.held[row.id]
        assert told == (row.user, row.password)
        given = (self.watch.actual(row.volume) or {}).get(str(row.initiator))
        assert given == (row.mode, *told), "connection info for what is not there"

    def _check_revoked(self, verdict: Verdict) -> None:
        """When the answer says that access is revoked, it is, whatever somebody did to the target before."""
        row = verdict.before
        assert row is not None
        if row.initiator not in self.world.grants(row.volume):
            assert row.initiator not in (self.watch.actual(row.volume) or {})

    def _send_again(self, deed: Deed, verdict: Verdict, answer: Any) -> None:
        """The reply was lost. With the attachment's name the same call has the same answer; in any case one effect."""
        again = self.plant.attempt(lambda: self._send(deed), Trouble())
        if deed.id is not None:
            assert again == answer, (deed, again, answer)
        elif deed.call == RESERVE and not isinstance(again, VolattachError):
            self._accept(deed, verdict, again)  # a reservation without a name is a new one each time

    # Bad days.

    def _failed(self, volume: str, call: str, moving: bool = False) -> None:
        """The driver said no. A missing device is a reason not to give access, and none not to take it away."""
        failures = self.plant.fate.failures
        assert failures or (call == INITIALIZE and volume in self.watch.missing), f"{call} failed without a reason"
        self.watch.adopt_sessions(volume)
        if failures == 1 and moving and volume not in self.watch.drifted | self.watch.broken:
            return  # the way back was free: nothing may be left of it
        self.watch.broken.add(volume)

    def _die(self, manner: Trouble | str | None) -> None:
        self.plant.crash()
        if isinstance(manner, Trouble) and manner.reboot:
            self.plant.lose_target()
        self._count("death")

    def _adopt(self, deed: Deed, verdict: Verdict) -> None:
        """After a death the attachment is where it was, or where the call leads: nowhere else."""
        rows = {row.id: row for row in self.plant.service.journal.attachments.all()}
        after = verdict.after
        if after is None or verdict.refusals:
            return
        if verdict.before is None:
            new = [name for name in rows if name not in self.world.held]
            if new:
                self.world.take(replace(verdict, after=replace(after, id=new[0])))
        elif (rows[after.id].state.value if after.id in rows else GONE) == after.state:
            self.world.take(verdict)
            if after.state not in GRANTED:
                self.watch.bury_secret(verdict.before)

    def _recovered(self) -> None:
        """Start-up: revocations are finished, what is missing is made, and a second pass has nothing to do."""
        self.plant.service.upkeep.start_up()
        self._passed()

    def _passed(self) -> None:
        """A pass without trouble was made."""
        self.watch.drifted.clear()
        self.watch.broken = set(self.watch.missing)
        self.watch.find_untold_secrets()
        for volume in self.world.volumes:
            self.watch.adopt_sessions(volume)
        left = self.plant.service.reconcile(ADMIN, dry_run=True)["volumes"]
        assert [line["steps"] for line in left if line["steps"]] == []
        assert {line["volume"] for line in left} <= self.watch.missing
        assert {name for name in self.plant.target if is_ours(name)} <= {
            volume.target_name for volume in self.world.volumes.values()
        }

    @rule(
        what=st.sampled_from(("restart", "crash", "crash", "reconcile", "reconcile", "expire")),
        name=NAMES,
        trouble=st.sampled_from((None, None, 0, 1, 2)),
        reboot=FLAGS,
    )
    def bad_day(self, what: str, name: str, trouble: int | None, reboot: bool) -> None:
        """What happens without any client. One rule for all of it: most days should be the clients' own."""
        if what == "crash":
            self._crash(trouble, reboot)
        elif what == "reconcile":
            self._reconcile(None if trouble is None else "fail" if reboot else "die", name)
        elif what == "restart":
            self._restart()
        else:
            self._let_time_pass()

    def _crash(self, dies_at: int | None, reboot: bool) -> None:
        """Killed while nothing was going on; perhaps once more while it mends what it finds."""
        self._die(Trouble(reboot=reboot))
        if dies_at is not None:
            dying = Trouble(steps=("ok",) * dies_at + ("die",))
            if isinstance(self.plant.attempt(self.plant.service.upkeep.start_up, dying), Died):
                self.plant.crash()
        self._recovered()

    def _restart(self) -> None:
        """A restart in order: nothing is written to the target where nothing is wrong, and sessions stay."""
        self._count("restart")
        touched = bool(self.watch.drifted or self.watch.broken or _ORPHAN in self.plant.target)
        self.plant.restart()
        before = set(self.world.sessions)
        self._recovered()
        if not touched:
            assert self.plant.driver.ran == []
            assert self.world.sessions == before

    def _reconcile(self, trouble: str | None, name: str) -> None:
        """A pass; perhaps one volume's steps fail, or the daemon dies in it."""
        self._count("reconcile")
        if trouble is not None and name in self.world.volumes:
            subject = self.world.volumes[name].target_name
            armed = Trouble(rest=trouble, subject=subject)
            outcome = self.plant.attempt(lambda: self.plant.service.reconcile(ADMIN), armed)
            if isinstance(outcome, Died):
                self._die(None)
                self._recovered()
                return
            if self.plant.fate.failures:
                self.watch.broken.add(name)
                return
        else:
            outcome = self.plant.service.reconcile(ADMIN)
        self._passed()

    def _let_time_pass(self) -> None:
        """Brief reservations are over; the others, and whatever has a connection, stay."""
        self._count("expire")
        self.plant.service.expire_reservations()
        self.world.expire()

    # The world outside.

    @rule(aim=AIMS)
    def log_in(self, aim: Aim) -> None:
        """An initiator logs in with what it was told, and has the access that it was promised."""
        rows = [row for row in self.world.held.values() if row.state in GRANTED]
        self._log_in(rows[aim.pick % len(rows)] if rows else None)

    def _log_in(self, row: Held | None) -> None:
        if row is None or row.state not in GRANTED or row.password is None:
            return
        volume = self.world.volumes[row.volume]
        login = partial(self.plant.driver.login, volume.target_name, str(row.initiator), str(row.user))
        if row.volume in self.watch.drifted | self.watch.broken:
            try:
                login(str(row.password))
            except DriverError:
                return
        else:
            assert login(str(row.password)).value == ("ro" if volume.read_only else row.mode)
        self._count("login")
        self.world.sessions.add((row.volume, str(row.initiator)))

    @rule(pick=st.integers(0, 5))
    def log_out(self, pick: int) -> None:
        sessions = sorted(self.world.sessions)
        if sessions:
            volume, initiator = sessions[pick % len(sessions)]
            self.plant.driver.logout(self.world.volumes[volume].target_name, initiator)
            self.world.sessions.discard((volume, initiator))

    @rule(name=NAMES, what=st.sampled_from(("clear", "rogue grant", "no grant", "other secret", "disable", "orphan")))
    def drift(self, name: str, what: str) -> None:
        """Somebody works on the target by hand."""
        exported = [volume for volume in self.world.volumes.values() if volume.target_name in self.plant.target]
        volume = self.world.volumes.get(name) or next(iter(exported), None)
        if volume is None:
            return
        if volume not in exported and exported:
            volume = exported[0]
        self._count("drift")
        if what == "clear":
            self.plant.lose_target()
            self.watch.drifted |= set(self.world.volumes)
        elif what == "orphan":
            self.plant.target[_ORPHAN] = SimulatedExport("/srv/orphan", "0", enabled=True)
        else:
            self._change_export(volume, what)
        for each in self.world.volumes:
            self.watch.adopt_sessions(each)

    def _change_export(self, volume: Registered, what: str) -> None:
        export = self.plant.target.get(volume.target_name)
        if export is None:
            return
        self.watch.drifted.add(volume.name)
        rogue = Grant(ROGUE, Mode.RW, Secret("rogue", "rogue's own"))
        if what == "rogue grant":
            export.grants[ROGUE] = rogue
        elif what == "disable":
            export.enabled = False
        elif export.grants:
            initiator = next(iter(export.grants))
            export.sessions.pop(initiator, None)
            del export.grants[initiator]
            if what == "other secret":
                export.grants[initiator] = replace(rogue, initiator=initiator)

    @rule(name=NAMES)
    def device_goes_or_comes(self, name: str) -> None:
        """A volume's device goes away, or is there again. What the target has open stays open."""
        path = self.home / name
        away = path.with_suffix(".away")
        if name in self.watch.missing:
            away.rename(path)
            self.watch.missing.discard(name)
        else:
            path.rename(away)
            self.watch.missing.add(name)
            self.watch.broken.add(name)

    # What must hold.

    @invariant()
    def all_is_as_the_contract_says(self) -> None:
        TALLY["steps"] += 1
        self.watch.check()

    def teardown(self) -> None:
        """From wherever this ended, documented calls lead every volume back to available, and out of the daemon."""
        try:
            self._lead_home()
        finally:
            TALLY["examples"] += 1
            self.plant.close()

    def _lead_home(self) -> None:
        for number, row in enumerate(list(self.world.held.values())):
            while row.id in self.world.held:
                row = self.world.held[row.id]
                self._let_go(row, force=number % 2 == 1)
        for volume in list(self.world.volumes):
            assert self.plant.service.show_volume(ADMIN, volume)["status"] == "available"
            assert self.plant.service.unregister_volume(ADMIN, volume) == {"volume": volume}
            self._forget(volume)
        self.watch.check()

    def _let_go(self, row: Held, force: bool) -> None:
        call = FORCE if force and FORCE in LEAVES[row.state] else WAY_OUT[row.state]
        if call == TERMINATE:
            self.plant.driver.logout(self.world.volumes[row.volume].target_name, str(row.initiator))
            self.world.sessions.discard((row.volume, str(row.initiator)))
        self._perform(self._right_deed(row, call, HOSTS[0]), None)

    # Counting.

    @staticmethod
    def _kind(outcome: object) -> str:
        return outcome.kind if isinstance(outcome, VolattachError) else f"not refused: {outcome!r}"

    def _count(self, *words: str) -> None:
        TALLY[" ".join(words)] += 1


def test_the_service_keeps_its_contract_whatever_happens(swift_path: Path) -> None:
    Contract.directory = swift_path
    run_state_machine_as_test(
        Contract,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            derandomize=PART is None,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
