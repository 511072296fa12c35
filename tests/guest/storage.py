"""A storage host and a compute host, each a guest with a kernel of its own, driven from here by shipped commands."""

from __future__ import annotations

import json
import shlex
from typing import Any

from tests.guest.harness.guest import Guest

SOCKET = "/run/volattachd.sock"
STATE = "/var/lib/volattachd"
REPO = "/host/repo"
CLI = f"python3 -m volattachd.cli --socket {SOCKET}"
INITIATOR = "iqn.2026-11.com.example:compute"


class StorageHost:
    """The daemon in a guest, and ``volattach`` beside it."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        guest.run("mkdir -p /etc/volattachd && echo '[target]' >/etc/volattachd/volattachd.toml", check=True)
        guest.run("sync", check=True)

    def launch(self) -> None:
        """Start the daemon."""
        words = f"--driver lio --state-dir {STATE} --socket {SOCKET}"
        self.guest.start(f"exec python3 -m volattachd {words} 2>>/host/out/volattachd.log", cwd=REPO)

    def start(self) -> None:
        """Start the daemon and wait until it serves."""
        self.launch()
        serves = f"test -S {SOCKET} && {CLI} status >/dev/null"
        self.guest.run(f"until {serves}; do sleep 0.1; done", timeout=60, check=True, cwd=REPO)

    def call(self, method: str, **params: Any) -> Any:
        """One call through the command line."""
        words = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in params.items()]
        line = f"{CLI} --json call {shlex.join([method, *words])}"
        return json.loads(self.guest.run(line, timeout=60, check=True, cwd=REPO).stdout)

    def attach(self, volume: str, ip: str) -> dict[str, Any]:
        """Reserve, initialize and attach for the compute host; the answer is the connection info."""
        self.call("reserve_volume", volume=volume)
        info: dict[str, Any] = self.call(
            "initialize_connection", volume=volume, connector={"initiator": INITIATOR, "ip": ip}
        )
        self.call("attach", volume=volume, host_name="compute")
        return info


def login(compute: Guest, info: dict[str, Any], patience: int) -> str:
    """Log the compute host in, under its name; the answer is its disk."""
    compute.run(f"echo InitiatorName={INITIATOR} >/etc/iscsi/initiatorname.iscsi", check=True)
    compute.run("iscsiadm -k 0; iscsid", check=True)
    return log_in(compute, info, patience)


def log_in(compute: Guest, info: dict[str, Any], patience: int) -> str:
    """A session of a guest as it is; the answer is its disk. I/O waits ``patience`` seconds for a lost session."""
    data = info["data"]
    node = f"iscsiadm -m node -T {data['target_iqn']} -p {data['target_portal']}"
    settings = {
        "node.session.auth.authmethod": "CHAP",
        "node.session.auth.username": data["auth_username"],
        "node.session.auth.password": data["auth_password"],
        "node.session.timeo.replacement_timeout": patience,
        "node.conn[0].timeo.noop_out_interval": 1,
        "node.conn[0].timeo.noop_out_timeout": 2,
    }
    updates = " ".join(f"-n {key} -v {value}" for key, value in settings.items())
    compute.run(f"{node} -o new && {node} -o update {updates} && {node} --login && udevadm settle", check=True)
    path = f"/dev/disk/by-path/ip-{data['target_portal']}-iscsi-{data['target_iqn']}-lun-{data['target_lun']}"
    return compute.run(f"readlink -f {path}", check=True).stdout.strip()
