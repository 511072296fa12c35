"""A daemon that answers every call as the real one would, with one value exchanged for an evil one.

``places()`` are the values that it can exchange: each member of each answer, and each answer as a whole. It keeps one
attachment's state, so that an agent comes as far as it lets itself be brought.
"""

from __future__ import annotations

import copy
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

VOLUME = "vol-1"
TARGET = "iqn.2026-11.org.volattachd:vol-1.6f1c8a52"
SERIAL = "6f1c8a52-9d0e-4b7a-8f23-5c1d2e3f4a5b"
PASSWORD = "s0123456789abcdef0123456789abcde"

#: Values for any place. A lone surrogate, an infinity or a longer integer does not get through the client's JSON.
EVIL: tuple[Any, ...] = (
    *("", " ", ".", "..", "/", "../x", "../../../tmp/x", "/../../../tmp/x", "iqn.2026-11.org.example:../../x"),
    *("x\ny = z", "\n", "x\r", "x\0y", "x\ty", "x y", "\x1b[2J\x1b]0;x\x07", "\x9b31m", "\u202egnp\u2028"),
    *("\ufeff", "é"),
    *("-oProxyCommand=x", "--help", "$(touch /tmp/x)", "`id`", "a;b", "a|b", "a'b\"c", "a\\b", "*", "%s%n", "{0}"),
    *("<x y='z'/>", "&lt;", "]]>", "NULL", "0b01", "x" * 256, "x" * 100_000, "127.0.0.1", "127.0.0.1:0", "h:3260"),
    *("127.0.0.1:99999", "127.0.0.1:3260 x", "[::1%x]:3260", "127.0.0.1:3260\n", "[127.0.0.1]:3260", "0x7f.1:3260"),
    *(-1, 0.5, 1 << 62, True, False, None, [], {}, ["x"], {"x": "\n"}, [[[[[[[[[[]]]]]]]]]]),
)  # fmt: skip


