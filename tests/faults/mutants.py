"""Daemons that break one rule each. The sweep must find every one of them, or it would not find the mistake either."""

from __future__ import annotations

import fcntl
import sqlite3
from pathlib import Path
from typing import Any, cast

from tests.faults.injection import Connect
from tests.faults.world import Parts
from volattachd.drivers.lio import Directory, LioDriver, Names, Node, Value
from volattachd.lifecycle import EXPORTED
from volattachd.model import Caller, Export
from volattachd.service.decisions import Decision
from volattachd.service.transition import Transitions
from volattachd.state.journal import Journal


class _Changed:
    """A connection whose commits are not what they should be."""

    def __init__(self, real: sqlite3.Connection) -> None:
        self.__dict__["real"] = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.real, name, value)


class Lazy(_Changed):
    """Commits when the next transaction begins."""

    def execute(self, statement: str, values: Any = ()) -> Any:
        """As of a connection."""
        if statement == "COMMIT":
            return self.real.cursor()
        if statement.startswith(("BEGIN", "PRAGMA")) and self.real.in_transaction:
            self.real.execute("COMMIT")
        return self.real.execute(statement, values)


class Stubborn(_Changed):
    """Commits a second time where the first one failed."""

    def execute(self, statement: str, values: Any = ()) -> Any:
        """As of a connection."""
        try:
            return self.real.execute(statement, values)
        except sqlite3.OperationalError:
            if statement != "COMMIT":
                raise
            return self.real.execute(statement, values)


def _wrapped(kind: type[_Changed]) -> Parts:
    def wrap(connect: Connect) -> Connect:
        def opened(path: Path) -> sqlite3.Connection:
            return cast(sqlite3.Connection, kind(connect(path)))

        return opened

    return Parts(connect=wrap)


class PasswordFirst(LioDriver):
    """Sets a grant's password before its mapping."""

    def wanted(self, names: Names, want: Export) -> list[Node]:
        """A grant's nodes in another order."""
        nodes = super().wanted(names, want)
        grants = [node for node in nodes if "/acls/" in node.path]
        rest = [node for node in nodes if node not in grants]
        order = {Directory: 0, Value: 1}
        acls = sorted(grants, key=lambda node: (_acl(node), _depth(node), order.get(type(node), 2)))
        return [*rest[:-1], *acls, rest[-1]]


def _acl(node: Node) -> str:
    return node.path.partition("/acls/")[2].partition("/")[0]


def _depth(node: Node) -> int:
    return 1 if "/lun_0" in node.path else 0


class EnabledFirst(LioDriver):
    """Enables a portal group as soon as it is there."""

    def wanted(self, names: Names, want: Export) -> list[Node]:
        """The last node right after the group."""
        nodes = super().wanted(names, want)
        if not want.grants:
            return nodes
        at = nodes.index(Directory(names.tpg)) + 1
        return [*nodes[:at], nodes[-1], *nodes[at:-1]]


class ForgetsFirst(Transitions):
    """Forgets an attachment, and then revokes its grant."""

    def _end(self, caller: Caller, decision: Decision, previous: Export, desired: Export) -> None:
        assert decision.before is not None
        self._commit(caller, decision.call.value, decision.before, None)
        if decision.before.state in EXPORTED:
            self._revoke(desired)


class NeverUndoes(Transitions):
    """Leaves what a driver's failure interrupted."""

    def _undo(self, caller: Caller, decision: Decision, previous: Export) -> None:
        """Nothing."""

    def _roll_back(self, previous: Export) -> None:
        """Nothing."""


class Unlocked(Journal):
    """Lets a second daemon into the directory."""

    def __init__(self, *args: Any, **members: Any) -> None:
        super().__init__(*args, **members)
        fcntl.flock(self._lock_fd, fcntl.LOCK_UN)


#: Each mutant, and the check that must find it.
MUTANTS = {
    "answers before the commit": (_wrapped(Lazy), "what was acknowledged holds"),
    "commits again after a failed commit": (_wrapped(Stubborn), "nothing is acknowledged after a failure"),
    "the password before the mapping": (Parts(driver=PasswordFirst), "access opens before the grant is complete"),
    "enabled before the secrets": (Parts(driver=EnabledFirst), "enabled before it is complete"),
    "forgets before it revokes": (Parts(transitions=ForgetsFirst), "a grant outlives its row"),
    "never undoes": (Parts(transitions=NeverUndoes), "an error answer changes nothing"),
    "no lock": (Parts(journal=Unlocked), "one daemon for one directory"),
}
