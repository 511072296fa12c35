"""``volattach doctor``: what is wrong between this host and its daemon, and what to do about it.

A check is a function from the facts to its findings; CHECKS is the whole list. One that has nothing to say of this
host (a target's checks where the daemon is elsewhere) finds nothing.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from volattachd.cli import facts
from volattachd.cli.facts import Daemon, Host
from volattachd.client.connection import Connection

OK, WARNING, PROBLEM = "ok", "warning", "problem"

_TARGET_MODULES = ("target_core_mod", "iscsi_target_mod")
_NAME = re.compile(r"(iqn\.\d{4}-\d{2}\.[a-z0-9.-]+(:\S+)?|eui\.[0-9a-f]{16}|naa\.[0-9a-f]{16,32})", re.IGNORECASE)
_DEFAULT_PREFIX = "iqn.2026-11.org.volattachd"
_HOW_TO_BE_AGENT = "become a member of the group 'volattach', or see [access] of the configuration"
#: Attachments in these states may have a session.
_CONNECTED = ("connected", "attached", "detaching")


class Finding(NamedTuple):
    """One line: how bad it is, what was looked at, what was seen, and what to do where there is something to do."""

    level: str
    check: str
    message: str
    correction: str | None = None


Check = Callable[[Daemon, Host], Iterator[Finding]]


def examine(connection: Connection) -> list[dict[str, Any]]:
    """The findings of every check."""
    daemon = facts.ask(connection)
    portals = {portal: facts.reachable_at(portal, daemon.address) for portal in daemon.status.get("portals", ())}
    host = facts.look(portals)
    return [finding._asdict() for check in CHECKS for finding in check(daemon, host)]


def check_daemon(daemon: Daemon, _: Host) -> Iterator[Finding]:
    """It answers, and is as it should be."""
    if daemon.error is not None:
        yield Finding(PROBLEM, "daemon", str(daemon.error), daemon.error.correction)
    elif daemon.status.get("degraded"):
        yield from (Finding(PROBLEM, "daemon", f"degraded: {why}") for why in daemon.status["degraded"])
    elif not daemon.status.get("ready"):
        yield Finding(WARNING, "daemon", "it is still starting", "wait for it")
    else:
        yield Finding(OK, "daemon", f"ready at {daemon.address}, driver {daemon.status.get('driver')}")


def check_version(daemon: Daemon, host: Host) -> Iterator[Finding]:
    """Both sides are of one version."""
    theirs = daemon.status.get("version")
    if theirs and theirs != host.version:
        correction = "install the same version on both sides"
        yield Finding(WARNING, "version", f"the daemon is {theirs}, this command is {host.version}", correction)


def check_role(daemon: Daemon, _: Host) -> Iterator[Finding]:
    """This user may attach."""
    if daemon.error is None:
        told = f"this user is {daemon.role}"
        may = daemon.role in ("agent", "provisioner", "admin")
        yield Finding(OK, "role", told) if may else Finding(WARNING, "role", told, _HOW_TO_BE_AGENT)


def check_conditions(daemon: Daemon, _: Host) -> Iterator[Finding]:
    """No volume has something wrong with it."""
    for volume in daemon.volumes:
        for condition in volume.get("conditions") or ():
            message = f"volume {volume['volume']!r}: {condition['kind']}: {condition['message']}"
            yield Finding(PROBLEM, "volumes", message, "volattach reconcile --dry-run tells what would mend it")


def check_target_modules(daemon: Daemon, host: Host) -> Iterator[Finding]:
    """The kernel of the daemon's host has its target."""
    if not _is_target(daemon, host):
        return
    for name in _TARGET_MODULES:
        if name in host.loaded:
            yield Finding(OK, "target", f"{name} is loaded")
        elif name in host.loadable:
            yield Finding(WARNING, "target", f"{name} is not loaded", f"modprobe {name}")
        else:
            correction = 'run a kernel with LIO, or set driver = "tgt" in the configuration'
            yield Finding(PROBLEM, "target", f"this kernel has no {name}", correction)


def check_configfs(daemon: Daemon, host: Host) -> Iterator[Finding]:
    """The target can be configured."""
    if _is_target(daemon, host) and not host.configfs:
        correction = "mount -t configfs configfs /sys/kernel/config"
        yield Finding(PROBLEM, "target", "configfs is not mounted", correction)


def check_portals(daemon: Daemon, host: Host) -> Iterator[Finding]:
    """Every portal can be reached from here. A target listens only while it exports something."""
    exported = any(row["state"] in _CONNECTED for row in daemon.attachments)
    for portal, error in host.portals.items():
        if error is None:
            yield Finding(OK, "portals", f"{portal} can be reached")
        elif exported:
            correction = "see the addresses and firewalls between this host and the daemon's"
            yield Finding(PROBLEM, "portals", f"{portal} cannot be reached: {error}", correction)
        else:
            yield Finding(OK, "portals", f"{portal} does not listen: nothing is exported now")


def check_initiator(daemon: Daemon, host: Host) -> Iterator[Finding]:
    """open-iscsi can log in from here."""
    if not host.has_iscsiadm:
        if not daemon.is_local:
            correction = "apt install open-iscsi, or attach with the connector qemu"
            yield Finding(WARNING, "initiator", "there is no iscsiadm on this host", correction)
        return
    if "iscsi_tcp" not in host.loaded | host.loadable:
        yield Finding(PROBLEM, "initiator", "this kernel has no iscsi_tcp", "run a kernel that has it")
    if "iscsid" not in host.services:
        yield Finding(WARNING, "initiator", "iscsid does not run", "systemctl enable --now iscsid.socket")
    yield _name_of(host)


