"""A guest with systemd and the packages, driven from here by the commands that they install."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from tests.guest.harness.guest import Guest

#: As the guest's first boot names it.
INITIATOR = "iqn.1993-08.org.debian:01:guest"
CONNECTOR = {"initiator": INITIATOR, "ip": "127.0.0.1"}
SERVICE, SOCKET = "volattachd.service", "volattachd.socket"


class Installed:
    """The installed daemon in its guest."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def run(self, line: str, timeout: float = 120) -> str:
        """A line for the shell, which must succeed; the answer is its output."""
        return self.guest.run(line, timeout=timeout, check=True).stdout.strip()

    def call(self, method: str, **params: Any) -> Any:
        """One call through the installed command line, as root."""
        words = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in params.items()]
        return json.loads(self.run(f"volattach --json call {shlex.join([method, *words])}"))

    def show(self, name: str, unit: str = SERVICE) -> str:
        """One property of a unit."""
        return self.run(f"systemctl show --property={name} --value {unit}")

    def wait_for(self, line: str, timeout: float = 120) -> None:
        """Until a line for the shell succeeds."""
        self.run(f"until {line}; do sleep 0.2; done", timeout=timeout)

    def log(self) -> str:
        """What the daemon said, and systemd of it."""
        return self.run(f"journalctl --no-pager --output=cat --unit={SERVICE}")

    def settle(self, lines: str) -> None:
        """A drop-in for the service, from now on."""
        directory = f"/run/systemd/system/{SERVICE}.d"
        self.run(f"mkdir -p {directory} && printf '[Service]\\n{lines}\\n' >{directory}/test.conf")
        self.run("systemctl daemon-reload")

    def files(self) -> set[str]:
        """Every file of the root disk, and what is in the runtime directories that a package could leave."""
        passed_over = ["/var/log", "/var/cache", "/var/lib/dpkg", "/root", "/host", "/tmp", "/etc/iscsi", "/srv"]
        pruned = " -o ".join(f"-path {path}" for path in passed_over)
        disk = self.run(f"find / -xdev \\( {pruned} \\) -prune -o -print")
        runtime = self.run("find /run /dev/shm -maxdepth 2 -name '*volattach*'")
        return {*disk.splitlines(), *runtime.splitlines()}


def install(host: Installed, directory: str) -> str:
    """Install the packages of a directory; their dependencies are in the guest's image."""
    return host.run(f"DEBIAN_FRONTEND=noninteractive dpkg -i {Path(directory)}/*.deb 2>&1", timeout=180)
