"""open-iscsi: its records of nodes, and logins.

Laws:

1. A secret goes into the record's file, which root alone can read, and never through iscsiadm's arguments, which
   everybody can. ``iscsiadm -o new`` makes the record from the host's settings, still without a secret; the file
   is then exchanged whole, by a rename, so a reader never sees half of one.
2. A record names the initiator that the daemon granted, so what is logged in is what was asked for, whatever
   iscsid read when it started.
3. iscsiadm reads the records of every target for each command, and fails where one goes meanwhile. So our agents change
   records one at a time, and a command that has met somebody's change is sent again: it had no effect yet.
4. Nothing is left: not the record, nor its directories, nor a file of ours, after ``forget``. Nothing starts by itself
   after a reboot.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from volattachd.agent.answers import IscsiInfo
from volattachd.agent.errors import ConnectFailed, ConnectorUnusable, PortalBusy, PortalSilent
from volattachd.agent.runtime import only_one, runtime_directory

INITIATOR_NAME = Path("/etc/iscsi/initiatorname.iscsi")

#: Where open-iscsi keeps its records, by its age.
BASES = (Path("/etc/iscsi"), Path("/var/lib/iscsi"))

#: Seconds for one command: a login that nobody answers ends by itself after login_timeout.
_COMMAND_SECONDS = 120.0
_LOGIN_SECONDS = 15

#: iscsiadm(8), EXIT STATUS.
_SESSION_EXISTS, _NO_RECORD, _DATABASE = 15, 21, 6

#: A login that ran out of time, before and after the connection was accepted. It is no refusal: a target takes logins
#: one after the other (LIO has a thread for each portal), and one that sends nothing holds up the others for 15 s.
_OUT_OF_TIME: dict[int, type[ConnectFailed]] = {8: PortalSilent, 11: PortalBusy}

#: For how long a command is sent again that met a change of the records, and the pause before, in seconds.
_DATABASE_SECONDS, _DATABASE_PAUSE = 30.0, 0.1
_WORDS = {
    4: "the portal cannot be reached",
    8: "the portal does not answer",
    11: "the portal accepts the connection and does not come to the login: it takes one login after the other",
    19: "the target refused the login",
    20: "iscsid does not run, or does not answer",
    24: "the target refused the name or the secret",
}


def initiator_name(path: Path = INITIATOR_NAME) -> str:
    """The name that this host logs in with."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise ConnectorUnusable(f"this host has no {path}", "install open-iscsi") from error
    except PermissionError as error:
        raise ConnectorUnusable(f"only root can read {path}", "become root, or use the connector qemu") from error
    for line in lines:
        if line.startswith("InitiatorName="):
            return line.partition("=")[2].strip()
    raise ConnectorUnusable(f"{path} has no line InitiatorName=", "iscsi-iname makes a name")


