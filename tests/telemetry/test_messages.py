"""The table of what is told, and that all the code tells by it."""

from __future__ import annotations

import ast
import logging
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from volattachd.reconcile import reconciler
from volattachd.telemetry import messages
from volattachd.telemetry.messages import FIELDS, Kind, Told, kinds

PACKAGE = Path(messages.__file__).parents[1]
EVERY_KIND = pytest.mark.parametrize("name", kinds())
#: Sites that make their members as a dictionary: tests/api/test_audit.py looks at what they tell.
CALLS = {name for name in kinds() if name.startswith("CALL_")} | {"LOOKED", "BUG"}


def members_of(kind: Kind) -> set[str]:
    """The members that the kind's line needs."""
    return {name for _, name, _, _ in string.Formatter().parse(kind.line) if name}


def sites() -> Iterator[tuple[str, set[str], str]]:
    """Every place that tells a kind by its name: the kind, the members that are given, and where it is."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "tell":
                given = {keyword.arg or "**" for keyword in node.keywords}
                told = ast.unparse(node.func.value)
                if told.endswith("throttle") and node.args:
                    told = ast.unparse(node.args[0])
                if told.startswith(("messages.", "_kind_of(")):  # a file has a method of that name too
                    yield told.removeprefix("messages."), given, f"{path.name}:{node.lineno}"


SITES = list(sites())


@EVERY_KIND
def test_an_id_is_a_uuid_as_journald_writes_it_and_no_other_kind_has_it(name: str) -> None:
    assert re.fullmatch(r"[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}", kinds()[name].id)
    assert [other.id for other in kinds().values()].count(kinds()[name].id) == 1


@EVERY_KIND
def test_an_explanation_says_what_and_names_only_fields_that_there_are(name: str) -> None:
    kind = kinds()[name]
    assert kind.subject and not kind.subject.endswith(".")
    assert kind.explanation.endswith(".")
    text = kind.subject + kind.explanation
    assert "\n" not in text + kind.line
    assert set(re.findall(r"@(\w+)@", text)) <= set(FIELDS.values())


def test_a_field_has_a_name_that_journald_takes() -> None:
    for field in FIELDS.values():
        assert re.fullmatch(r"VOLATTACH_[A-Z_]{1,50}", field)
    assert len(set(FIELDS.values())) == len(FIELDS)


@EVERY_KIND
def test_a_kind_is_told_somewhere(name: str) -> None:
    told = {site for site, _, _ in SITES}
    assert name in told or kinds()[name] in messages.CONDITIONS.values() or name in CALLS


@pytest.mark.parametrize(("name", "given", "where"), SITES)
def test_who_tells_gives_what_the_line_needs(name: str, given: set[str], where: str) -> None:
    if name == "CONDITIONS[kind]":
        for kind in messages.CONDITIONS.values():
            assert given == members_of(kind), where
    elif "**" not in given:
        assert name in kinds(), f"{where}: {name} is not in the table"
        assert members_of(kinds()[name]) <= given, where
        assert given <= members_of(kinds()[name]) | set(FIELDS), where
    else:
        assert name in CALLS or name.startswith("_kind_of("), where


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_tells_anything_past_the_table(path: Path) -> None:
    """Only what is for those who look for bugs (debug) is said without a kind."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            assert not re.fullmatch(r"(log|logging)\.(info|warning|error|critical|exception)", called), (
                f"{path.name}:{node.lineno} logs without a kind: give it a row in telemetry/messages.py"
            )


def test_every_condition_has_its_kind() -> None:
    assert set(messages.CONDITIONS) == {*reconciler.CONVERGE_KINDS, "Pending"}


def test_a_member_without_a_value_is_no_field_and_one_without_a_field_stands_in_the_line_alone() -> None:
    told = Told(messages.LOCK_PASSED_OVER, {"former": 7, "volume": None, "uid": 0, "microseconds": 12})
    assert str(told) == "pid 7 was killed and waits for a device in the kernel: its lock is passed over"
    assert told.fields() == {"VOLATTACH_PEER_UID": "0", "VOLATTACH_DURATION_USEC": "12"}


def test_braces_that_somebody_sent_are_no_template() -> None:
    told = Told(messages.PASS_FAILED, {"reason": "{0} {reason.__class__} {", "volume": "{volume}"})
    assert str(told) == "cannot look at the target: {0} {reason.__class__} {"
    assert told.fields() == {"VOLATTACH_VOLUME": "{volume}"}


def test_a_record_is_told_at_the_level_of_its_kind(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "volattachd"):
        messages.ORPHAN_REMOVED.tell(target="t")
        messages.LOOKED.tell(call="not told")
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "target t was not in the journal: removed")
    ]
