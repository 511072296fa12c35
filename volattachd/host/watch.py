"""What the host tells without being asked: block devices that come, go or change, and addresses.

The news only makes a look come earlier. So news that is lost, doubled or late does no harm, and a host without udev
is merely slower to notice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from volattachd.telemetry import messages

#: Where nothing can be heard, it is tried again after this time, in seconds.
_PAUSE = 60.0

#: Names (the node and its links) and number of a block device that there is news of.
OnDevice = Callable[[Collection[str], int], None]


class HostWatch:
    """Threads that listen and pass on. ``on_any`` is called where anything may have changed.

    Addresses are listened to only where somebody follows them: a portal of a fixed address needs no news of it.
    """

    def __init__(self, on_device: OnDevice, on_any: Callable[[], None], *, addresses: bool) -> None:
        self._on_device = on_device
        self._on_any = on_any
        self._listeners = {"block devices": self._listen_to_udev}
        if addresses:
            self._listeners["addresses"] = self._listen_to_addresses

    def start(self) -> None:
        """Begin to listen. The threads end with the process: there is nothing that they could leave half done."""
        for what, listen in self._listeners.items():
            threading.Thread(
                target=self._keep_listening, args=(what, listen), name=f"watch {what}", daemon=True
            ).start()

    def _keep_listening(self, what: str, listen: Callable[[], None]) -> None:
        while True:
            try:
                listen()
            except ImportError as error:
                messages.NO_NEWS.tell(what=what, reason=error)
                return
            except OSError as error:  # a burst that did not fit into the kernel's queue, say
                messages.NEWS_LOST.tell(what=what, reason=error)
                self._on_any()
                time.sleep(_PAUSE)

    def _listen_to_udev(self) -> None:
        import pyudev  # looks for libudev when it is imported

        # udev's own news come after it has made the links; without a running udev there is only the kernel's.
        source = "udev" if Path("/run/udev/control").exists() else "kernel"
        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source)
        monitor.filter_by("block")
        for device in iter(monitor.poll, None):
            self._on_device({device.device_node, *device.device_links, *_mapper_names(device)}, device.device_number)

    def _listen_to_addresses(self) -> None:
        from pyroute2 import IPRoute, NetlinkError
        from pyroute2.netlink.rtnl import RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR

        try:
            with IPRoute() as route:  # made in the thread that reads it: it belongs to that thread's event loop
                route.bind(groups=RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR)
                while True:
                    for _ in route.get():
                        self._on_any()
        except NetlinkError as error:
            raise OSError(error.code, str(error)) from error


def _mapper_names(device: object) -> list[str]:
    """The name under which device-mapper's own library makes a node, where udev makes no link for it."""
    name = device.properties.get("DM_NAME")  # type: ignore[attr-defined]
    return [f"/dev/mapper/{name}"] if name else []
