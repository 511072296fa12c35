"""The way to a daemon on another host: ``ssh HOST volattach dial-stdio``, the convention of docker and libvirt.

Keys, users and audit are SSH's, and to the daemon the caller is the user that SSH logs in as.

Laws:

1. No word of an address is read by a shell: ssh is given a list of words, the host behind ``--``. What the far
   side's shell reads is fixed, but for the socket's path, which is quoted.
2. The way is open once the daemon has answered over it. Whatever ssh says before that, nothing was sent.
3. Nothing waits for longer than it was given, and ssh ends with the link.
4. ssh may ask its user (for a passphrase, a host's key) only where somebody sits at a terminal.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from typing import NamedTuple

from volattachd.client.protocol import AccessRefused, BadAnswer, Exchange, Unreachable
from volattachd.client.unix import Link

#: How ``volattach dial-stdio`` ends where it may not open the socket (cli/exit_codes.py), and a shell without it.
_REFUSED, _NOT_FOUND = 6, 127

#: How long ssh may take to end by itself, once nobody speaks over it any more.
_FAREWELL = 2.0
_CHUNK = 64 * 1024
_WORDS_MAX = 2000

#: A user, and a host: a name, an alias of ssh's configuration, or an address. None can begin like an option.
_USER = r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]*"
_NAME = r"[A-Za-z0-9_.][A-Za-z0-9_.-]*"
_ADDRESS = re.compile(
    rf"ssh://(?:(?P<user>{_USER})@)?(?:(?P<name>{_NAME})|\[(?P<ip>[0-9A-Fa-f:.]+(?:%{_NAME})?)\])"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<socket>/[^\x00-\x1f\x7f]*)?"
)


class Host(NamedTuple):
    """A host as ssh reaches it, and the daemon's socket there where it is not the usual one."""

    name: str
    user: str | None = None
    port: int | None = None
    socket: str | None = None


def parse_address(address: str) -> Host:
    """The host of ``ssh://[user@]host[:port][/socket]``. Raises ValueError."""
    found = _ADDRESS.fullmatch(address)
    port = int(found["port"]) if found and found["port"] else None
    if found is None or (port is not None and not 0 < port < 65536):
        raise ValueError(f"{address!r} is not ssh://[user@]host[:port][/socket]")
    path = found["socket"] if found["socket"] not in (None, "/") else None
    return Host(found["name"] or found["ip"], found["user"], port, path)


def command(host: Host, timeout: float, interactive: bool) -> list[str]:
    """The words that start ssh.

    What its configuration forwards or runs besides is left out: this connection carries calls and nothing else.
    """
    options = {
        "BatchMode": "no" if interactive else "yes",
        "ConnectTimeout": str(max(1, round(timeout))),
        "ServerAliveInterval": "15",  # a host that has gone ends a `watch` within a minute
        "ClearAllForwardings": "yes",
        "RemoteCommand": "none",
    }
    words = ["ssh", "-T", "-a", "-x", *[word for name, value in options.items() for word in ("-o", f"{name}={value}")]]
    far = ["volattach", *(["--socket", host.socket] if host.socket else []), "dial-stdio"]
    return [*words, *_destination(host), shlex.join(far)]


def resolve(address: str) -> str:
    """The name or address that ssh connects to: its configuration may know the host by another name."""
    host = parse_address(address)
    try:
        done = subprocess.run(["ssh", "-G", *_destination(host)], capture_output=True, text=True, timeout=_FAREWELL)
    except (OSError, subprocess.TimeoutExpired):
        return host.name
    found = re.search(r"^hostname (\S+)$", done.stdout, re.MULTILINE)
    return found[1] if found else host.name


def _destination(host: Host) -> list[str]:
    """The words that name the host to ssh."""
    user = ["-l", host.user] if host.user else []
    port = ["-p", str(host.port)] if host.port else []
    return [*user, *port, "--", host.name]


