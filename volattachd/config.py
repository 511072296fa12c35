"""The configuration file: one table of keys, each with a default that works, so that an empty file runs.

A key that is not in the table, or a value that does not fit, is an error that names file, line and key:
a misspelt ``portals`` must not quietly mean "every address".
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from volattachd.errors import ConfigError, InvalidInput
from volattachd.model import parse_initiator

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: A reservation that nobody connects ends after one day at the latest, in seconds.
MAX_TTL = 86400
#: The section whose keys are not in the table: they are names of initiators.
INITIATORS = "initiators"
DEFAULT_FILE = Path("/etc/volattachd/volattachd.toml")

#: RFC 3720 section 3.2.6.3.1: "iqn.", a year and month in which the naming authority owned its domain, the domain.
_IQN_PREFIX = re.compile(r"iqn\.[0-9]{4}-(0[1-9]|1[0-2])\.[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[a-z0-9.:-]*[a-z0-9])?")
#: Leaves room for ``:<volume>.<8 digits>`` in the 223 bytes of a name.
_IQN_PREFIX_MAX = 150


def _key(section: str, parse: Callable[[Any], Any], summary: str, default: Any) -> Any:
    """A row of the table of keys."""
    return field(default=default, metadata={"section": section, "parse": parse, "summary": summary})


def _path(value: Any) -> Path:
    if not isinstance(value, str) or not value.startswith("/"):
        raise ValueError("must be an absolute path")
    return Path(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a string that is not empty")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ValueError("must be a list of strings")
    return tuple(value)


def _iqn_prefix(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _IQN_PREFIX_MAX or not _IQN_PREFIX.fullmatch(value):
        raise ValueError("must look like iqn.2026-11.com.example, in lower case, of at most 150 characters")
    return value


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    return parse


def _seconds(low: float, high: float) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ValueError(f"must be a number of seconds from {low:g} to {high:g}")
        return float(value)

    return parse


def _bindings(value: Any) -> tuple[str, ...]:
    """The users of one initiator: one name, or a list of names."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError("must be a user's name, or a list of names")
    return tuple(names)


@dataclass(frozen=True)
class Config:
    """Every key of volattachd.toml with its default. Times are in seconds, sizes in bytes."""

    state_dir: Path = _key("daemon", _path, "where the journal is kept (mode 0700)", Path("/var/lib/volattachd"))
    socket: Path = _key("daemon", _path, "the Unix socket", Path("/run/volattachd/volattachd.sock"))
    admin: tuple[str, ...] = _key("access", _names, 'who may do everything: users, or groups as "%group"', ())
    agent: tuple[str, ...] = _key("access", _names, "who may attach and detach", ("%volattach",))
    provisioner: tuple[str, ...] = _key("access", _names, "who may also reserve for other users", ())
    reader: tuple[str, ...] = _key("access", _names, "who may look", ())
    driver: str = _key("target", _text, '"auto", "lio", "tgt", "memory" or a plug-in\'s name', "auto")
    iqn_prefix: str = _key("target", _iqn_prefix, "what target names begin with", "iqn.2026-11.org.volattachd")
    portals: tuple[str, ...] = _key(
        "target", _names, "addresses or interface names, with an optional port; empty: every address", ()
    )
    connections: int = _key("limits", _integer(1, 65536), "connections in all", 512)
    connections_per_uid: int = _key("limits", _integer(1, 65536), "connections of one user", 256)
    admin_connections: int = _key("limits", _integer(1, 65536), "connections that are reserved for admins", 32)
    max_held_bytes_per_uid: int = _key(
        "limits", _integer(16 << 20, 1 << 30), "bytes of messages and answers that are under way, of one user", 32 << 20
    )
    max_logged_refusals: int = _key(
        "limits", _integer(1, 10000), "refusals of one user that are logged one by one in 10 seconds", 20
    )
    max_batch: int = _key("limits", _integer(1, 100), "calls in one batch", 100)
    max_answer_bytes: int = _key(
        "limits", _integer(2 << 20, 8 << 20), "bytes of one answer, a batch's included", 8 << 20
    )
    max_page_bytes: int = _key(
        "limits", _integer(64 << 10, 1 << 20), "bytes after which a page of a list ends", 1 << 20
    )
    max_connector_bytes: int = _key("limits", _integer(1 << 10, 16 << 10), "bytes of one connector as JSON", 16 << 10)
    max_connector_members: int = _key("limits", _integer(16, 64), "values in one connector, at every level", 64)
    message_seconds: float = _key("limits", _seconds(0.1, 3600), "time to send one whole message", 10.0)
    unread_seconds: float = _key("limits", _seconds(0.1, 3600), "time for a client to take an answer", 10.0)
    call_seconds: float = _key("limits", _seconds(0.1, 3600), "time until a call answers Busy", 30.0)
    attachments_per_uid: int = _key("limits", _integer(1, 1_000_000), "attachments of one user", 1000)
    ttl: float = _key("reservations", _seconds(1, MAX_TTL), "life of a reservation that is not connected", 3600.0)
    interval: float = _key("reconcile", _seconds(0.5, 3600), "time between two looks at everything, at the least", 3.0)
    days: int = _key("history", _integer(1, 36500), "days of running that history is kept", 365)
    rows: int = _key("history", _integer(1000, 100_000_000), "rows of history that are kept at most", 1_000_000)
    max_bytes: int = _key(
        "history", _integer(1 << 20, 1 << 40), "bytes of history, connectors included, that are kept at most", 256 << 20
    )
    #: The section ``[initiators]`` as a whole: its keys are names of initiators, and their values users.
    initiators: tuple[tuple[str, tuple[str, ...]], ...] = ()


