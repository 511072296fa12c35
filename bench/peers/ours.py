"""volattachd: the six calls through the socket, on one connection."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from bench.peers.base import INITIATOR, Peer, Piece
from volattachd.client.sync import Client

CONNECTOR = {"initiator": INITIATOR, "host": "bench", "ip": "127.0.0.1", "multipath": False}
ATTACH = ("reserve_volume", "initialize_connection", "attach")
DETACH = ("begin_detaching", "terminate_connection", "detach")


def params_of(call: str, volume: str) -> dict[str, Any]:
    """The parameters of one of the six calls."""
    params: dict[str, Any] = {"volume": volume}
    if call in ("initialize_connection", "terminate_connection"):
        params["connector"] = CONNECTOR
    if call == "attach":
        params |= {"host_name": "bench", "mount_point": "/dev/vdb"}
    return params


class Ours(Peer):
    """The daemon. ``calls`` keeps what each call took, in seconds."""

    name: ClassVar[str] = "volattachd"

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._client = Client(socket)
        self._volume = self._target_name = ""
        self.calls: dict[str, list[float]] = {call: [] for call in (*ATTACH, *DETACH)}

    def open(self, piece: Piece) -> None:
        shown = self._client.call("register_volume", {"volume": piece.name, "path": piece.path})
        self._volume, self._target_name = piece.name, shown["target_name"]

    def close(self) -> None:
        self._client.close()
        with Client(self._socket) as client:  # the daemon may have been started anew since
            client.call("unregister_volume", {"volume": self._volume})

    def target_name(self, piece: Piece) -> str:
        return self._target_name

    def attach(self, piece: Piece) -> None:
        self._run(ATTACH, piece)

    def detach(self, piece: Piece) -> None:
        self._run(DETACH, piece)

    def _run(self, calls: tuple[str, ...], piece: Piece) -> None:
        for call in calls:
            began = time.perf_counter()
            self._client.call(call, params_of(call, piece.name))
            self.calls[call].append(time.perf_counter() - began)
