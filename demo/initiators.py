"""Real initiators. Each logs in with connection info as ``initialize_connection`` gives it, and with nothing else.

A CHAP password is handed over in a pipe or a file that only root can read: in a process's arguments, everybody on
the host could see it.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

PATTERN = 0xA5
SIZE = 1 << 20

#: How long a command may take, in seconds: a login that is refused answers at once.
PATIENCE = 30.0


class Surprise(Exception):
    """Something is not as it should be; the message is one line."""


class Initiator(ABC):
    """One host, by its iSCSI name."""

    title: str

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def connect(self, data: Mapping[str, Any]) -> str:
        """Log in as a client would before ``attach``; what happened, in words."""

    @abstractmethod
    def write_and_read(self, data: Mapping[str, Any]) -> list[str]:
        """Write SIZE bytes of PATTERN from the start of the volume, and read them back from the target."""

    @abstractmethod
    def disconnect(self) -> str:
        """Log out; what happened, in words."""

    @abstractmethod
    def refusal(self, data: Mapping[str, Any], name: str | None = None) -> str:
        """Try to log in (as ``name``), and be refused by the target: its words. Raises Surprise where it lets in."""

    @abstractmethod
    def absence(self, data: Mapping[str, Any]) -> str:
        """Try to log in to a target that is gone: what came of it. Raises Surprise where it lets in.

        A target that serves nothing any more hangs up, or does not listen.
        """

    def close(self) -> None:  # noqa: B027 - not every initiator keeps something
        """Leave nothing behind, whatever happened."""


def choose(driver: str, name: str, scratch: Path) -> Initiator:
    """The kernel's initiator on a host whose kernel is the target too, else the one inside QEMU."""
    if driver == "lio" and shutil.which("iscsiadm") and _succeeds("modprobe", "iscsi_tcp"):
        return OpenIscsi(name)
    if shutil.which("qemu-io"):
        return QemuIo(name)
    raise Surprise("there is no initiator: install qemu-utils and qemu-block-extra (or open-iscsi, beside LIO)")


def _succeeds(*words: str) -> bool:
    try:
        return _run(words).returncode == 0
    except FileNotFoundError:
        return False


def _run(words: Sequence[str], pass_fds: Sequence[int] = ()) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
            pass_fds=pass_fds,
        )
    except subprocess.TimeoutExpired as error:
        raise Surprise(f"{words[0]} did not end within {PATIENCE:g} s") from error


def _one_line(text: str) -> str:
    return " ".join(text.split())


class QemuIo(Initiator):
    """The initiator inside QEMU (libiscsi), by its tool qemu-io. Each command is one session."""

    title = "qemu-io (QEMU's own initiator, libiscsi)"

    #: A target's refusal: status class 2 of the login response (RFC 7143 section 11.13.5), 0x0201 and up.
    _REFUSED = re.compile(r"Status: (.*\((51[2-9]|52\d)\))")
    _ABSENT = re.compile(r"(Target not found\(515\)|Connection refused|Can not reconnect right now)")

    def connect(self, data: Mapping[str, Any]) -> str:
        done = self._open(data, self.name, "length")
        if done.returncode:
            raise Surprise(f"the initiator cannot log in: {_one_line(done.stdout)}")
        return f"logged in: LUN {data['target_lun']} has {done.stdout.strip()}"

    def write_and_read(self, data: Mapping[str, Any]) -> list[str]:
        commands = [f"write -P {PATTERN:#x} 0 {SIZE}", "flush", f"read -P {PATTERN:#x} 0 {SIZE}"]
        done = self._open(data, self.name, *commands)
        if done.returncode or "verification failed" in done.stdout:
            raise Surprise(f"the initiator cannot write and read: {_one_line(done.stdout)}")
        said = [line for line in done.stdout.splitlines() if line.startswith(("wrote ", "read "))]
        return [*(f"qemu-io: {command}" for command in commands), *said]

    def disconnect(self) -> str:
        return "logged out: each command of qemu-io was a session of its own"

    def refusal(self, data: Mapping[str, Any], name: str | None = None) -> str:
        return self._failure(data, name or self.name, self._REFUSED)

    def absence(self, data: Mapping[str, Any]) -> str:
        return self._failure(data, self.name, self._ABSENT)

    def _failure(self, data: Mapping[str, Any], name: str, expected: re.Pattern[str]) -> str:
        done = self._open(data, name, "read 0 512")
        if done.returncode == 0:
            raise Surprise("the target let in an initiator that it must refuse")
        words = expected.search(done.stdout)
        if words is None:
            raise Surprise(f"the login failed, but not as it should: {_one_line(done.stdout)}")
        return words[1]

    def _open(self, data: Mapping[str, Any], name: str, *commands: str) -> subprocess.CompletedProcess[str]:
        """Open the LUN and run commands of qemu-io on it. The password goes through a pipe."""
        reading, writing = os.pipe()
        try:
            os.write(writing, data["auth_password"].encode())
            os.close(writing)
            options = {
                "driver": "iscsi",
                "transport": "tcp",
                "portal": data["target_portal"],
                "target": data["target_iqn"],
                "lun": data["target_lun"],
                "initiator-name": name,
                "user": data["auth_username"],
                "password-secret": "chap",
            }
            words = ["qemu-io", "--object", f"secret,id=chap,file=/proc/self/fd/{reading}", "--image-opts"]
            words.append(",".join(f"{key}={value}" for key, value in options.items()))
            words += [word for command in commands for word in ("-c", command)]
            return _run(words, pass_fds=(reading,))
        finally:
            os.close(reading)


