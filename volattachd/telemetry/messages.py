"""What the daemon tells, as one table: a row for each kind of record, and the way to tell one.

A record is a kind and its members. The line that people read is the kind's template with the members in it. journald is
also given the members that ``FIELDS`` names, each as a field that it can be asked by, and the kind's id as MESSAGE_ID,
by which ``journalctl -x`` finds the explanation. How a record reaches its reader is for ``logs``.

Laws:

1. An id is fixed for ever: filters and alerts of operators are made of it. A kind that changes its meaning gets
   another one.
2. No member is a secret, and none is a whole object that could hold one.
3. A member is cut: who sends something long cannot fill the log with it.
4. The explanation says what it means and what to do. The message catalogue is made from this table.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_log = logging.getLogger("volattachd")

#: Characters of one member.
_LONGEST = 2000

#: The journal's field of each member; a member that has none stands in the line alone.
FIELDS: dict[str, str] = {
    "volume": "VOLATTACH_VOLUME",
    "attachment": "VOLATTACH_ATTACHMENT",
    "call": "VOLATTACH_CALL",
    "uid": "VOLATTACH_PEER_UID",
    "pid": "VOLATTACH_PEER_PID",
    "microseconds": "VOLATTACH_DURATION_USEC",
    "before": "VOLATTACH_STATE_BEFORE",
    "after": "VOLATTACH_STATE_AFTER",
    "error": "VOLATTACH_ERROR",
    "condition": "VOLATTACH_CONDITION",
    "target": "VOLATTACH_TARGET",
}


@dataclass(frozen=True)
class Kind:
    """One kind of record: its MESSAGE_ID, its level, its line, and what ``journalctl -x`` says of it."""

    id: str
    level: int
    line: str
    subject: str
    explanation: str
    has_traceback: bool = False  # it is told while an exception is handled, and that belongs to it

    @property
    def is_told(self) -> bool:
        """Whether anybody would read a record of this kind now."""
        return _log.isEnabledFor(self.level)

    def tell(self, **members: Any) -> None:
        """Log one record of this kind; a member that is None is left out of the fields."""
        if self.is_told:
            _log.log(self.level, Told(self, members), exc_info=self.has_traceback)


@dataclass(frozen=True)
class Told:
    """One record, as the message of a LogRecord."""

    kind: Kind
    members: Mapping[str, Any]

    def __str__(self) -> str:
        return self.kind.line.format_map({name: _cut(value) for name, value in self.members.items()})

    def fields(self) -> dict[str, str]:
        """The members that journald can be asked by."""
        return {
            FIELDS[name]: str(_cut(value))
            for name, value in self.members.items()
            if name in FIELDS and value is not None
        }


def _cut(value: Any) -> Any:
    """The value as it stands in a record: numbers as they are, and of texts the beginning."""
    if isinstance(value, (int, float)):
        return value
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"


def kinds() -> dict[str, Kind]:
    """Every kind by its name in this module."""
    return {name: value for name, value in globals().items() if isinstance(value, Kind)}


# The daemon's life.

STARTING = Kind(
    "7b8ed17f36a2430491b1da2208a47e88",
    logging.INFO,
    "volattachd {version}: driver {driver}, portals {portals}, state in {state_dir}:"
    " {volumes} volumes, {attachments} attachments",
    "The daemon starts, and has read its journal",
    "Next it makes the target equal to the journal; then it tells that it is ready.",
)
READY = Kind(
    "6168104ec61f44489e34d4dfa7a6b053",
    logging.INFO,
    "ready: serving {socket}",
    "The daemon answers calls from here on",
    "The target is equal to the journal, as far as it could be made so; a volume for which it could not has a "
    "condition.",
)
RELOADED = Kind(
    "f7c90be6fffe48048c6f821897bd3404",
    logging.INFO,
    "looked up the users and groups of [access] again",
    "The daemon was told to reload",
    "Connections that are made from now on have the roles that the user database gives now. Other keys of the "
    "configuration need a restart, which touches no session.",
)
NOT_RELOADED = Kind(
    "37c24751760046e1bb9cb8ff5bf56256",
    logging.ERROR,
    "not reloaded: {reason}",
    "The users and groups could not be looked up again",
    "The roles stay as they were. Correct the key that is named, then reload or restart.",
)
STOPPING = Kind(
    "00b2b43e1d664c1a9235372d6901cf47",
    logging.INFO,
    "stopping: exports and sessions stay as they are",
    "The daemon was told to end",
    "Exports and sessions go on without it.",
)
CONFIG_REFUSED = Kind(
    "df2f3601bceb44f79e6f1eb421b049f1",
    logging.ERROR,
    "{reason}",
    "The configuration cannot be used",
    "The daemon ends with exit code 78 and has changed nothing. The message names file, line and key; "
    "volattachd --check-config tells whether it is mended.",
)
START_FAILED = Kind(
    "2332b5faaacc486ebeeaad60e19786b9",
    logging.ERROR,
    "{reason}",
    "The daemon cannot start",
    "The journal cannot be opened, or the target cannot be used at all; the message says why and what to do. "
    "Exports and sessions that are there go on.",
)
LOCK_PASSED_OVER = Kind(
    "8b35156a7aef498ea03dbf846ae9f707",
    logging.WARNING,
    "pid {former} was killed and waits for a device in the kernel: its lock is passed over",
    "A daemon that was killed cannot end yet",
    "A thread of it sleeps in the kernel until a device answers. The new daemon serves in its place. "
    "Look for that device: the kernel's log names it.",
)
JOURNAL_FAILED = Kind(
    "71fae5e99d2f4cc7885981e7a163dc84",
    logging.CRITICAL,
    "the journal cannot be written ({reason}): ending without acknowledging anything more",
    "The state directory's disk is full or failing",
    "Nothing that is not on the disk was acknowledged. The daemon ends with exit code 1 and reads the journal again "
    "at its next start; sessions go on. Make room, or mend the disk.",
)

THREAD_FAILED = Kind(
    "4e616dda3495431fa24643975b409bc5",
    logging.CRITICAL,
    "the thread {thread} has failed: ending",
    "The daemon has a bug, and ends",
    "A thread that everybody depends on has ended. The daemon ends with exit code 1 to be started again; exports and "
    "sessions go on. Report it with the traceback of this record.",
    has_traceback=True,
)
NO_NEWS = Kind(
    "ec3d269296be4ef49e10ca7a24f2ecfc",
    logging.WARNING,
    "no news of {what} on this host: {reason}",
    "The host tells nothing of devices or addresses",
    "A library that listens is missing (libudev, say). Changes are noticed by the periodic look, a little later.",
)
NEWS_LOST = Kind(
    "cb1c41c4d0fb45c7ac466a81b63e15d0",
    logging.WARNING,
    "news of {what} was lost: {reason}",
    "The host told of more than could be heard",
    "Too many events came at once, or the kernel does not tell. Everything is looked at now, and it is listened again "
    "in a minute. Nothing is to be done.",
)

# Calls.

_CALL_LINE = "{call}{about} uid={uid} pid={pid} {milliseconds:.1f} ms: {outcome}"

CALL_DONE = Kind(
    "bf0672ccad1d4f48bbcf90b164e402c9",
    logging.INFO,
    _CALL_LINE,
    "The call @VOLATTACH_CALL@ was done",
    "What it changed is on the disk, and the target is equal to it. Without a state before and after it changed "
    "nothing: "
    "it had been sent before.",
)
CALL_REFUSED = Kind(
    "fa073beac859499a9123f8bc24c5b6ad",
    logging.INFO,
    _CALL_LINE,
    "The call @VOLATTACH_CALL@ was refused: @VOLATTACH_ERROR@",
    "Nothing was changed. The caller got the same words, and what to do instead.",
)
CALL_DENIED = Kind(
    "2a2fcd21ae5b4538828227561b7082f7",
    logging.WARNING,
    _CALL_LINE,
    "The call @VOLATTACH_CALL@ of uid @VOLATTACH_PEER_UID@ was denied",
    "The uid has not the role for the call, or the attachment belongs to another one. Nothing was changed. "
    "Where it should be allowed, see [access] in volattachd.toml(5).",
)
CALL_FAILED = Kind(
    "de3cd2053e724e279d9493a8acd81ad1",
    logging.WARNING,
    _CALL_LINE,
    "The call @VOLATTACH_CALL@ failed: @VOLATTACH_ERROR@",
    "The target or the device said no, or a limit or deadline was reached. The attachment is where it was, or "
    "the work "
    "goes on by itself; the same call can be sent again. See the conditions of the volume: volattach show VOLUME.",
)
REFUSALS_COUNTED = Kind(
    "6fa274a69356472d9f4df3834abf3b2f",
    logging.WARNING,
    "uid {uid}: {count} more such records within {seconds:.0f} s; the last: {last}",
    "A user causes more refusals than are logged one by one",
    "The first max_logged_refusals ([limits] in volattachd.toml(5)) of 10 seconds are logged one by one, then they are "
    "counted. A program of this user makes calls or connections that are refused, again and again: find out which, by "
    "its pid.",
)
CALL_LATE = Kind(
    "3b59deadeead4d05b65035be03ec9387",
    logging.INFO,
    "{call} volume={volume} attachment_id={attachment} uid={uid} pid={pid}: {before} -> {after}, after its answer",
    "The call @VOLATTACH_CALL@ was finished after its caller had been told Busy",
    "It had waited for the target longer than call_seconds. What it began is done now; sent again it gives its answer.",
)
LOOKED = Kind(
    "19a847ac4dda4af8aeb9cd7bf41fe11b",
    logging.DEBUG,
    _CALL_LINE,
    "The call @VOLATTACH_CALL@ looked at something",
    "It changes nothing. Such calls are told with --debug only.",
)
BUG = Kind(
    "904633b2b4e84d1482cbdf81ee351a38",
    logging.ERROR,
    "{call}: a bug in volattachd",
    "The daemon has a bug",
    "The caller got an internal error; other calls go on. Report it with the traceback of this record.",
    has_traceback=True,
)
RESERVATION_EXPIRED = Kind(
    "6c105f06f59c45c1beb17155cd589532",
    logging.INFO,
    "volume {volume}: reservation {attachment} has expired ({before} -> {after})",
    "A reservation of volume @VOLATTACH_VOLUME@ has expired",
    "Nobody connected it within its time ([reservations] ttl, or the ttl of the call). The volume is free for others.",
)
ACCESS_GONE_WITH_DEVICE = Kind(
    "93433e323aa74eadb976ce29252c48c4",
    logging.INFO,
    "volume {volume}: access is gone with its device: {reason}",
    "Access was revoked together with the whole export",
    "The volume's device is away, so nothing of it is exported. An attachment that ends needs no more than that.",
)
WAY_BACK_FAILED = Kind(
    "8650c3a680dd4a54883f4d1c16b4c0a7",
    logging.WARNING,
    "volume {volume}: the way back failed too: {reason}",
    "A call failed, and so did its undoing in the target",
    "The journal has the former state; the target differs from it. It is tried again with growing pauses, and a "
    "condition of the volume says what is wrong.",
)

VOLUME_GREW = Kind(
    "e9eb7563a5dc4a93a5d05d51f89e00fc",
    logging.INFO,
    "volume {volume} has grown from {old} to {new} bytes; initiators see it when they scan again",
    "The device of volume @VOLATTACH_VOLUME@ is larger",
    "The export follows in the same sessions. Let the initiators look again: iscsiadm -m session -R.",
)

# Conditions.

DEVICE_MISSING = Kind(
    "f43b842cbf114d5fb7e45727ced9bdd2",
    logging.WARNING,
    "volume {volume}: {condition}: {reason}",
    "The device of volume @VOLATTACH_VOLUME@ is missing",
    "Its path leads nowhere, to something unusable, or to a device that does not tell yet who it is. "
    "Bring the device back under that path: the export follows by itself. Other volumes are served.",
)
DEVICE_CHANGED = Kind(
    "da32310e429f489784e0915344b646a9",
    logging.WARNING,
    "volume {volume}: {condition}: {reason}",
    "The path of volume @VOLATTACH_VOLUME@ leads to another medium",
    "It is not the one that was registered, or it has shrunk. It is not exported: somebody would read a disk "
    "that is not "
    "theirs. Find out who exchanged it. Put the right one there; if it was meant, detach, unregister and "
    "register again.",
)
DEVICE_FAILED = Kind(
    "7b9b793a9a8b428c9aeff2f48649a84b",
    logging.WARNING,
    "volume {volume}: {condition}: {reason}",
    "The device of volume @VOLATTACH_VOLUME@ fails reads or writes",
    "It is the right one, and stays exported: initiators get I/O errors. The message says whether it is "
    "write-protected or mapped to device-mapper's error target. Mend the device; nothing is to be done here.",
)
SPACE_LOW = Kind(
    "2f3f70950ed645a383a01f0c8a07a2c9",
    logging.WARNING,
    "volume {volume}: {condition}: {reason}",
    "The file system of volume @VOLATTACH_VOLUME@ is nearly full",
    "The volume's file is sparse and its file system has less than 5 % left, and less than the file still needs. "
    "When it is full, initiators get I/O errors. Make room, or fill the file's holes (fallocate) on a larger one.",
)
TARGET_ERROR = Kind(
    "aeab3ee2871e4eb6926e4a2b8716fa2c",
    logging.WARNING,
    "volume {volume}: {condition}: {reason}",
    "The target refused a step for volume @VOLATTACH_VOLUME@",
    "Its own words are in the message: a module that is not loaded, an address in use, tgtd dead. It is tried "
    "again with "
    "growing pauses; volattach reconcile tries at once.",
)
PENDING = Kind(
    "1041c0f59e224b6c96acbaebfbd2b88d",
    logging.WARNING,
    "volume {volume}: {condition}: {reason}",
    "Work for volume @VOLATTACH_VOLUME@ takes longer than call_seconds",
    "Nearly always a device does not answer: look at it, and at the kernel's log. The work goes on when the "
    "device does; "
    "other volumes are not held up. Do not restart the daemon for it.",
)
CONDITION_OVER = Kind(
    "76d4853ef69140d2a9bb043680e549f6",
    logging.INFO,
    "volume {volume}: {condition} is over",
    "@VOLATTACH_CONDITION@ of volume @VOLATTACH_VOLUME@ is over",
    "What was wrong is mended. Nothing is to be done.",
)

#: The kind of record that a condition begins with.
CONDITIONS: dict[str, Kind] = {
    "DeviceMissing": DEVICE_MISSING,
    "DeviceChanged": DEVICE_CHANGED,
    "DeviceFailed": DEVICE_FAILED,
    "SpaceLow": SPACE_LOW,
    "TargetError": TARGET_ERROR,
    "Pending": PENDING,
}

# The target.

MENDED = Kind(
    "e8e5bd2ca95f470e861451def28ece81",
    logging.INFO,
    "volume {volume}: mended {differences}: {steps}",
    "The target differed from the journal for volume @VOLATTACH_VOLUME@, and was mended",
    "After a crash or a reboot this is what finishes the work. At any other time a person or another program "
    "has changed "
    "the target: find out who.",
)
DRIVER_BUG = Kind(
    "785d73c1a53c473d9884efd6026bc871",
    logging.ERROR,
    "the {driver} driver failed in a way that it does not know of",
    "The driver has a bug",
    "The call or the repair has failed as one does that the target refuses, and is tried again. Report it with the "
    "traceback of this record.",
    has_traceback=True,
)
ORPHAN_REMOVED = Kind(
    "933bf2daaaf24f1fad8718f70d8f41d8",
    logging.WARNING,
    "target {target} was not in the journal: removed",
    "A target of ours that no volume accounts for was removed",
    "A leftover of a volume that is not registered any more, or a target that somebody made under our prefix "
    "(iqn_prefix in volattachd.toml(5)): everything below it belongs to the daemon.",
)
ORPHAN_STAYS = Kind(
    "7d4510a975e247b8a4befcbd29ebf13d",
    logging.WARNING,
    "target {target} is not in the journal and cannot be removed: {reason}",
    "A target of ours that no volume accounts for cannot be removed",
    "The target's words are in the message. It is tried again with every look.",
)
PASS_FAILED = Kind(
    "5167f087cf3d4e1986eba39644d56b0a",
    logging.WARNING,
    "cannot look at the target: {reason}",
    "A whole look at the target failed",
    "The target's words are in the message: it cannot be listed at all. The next look tries again. Sessions go on.",
)
PORTALS_CHANGED = Kind(
    "5bd0797ec69f45ceb8ba34f437498f73",
    logging.INFO,
    "portals are now {portals}",
    "The addresses where initiators log in have changed",
    "An interface that the configuration names has other addresses. The targets follow; sessions over an "
    "address that is "
    "gone end.",
)
PORTALS_STAY = Kind(
    "fad1d919cd624af5b1f6c4a709a59f53",
    logging.WARNING,
    "portals stay as they are: {reason}",
    "The portals of the configuration cannot be resolved now",
    "An interface that it names is not there. The targets listen where they did; it is looked up again with "
    "every look.",
)

# Connections.

CONNECTION_REFUSED = Kind(
    "247b63ab76c4472ab41bf05befd54f15",
    logging.WARNING,
    "refused a connection of uid {uid} pid {pid}: {reason}",
    "A client was refused: it has no role, or a limit was reached",
    "A user without a role cannot hold a connection: see [access] in volattachd.toml(5). If it is a limit, either a "
    "program leaves its connections open, or the limits are too low for this host: connections, connections_per_uid "
    "and admin_connections in [limits].",
)
PEER_UNKNOWN = Kind(
    "e2b50471c55b4c0199294434779187af",
    logging.WARNING,
    "refused a connection: the kernel does not tell whose it is: {reason}",
    "A client was refused because its user is unknown",
    "Who may call is decided by what the kernel says of the peer. It said nothing, so nothing is allowed.",
)
ACCEPT_FAILED = Kind(
    "43e4b6646c2b405d99e85c558c1bdaf5",
    logging.ERROR,
    "cannot accept a connection: {reason}",
    "The daemon cannot take a client",
    "It is out of file descriptors or of memory: see LimitNOFILE= and the limits in volattachd.toml(5). "
    "Clients that are connected go on.",
)
SUBSCRIBER_DROPPED = Kind(
    "e92e13408cf84832af578cdad2213768",
    logging.INFO,
    "dropped a subscriber after seq {seq}: {reason}",
    "A follower of the history was dropped",
    "It did not read in time, or what it asked for is trimmed. It was told so, and begins again from its last number.",
)