#: Those among them that a user name or a secret may be: they mean nothing to a record of open-iscsi, QEMU or a shell.
HARMLESS = ("NULL", "0b01", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999", "h:3260", "0x7f.1:3260")


class Place(NamedTuple):
    """One value in the answer of one method: the members and indices that lead to it."""

    method: str
    path: tuple[str | int, ...]

    def __str__(self) -> str:
        return ".".join(map(str, (self.method, *self.path)))


class Honest:
    """What the real daemon would answer about one volume and its one attachment."""

    def __init__(
        self, volume_type: str = "iscsi", state: str | None = None, attachment_id: str = "", made_by: str = "qemu"
    ) -> None:
        self.volume_type = volume_type
        self.row: dict[str, Any] | None = None
        if state is not None:
            self.row = {**self._new(attachment_id), "state": state, "connector": _connector(made_by)}

    def answer(self, method: str, params: dict[str, Any]) -> Any:
        """The result of a call."""
        if method == "reserve_volume":
            self.row = self.row or self._new(params["attachment_id"])
        if method == "initialize_connection" and self.row:
            self.row.update(state="connected", connector=params["connector"])
        moves = {
            "attach": "attached",
            "begin_detaching": "detaching",
            "roll_detaching": "attached",
            "terminate_connection": "disconnected" if self.row and self.row["state"] == "detaching" else "gone",
        }
        if method in moves and self.row:
            self.row["state"] = moves[method]
        shown = copy.deepcopy(self.row)
        if (method in ("detach", "unreserve_volume")) or (self.row and self.row["state"] == "gone"):
            self.row = None
        return self._answers(method, shown)

    def _answers(self, method: str, row: dict[str, Any] | None) -> Any:
        answers: dict[str, Any] = {
            "get_status": status(),
            "list_volumes": [self._volume()],
            "list_attachments": [row] if row else [],
            "initialize_connection": self._connection(row),
            "get_history": [_change(row)],
            "get_metrics": "# TYPE volattachd_sessions gauge\nvolattachd_sessions 3.0\n",
            "reconcile": {"dry_run": True, "volumes": [_reconciled()]},
            "show_attachment": row,
        }
        if method in ("show_volume", "detach", "unreserve_volume"):
            return self._volume()
        return answers.get(method, row)

    def _new(self, attachment_id: str) -> dict[str, Any]:
        named = {"attachment_id": attachment_id, "volume": VOLUME, "state": "reserved", "mode": "rw", "owner": 0}
        used = {"connector": None, "instance_uuid": None, "host_name": "host-a", "mount_point": None}
        return {**named, **used, "created_at": 1.0, "updated_at": 1.0}

    def _volume(self) -> dict[str, Any]:
        condition = {"kind": "DeviceMissing", "message": "it is gone", "since": 1.0}
        return {
            "volume": VOLUME,
            "path": "/srv/vol-1",
            "size": 1 << 20,
            "status": "available",
            "multiattach": False,
            "read_only": False,
            "target_name": TARGET,
            "serial": SERIAL,
            "conditions": [condition],
            "attachments": [self.row["attachment_id"]] if self.row else [],
        }

    def _connection(self, row: dict[str, Any] | None) -> dict[str, Any]:
        data: dict[str, Any] = {
            "target_discovered": False,
            "target_portal": "127.0.0.1:3260",
            "target_iqn": TARGET,
            "target_lun": 0,
            "target_portals": ["127.0.0.1:3260", "[::1]:3260"],
            "target_iqns": [TARGET] * 2,
            "target_luns": [0, 0],
            "auth_method": "CHAP",
            "auth_username": "volattach-1",
            "auth_password": PASSWORD,
        }
        if self.volume_type == "local":
            data = {"device_path": "/srv/vol-1"}
        more = {"volume_id": VOLUME, "encrypted": False, "qos_specs": None, "access_mode": "rw", "discard": True}
        about = {"driver_volume_type": self.volume_type, "attachment_id": row["attachment_id"] if row else ""}
        return {**about, "data": {**data, **more}}


def _connector(made_by: str) -> dict[str, Any]:
    return {"initiator": "iqn.2026-11.com.example:a", "host": "host-a", "volattach_connector": made_by}


def status() -> dict[str, Any]:
    """A ``get_status`` of a healthy daemon."""
    return {
        "ready": True,
        "degraded": ["vol-1: DeviceMissing: it is gone"],
        "version": "0.1.0",
        "driver": "memory",
        "portals": ["127.0.0.1:1"],
        "volumes": 1,
        "attachments": 1,
        "pending": [VOLUME],
        "seq": 1,
        "boot_id": SERIAL,
        "caller": {"uid": 0, "role": "admin"},
    }


def _change(row: dict[str, Any] | None) -> dict[str, Any]:
    what = {"seq": 1, "at": 1.0, "boot_id": SERIAL, "uid": 0, "pid": 1, "call": "attach", "volume": VOLUME}
    return {**what, "attachment_id": None, "before": row, "after": row}


def _reconciled() -> dict[str, Any]:
    what = {"volume": VOLUME, "target_name": TARGET, "differences": ["GrantMissing"]}
    return {**what, "steps": ["create grant"], "error": None}


class HostileDaemon:
    """Serves ``honest``, with the value at ``place`` exchanged for ``value`` in each answer that has the place."""

    def __init__(self, path: Path, honest: Honest, place: Place | None = None, value: Any = None) -> None:
        self.path = str(path)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.struck = False
        self._honest = honest
        self._place, self._value = place, value
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                try:
                    self._serve(connection)
                except OSError:
                    continue  # the client has hung up on an answer that it did not want

    def _serve(self, connection: socket.socket) -> None:
        for line in connection.makefile("rb"):
            request = json.loads(line)
            self.asked.append((request["method"], request["params"]))
            answer = {"jsonrpc": "2.0", "id": request["id"], "result": self._result(request)}
            connection.sendall(json.dumps(answer).encode() + b"\n")

    def _result(self, request: dict[str, Any]) -> Any:
        answer = self._honest.answer(request["method"], request["params"])
        if self._place is None or request["method"] != self._place.method:
            return answer
        self.struck = True
        return exchanged(answer, self._place.path, self._value)


def exchanged(answer: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """The answer with another value at a place; as it is where it has no such place."""
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(answer, dict) and first in answer:
        return {**answer, str(first): exchanged(answer[str(first)], rest, value)}
    if isinstance(answer, list) and isinstance(first, int) and first < len(answer):
        return [exchanged(inner, rest, value) if n == first else inner for n, inner in enumerate(answer)]
    return answer


def places(answer: Any, method: str, path: tuple[str | int, ...] = ()) -> Iterator[Place]:
    """Every place in an answer."""
    yield Place(method, path)
    inner = answer.items() if isinstance(answer, dict) else enumerate(answer) if isinstance(answer, list) else ()
    for name, value in inner:
        yield from places(value, method, (*path, name))


@contextmanager
def hostile(path: Path, honest: Honest, place: Place | None = None, value: Any = None) -> Iterator[HostileDaemon]:
    """A hostile daemon for the length of a ``with``."""
    path.unlink(missing_ok=True)
    daemon = HostileDaemon(path, honest, place, value)
    try:
        yield daemon
    finally:
        daemon.stop()