class OpenIscsi(Initiator):
    """The kernel's initiator, by open-iscsi. Each name has an interface record of its own."""

    title = "open-iscsi (the kernel's initiator)"

    #: iscsiadm(8): the target said no (24: not authorised, 19: any other refusal that a retry does not change).
    _REFUSED = (19, 24)
    #: Where the records of nodes are, by the age of open-iscsi.
    _RECORDS = ("/etc/iscsi/nodes", "/var/lib/iscsi/nodes")

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._node: list[str] | None = None
        self._disk: Path | None = None

    def connect(self, data: Mapping[str, Any]) -> str:
        done = self._login(data, self.name)
        if done.returncode:
            raise Surprise(f"the initiator cannot log in: {_one_line(done.stdout)}")
        self._disk = self._appeared(data)
        return f"logged in: LUN {data['target_lun']} appeared as {self._disk}"

    def write_and_read(self, data: Mapping[str, Any]) -> list[str]:
        assert self._disk is not None
        pattern = bytes([PATTERN]) * SIZE
        fd = os.open(self._disk, os.O_RDWR | os.O_SYNC)
        try:
            written = os.pwrite(fd, pattern, 0)
            os.fsync(fd)
            _check(_run(["blockdev", "--flushbufs", str(self._disk)]))  # or the page cache would answer
            found = os.pread(fd, SIZE, 0)
        finally:
            os.close(fd)
        if written != SIZE or found != pattern:
            raise Surprise(f"{self._disk} does not give back what was written to it")
        return [f"wrote {SIZE} bytes of {PATTERN:#x} to {self._disk}", f"read {SIZE} bytes: the same"]

    def disconnect(self) -> str:
        assert self._node is not None
        _check(_run([*self._node, "--logout"]))
        disk, self._disk = self._disk, None
        self.close()
        if disk is not None and Path("/sys/block", disk.name).exists():
            raise Surprise(f"{disk} is still there after the logout")
        return f"logged out: {disk} is gone"

    def refusal(self, data: Mapping[str, Any], name: str | None = None) -> str:
        return self._failure(data, name or self.name, self._REFUSED)

    def absence(self, data: Mapping[str, Any]) -> str:
        host, _, port = data["target_portal"].rpartition(":")
        try:
            socket.create_connection((host, int(port)), PATIENCE).close()
        except ConnectionRefusedError:
            return "nobody listens"  # where iscsiadm would try for a while, as if the network were down
        return self._failure(data, self.name, self._REFUSED)

    def _failure(self, data: Mapping[str, Any], name: str, expected: Collection[int]) -> str:
        done = self._login(data, name)
        if done.returncode == 0:
            raise Surprise("the target let in an initiator that it must refuse")
        self.close()
        if done.returncode not in expected:
            raise Surprise(f"the login failed, but not as it should: {_one_line(done.stdout)}")
        words = re.search(r"error \((.*)\)", done.stdout)
        return words[1] if words else f"iscsiadm ended with {done.returncode}"

    def close(self) -> None:
        if self._node is not None:
            _run([*self._node, "--logout"])
            _run([*self._node, "-o", "delete"])
            _run(["iscsiadm", "-m", "iface", "-I", self._node[-1], "-o", "delete"])
            self._node = None

    def _login(self, data: Mapping[str, Any], name: str) -> subprocess.CompletedProcess[str]:
        iface = f"volattachd-demo-{name.rpartition(':')[2]}"
        record = ["iscsiadm", "-m", "iface", "-I", iface]
        _run([*record, "-o", "delete"])
        self._node = ["iscsiadm", "-m", "node", "-T", data["target_iqn"], "-p", data["target_portal"], "-I", iface]
        _check(_run([*record, "-o", "new"]))
        for key, value in (("initiatorname", name), ("transport_name", "tcp")):
            _check(_run([*record, "-o", "update", "-n", f"iface.{key}", "-v", value]))
        _check(_run([*self._node, "-o", "new"]))
        self._write_record(data)
        return _run([*self._node, "--login"])

    def _write_record(self, data: Mapping[str, Any]) -> None:
        """The settings go into the record of the node, which root alone can read."""
        settings = {
            "node.startup": "manual",
            "node.session.initial_login_retry_max": "1",
            "node.session.auth.authmethod": data["auth_method"],
            "node.session.auth.username": data["auth_username"],
            "node.session.auth.password": data["auth_password"],
        }
        below = [path for base in self._RECORDS for path in Path(base, data["target_iqn"]).rglob("*")]
        records = [path for path in below if path.is_file()]
        if not records:
            raise Surprise(f"open-iscsi keeps its records in none of {', '.join(self._RECORDS)}")
        for record in records:
            _set_values(record, settings)

    def _appeared(self, data: Mapping[str, Any]) -> Path:
        """The device of the LUN in our session, waiting a bounded time for udev."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for session in Path("/sys/class/iscsi_session").glob("session*"):
                if (session / "targetname").read_text().strip() == data["target_iqn"]:
                    for block in (session / "device").glob(f"target*/*:{data['target_lun']}/block/*"):
                        if Path("/dev", block.name).is_block_device():
                            return Path("/dev", block.name)
            time.sleep(0.05)
        raise Surprise(f"no disk of {data['target_iqn']} appeared within {PATIENCE:g} s")


def _set_values(record: Path, settings: Mapping[str, str]) -> None:
    """Change values in a record of open-iscsi: lines of ``name = value`` between two marks."""
    kept = [line for line in record.read_text().splitlines() if line.partition(" ")[0] not in settings]
    kept[-1:-1] = [f"{key} = {value}" for key, value in settings.items()]
    record.write_text("\n".join(kept) + "\n")


def _check(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise Surprise(f"{' '.join(done.args)}: {_one_line(done.stdout)}")
