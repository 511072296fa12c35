"""The server: a listening Unix socket, and one thread for each connection.

A connection's calls are answered in order, by its own thread; whoever wants calls side by side opens more
connections. A thread that writes to a client which does not read stops reading from it, so what a client can make
the daemon hold is one message and one answer, and of one uid all of these together are limited. Some connections are
reserved for admins, and a uid without a role gets none: others cannot lock an admin out. A connection that subscribed
has a second thread, which sends (notifications.py). Sockets of connections never block: a time-out of the socket module
would be shared by both threads.
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
from dataclasses import replace
from pathlib import Path

from volattachd.api.access import Access, Peer, peer_of
from volattachd.api.methods import Role
from volattachd.concurrency.locks import Deadline
from volattachd.errors import Busy, ConfigError, PermissionDenied, VolattachError
from volattachd.rpc import strictjson
from volattachd.rpc.dispatch import Client, Dispatcher, error_data, refusal
from volattachd.rpc.framing import Decoder, Frame
from volattachd.rpc.limits import Limits
from volattachd.rpc.notifications import ConnectionFeed, Outlet, wait_for
from volattachd.state.lock import is_past_running
from volattachd.telemetry import messages
from volattachd.telemetry.throttle import Throttle

log = logging.getLogger(__name__)

SOCKET_GROUP = "volattach"
#: sd_listen_fds(3): the first descriptor that systemd hands over.
_FIRST_ACTIVATED = 3
_BACKLOG = 128
_CHUNK = 65536
#: How long ``stop`` waits for answers that are being made, in seconds.
_LAST_ANSWERS = 2.0


class Server:
    """Serves one listening socket until it is stopped."""

    def __init__(
        self,
        listener: socket.socket,
        dispatcher: Dispatcher,
        access: Access,
        limits: Limits,
        throttle: Throttle | None = None,
    ) -> None:
        self._listener = listener
        self._dispatcher = dispatcher
        self.access = access
        self._limits = limits
        self._throttle = throttle or Throttle(limits.max_logged_refusals)
        self._held = Held(limits.max_held_bytes_per_uid)
        self._lock = threading.Lock()
        self._closed = threading.Condition(self._lock)
        #: Every connection with the peer that it counts for; the daemon's own count for nobody.
        self._open: dict[socket.socket, Client | None] = {}
        self._by_uid: Counter[int] = Counter()
        self._of_others = 0  # connections of those who are no admins
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
        client = Client(peer, role)
        refusal = self._register(connection, None if own else client)
        if refusal is not None:
            self._turn_away(connection, peer, refusal)
            return
        thread = threading.Thread(target=self._serve, args=(connection, client), name=f"uid {peer.uid}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no thread is to be had
            self._turn_away(connection, peer, Busy(f"the connection cannot be served now: {error}", "try again later"))
            self._unregister(connection)

    def _turn_away(self, connection: socket.socket, peer: Peer, refusal: VolattachError) -> None:
        self._throttle.tell(messages.CONNECTION_REFUSED, uid=peer.uid, pid=peer.pid, reason=refusal.message)
        connection.setblocking(False)
        _tell(Outlet(connection, 0), refusal)
        connection.close()

    def _register(self, connection: socket.socket, client: Client | None) -> VolattachError | None:
        with self._lock:
            refusal = None if client is None else self._refuse(client)
            if refusal is None:
                self._open[connection] = client
                self._count(client, 1)
            return refusal

    def _count(self, client: Client | None, more: int) -> None:
        if client is not None:
            self._by_uid[client.peer.uid] += more
            self._of_others += 0 if client.role >= Role.ADMIN else more
            if not self._by_uid[client.peer.uid]:
                del self._by_uid[client.peer.uid]

    def _refuse(self, client: Client) -> VolattachError | None:
        """Why a client cannot have another connection now; None where it can."""
        limits, uid = self._limits, client.peer.uid
        if client.role is Role.NOBODY:
            return PermissionDenied(f"uid {uid} has no role", "an admin grants roles in [access] of the configuration")
        if self._by_uid.total() >= limits.connections:
            return Busy(f"all {limits.connections} connections are in use", "close one, or try again later")
        for_others = limits.connections - min(limits.admin_connections, limits.connections // 2)
        if client.role < Role.ADMIN and self._of_others >= for_others:
            return Busy(
                f"all {for_others} connections that are not reserved for admins are in use",
                "close one, or try again later",
            )
        if self._by_uid[uid] >= limits.connections_per_uid:
            limit = limits.connections_per_uid
            return Busy(f"uid {uid} has all of its {limit} connections open", "close one, or try again later")
        return None

    def _serve(self, connection: socket.socket, client: Client) -> None:
        try:
            connection.setblocking(False)
            Conversation(connection, self._dispatcher, client, self._limits, self._held).run()
        except OSError as error:
            log.debug("the connection of uid %d pid %d ended: %s", client.peer.uid, client.peer.pid, error)
        finally:
            connection.close()
            self._unregister(connection)

    def _unregister(self, connection: socket.socket) -> None:
        with self._closed:
            self._count(self._open.pop(connection), -1)
            self._closed.notify_all()


class Held:
    """Bytes of unfinished messages and of answers that are not sent yet, for each uid."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._by_uid: Counter[int] = Counter()

    def change(self, uid: int, more: int) -> bool:
        """Count so many bytes more, or fewer; False, and nothing is counted, where they would be too many."""
        with self._lock:
            if more > 0 and self._by_uid[uid] + more > self._limit:
                return False
            self._by_uid[uid] += more
            if not self._by_uid[uid]:
                del self._by_uid[uid]
            return True

    def refusal(self, uid: int) -> Busy:
        """What is answered in place of what would be too much."""
        return Busy(
            f"uid {uid} has {self._limit} bytes of messages and answers under way ([limits] max_held_bytes_per_uid)",
            "read the answers, then send the call again",
        )