class Node:
    """A target as open-iscsi's records know it."""

    def __init__(self, target_name: str, bases: Sequence[Path] = BASES) -> None:
        self.target_name = target_name
        self._bases = bases

    def record(self, portal: str, settings: Mapping[str, str]) -> None:
        """A record with exactly these settings beside the host's own."""
        with _records_alone():
            _check(self._iscsiadm("-p", portal, "-o", "new"), f"cannot make open-iscsi's record of {portal}")
            found = list(self._records())
            if not found:
                raise ConnectFailed(f"open-iscsi keeps its records in none of {', '.join(map(str, self._bases))}")
            for base, path in found:
                self._exchange(base, path, settings)

    def log_in(self, portal: str) -> None:
        """Log in; a session that is there is as good as a new one. Raises PortalSilent if time ran out."""
        done = self._iscsiadm("-p", portal, "--login")
        if done.returncode != _SESSION_EXISTS:
            error = _OUT_OF_TIME.get(done.returncode, ConnectFailed)
            _check(done, f"cannot log in to {self.target_name} at {portal}", error)

    def forget(self) -> None:
        """Remove the records, and what an agent left that died while it wrote one."""
        with _records_alone():
            for base in self._bases:
                self._scratch(base).unlink(missing_ok=True)
            done = self._iscsiadm("-o", "delete")
        if done.returncode != _NO_RECORD:
            _check(done, f"cannot remove open-iscsi's record of {self.target_name}")

    def is_known(self) -> bool:
        """Whether a record or a rest of one is there (as far as this user may look)."""
        return any(os.path.exists(base / "nodes" / self.target_name) for base in self._bases) or any(
            os.path.exists(self._scratch(base)) for base in self._bases
        )

    def _records(self) -> Iterator[tuple[Path, Path]]:
        for base in self._bases:
            for path in sorted((base / "nodes" / self.target_name).rglob("*")):
                if path.is_file():
                    yield base, path

    def _scratch(self, base: Path) -> Path:
        return base / f".{self.target_name}.new"

    def _exchange(self, base: Path, path: Path, settings: Mapping[str, str]) -> None:
        scratch = self._scratch(base)
        scratch.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(scratch, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(with_settings(path.read_text(encoding="utf-8"), settings))
        os.replace(scratch, path)

    def _iscsiadm(self, *words: str) -> subprocess.CompletedProcess[str]:
        deadline = time.monotonic() + _DATABASE_SECONDS
        while True:
            done = run("iscsiadm", "-m", "node", "-T", self.target_name, *words)
            if done.returncode != _DATABASE or time.monotonic() >= deadline:
                return done
            time.sleep(_DATABASE_PAUSE)


def _records_alone() -> AbstractContextManager[None]:
    return only_one(runtime_directory() / "open-iscsi.lock", "records")


def with_settings(record: str, settings: Mapping[str, str]) -> str:
    """A record's text with these values; its lines are ``name = value`` between two marks."""
    lines = [line for line in record.splitlines() if line.partition(" = ")[0] not in settings]
    last = next((n for n, line in enumerate(lines) if line.startswith("# END RECORD")), len(lines))
    lines[last:last] = [f"{key} = {value}" for key, value in settings.items()]
    return "\n".join(lines) + "\n"


def settings_for(initiator: str, info: IscsiInfo, one_of_several: bool = False) -> dict[str, str]:
    """What a record needs beside the host's own settings. One path of several gives up soon: the others go on."""
    soon = {"node.session.timeo.replacement_timeout": str(_LOGIN_SECONDS)} if one_of_several else {}
    return {
        **soon,
        "node.startup": "manual",
        "node.conn[0].startup": "manual",
        "node.conn[0].timeo.login_timeout": str(_LOGIN_SECONDS),
        "node.session.initial_login_retry_max": "1",  # the command fails; whoever wants it tried again sends it again
        "node.session.auth.authmethod": "CHAP",
        "node.session.auth.username": info.username,
        "node.session.auth.password": info.password,
        "iface.initiatorname": initiator,
    }


def log_out(session_number: str) -> None:
    """End one session, whether there is a record of it or not."""
    done = run("iscsiadm", "-m", "session", "-r", session_number, "--logout")
    if done.returncode != _NO_RECORD:
        _check(done, f"cannot log out of session {session_number}")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """One command. Raises ConnectorUnusable where it is not installed, ConnectFailed where it does not end."""
    if shutil.which(words[0]) is None:
        package = {"iscsiadm": "open-iscsi", "multipath": "multipath-tools", "multipathd": "multipath-tools"}
        raise ConnectorUnusable(f"{words[0]} is not installed", f"install {package.get(words[0], words[0])}")
    try:
        return subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ConnectFailed(f"{' '.join(words)} did not end within {_COMMAND_SECONDS:g} s") from error


def _check(done: subprocess.CompletedProcess[str], what: str, error: type[ConnectFailed] = ConnectFailed) -> None:
    if done.returncode:
        told = " ".join(done.stdout.split())[-300:]
        why = _WORDS.get(done.returncode, f"{done.args[0]} ended with {done.returncode}")
        raise error(f"{what}: {why} ({told})" if told else f"{what}: {why}")