def _rows() -> Iterable[Field[Any]]:
    return [row for row in fields(Config) if row.metadata]


def keys() -> Iterable[tuple[str, str, str, Any]]:
    """(section, key, summary, default) of every key, for documentation."""
    for row in _rows():
        yield row.metadata["section"], row.name, row.metadata["summary"], row.default


def load(path: Path) -> Config:
    """Read a configuration file.

    Raises ConfigError, naming file, line and key, for what cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    return _from_document(document, path, text)


def _from_document(document: dict[str, Any], path: Path, text: str) -> Config:
    rows = {(row.metadata["section"], row.name): row.metadata["parse"] for row in _rows()}
    values: dict[str, Any] = {}
    for section, body in document.items():
        if section == INITIATORS:
            values[section] = tuple(_read_bindings(body, path, text))
            continue
        known = [key for where, key in rows if where == section]
        if not known:
            raise _problem(path, text, section, None, f"unknown section [{section}]")
        if not isinstance(body, dict):
            raise _problem(path, text, section, None, f"{section!r} must be a section: write [{section}]")
        for key, value in body.items():
            if key not in known:
                raise _problem(path, text, section, key, f"unknown key; [{section}] has {', '.join(known)}")
            try:
                values[key] = rows[section, key](value)
            except ValueError as error:
                raise _problem(path, text, section, key, f"{error}, not {value!r}") from error
    return Config(**values)


def _read_bindings(body: Any, path: Path, text: str) -> Iterable[tuple[str, tuple[str, ...]]]:
    """The rows of ``[initiators]``, with the names as the kernel presents them at login."""
    if not isinstance(body, dict):
        raise _problem(path, text, INITIATORS, None, f"'{INITIATORS}' must be a section: write [{INITIATORS}]")
    seen = set()
    for name, users in body.items():
        try:
            initiator = parse_initiator(name)
            if initiator in seen:
                raise ValueError("the same name in other letters is bound already")
            seen.add(initiator)
            yield initiator, _bindings(users)
        except InvalidInput as error:
            why = f"must be the name of an initiator in quotes: {error.message}"
            raise _problem(path, text, INITIATORS, name, why) from error
        except ValueError as error:
            raise _problem(path, text, INITIATORS, name, f"{error}, not {users!r}") from error


def _problem(path: Path, text: str, section: str, key: str | None, why: str) -> ConfigError:
    where = f"{section}.{key}: " if key else ""
    return ConfigError(f"{path}:{_line_of(text, section, key)}: {where}{why}")


def _line_of(text: str, section: str, key: str | None) -> int:
    """The line (from 1) on which a section or a key of it begins; 1 where it is written in another way."""
    current = ""
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\s*([^\]\s]+)\s*\]", line)
        current = header[1].strip("\"'") if header else current
        if header and key is None and current == section:
            return number
        name = re.match(r"\s*([^=\s]+)\s*=", line)
        written = name[1].replace('"', "").replace("'", "") if name else None
        if written in ({f"{section}.{key}"} if not current else set()) | ({key} if current == section else set()):
            return number
        if key is None and not current and written and written.split(".")[0] == section:
            return number
    return 1
