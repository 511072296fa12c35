"""LIO, the kernel's target, written directly through configfs.

What one volume is made of, under /sys/kernel/config/target (HBA stands for ``iblock_N`` or ``fileio_N``):

    core/HBA/volattach-NAME                       the backstore: device, unit serial, attributes
    iscsi/IQN/tpgt_1                              the target; only ever the one portal group
    iscsi/IQN/tpgt_1/lun/lun_0/backstore      ->  core/HBA/volattach-NAME
    iscsi/IQN/tpgt_1/np/ADDRESS:PORT              a portal
    iscsi/IQN/tpgt_1/acls/INITIATOR               a grant: secret, write protection,
    iscsi/IQN/tpgt_1/acls/INITIATOR/lun_0/lun ->  iscsi/IQN/tpgt_1/lun/lun_0    and mapping

NAME is ``<volume>.<first 8 digits of its serial>``, IQN is ``<prefix>:NAME``, and N comes from the serial, so
each of them can be found from the others and none is ever used again for another volume. Every volume has an
HBA directory and a target of its own: a removal that sleeps in the kernel because a device is stalled
holds the lock of its parent directory, and must hold nobody else's.

``wanted()`` spells the objects out in the order of creation; planning compares them one by one with what is
there. So whatever a crash left behind, the plan is the rest of the way, and "it exists" is never taken for "it is
done". The order of creation is the argument for safety: in a grant the password comes last (a login without a
password set is refused: authentication=1), and in a target ``enable`` does.

Removal order, found by trying the others (EBUSY, ENOTEMPTY): mapped-LUN link, mapped LUN, portal, ACL; LUN
link, LUN, portal group, target; backstore, HBA.

A revocation must not meet a login (kernels 6.1 to 6.12, read in the source and tried). A login holds a reference to its
ACL from its first message on, but the kernel knows its session only after the last one. ``rmdir`` of an ACL ends the
sessions that it knows and waits for all references: a login that becomes a session after that moment ends only when
its initiator logs out, and ``rmdir`` sleeps until then, uninterruptibly. So a grant is removed in this order:

1. No login begins, and the sessions end: ``enable=0`` where no other grant stays. Else the ACL's user name becomes one
   that nobody knows (it marks the ACL, after a crash too, as one that must go), and a change of ``cmdsn_depth`` ends
   its sessions alone.
2. The mapping. It goes after the sessions: of a LUN 0 that is not mapped a session reads whatever the kernel's memory
   holds (LIO puts a RAM disk without memory in its place), with the status GOOD.
3. The portals: ``rmdir`` of a portal returns when no login through it is under way. What was under way is a session by
   then, which the ACL's ``rmdir`` ends, or has failed. Other initiators' sessions go on without their portal.
4. The ACL, and then the portals again where another grant stays.

So an export without a grant is disabled and has no portal, and the portal group is enabled by its first grant. A login
that stops in the middle still holds up step 3: for 15 seconds from Linux 6.4 on, before that until its connection ends.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from volattachd.drivers.base import Capabilities, Difference, Portal, Session, Step, TargetDriver
from volattachd.drivers.configfs.tree import ConfigFs, Look
from volattachd.drivers.listeners import why_refused
from volattachd.errors import DriverError, InvalidInput
from volattachd.model import Export, Grant, Mode, Volume

#: Index of our HBA directories: above what targetcli and rtslib count up from zero, and below 2^31.
_HBA_BASE = 1 << 30
_MARK = "volattach-"
#: What we call the links of a LUN and of a mapped LUN; others have other names for them.
_LUN_LINK, _MAPPED_LINK = "backstore", "lun"
#: FD_MAX_DEV_NAME is 256 and SE_UDEV_PATH_LEN 512 in the kernel; a longer path would be cut silently.
_PATH_MAX = 255
#: After a SIGKILL in the middle of removing a portal, its socket may live for a moment longer.
_PORTAL_PATIENCE = 2.0  # seconds

_TPG_ATTRIBUTES = {
    "authentication": "1",
    "generate_node_acls": "0",
    "demo_mode_discovery": "0",
    "demo_mode_write_protect": "1",
    "cache_dynamic_acls": "0",
    "prod_mode_write_protect": "0",
}
_BACKSTORE_INFO = {
    "block": re.compile(
        r"UDEV PATH: (?P<path>.*?)\s+readonly: (?P<read_only>\d)\s+Major: (?P<major>\d+) Minor: (?P<minor>\d+)"
    ),
    "file": re.compile(r"File: (?P<path>.*?)\s+Size: (?P<size>\d+)\s+Mode: (?P<mode>\S+)"),
}
#: What is the volume's own in a target's name ends in digits of its serial, and so tells the HBA of its backstore.
_SERIAL_IN_NAME = re.compile(r".*\.([0-9a-f]{8})")
#: The directories that stand for the whole of an export, a grant or a portal.
_WHOLE = re.compile(r"(?P<export>iscsi/[^/]+)|.*/acls/(?P<grant>[^/]+)|.*/np/(?P<portal>[^/]+)")
#: A connection whose initiator has begun to log out is in another state, until the kernel has cleaned up behind it.
_LOGGED_IN = "TARG_CONN_STATE_LOGGED_IN"
_SESSION_ADDRESS = re.compile(r"Address (\S+)")


@dataclass(frozen=True)
class Names:
    """Where in configfs the objects of one volume are."""

    backstore: str
    target: str

    @property
    def hba(self) -> str:
        return self.backstore.rpartition("/")[0]

    @property
    def tpg(self) -> str:
        return f"{self.target}/tpgt_1"

    @property
    def lun(self) -> str:
        return f"{self.tpg}/lun/lun_0"

    def acl(self, initiator: str) -> str:
        return f"{self.tpg}/acls/{initiator}"


@dataclass(frozen=True)
class Directory:
    """An object that mkdir makes."""

    path: str


@dataclass(frozen=True)
class Link:
    """A symbolic link between two objects."""

    path: str
    target: str


@dataclass(frozen=True)
class Value:
    """An attribute and what it must read as; not ``exact`` where it reads as something else, or cannot be read."""

    path: str
    value: str
    secret: bool = False
    exact: bool = True


Node = Directory | Link | Value


class PortalTurn:
    """One at a time makes or removes a portal, and nobody waits behind one that sleeps in the kernel.

    Portals of one address share a listener that is torn down with its last user; making and removing them from several
    threads at once fails with EINVAL. But ``rmdir`` of a portal also waits for the login through it, and a login may
    stop in the middle. By then the kernel has done with the listener, so that whoever has waited for ``patience``
    seconds leaves the turn to the sleeper, and a new one is for everybody else.
    """

    def __init__(self, patience: float = 1.0) -> None:
        self._patience = patience
        self._change = threading.Lock()
        self._turn = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """The turn for a block."""
        turn = self._take()
        try:
            yield
        finally:
            turn.release()

    def _take(self) -> threading.Lock:
        while True:
            turn = self._turn
            if not turn.acquire(timeout=self._patience):
                self._replace(turn)
            elif turn is self._turn:
                return turn
            else:
                turn.release()  # it was left to a sleeper, who is back

    def _replace(self, turn: threading.Lock) -> None:
        with self._change:
            if turn is self._turn:
                self._turn = threading.Lock()


class LioDriver(TargetDriver):
    """The kernel's iSCSI target."""

    name: ClassVar[str] = "lio"
    capabilities: ClassVar[Capabilities] = Capabilities(per_grant_mode=True, ends_sessions=True, grows=True)
    checks_steps: ClassVar[bool] = True

    #: One for the process: there is one kernel.
    _portal_turn: ClassVar[PortalTurn] = PortalTurn()

    def __init__(self, iqn_prefix: str, portals: Sequence[Portal], fs: ConfigFs | None = None) -> None:
        super().__init__(iqn_prefix, portals)
        self.fs = fs or ConfigFs()

    def start(self) -> None:
        if self.fs.is_dir("iscsi"):
            return
        if not self.fs.is_dir("."):
            load_module("target_core_mod")
        try:
            self.fs.make_dir("iscsi")  # loads the module
        except FileExistsError:
            return
        except OSError as error:
            raise DriverError(
                f"cannot use LIO: mkdir {self.fs.root}/iscsi: {error.strerror}",
                "load the modules: modprobe -a target_core_mod iscsi_target_mod, and mount configfs",
            ) from error

    def check_volume(self, volume: Volume) -> None:
        if "," in volume.path or "\n" in volume.path:
            raise InvalidInput(
                f"cannot export {volume.path!r}: LIO would read the part after a comma as another option",
                "rename it, or register it through a link in /dev/disk/by-id",
            )
        if len(os.fsencode(volume.path)) > _PATH_MAX:
            raise InvalidInput(f"cannot export {volume.path!r}: LIO takes paths of at most {_PATH_MAX} bytes")

    def plan(self, want: Export) -> list[Step]:
        with _translated(f"cannot read the target of volume {want.volume.id!r}"):
            return self._plan(want)

    def plan_revocation(self, want: Export) -> list[Step]:
        names = self.names_of(want.volume)
        with _translated(f"cannot read the target of volume {want.volume.id!r}"):
            if not want.exported:
                return self._removal(names)
            steps, gone = self._surplus_grants(names, want)
            portals = [path for path in self._portal_paths(names, want) if path in gone]
            return steps + [self._returning(Directory(path), gone) for path in portals]

    def looking(self) -> LioDriver:
        driver = copy(self)  # a read is most of what a plan costs: each attribute is read once
        driver.fs = Look(self.fs)
        return driver

    def _plan(self, want: Export) -> list[Step]:
        names = self.names_of(want.volume)
        if not want.exported:
            return self._removal(names)
        if not self.fs.is_dir(names.target) and not self.fs.is_dir(names.hba):
            return self._creation(names, want, (names.target, names.hba))
        if self._must_be_rebuilt(names, want.volume):
            return self._removal(names) + self._creation(names, want, (names.target, names.hba))
        surplus, gone = self._surplus(names, want)
        return surplus + self._creation(names, want, gone)

    def plan_removal(self, target_name: str) -> list[Step]:
        with _translated(f"cannot read the target {target_name}"):
            names = self._names_from_target(target_name)
            return [] if names is None else self._removal(names)

    def holds_device(self, volume: Volume) -> bool:
        with _translated(f"cannot read the backstore of volume {volume.id!r}"):
            return self._is_enabled(self.names_of(volume).backstore)

    def list_exports(self) -> list[str]:
        prefix = self.iqn_prefix + ":"
        with _translated("cannot list the targets"):
            targets = self.fs.list_dirs("iscsi")
            # A backstore whose target is there is that target's, whatever its prefix, and no export of its own.
            used = {name.rpartition(":")[2] for name in targets}
            theirs = {_hba_index(found[1]) for found in map(_SERIAL_IN_NAME.fullmatch, used) if found}
            hbas = [hba for hba in self.fs.list_dirs("core") if _is_ours(hba) and _index_of(hba) not in theirs]
            stores = [store for hba in hbas for store in self.fs.list_dirs(f"core/{hba}")]
        left = {s.removeprefix(_MARK) for s in stores if s.startswith(_MARK)} - used
        return sorted([name for name in targets if name.startswith(prefix)] + [prefix + name for name in left])

    def list_sessions(self, target_name: str) -> list[Session]:
        acls = f"iscsi/{target_name}/tpgt_1/acls"
        with _translated(f"cannot list the sessions of {target_name}"):
            found = [self._session(target_name, initiator) for initiator in self.fs.list_dirs(acls)]
        return [session for session in found if session is not None]

    def find_session(self, target_name: str, initiator: str) -> Session | None:
        with _translated(f"cannot read the session of {initiator} with {target_name}"):
            return self._session(target_name, initiator)

    def _session(self, target_name: str, initiator: str) -> Session | None:
        info = self._read_or_empty(f"iscsi/{target_name}/tpgt_1/acls/{initiator}/info")
        if _LOGGED_IN not in info:
            return None
        address = _SESSION_ADDRESS.search(info)
        return Session(initiator, address[1] if address else None)

    # What should be.

    def names_of(self, volume: Volume) -> Names:
        """Where this volume's objects are, whether or not they exist."""
        plugin = "iblock" if volume.device.kind == "block" else "fileio"
        suffix = volume.target_name.rpartition(":")[2]
        hba = _hba_index(volume.serial.replace("-", ""))
        return Names(f"core/{plugin}_{hba}/{_MARK}{suffix}", f"iscsi/{volume.target_name}")

    def wanted(self, names: Names, want: Export) -> list[Node]:
        """Everything but the backstore's configuration, in the order of creation."""
        nodes: list[Node] = [Value(f"{names.backstore}/attrib/{k}", v) for k, v in _attributes(want.volume)]
        nodes += [Directory(names.target), Directory(names.tpg)]
        nodes += [Value(f"{names.tpg}/attrib/{k}", v) for k, v in _TPG_ATTRIBUTES.items()]
        nodes += [Directory(names.lun), Link(f"{names.lun}/{_LUN_LINK}", names.backstore)]
        nodes += [Directory(path) for path in self._portal_paths(names, want)]
        for grant in want.grants:
            nodes += _grant_nodes(names, grant)
        return [*nodes, Value(f"{names.tpg}/enable", "1")] if want.grants else nodes

    def _portal_paths(self, names: Names, want: Export) -> list[str]:
        """The portals that the export needs: none while nobody may log in."""
        return [f"{names.tpg}/np/{portal}" for portal in self.portals] if want.grants else []

    # The three parts of a plan.

    def _creation(self, names: Names, want: Export, gone: tuple[str, ...]) -> list[Step]:
        """The steps that make what is missing, where everything below the paths ``gone`` will be missing by then."""

        def missing(node: Node) -> bool:
            return any(node.path == path or node.path.startswith(path + "/") for path in gone) or not self._is_there(
                node
            )

        backstore = [Directory(names.hba), Directory(names.backstore)]
        steps = [self._step(node) for node in backstore if missing(node)]
        if missing(Value(f"{names.backstore}/enable", "1")):
            steps += self._configuration(names, want)
        elif self._device_info(names, want.volume).get("size", str(want.volume.size)) != str(want.volume.size):
            # A file that has grown. A block device's size is the kernel's own to follow.
            grow = f"fd_dev_size={want.volume.size}"
            steps.append(self._step(Value(f"{names.backstore}/control", grow, exact=False)))
        return steps + [self._returning(node, gone) for node in self.wanted(names, want) if missing(node)]

    def _returning(self, node: Node, gone: tuple[str, ...]) -> Step:
        """The step that makes a node; a portal that goes for a grant's removal comes back as a part of that."""
        step = self._step(node)
        returns = step.difference is Difference.PORTAL_MISSING and node.path in gone
        return replace(step, difference=Difference.GRANT_UNEXPECTED) if returns else step

    def _configuration(self, names: Names, want: Export) -> list[Step]:
        """The steps to an enabled backstore. Its settings take effect at ``enable``: until then, all again."""
        volume = want.volume
        settings = [
            Value(f"{names.backstore}/control", _control(volume), exact=False),
            Value(f"{names.backstore}/udev_path", volume.path),  # where rtslib and targetcli look
            Value(f"{names.backstore}/wwn/vpd_unit_serial", volume.serial, exact=False),
            Value(f"{names.backstore}/enable", "1"),
        ]
        steps = [self._step(node) for node in settings]
        verify = partial(self._verify_or_close, names, want)
        return [*steps, _new_step("verify", names.backstore, verify)]

    def _surplus(self, names: Names, want: Export) -> tuple[list[Step], tuple[str, ...]]:
        """The steps that remove what should not be there, access first, and the paths that are gone then."""
        fs, tpg = self.fs, names.tpg
        steps, gone = self._surplus_grants(names, want)
        for lun in (f"{tpg}/lun/{name}" for name in fs.list_dirs(f"{tpg}/lun") if name != "lun_0"):
            steps += self._linked_removal(lun, _LUN_LINK)
        kept = {*gone, *self._portal_paths(names, want)}
        steps += [self._remove_dir(portal) for portal in self._portals_of(tpg) if portal not in kept]
        for other in self._tpgs(names.target):
            if other != tpg:
                steps += self._tpg_removal(other)
        return steps, gone

    def _surplus_grants(self, names: Names, want: Export) -> tuple[list[Step], tuple[str, ...]]:
        """The part of those steps that takes access away."""
        users = {names.acl(grant.initiator): grant.secret.username for grant in want.grants}
        acls = self._acls_of(names.tpg)
        ended = [acl for acl in acls if self._is_anothers(acl, users.get(acl))]
        steps, gone = self._revocation(names.tpg, ended, alone=not want.grants)
        wrong = [mapped for acl in acls if acl not in ended for mapped in self._wrong_mappings(acl, names.lun)]
        for mapped in wrong:
            steps += self._linked_removal(mapped, _MAPPED_LINK)
        return steps, (*gone, *wrong)

    def _revocation(self, tpg: str, acls: list[str], *, alone: bool) -> tuple[list[Step], tuple[str, ...]]:
        """The steps that remove grants in the order that the module's docstring gives; ``alone`` where no other stays.

        What they do to the portal group and to its portals is part of the grants' removal, and told as that.
        """
        if alone:
            steps, gone = self._closing(tpg, acls)
        elif acls:
            evictions = [step for acl in acls for step in self._eviction(acl)]
            steps, gone = self._acl_removals(tpg, acls)
            steps = evictions + steps
        else:
            return [], ()
        return [replace(step, difference=Difference.GRANT_UNEXPECTED) if acls else step for step in steps], gone

    def _closing(self, tpg: str, acls: list[str]) -> tuple[list[Step], tuple[str, ...]]:
        """The steps after which nobody can log in to a portal group."""
        enabled = self._read_or_empty(f"{tpg}/enable") == "1"
        disabling = [self._step(Value(f"{tpg}/enable", "0"))] if enabled else []
        steps, gone = self._acl_removals(tpg, acls)
        return disabling + steps, gone

    def _eviction(self, acl: str) -> list[Step]:
        """The steps after which an ACL lets nobody in any more, and has no session."""
        user = Value(f"{acl}/auth/userid", f"revoked-{uuid.uuid4()}", secret=True)
        depth = "1" if self._read_or_empty(f"{acl}/cmdsn_depth") != "1" else "2"
        return [self._step(user), self._step(Value(f"{acl}/cmdsn_depth", depth))]

    def _acl_removals(self, tpg: str, acls: list[str]) -> tuple[list[Step], tuple[str, ...]]:
        """Mappings, then the portals as a barrier for logins, then the ACLs."""
        portals = self._portals_of(tpg)
        mapped = [f"{acl}/{name}" for acl in acls for name in self.fs.list_dirs(acl) if name.startswith("lun_")]
        steps = [step for directory in mapped for step in self._linked_removal(directory, _MAPPED_LINK)]
        gone = (*portals, *acls)
        return steps + [self._remove_dir(path) for path in gone], gone

    def _acls_of(self, tpg: str) -> list[str]:
        return [f"{tpg}/acls/{initiator}" for initiator in self.fs.list_dirs(f"{tpg}/acls")]

    def _portals_of(self, tpg: str) -> list[str]:
        return [f"{tpg}/np/{portal}" for portal in self.fs.list_dirs(f"{tpg}/np")]

    def _is_anothers(self, acl: str, user: str | None) -> bool:
        """Whether an ACL belongs to no grant that is wanted. Its sessions must end with it, so it is made anew.

        The user name tells, because each grant has its own; none is set yet in an ACL that is half made. A password
        alone that differs is written anew: the sessions are the same host's, by the same grant.
        """
        return user is None or self._read_or_empty(f"{acl}/auth/userid") not in ("", user)

    def _wrong_mappings(self, acl: str, lun: str) -> list[str]:
        """The mapped LUNs of an ACL that do not lead to the volume."""
        mapped = [f"{acl}/{name}" for name in self.fs.list_dirs(acl) if name.startswith("lun_")]
        return [path for path in mapped if path != f"{acl}/lun_0" or not self._leads_to(f"{path}/{_MAPPED_LINK}", lun)]

    def _leads_to(self, link: str, target: str) -> bool:
        """Whether the object's link, if it has one yet, leads to ``target``."""
        return all(found == target for found in self._leads(link))

    def _leads(self, link: str) -> list[str | None]:
        """Where an object's link leads, whatever it is called.

        The kernel takes no two that differ; so where there is one of the name that we give it, nothing need be listed.
        """
        found = self.fs.read_link(link)
        if found is not None:
            return [found]
        directory = link.rpartition("/")[0]
        return [self.fs.read_link(f"{directory}/{name}") for name in self.fs.list_links(directory)]

    def _removal(self, names: Names) -> list[Step]:
        """The steps that remove everything of this volume that is there."""
        steps = [step for tpg in self._tpgs(names.target) for step in self._tpg_removal(tpg)]
        existing = [path for path in (names.target, names.backstore, names.hba) if self.fs.is_dir(path)]
        return steps + [self._remove_dir(path) for path in existing]

    def _tpgs(self, target: str) -> list[str]:
        return [f"{target}/{name}" for name in self.fs.list_dirs(target) if name.startswith("tpgt_")]

    def _tpg_removal(self, tpg: str) -> list[Step]:
        steps, _ = self._closing(tpg, self._acls_of(tpg))
        for lun in self.fs.list_dirs(f"{tpg}/lun"):
            steps += self._linked_removal(f"{tpg}/lun/{lun}", _LUN_LINK)
        return [*steps, self._remove_dir(tpg)]

    def _linked_removal(self, directory: str, name: str) -> list[Step]:
        """A directory with a link in it, whatever that is called: the link first. Listing costs more than a look."""
        ours = f"{directory}/{name}"
        is_ours = self.fs.read_link(ours) is not None
        links = [ours] if is_ours else [f"{directory}/{other}" for other in self.fs.list_links(directory)]
        steps = [_new_step("unlink", link, partial(self.fs.remove_link, link)) for link in links]
        return [*steps, self._remove_dir(directory)]

    # One step each.

    def _step(self, node: Node) -> Step:
        fs, path = self.fs, node.path
        if isinstance(node, Directory):
            return _new_step("mkdir", path, partial(self._make_portal if "/np/" in path else fs.make_dir, path))
        if isinstance(node, Link):
            return _new_step("link", path, partial(fs.make_link, path, node.target), f" -> {node.target}")
        shown = " = (secret)" if node.secret else f" = {node.value}"
        return _new_step("write", path, partial(self._write, node, shown), shown)

    def _write(self, node: Value, shown: str) -> None:
        """Write an attribute, and see that it was kept: the kernel cuts some values silently, and ignores others."""
        if not node.exact:
            self.fs.write(node.path, node.value)
        elif self.fs.write_and_read(node.path, node.value) != node.value:
            raise DriverError(f"the target did not keep {node.path}{shown}")

    def _remove_dir(self, path: str) -> Step:
        return _new_step("rmdir", path, partial(self._drop_portal if "/np/" in path else self.fs.remove_dir, path))

    def _drop_portal(self, path: str) -> None:
        with self._portal_turn.taken():
            self.fs.remove_dir(path)

    def _make_portal(self, path: str) -> None:
        deadline = time.monotonic() + _PORTAL_PATIENCE
        while True:
            try:
                with self._portal_turn.taken():
                    return self.fs.make_dir(path)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EADDRINUSE):
                    raise
                if time.monotonic() > deadline:
                    portal = path.rpartition("/")[2]
                    raise DriverError(f"cannot listen on {portal}: {why_refused(portal)}") from error
            time.sleep(0.05)

    # What is.

    def _is_there(self, node: Node) -> bool:
        if isinstance(node, Directory):
            return self.fs.is_dir(node.path)
        if isinstance(node, Link):
            return node.target in self._leads(node.path)
        return self._read_or_empty(node.path) == node.value

    def _read_or_empty(self, path: str) -> str:
        """An attribute's value; empty where its object is not there (the plan makes both then)."""
        try:
            return self.fs.read(path)
        except FileNotFoundError:
            return ""

    def _is_enabled(self, backstore: str) -> bool:
        return self._read_or_empty(f"{backstore}/enable") == "1"

    def _must_be_rebuilt(self, names: Names, volume: Volume) -> bool:
        """Whether something is wrong that cannot be changed while the volume is exported."""
        if not self._leads_to(f"{names.lun}/{_LUN_LINK}", names.backstore):
            return True
        if not self._is_enabled(names.backstore):
            return bool(self.fs.list_links(names.lun))
        return self._serial(names) != volume.serial or self._device_info(names, volume).get("path") != volume.path

    def _serial(self, names: Names) -> str:
        return self._read_or_empty(f"{names.backstore}/wwn/vpd_unit_serial").rpartition(": ")[2]

    def _device_info(self, names: Names, volume: Volume) -> dict[str, str]:
        found = _BACKSTORE_INFO[volume.device.kind].search(self._read_or_empty(f"{names.backstore}/info"))
        return found.groupdict() if found else {}

    def _verify_or_close(self, names: Names, want: Export) -> None:
        """A backstore of another device goes at once: a plan takes one that is enabled for one that was checked."""
        try:
            self._verify_device(names, want)
        except (DriverError, OSError):
            self.fs.remove_dir(names.backstore)
            raise

    def _verify_device(self, names: Names, want: Export) -> None:
        """What the kernel opened is what the path leads to: ``control`` ignores what it does not understand."""
        volume = want.volume
        info = self._device_info(names, volume)
        if self._serial(names) != volume.serial:
            raise DriverError(f"cannot export {volume.path}: LIO took {self._serial(names)!r} as its serial")
        if info.get("path") != volume.path:
            raise DriverError(f"cannot export {volume.path}: LIO opened {info.get('path')!r} instead")
        fd = os.open(volume.path, os.O_PATH | os.O_CLOEXEC)
        try:
            device = os.fstat(fd).st_rdev
            numbers = (str(os.major(device)), str(os.minor(device)))
            if volume.device.kind == "block" and (info["major"], info["minor"]) != numbers:
                raise DriverError(f"cannot export {volume.path}: LIO opened device {info['major']}:{info['minor']}")
            want.check_opened(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    def _names_from_target(self, target_name: str) -> Names | None:
        """The objects of a target of ours that no volume accounts for."""
        suffix = target_name.rpartition(":")[2]
        if not target_name.startswith(self.iqn_prefix + ":"):
            raise DriverError(f"cannot remove {target_name}: it is not ours (our prefix is {self.iqn_prefix})")
        for hba in self.fs.list_dirs("core"):
            if _is_ours(hba) and self.fs.is_dir(f"core/{hba}/{_MARK}{suffix}"):
                return Names(f"core/{hba}/{_MARK}{suffix}", f"iscsi/{target_name}")
        if self.fs.is_dir(f"iscsi/{target_name}"):
            return Names(f"core/none/{_MARK}{suffix}", f"iscsi/{target_name}")
        return None


def _new_step(action: str, path: str, run: Callable[[], None], shown: str = "") -> Step:
    """A step whose failure is told in the kernel's words."""

    def translated() -> None:
        with _translated(f"cannot {action} {path}{shown}"):
            run()

    return Step(action, path + shown, translated, _difference(action, path))


def _difference(action: str, path: str) -> Difference:
    """What a step on this object mends: whether it makes or removes the whole of something, or completes it."""
    whole = _WHOLE.fullmatch(path)
    part = "export" if whole is None else str(whole.lastgroup)
    part = "grant" if "/acls/" in path else part
    if whole is not None and action == "mkdir":
        return Difference[f"{part.upper()}_MISSING"]
    if whole is not None and action == "rmdir":
        return Difference[f"{part.upper()}_UNEXPECTED"]
    return Difference.GRANT_DIFFERS if part == "grant" else Difference.EXPORT_DIFFERS


def _grant_nodes(names: Names, grant: Grant) -> list[Node]:
    """A grant, in an order in which the initiator cannot log in before all of it is there."""
    acl = names.acl(grant.initiator)
    return [
        Directory(acl),
        Directory(f"{acl}/lun_0"),
        Link(f"{acl}/lun_0/{_MAPPED_LINK}", names.lun),
        Value(f"{acl}/lun_0/write_protect", "1" if grant.mode is Mode.RO else "0"),
        Value(f"{acl}/auth/userid", grant.secret.username),
        Value(f"{acl}/auth/password", grant.secret.password, secret=True),
    ]


def _attributes(volume: Volume) -> list[tuple[str, str]]:
    """The backstore's attributes that differ from the kernel's defaults, or must not depend on them."""
    attributes = [
        ("emulate_tpu", "1" if volume.device.discard else "0"),
        ("emulate_3pc", "0"),  # XCOPY reached other initiators' disks in CVE-2020-28374
    ]
    if volume.device.kind == "file":
        # The file is opened with O_DSYNC: what was acknowledged is on the disk, and no cache is announced.
        attributes.append(("emulate_write_cache", "0"))
    return attributes


def _control(volume: Volume) -> str:
    if volume.device.kind == "block":
        return f"udev_path={volume.path},readonly={int(volume.read_only)}"
    return f"fd_dev_name={volume.path},fd_dev_size={volume.size}"


def _hba_index(serial_digits: str) -> int:
    """28 bits of the serial (register_volume checks that they are unique) over our base."""
    return _HBA_BASE | int(serial_digits[:7], 16)


def _is_ours(hba: str) -> bool:
    plugin = hba.rpartition("_")[0]
    return plugin in ("iblock", "fileio") and _index_of(hba) >= _HBA_BASE


def _index_of(hba: str) -> int:
    index = hba.rpartition("_")[2]
    return int(index) if index.isdigit() else -1


class _translated:
    """Turns the kernel's word into a DriverError that says what could not be done."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise DriverError(f"{self.what}: {error.strerror} ({errno.errorcode.get(error.errno or 0)})") from error


def load_module(name: str) -> None:
    """modprobe, for hosts where modules-load.d has not done it."""
    try:
        subprocess.run(["modprobe", name], check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        raise DriverError(
            f"cannot load the kernel module {name}: {error}", f"load it yourself: modprobe {name}"
        ) from error
