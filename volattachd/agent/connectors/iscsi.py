"""The kernel's initiator, by open-iscsi.

One session for each portal where multipathd runs, and the map over them is the device; else the first portal that
lets in. A login that runs out of time is tried again, at each portal in turn, for as long as the agent's timeout says:
a portal that others keep busy is not one that refuses. A session of an earlier attachment is known by its user name,
which is new with each attachment. It is ended first: its secret is dead, so it could only become a trap.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from volattachd.agent import multipath, open_iscsi, usage
from volattachd.agent.answers import IscsiInfo
from volattachd.agent.connectors.base import Connection, Connector, Device, Report, Waiting, describe_host
from volattachd.agent.disks import Appearance, Session, remove, sessions_of, verify
from volattachd.agent.errors import ConnectFailed, ConnectorUnusable, DeviceInUse, PortalBusy, PortalSilent, WrongDevice

#: How long a device may take to appear after its login, in seconds.
APPEARS_WITHIN = 30.0


class IscsiConnector(Connector):
    """Block devices through open-iscsi; needs root."""

    name = "iscsi"
    ends_sessions = True

    def __init__(
        self,
        report: Report = lambda line: None,
        initiator: Callable[[], str] = open_iscsi.initiator_name,
        appears_within: float = APPEARS_WITHIN,
        node: Callable[[str], open_iscsi.Node] = open_iscsi.Node,
    ) -> None:
        super().__init__(report)
        self._node = node
        self._initiator = initiator
        self._appears_within = appears_within

    def get_connector(self, host: str) -> dict[str, Any]:
        return describe_host(host, initiator=self._initiator(), multipath=multipath.is_running())

    def connect(self, connection: Connection) -> Device:
        _need_root()
        appearance = Appearance()
        self._end_old_sessions(connection)
        self._log_in(connection)
        deadline = time.monotonic() + self._appears_within
        return self._found(connection, appearance, lambda: deadline - time.monotonic())

    def _end_old_sessions(self, connection: Connection) -> None:
        if any(not _is_current(session, connection.iscsi) for session in sessions_of(connection.target_name)):
            self.report(f"{connection.name}: an earlier attachment's session is ended first")
            self.disconnect(connection)

    def _log_in(self, connection: Connection) -> None:
        """Log in where there is no session yet: to each portal for multipathd, else to the first that lets in."""
        everywhere = multipath.is_running()
        if sessions_of(connection.target_name) and not everywhere:
            return
        began = time.monotonic()
        while True:
            refusals = self._try_portals(connection, everywhere)
            if not refusals or sessions_of(connection.target_name):
                return
            error = _most_hopeful(refusals)
            left = began + _patience(error, connection) - time.monotonic()
            if left <= 0:
                raise error
            self.report(Waiting(f"{connection.name}: {error.message}; trying again for {left:.0f} s"))

    def _try_portals(self, connection: Connection, everywhere: bool) -> list[ConnectFailed]:
        """One login at each portal, until one lets in where one is enough; the answer is why the others did not."""
        node, refusals = self._node(connection.target_name), []
        settings = open_iscsi.settings_for(self._initiator(), connection.iscsi, one_of_several=everywhere)
        for portal in connection.iscsi.portals:
            self.report(f"{connection.name}: logging in at {portal}")
            try:
                node.record(portal, settings)
                node.log_in(portal)
            except ConnectFailed as error:
                refusals.append(error)
                self.report(f"{connection.name}: {error.message}")
            else:
                if not everywhere:
                    return []
        return refusals

    def _found(self, connection: Connection, appearance: Appearance, left: Callable[[], float]) -> Device:
        """The device, once udev is through with it and it has been seen to be the volume."""
        self.report(f"{connection.name}: waiting for the device")
        lun = connection.iscsi.lun
        disks = appearance.wait(lambda: _all_ready(connection.target_name, lun, appearance), left)
        if disks is None:
            raise ConnectFailed(
                f"logged in to {connection.target_name}, but LUN {lun} did not appear within"
                f" {self._appears_within:g} s",
                "see the kernel's log",
            )
        wwids = [verify(disk, connection.serial) for disk in disks]
        details = {"serial": connection.serial, "wwid": wwids[0], "paths": [f"/dev/{disk}" for disk in disks]}
        if not multipath.is_running():
            return Device(f"/dev/{disks[0]}", details)
        return Device(self._mapped(connection, disks, appearance, left), details)

    def _mapped(
        self, connection: Connection, disks: list[str], appearance: Appearance, left: Callable[[], float]
    ) -> str:
        self.report(f"{connection.name}: waiting for multipathd")
        multipath.ask_for_map(disks)

        def find() -> str | None:
            mapped = multipath.map_over(disks)
            path = f"/dev/mapper/{multipath.name_of(mapped)}" if mapped else ""
            return path if mapped and appearance.is_ready(mapped) and os.path.exists(path) else None

        path = appearance.wait(find, left)
        if path is None:
            raise ConnectFailed(
                f"multipathd made no map over {', '.join(disks)} within {self._appears_within:g} s",
                "see multipathd's log, or stop it: one path needs no map",
            )
        own = {disk for session in sessions_of(connection.target_name) for disk in session.disks()}
        foreign = multipath.foreign_paths(disks, own)
        if foreign:
            raise WrongDevice(
                f"multipathd put paths of another target into the map of {connection.name!r}: {', '.join(foreign)}",
                "two storage hosts give units of the same WWID: see which of them is not what it says",
            )
        return path

    def disconnect(self, connection: Connection, force: bool = False) -> list[str]:
        sessions, node = sessions_of(connection.target_name), self._node(connection.target_name)
        if not sessions and not node.is_known():
            return []
        _need_root()
        disks = [disk for session in sessions for disk in session.disks()]
        self.report(f"{connection.name}: flushing and logging out")
        lost = self._drop(disks) if force else self._let_go(disks)
        for session in sessions:
            open_iscsi.log_out(session.number)
        left = sessions_of(connection.target_name)
        if left:
            raise ConnectFailed(f"{left[0].path.name} with {connection.target_name} is still there after its logout")
        node.forget()
        return lost

    def _let_go(self, disks: list[str]) -> list[str]:
        """Write out what is to be written, and remove the devices; only of a device that nobody uses."""
        maps = multipath.maps_over_any(disks)
        for top in maps or disks:
            with usage.claimed(top) as fd:
                self._flush(top, fd)
                if not maps:
                    remove(top)
        for mapped in maps:
            multipath.remove_map(mapped, disks)
        for disk in disks if maps else ():
            remove(disk)
        return []

    def _flush(self, disk: str, fd: int) -> None:
        try:
            usage.flush(fd)
        except OSError as error:
            raise DeviceInUse(
                f"cannot write what /dev/{disk} has still to write: {os.strerror(error.errno or 0)}",
                "bring its target back; with force that data is lost",
            ) from error

    def _drop(self, disks: list[str]) -> list[str]:
        """What is lost by going without asking. What can still be written, and soon, is written."""
        maps = multipath.maps_over_any(disks)
        tops = maps or disks
        lost = [f"{user}: it has lost its device" for top in tops for user in usage.users_of(top)]
        late = [top for top in tops if not usage.flush_by_force(top)]
        lost += [f"/dev/{top}: what had not been written is lost" for top in late]
        for mapped in maps:
            if not usage.users_of(mapped):
                multipath.remove_map(mapped, disks)
        return lost


def _most_hopeful(refusals: list[ConnectFailed]) -> ConnectFailed:
    """The reason with which another try makes most sense; of several such the last."""
    return max(reversed(refusals), key=lambda error: isinstance(error, PortalSilent) + isinstance(error, PortalBusy))


def _patience(error: ConnectFailed, connection: Connection) -> float:
    """For how long logins that fail for this reason are tried again, in seconds."""
    if isinstance(error, PortalBusy):
        return connection.busy_timeout
    return connection.timeout if isinstance(error, PortalSilent) else 0.0


def _is_current(session: Session, info: IscsiInfo) -> bool:
    """Whether the session is this attachment's. One that has lost its portal is iscsid's to bring back."""
    return session.username == info.username


def _all_ready(target_name: str, lun: int, appearance: Appearance) -> list[str] | None:
    """The disk of each session that is up, once all are there."""
    found = [session.disks(lun) for session in sessions_of(target_name) if session.state == "LOGGED_IN"]
    disks = [disk for disks in found for disk in disks]
    complete = bool(found) and all(found) and all(map(appearance.is_ready, disks))
    return disks if complete else None


def _need_root() -> None:
    if os.geteuid() != 0:
        raise ConnectorUnusable("the connector iscsi needs root", "become root, or use the connector qemu")
