"""The contract of the eight calls as a small machine of its own: what tests hold the real service against.

It is written from the design's text, shares no line with the package, and knows neither journal nor target. Where
the text leaves open which of two refusals comes first, both are right: a verdict holds every reason that applies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

RESERVE, INITIALIZE, ATTACH = "reserve_volume", "initialize_connection", "attach"
BEGIN, TERMINATE, FORCE = "begin_detaching", "terminate_connection", "terminate_connection (force)"
DETACH, UNRESERVE, ROLL = "detach", "unreserve_volume", "roll_detaching"
CALLS = (RESERVE, INITIALIZE, ATTACH, BEGIN, TERMINATE, FORCE, DETACH, UNRESERVE, ROLL)

GONE, RESERVED, CONNECTED, ATTACHED = "gone", "reserved", "connected", "attached"
DETACHING, DISCONNECTED = "detaching", "disconnected"
LIVE = (RESERVED, CONNECTED, ATTACHED, DETACHING, DISCONNECTED)

#: Each state, and the calls by which it is left.
LEAVES: dict[str, dict[str, str]] = {
    GONE: {RESERVE: RESERVED},
    RESERVED: {INITIALIZE: CONNECTED, UNRESERVE: GONE},
    CONNECTED: {ATTACH: ATTACHED, TERMINATE: GONE, FORCE: GONE},
    ATTACHED: {BEGIN: DETACHING, FORCE: DISCONNECTED},
    DETACHING: {ROLL: ATTACHED, TERMINATE: DISCONNECTED, FORCE: DISCONNECTED},
    DISCONNECTED: {DETACH: GONE},
}

#: Each call, and the states that it leaves as they are: where it led already, or where there is nothing to undo.
STAYS: dict[str, tuple[str, ...]] = {
    RESERVE: LIVE,
    INITIALIZE: (CONNECTED, ATTACHED),
    ATTACH: (ATTACHED,),
    BEGIN: (DETACHING,),
    TERMINATE: (DISCONNECTED, GONE),
    FORCE: (DISCONNECTED, GONE),
    DETACH: (GONE,),
    UNRESERVE: (CONNECTED, ATTACHED, DETACHING, DISCONNECTED, GONE),
    ROLL: (RESERVED, CONNECTED, ATTACHED, DISCONNECTED, GONE),
}

#: The initiator has access; the volume is exported.
GRANTED = (CONNECTED, ATTACHED, DETACHING)
EXPORTED = (*GRANTED, DISCONNECTED)

#: What a client sends next to be rid of an attachment.
WAY_OUT = {
    RESERVED: UNRESERVE,
    CONNECTED: TERMINATE,
    ATTACHED: BEGIN,
    DETACHING: TERMINATE,
    DISCONNECTED: DETACH,
}


def leads_to(state: str, call: str) -> str | None:
    """Where a call leads from a state; None where it is refused."""
    return LEAVES[state].get(call, state if state in STAYS[call] else None)


@dataclass(frozen=True)
class Who:
    """A caller."""

    uid: int
    admin: bool = False


@dataclass(frozen=True)
class Held:
    """An attachment. ``user`` and ``password`` are what its initiator logs in with; None where nobody was told yet."""

    id: str
    volume: str
    state: str
    mode: str
    owner: int
    brief: bool = False
    connector: Mapping[str, Any] | None = None
    password: str | None = None
    user: str | None = None
    instance: str | None = None
    host: str | None = None
    mount: str | None = None

    @property
    def initiator(self) -> str | None:
        """Who logs in, as the kernel spells it."""
        return None if self.connector is None else str(self.connector["initiator"])

    def shown(self) -> dict[str, Any]:
        """As the calls show it, times left out."""
        return {
            "attachment_id": self.id,
            "volume": self.volume,
            "state": self.state,
            "mode": self.mode,
            "owner": self.owner,
            "connector": None if self.connector is None else dict(self.connector),
            "instance_uuid": self.instance,
            "host_name": self.host,
            "mount_point": self.mount,
        }


@dataclass(frozen=True)
class Registered:
    """A volume; the target's name for it is what the service said when it was registered."""

    name: str
    path: str
    multiattach: bool
    read_only: bool
    target_name: str = ""


@dataclass(frozen=True)
class Deed:
    """One call with its arguments. ``connector`` is as the client sends it, spelling included."""

    call: str
    who: Who
    volume: str
    id: str | None = None
    connector: Mapping[str, Any] = field(default_factory=dict)
    mode: str | None = None
    instance: str | None = None
    host: str | None = None
    mount: str | None = None
    brief: bool = False

    @property
    def initiator(self) -> str | None:
        """The connector's initiator as the kernel will present it; None where it has no usable one."""
        name = self.connector.get("initiator")
        return name.lower() if isinstance(name, str) and name.lower().startswith("iqn.") else None