class Conversation:
    """One connection, from its first byte to its last."""

    def __init__(
        self, connection: socket.socket, dispatcher: Dispatcher, client: Client, limits: Limits, held: Held
    ) -> None:
        """``connection`` does not block."""
        self._connection = connection
        self._dispatcher = dispatcher
        self._limits = limits
        self._outlet = Outlet(connection, limits.unread_seconds)
        self._feed = ConnectionFeed(self._outlet, lambda: _shut(connection))
        self._client = replace(client, feed=self._feed, before_waiting=self._flush)
        self._uid = client.peer.uid
        self._held = held
        self._pending = 0  # bytes of an unfinished message that are counted
        self._answers = bytearray()
        self._decoder = Decoder()
        self._deadline: Deadline | None = None

    def run(self) -> None:
        """Answer message after message; returns at the end of the stream, or where it is broken."""
        try:
            self._converse()
        finally:
            self._held.change(self._uid, -self._pending)
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
            if not self._count_pending():
                _tell(self._outlet, self._held.refusal(self._uid))
                return

    def _count_pending(self) -> bool:
        pending = self._decoder.pending
        if not self._held.change(self._uid, pending - self._pending):
            return False
        self._pending = pending
        return True

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
        """Answer one frame; False if nothing that follows it is to be answered: the stream is to be closed."""
        if self._feed.waits:
            self._send_answers()
        try:
            if frame.error is not None:
                raise frame.error
            answer = self._dispatcher.answer(frame.data, self._client)
        except strictjson.Refused as error:
            return self._say(strictjson.dumps(refusal(error))) and not isinstance(error, strictjson.NotJson)
        return answer is None or self._say(answer)

    def _say(self, answer: bytes) -> bool:
        """Send the answer, or keep it for a moment; False if its uid has too much under way already."""
        if len(answer) > _CHUNK:
            self._flush()
            return self._send_long(answer)
        self._answers += answer + b"\n"
        if len(self._answers) > _CHUNK:
            self._flush()
        return True

    def _send_long(self, answer: bytes) -> bool:
        if not self._held.change(self._uid, len(answer)):
            _tell(self._outlet, self._held.refusal(self._uid))
            return False
        try:
            self._outlet.send(answer + b"\n")
        finally:
            self._held.change(self._uid, -len(answer))
        return True

    def _send_answers(self) -> None:
        """Send what is answered, and begin the notifications of a subscription that is answered by it."""
        self._flush()
        self._feed.answered()

    def _flush(self) -> None:
        """Send what is answered: calls that came together are answered together, unless one may take long."""
        answers, self._answers = bytes(self._answers), bytearray()
        if answers:
            self._outlet.send(answers)


def _tell(outlet: Outlet, error: VolattachError) -> None:
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