def dial(address: str, timeout: float) -> SshLink:
    """Opens the way within ``timeout`` seconds. Raises Unreachable, AccessRefused, or what the daemon says."""
    try:
        host = parse_address(address)
    except ValueError as error:
        raise Unreachable(
            f"cannot reach a daemon: {error}", "ssh://storage1, say, or ssh://ops@storage1:2222"
        ) from None
    link = _start(address, command(host, timeout, _at_terminal()))
    try:
        link.meet(time.monotonic() + timeout, timeout)
    except BaseException:
        link.close()
        raise
    return link


class SshLink(Link):
    """A running ssh. Both its ends are one socket; what it complains about is kept in memory."""

    def __init__(self, address: str, connection: socket.socket, process: subprocess.Popen[bytes], said: int) -> None:
        super().__init__(connection)
        self._address = address
        self._process = process
        self._said = said

    def close(self) -> None:
        """As Link says. ssh's end is waited for, and hurried where it takes long."""
        super().close()
        if self._said < 0:
            return
        for hurry in (self._process.poll, self._process.terminate, self._process.kill):
            hurry()
            if self._has_ended():
                break
        os.close(self._said)
        self._said = -1

    def last_words(self) -> str | None:
        """As Link says."""
        if not self._has_ended():
            return None
        said = "; ".join(line.strip() for line in self._stderr().splitlines() if line.strip())
        status = f"ssh ended with status {self._process.returncode}"
        return f"{status}: {said}" if said else status

    def meet(self, deadline: float, timeout: float) -> None:
        """Wait until the daemon has answered over the link, whatever it answers."""
        exchange = Exchange(self._address)
        call_id, request = exchange.ask("get_status")
        try:
            self.socket.sendall(request)
            while exchange.outcome(call_id) is None:
                exchange.feed(self._read(deadline))
        except TimeoutError:
            raise Unreachable(
                f"cannot reach the daemon at {self._address}: nothing came through ssh within {timeout:.3g} s",
                f"try it by hand: {self._by_hand()}",
            ) from None
        except BadAnswer as error:
            correction = f"a shell's start-up file that prints something does this: see what comes of {self._by_hand()}"
            raise BadAnswer(error.message, correction) from error
        except OSError:
            raise self._refusal() from None

    def _read(self, deadline: float) -> bytes:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self.socket.settimeout(remaining)
        data = self.socket.recv(_CHUNK)
        if not data:
            raise ConnectionResetError
        return data

    def _refusal(self) -> Unreachable:
        """Why the link ended before the daemon answered."""
        message = f"cannot reach the daemon at {self._address}: {self.last_words() or 'ssh closed the connection'}"
        if self._process.returncode == _REFUSED:
            return AccessRefused(message, "become a member of the daemon's group on that host")
        if self._process.returncode == _NOT_FOUND:
            return Unreachable(message, "install volattach on that host, where ssh's PATH finds it")
        return Unreachable(message, f"try it by hand: {self._by_hand()}")

    def _by_hand(self) -> str:
        return shlex.join(["ssh", *_destination(parse_address(self._address)), "volattach", "status"])

    def _has_ended(self) -> bool:
        try:
            self._process.wait(_FAREWELL)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _stderr(self) -> str:
        """The end of what ssh and the far side complained about."""
        begin = max(0, os.fstat(self._said).st_size - _WORDS_MAX)
        return os.pread(self._said, _WORDS_MAX, begin).decode(errors="replace")


def _start(address: str, words: list[str]) -> SshLink:
    """Start ssh. A file takes its complaints: nobody has to read a pipe, and a master of ssh's may keep it open."""
    ours, theirs = socket.socketpair()
    said = os.memfd_create("ssh's complaints", os.MFD_CLOEXEC)
    with theirs:
        try:
            process = subprocess.Popen(words, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=said)
        except OSError as error:
            ours.close()
            os.close(said)
            message = f"cannot reach the daemon at {address}: cannot start ssh: {error.strerror}"
            raise Unreachable(message, "install ssh (Debian: openssh-client)") from error
    return SshLink(address, ours, process, said)


def _at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty()