@dataclass(frozen=True)
class Verdict:
    """What must become of a call: refused for one of the reasons, or ``before`` becomes ``after``.

    Both are None where the call is about an attachment that has ended and answers with the volume.
    """

    refusals: frozenset[str] = frozenset()
    before: Held | None = None
    after: Held | None = None


@dataclass
class World:
    """Every row as the contract has it, and who is logged in."""

    volumes: dict[str, Registered] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    ended: dict[str, Held] = field(default_factory=dict)
    sessions: set[tuple[str, str]] = field(default_factory=set)

    def of_volume(self, volume: str) -> list[Held]:
        """The attachments of a volume, oldest first."""
        return [row for row in self.held.values() if row.volume == volume]

    def status(self, volume: str) -> str:
        """What follows for the volume from the states of its attachments."""
        states = [row.state for row in self.of_volume(volume)]
        if not states:
            return "available"
        if RESERVED in states or CONNECTED in states:
            return "attaching"
        return "detaching" if DETACHING in states or DISCONNECTED in states else "in-use"

    def is_exported(self, volume: str) -> bool:
        """Whether the target holds the volume."""
        return any(row.state in EXPORTED for row in self.of_volume(volume))

    def grants(self, volume: str) -> dict[str, Held]:
        """Who has access, each with one of the attachments that give it."""
        return {str(row.initiator): row for row in self.of_volume(volume) if row.state in GRANTED}

    # Judging.

    def judge(self, deed: Deed) -> Verdict:
        """What must become of the call."""
        reasons = _malformed(deed)
        if deed.volume not in self.volumes:
            return _refused(reasons, "VolumeNotFound")
        if deed.call == RESERVE:
            return self._judge_reserve(deed)
        found = self._find(deed)
        if isinstance(found, str):
            return _refused(reasons, found)
        if found is not None and not _may(deed.who, found):
            return _refused(reasons, "PermissionDenied")
        after = leads_to(GONE if found is None else found.state, deed.call)
        if after is None:
            reasons.add("InvalidVolume")
        if found is not None:
            reasons |= self._objections(deed, found)
        if reasons:
            return _refused(reasons)
        if found is None or found.state == GONE:
            return self._judge_gone(deed, found)
        assert after is not None
        return Verdict(before=found, after=self._moved(deed, found, after))

    def _judge_reserve(self, deed: Deed) -> Verdict:
        if deed.id in self.held:
            found = self.held[deed.id]
            if found.volume != deed.volume:
                return _refused(set(), "InvalidInput")
            return Verdict(before=found, after=found) if _may(deed.who, found) else _refused(set(), "PermissionDenied")
        reasons = {"InvalidInput"} if deed.id in self.ended else set()
        volume, mode = self.volumes[deed.volume], deed.mode or "rw"
        if mode == "rw" and volume.read_only:
            reasons.add("InvalidVolumeAttachMode")
        if self.of_volume(deed.volume) and not volume.multiattach:
            reasons.add("InvalidVolume")
        if reasons:
            return _refused(reasons)
        new = Held(deed.id or "", deed.volume, RESERVED, mode, deed.who.uid, deed.brief, instance=deed.instance)
        return Verdict(after=new)

    def _find(self, deed: Deed) -> Held | str | None:
        """The attachment that the call is about; a word is why there is none; None: the volume has none now."""
        if deed.id is None:
            return self._find_unnamed(deed)
        row = self.held.get(deed.id) or self.ended.get(deed.id)
        if row is None:
            return "AttachmentNotFound"
        return row if row.volume == deed.volume else "InvalidInput"

    def _find_unnamed(self, deed: Deed) -> Held | str | None:
        rows = self.of_volume(deed.volume)
        if len(rows) < 2:
            return rows[0] if rows else None
        own = [row for row in rows if _may(deed.who, row)]
        if deed.call in (TERMINATE, FORCE):
            own = [row for row in own if row.initiator == deed.initiator]
        candidates = [row for row in own if deed.call in LEAVES[row.state]] or own
        return candidates[0] if len(candidates) == 1 else "InvalidVolume"

    def _judge_gone(self, deed: Deed, found: Held | None) -> Verdict:
        """A call that has nothing to do any more: it answers with the attachment as it was last, or the volume."""
        if found is None:
            last = [row for row in self.ended.values() if row.volume == deed.volume]
            if not last and deed.call in (TERMINATE, FORCE, ROLL):
                return _refused(set(), "AttachmentNotFound")
            found = last[-1] if last else None
        return Verdict(before=found, after=found)

    def _objections(self, deed: Deed, found: Held) -> set[str]:
        """Why the arguments do not fit this attachment."""
        if found.state == GONE:
            return set()
        if deed.call == INITIALIZE:
            return self._objections_to_connecting(deed, found)
        if deed.call == ATTACH:
            return _objections_to_attaching(deed, found)
        if deed.call in (TERMINATE, FORCE):
            return self._objections_to_leaving(deed, found)
        return set()

    def _objections_to_connecting(self, deed: Deed, found: Held) -> set[str]:
        if found.state != RESERVED:
            return {"InvalidVolume"} if found.initiator != deed.initiator else set()
        other = self.grants(found.volume).get(str(deed.initiator))
        if other is not None and other.owner != found.owner:
            return {"PermissionDenied"}
        return {"InvalidVolumeAttachMode"} if other is not None and other.mode != found.mode else set()

    def _objections_to_leaving(self, deed: Deed, found: Held) -> set[str]:
        reasons = {"InvalidInput"} if found.initiator != deed.initiator else set()
        leaves = deed.call in LEAVES[found.state]
        if deed.call == TERMINATE and leaves and self._is_last_of_its_host(found):
            reasons |= {"SessionActive"} if (found.volume, found.initiator) in self.sessions else set()
        return reasons

    def _is_last_of_its_host(self, row: Held) -> bool:
        """Whether its initiator has no access to the volume but through it."""
        rows = [other for other in self.of_volume(row.volume) if other.state in GRANTED and other.id != row.id]
        return all(other.initiator != row.initiator for other in rows)

    def _moved(self, deed: Deed, found: Held, state: str) -> Held:
        if state == found.state:
            return found
        if deed.call == INITIALIZE:
            shared = self.grants(found.volume).get(str(deed.initiator))
            user, password = (shared.user, shared.password) if shared else (None, None)
            connector = {**deed.connector, "initiator": deed.initiator}
            return replace(found, state=state, connector=connector, user=user, password=password)
        if deed.call == ATTACH:
            instance = deed.instance or found.instance
            return replace(found, state=state, instance=instance, host=deed.host, mount=deed.mount)
        if state in (GONE, DISCONNECTED):
            return replace(found, state=state, user=None, password=None)
        return replace(found, state=state)

    # Moving on.

    def take(self, verdict: Verdict) -> None:
        """Make the world what an accepted call leaves."""
        before, after = verdict.before, verdict.after
        if after is None or after.id in self.ended:
            return
        if after.state == GONE:
            del self.held[after.id]
            self.ended[after.id] = after
        else:
            self.held[after.id] = after
        if before is not None and before.state in GRANTED and before.initiator not in self.grants(before.volume):
            self.sessions.discard((before.volume, str(before.initiator)))

    def expire(self) -> None:
        """Time passes, enough for every brief reservation and for no other."""
        for row in list(self.held.values()):
            if row.state == RESERVED and row.brief:
                self.take(Verdict(before=row, after=replace(row, state=GONE)))

    def shown(self) -> list[dict[str, Any]]:
        """Every attachment as list_attachments shows it."""
        return [row.shown() for row in self.held.values()]


def _refused(reasons: Iterable[str], *more: str) -> Verdict:
    return Verdict(refusals=frozenset((*reasons, *more)))


def _may(who: Who, row: Held) -> bool:
    """An agent acts on what its own uid reserved. What has ended is nobody's any more."""
    return who.admin or row.owner == who.uid or row.state == GONE


def _malformed(deed: Deed) -> set[str]:
    """What is wrong with a call whatever the state is."""
    reasons = set()
    if deed.call in (INITIALIZE, TERMINATE, FORCE) and deed.initiator is None:
        reasons.add("InvalidInput")
    if deed.call == ATTACH and deed.instance is None and deed.host is None:
        reasons.add("InvalidInput")
    if deed.call == FORCE and not deed.who.admin:
        reasons.add("PermissionDenied")
    return reasons


def _objections_to_attaching(deed: Deed, found: Held) -> set[str]:
    reasons = set()
    if deed.mode is not None and deed.mode != found.mode:
        reasons.add("InvalidVolumeAttachMode")
    if found.state == ATTACHED and (deed.host != found.host or deed.instance not in (None, found.instance)):
        reasons.add("InvalidVolume")
    return reasons
