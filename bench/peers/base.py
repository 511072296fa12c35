"""What is measured of everybody: attach one volume for one initiator, detach it again, and where to see the result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from bench.target import is_gone, is_granted

INITIATOR = "iqn.2026-11.com.example:bench"
USER, PASSWORD = "bench-user", "bench-password"
ADDRESS, PORT = "127.0.0.1", 3290
PORTAL = f"{ADDRESS}:{PORT}"


@dataclass(frozen=True)
class Piece:
    """The volume of the moment: a name, and the path of its data."""

    name: str
    path: str
    size: int


class Peer(ABC):
    """One way to do it. ``open`` and ``close`` frame the measurement and are not measured."""

    name: ClassVar[str]
    #: Whether its volumes are block devices; else they are files.
    block: ClassVar[bool] = False

    def open(self, piece: Piece) -> None:  # noqa: B027 - most peers need nothing
        """Make ready for this piece."""

    def close(self) -> None:  # noqa: B027
        """Leave nothing behind."""

    @abstractmethod
    def attach(self, piece: Piece) -> None:
        """From nothing to a target that lets the initiator in, durable as far as this peer knows durability."""

    @abstractmethod
    def detach(self, piece: Piece) -> None:
        """Back to nothing."""

    @abstractmethod
    def target_name(self, piece: Piece) -> str:
        """The name of the piece's target."""

    def is_attached(self, piece: Piece) -> bool:
        """Whether the target is really there, and lets the initiator in."""
        return is_granted(self.target_name(piece), INITIATOR)

    def is_detached(self, piece: Piece) -> bool:
        """Whether the target is really gone."""
        return is_gone(self.target_name(piece))