def _name_of(host: Host) -> Finding:
    """What there is to say of the initiator's name. Who cannot give one, or cannot see it, is not told how to."""
    where = "/etc/iscsi/initiatorname.iscsi"
    if host.hidden:
        return Finding(WARNING, "initiator", f"this user may not read {where}", "run it as root")
    correction = f'echo "InitiatorName=$(iscsi-iname)" > {where}' if host.is_root else "ask root to give this host one"
    if host.initiator is None:
        return Finding(PROBLEM, "initiator", f"{where} names no initiator", correction)
    if not _NAME.fullmatch(host.initiator):
        return Finding(PROBLEM, "initiator", f"{host.initiator!r} in {where} is no iSCSI name", correction)
    return Finding(OK, "initiator", f"this host is {host.initiator}")


def check_shared_name(daemon: Daemon, host: Host) -> Iterator[Finding]:
    """No other host uses this initiator's name: a copied machine would use this one's access."""
    for row in daemon.attachments:
        connector = row.get("connector") or {}
        other = connector.get("host")
        if host.initiator and _same(connector.get("initiator"), host.initiator) and other not in (None, host.name):
            message = f"host {other!r} attached {row['volume']!r} with this host's initiator name"
            if row["owner"] != daemon.uid:  # what others say of their host is no reason to rename this one
                whose = f"{message}, as uid {row['owner']}"
                yield Finding(
                    PROBLEM, "initiator", whose, "bind the name to its user: [initiators] of the configuration"
                )
            else:
                correction = (
                    "the copy needs a name of its own, after it has detached everything; as root there: iscsi-iname"
                )
                yield Finding(PROBLEM, "initiator", message, correction if host.is_root else "ask root of both hosts")


def check_multipath(daemon: Daemon, host: Host) -> Iterator[Finding]:
    """Where there are several ways, they are used."""
    several = len(daemon.status.get("portals", ())) > 1 and host.has_iscsiadm
    if several and "multipathd" not in host.services:
        message = "the daemon has several portals, and no multipathd runs here: one path that is lost stops the I/O"
        yield Finding(WARNING, "multipath", message, "apt install multipath-tools")
    elif several:
        yield Finding(OK, "multipath", "multipathd runs")


def check_sessions(daemon: Daemon, host: Host) -> Iterator[Finding]:
    """Every session to one of the daemon's targets belongs to an attachment."""
    if daemon.error is None:
        granted = _granted(daemon)
        for session in host.sessions:
            ours = _is_ours(daemon, session.target_name)
            if ours and (session.target_name, session.initiator.lower()) not in granted:
                message = f"{session.name} is logged in to {session.target_name}, and no attachment of it is known"
                name = shlex.quote(session.target_name)
                correction = f"see that nothing uses its disks, then: iscsiadm -m node -T {name} --logout"
                yield Finding(PROBLEM, "leftovers", message, correction)


def check_records(daemon: Daemon, host: Host) -> Iterator[Finding]:
    """Every node record of one of the daemon's targets belongs to an attachment."""
    if host.records is None:
        yield Finding(WARNING, "leftovers", "this user may not read the node records of open-iscsi", "run it as root")
    elif daemon.error is None:
        granted = {target_name for target_name, _ in _granted(daemon)}
        for name in host.records:
            if _is_ours(daemon, name) and name not in granted:
                message = f"there is a node record of {name}, and no attachment of it is known"
                yield Finding(WARNING, "leftovers", message, f"iscsiadm -m node -T {shlex.quote(name)} -o delete")


CHECKS: tuple[Check, ...] = (
    check_daemon,
    check_version,
    check_role,
    check_conditions,
    check_target_modules,
    check_configfs,
    check_portals,
    check_initiator,
    check_shared_name,
    check_multipath,
    check_sessions,
    check_records,
)


def _is_target(daemon: Daemon, host: Host) -> bool:
    """Whether this host's kernel is the daemon's target, or would be if the daemon ran."""
    driver = daemon.status.get("driver") if daemon.error is None else "lio" if host.has_daemon else None
    return daemon.is_local and driver == "lio"


def _granted(daemon: Daemon) -> set[tuple[str, str]]:
    """The pairs of a target and an initiator that an attachment lets in."""
    targets = {volume["volume"]: volume["target_name"] for volume in daemon.volumes}
    rows = [row for row in daemon.attachments if row["state"] in _CONNECTED]
    return {(targets.get(row["volume"], ""), _initiator_of(row)) for row in rows}


def _initiator_of(row: Mapping[str, Any]) -> str:
    return str((row["connector"] or {}).get("initiator", "")).lower()


def _is_ours(daemon: Daemon, target_name: str) -> bool:
    """Whether a target's name is one that this daemon gives: as those of its volumes, or as it does by default."""
    prefixes = {volume["target_name"].partition(":")[0] for volume in daemon.volumes} | {_DEFAULT_PREFIX}
    return target_name.partition(":")[0] in prefixes


def _same(one: Any, other: str) -> bool:
    return isinstance(one, str) and one.lower() == other.lower()
