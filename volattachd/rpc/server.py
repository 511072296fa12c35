"""The server: a listening Unix socket, and one thread for each connection.

A connection's calls are answered in order, by its own thread; whoever wants calls side by side opens more
connections. A thread that writes to a client which does not read stops reading from it, so what a client can make
the daemon hold is one message and one answer. A connection that subscribed has a second thread, which sends
(events.py). Sockets of connections never block: a time-out of the socket module would be shared by both threads.
"""

from __future__ import annotations

import grp
import logging
import os
import select
import socket
import stat
import threading
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from volattachd.api.access import Access, Peer, peer_of
from volattachd.api.methods import Role
from volattachd.concurrency.locks import Deadline
from volattachd.errors import Busy, ConfigError
from volattachd.rpc import strictjson
from volattachd.rpc.dispatch import Client, Dispatcher, error_data, refusal
from volattachd.rpc.framing import Decoder, Frame
from volattachd.rpc.notifications import ConnectionFeed, Outlet, wait_for
from volattachd.state.lock import is_past_running
from volattachd.telemetry import messages

log = logging.getLogger(__name__)

SOCKET_GROUP = "volattach"
#: sd_listen_fds(3): the first descriptor that systemd hands over.
_FIRST_ACTIVATED = 3
_BACKLOG = 128
_CHUNK = 65536
#: How long ``stop`` waits for answers that are being made, in seconds.
_LAST_ANSWERS = 2.0


@dataclass(frozen=True)
class Limits:
    """What clients may take. Times in seconds."""

    connections: int
    connections_per_uid: int
    message_seconds: float
    unread_seconds: float


class Server:
    """Serves one listening socket until it is stopped."""

    def __init__(self, listener: socket.socket, dispatcher: Dispatcher, access: Access, limits: Limits) -> None:
        self._listener = listener
        self._dispatcher = dispatcher
        self.access = access
        self._limits = limits
        self._lock = threading.Lock()
        self._closed = threading.Condition(self._lock)
        #: Every connection with the uid that it counts for; the daemon's own count for nobody.
        self._open: dict[socket.socket, int | None] = {}
        self._by_uid: Counter[int] = Counter()
        self._stopping = False
        self._wake, self._woken = socket.socketpair()

    def run(self) -> None:
        """Accept until ``stop``."""
        # accept(2) must not block: nothing could wake it but shutdown(2), which would also end systemd's socket.
        self._listener.setblocking(False)
        self._woken.setblocking(False)
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        with self._listener, self._woken:
            while not self._stopping:
                poll.poll()
                if not self._stopping:
                    self._accept()
                    self._take_own()

    def connect(self) -> socket.socket:
        """A connection from the daemon to itself, with a reader's role.

        It goes the way of every other, but the limits do not count it: clients cannot take its place, nor it theirs.
        Raises OSError once the server is stopped.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._wake, [b"."], [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        return ours

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return  # the client went away again
        except OSError as error:
            messages.ACCEPT_FAILED.tell(reason=error)
            threading.Event().wait(0.1)  # out of descriptors, say: do not spin
            return
        self._admit(connection)

    def _take_own(self) -> None:
        """Take what ``connect`` has handed over."""
        try:
            _, descriptors, _, _ = socket.recv_fds(self._woken, 1, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return  # there is none
        for descriptor in descriptors:
            self._admit(socket.socket(fileno=descriptor), own=True)

    def stop(self) -> None:
        """Accept no more, and end every connection after the answer that is being made."""
        self._stopping = True
        self._wake.close()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            _shut(connection)
        with self._closed:
            self._closed.wait_for(lambda: not self._open, _LAST_ANSWERS)

    def _admit(self, connection: socket.socket, own: bool = False) -> None:
        try:
            peer = peer_of(connection)
        except OSError as error:
            messages.PEER_UNKNOWN.tell(reason=error)
            connection.close()
            return
        role = Role.READER if own else self.access.role_of(peer)
        refusal = self._register(connection, None if own else peer.uid)
        if refusal is not None:
            self._turn_away(connection, peer, refusal)
            return
        thread = threading.Thread(
            target=self._serve, args=(connection, Client(peer, role)), name=f"uid {peer.uid}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # no thread is to be had
            self._turn_away(connection, peer, Busy(f"the connection cannot be served now: {error}", "try again later"))
            self._unregister(connection)

    def _turn_away(self, connection: socket.socket, peer: Peer, refusal: Busy) -> None:
        messages.CONNECTION_REFUSED.tell(uid=peer.uid, pid=peer.pid, reason=refusal.message)
        connection.setblocking(False)
        _tell(Outlet(connection, 0), refusal)
        connection.close()

    def _register(self, connection: socket.socket, uid: int | None) -> Busy | None:
        with self._lock:
            refusal = None if uid is None else self._refuse(uid)
            if refusal is None:
                self._open[connection] = uid
                self._by_uid.update(() if uid is None else (uid,))
            return refusal

    def _refuse(self, uid: int) -> Busy | None:
        """Why a client of that uid cannot have another connection now; None where it can."""
        if self._by_uid.total() >= self._limits.connections:
            return Busy(f"all {self._limits.connections} connections are in use", "close one, or try again later")
        if self._by_uid[uid] >= self._limits.connections_per_uid:
            limit = self._limits.connections_per_uid
            return Busy(f"uid {uid} has all of its {limit} connections open", "close one, or try again later")
        return None

    def _serve(self, connection: socket.socket, client: Client) -> None:
        try:
            connection.setblocking(False)
            Conversation(connection, self._dispatcher, client, self._limits).run()
        except OSError as error:
            log.debug("the connection of uid %d pid %d ended: %s", client.peer.uid, client.peer.pid, error)
        finally:
            connection.close()
            self._unregister(connection)

    def _unregister(self, connection: socket.socket) -> None:
        with self._closed:
            uid = self._open.pop(connection)
            self._by_uid.subtract(() if uid is None else (uid,))
            self._closed.notify_all()


class Conversation:
    """One connection, from its first byte to its last."""

    def __init__(self, connection: socket.socket, dispatcher: Dispatcher, client: Client, limits: Limits) -> None:
        """``connection`` does not block."""
        self._connection = connection
        self._dispatcher = dispatcher
        self._limits = limits
        self._outlet = Outlet(connection, limits.unread_seconds)
        self._feed = ConnectionFeed(self._outlet, lambda: _shut(connection))
        self._client = replace(client, feed=self._feed, before_waiting=self._send_answers)
        self._answers = bytearray()
        self._decoder = Decoder()
        self._deadline: Deadline | None = None

    def run(self) -> None:
        """Answer message after message; returns at the end of the stream, or where it is broken."""
        try:
            self._converse()
        finally:
            self._feed.unfollow()

    def _converse(self) -> None:
        while True:
            data = self._receive()
            if data is None:
                seconds = self._limits.message_seconds
                _tell(
                    self._outlet, Busy(f"the message was not complete after {seconds:g} s", "send it again in one go")
                )
                return
            frames = self._decoder.feed(data) if data else self._decoder.close()
            if frames:
                self._deadline = None  # the message that is pending now began in this packet
            goes_on = all(self._handle(frame) for frame in frames)
            self._send_answers()
            if not goes_on or self._decoder.broken:
                return

    def _receive(self) -> bytes | None:
        """The next bytes; empty at the end of the stream, None where a message took too long."""
        if not self._decoder.pending:
            self._deadline = None
        elif self._deadline is None:
            self._deadline = Deadline(self._limits.message_seconds)
        while wait_for(self._connection, select.POLLIN, self._deadline):
            try:
                return self._connection.recv(_CHUNK)
            except BlockingIOError:
                continue
        return None

    def _handle(self, frame: Frame) -> bool:
        """Answer one frame; False where what follows it cannot be trusted: the stream is to be closed."""
        try:
            if frame.error is not None:
                raise frame.error
            answer = self._dispatcher.answer(frame.data, self._client)
        except strictjson.Refused as error:
            self._say(strictjson.dumps(refusal(error)))
            return not isinstance(error, strictjson.NotJson)
        if answer is not None:
            self._say(answer)
        return True

    def _say(self, answer: bytes) -> None:
        self._answers += answer + b"\n"
        if len(self._answers) > _CHUNK:
            self._send_answers()

    def _send_answers(self) -> None:
        """Send what is answered: calls that came together are answered together, unless one may take long."""
        answers, self._answers = bytes(self._answers), bytearray()
        if answers:
            self._outlet.send(answers)
        self._feed.answered()


def _tell(outlet: Outlet, error: Busy) -> None:
    body = {"code": error.code, "message": error.message, "data": error_data(error)}
    try:
        outlet.send(strictjson.dumps({"jsonrpc": "2.0", "error": body, "id": None}) + b"\n")
    except OSError as failure:
        log.debug("could not tell a client why it is refused: %s", failure)


def _shut(connection: socket.socket) -> None:
    """End the reading: what is being answered still goes out."""
    try:
        connection.shutdown(socket.SHUT_RD)
    except OSError as error:
        log.debug("a connection was closed already: %s", error)


# The listening socket.


def activated_socket() -> socket.socket | None:
    """The socket that systemd hands over (sd_listen_fds(3)), or None where it hands over none."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS", "0") == "0":
        return None
    listener = socket.socket(fileno=_FIRST_ACTIVATED)
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM:
        raise ConfigError("the socket that systemd handed over is not a Unix stream socket: see ListenStream=")
    os.set_inheritable(_FIRST_ACTIVATED, False)
    return listener


