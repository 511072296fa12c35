"""What clients may cost: the keys of ``[limits]`` that the wire keeps to, handed to whoever keeps to one of them.

The greatest values of the keys are the contract's, and clients rely on them: a configuration can only ask for less.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from volattachd.config import Config


@dataclass(frozen=True)
class Limits:
    """Times in seconds; each member is a key of the configuration."""

    connections: int
    connections_per_uid: int
    admin_connections: int
    max_held_bytes_per_uid: int
    max_logged_refusals: int
    message_seconds: float
    unread_seconds: float
    max_batch: int
    max_answer_bytes: int
    max_page_bytes: int
    max_connector_bytes: int
    max_connector_members: int

    @classmethod
    def of(cls, config: Config) -> Limits:
        """The limits of a configuration."""
        return cls(**{member.name: getattr(config, member.name) for member in fields(cls)})
