"""What must hold after any fault. Each check has a name, and a violation says which check it was.

The rows come from the journal as a new life reads it from the disk; the target is read by tests/faults/target.py.
"""

from __future__ import annotations

from typing import Any

from tests.faults.target import Tree, doors, expected_target, unguarded, users
from tests.faults.world import VOLUME, Case, Rows, Stage, World
from volattachd.errors import JournalUnusable
from volattachd.model import Attachment, Mode
from volattachd.state.journal import Journal


class Violation(AssertionError):
    """A promise was broken; ``check`` names it."""

    def __init__(self, check: str, message: str) -> None:
        super().__init__(f"[{check}] {message}")
        self.check = check


def require(condition: object, check: str, message: object) -> None:
    """Raise a violation of ``check`` where the condition does not hold."""
    if not condition:
        raise Violation(check, str(message))


def check_moment_of_death(tree: Tree, before: Rows, now: Rows, case: Case, own: str) -> None:
    """What the killed process left open, before anybody has cleaned up.

    A grant never outlives its row; access opens only when secret, mapping and mode are complete; a group is
    enabled only when it asks for secrets. A grant that is on its way out loses its mapping first: that door leads
    nowhere.
    """
    orphans = {user for user in users(tree) if attachment_of(user) not in now.attachments}
    require(not orphans, "a grant outlives its row", f"the target grants {orphans}")
    require(not unguarded(tree), "enabled before it is complete", unguarded(tree))
    for door in doors(tree):
        known = [row for rows in (before, now) for row in rows.attachments.values() if row.secret is not None]
        fitting = [row for row in known if _fits(row, door.initiator, door.username, door.password, door.mode)]
        closing = attachment_of(door.username) == own and case.after in (Stage.AVAILABLE, Stage.DISCONNECTED)
        require(fitting and (door.mapped or closing), "access opens before the grant is complete", door)


def attachment_of(user: str) -> str:
    """The attachment that a CHAP user name was made for: its id is what the name ends with."""
    return user[-36:]


def _fits(row: Attachment, initiator: str, username: str, password: str, mode: Mode) -> bool:
    assert row.secret is not None
    granted = (row.initiator, row.secret.username, row.secret.password, row.mode)
    return granted == (initiator, username, password, mode)


def check_rows(before: Rows, now: Rows, case: Case, own: str, *, moved: bool | None) -> None:
    """What was there before is there, and the interrupted call's state is before or after, never between.

    ``moved`` says which of the two it must be, where that is known.
    """
    others = {name: row for name, row in before.attachments.items() if name != own}
    require(others == _without(now.attachments, own), "what was acknowledged holds", now.attachments)
    was = _own(before, own)
    unmoved, arrived = _own(now, own) == was, _stage(now, own) is case.after and _plausible(now, own, case)
    if case.before is case.after:
        require(unmoved, "what was acknowledged holds", now)
    elif moved is None:
        require(unmoved or arrived, "before or after, never between", now)
    elif moved:
        require(arrived, "what was acknowledged holds", now)
    else:
        require(unmoved, "an error answer changes nothing", now)


def _own(rows: Rows, own: str) -> tuple[Any, Any]:
    return rows.volumes.get(VOLUME), rows.attachments.get(own)


def _without(attachments: dict[str, Attachment], own: str) -> dict[str, Attachment]:
    return {name: row for name, row in attachments.items() if name != own}


def _stage(rows: Rows, own: str) -> Stage:
    row = rows.attachments.get(own)
    if row is not None:
        return Stage(row.state.value)
    return Stage.AVAILABLE if VOLUME in rows.volumes else Stage.UNREGISTERED


def _plausible(rows: Rows, own: str, case: Case) -> bool:
    """The parts of a row fit its state: a secret exactly while access is granted."""
    row = rows.attachments.get(own)
    granted = case.after in (Stage.CONNECTED, Stage.ATTACHED, Stage.DETACHING)
    return row is None or (row.secret is not None) == granted


def check_history(world: World, own: str) -> None:
    """The newest line of history tells of the row as it is."""
    rows, journal = world.rows(), world.life.journal
    row, last = rows.attachments.get(own), journal.last_of(own)
    after = None if last is None else last["after"]
    state = None if after is None else after["state"]
    require(state == (None if row is None else row.state.value), "the history tells the state", last)


def check_target(world: World) -> None:
    """The target is exactly what the journal says."""
    rows, tree = world.rows(), world.read()
    wanted = expected_target(rows.volumes.values(), rows.attachments.values())
    differing = {
        path: (wanted.get(path), tree.get(path))
        for path in sorted({*wanted, *tree})
        if wanted.get(path) != tree.get(path)
    }
    require(not differing, "the target is what the journal says", f"(wanted, found): {differing}")


def check_second_pass(world: World) -> None:
    """Once recovered, a pass finds nothing to do."""
    changes = world.life.seam.changes
    lines = world.service.upkeep.reconcile(dry_run=False)
    require(lines == [], "a second pass has nothing to do", lines)
    require(world.life.seam.changes == changes, "a second pass has nothing to do", "it wrote to configfs")


def check_lock(world: World) -> None:
    """While a daemon lives, a second one on the same directory refuses to start, and says why."""
    try:
        second = Journal(world.config.state_dir)
    except JournalUnusable as error:
        require("another volattachd" in str(error), "one daemon for one directory", error)
        return
    second.close()
    raise Violation("one daemon for one directory", "a second one started")


# Answers.


def normal(answer: Any, own: str) -> Any:
    """An answer without what differs from one attachment, or one registration, to the next."""
    if isinstance(answer, dict):
        return {key: _FIXED.get(key) or normal(value, own) for key, value in answer.items()}
    if isinstance(answer, list):
        return [normal(value, own) for value in answer]
    return "(own)" if answer == own else answer


_FIXED = {
    key: f"({key})"
    for key in (
        "created_at",
        "updated_at",
        "auth_username",
        "auth_password",
        "serial",
        "target_name",
        "target_iqn",
    )
}


def check_answer(world: World, answer: Any, wanted: Any, case: Case) -> None:
    """The call, sent again, gives its normal answer; a secret in it is the journal's."""
    own = world.attachment_id
    require(normal(answer, own) == wanted, "sent again, the normal answer", f"{case}: {answer}")
    if isinstance(answer, dict) and "data" in answer:
        row = world.rows().attachments[own]
        assert row.secret is not None
        given = answer["data"]["auth_username"], answer["data"]["auth_password"]
        require(given == (row.secret.username, row.secret.password), "sent again, the normal answer", answer)


def without_lines(answer: Any) -> Any:
    """What a pass found depends on what the fault left; that nothing failed does not."""
    return {**answer, "volumes": [line for line in answer["volumes"] if line["error"]]}