def bind_socket(path: Path) -> socket.socket:
    """Listen on ``path`` with mode 0660, root and group ``volattach`` (where there is one).

    The mode is set by the umask before the socket exists: there is no moment in which others could connect. Call
    it before there are threads, because the umask is the whole process's.
    Raises ConfigError where another process serves the path, where it is not a socket, and where the system refuses.
    """
    try:
        _make_way(path)
        return _listen(path)
    except OSError as error:
        raise ConfigError(f"cannot listen on {path}: {error.strerror or error}") from error


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _bind(listener, path)
        _give_to_group(path)
        listener.listen(_BACKLOG)
    except (OSError, ConfigError):
        listener.close()
        raise
    return listener


def _bind(listener: socket.socket, path: Path) -> None:
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)


def _give_to_group(path: Path) -> None:
    """Which a sandbox may forbid: under the unit it is systemd that makes the socket, and hands it over."""
    gid = _group_id(SOCKET_GROUP)
    try:
        if gid is not None:
            os.chown(path, -1, gid)
        os.chmod(path, 0o660)
    except OSError as error:
        reason = f"cannot give it to the group {SOCKET_GROUP}: {error.strerror}"
        raise ConfigError(f"cannot listen on {path}: {reason}; start volattachd.socket, which makes it") from error


def _make_way(path: Path) -> None:
    """Remove a socket that nobody serves any more, and nothing else."""
    try:
        path.parent.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot listen on {path}: cannot make {path.parent}: {error.strerror}") from error
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is not a socket")
    if not _is_served(path):
        path.unlink()
        return
    raise ConfigError(f"another process serves {path}")


def _is_served(path: Path) -> bool:
    """Whether somebody listens who will answer: a killed daemon that cannot end yet still has its socket open."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
            return not is_past_running(peer_of(probe).pid)
        except ConnectionRefusedError:
            return False


def _group_id(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
