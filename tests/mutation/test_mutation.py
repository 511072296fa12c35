from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation.equivalent import EQUIVALENT
from tests.mutation.modules import SUBJECTS
from tests.mutation.mutate import mutants_of
from tests.mutation.trial import REPO, Subject


def changes(source: str) -> list[str]:
    return [mutant.change for mutant in mutants_of(source)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("f(a < b)", {"f(a < b) -> pass", "a < b -> a <= b"}),
        ("x = a == b", {"a == b -> a != b"}),
        ("x = a is not b", {"a is not b -> a is b"}),
        ("x = a and b", {"a and b -> a or b", "a and b -> a", "a and b -> b"}),
        ("x = not a", {"not a -> a"}),
        ("x = 3", {"3 -> 4"}),
        ("x = True", {"True -> False"}),
        ("x = a + b", {"a + b -> a - b"}),
        ("x = max(a, b)", {"max(a, b) -> min(a, b)", "max(a, b) -> a", "max(a, b) -> b"}),
        ("x = replace(row, secret=None)", {"replace(row, secret=None) -> replace(row)"}),
        ("x = [a for a in b if c]", {"comprehension"}),
        ("row.x = a", {"row.x = a -> pass"}),
        ("if a:\n    f()", {"if a: -> if True:", "if a: -> if False:", "f() -> pass"}),
        ("def f():\n    return a", {"return a -> return None"}),
        ("def f():\n    raise a", {"raise a -> pass"}),
    ],
)
def test_each_kind_of_change_is_made(source: str, expected: set[str]) -> None:
    made = set(changes(source))
    if expected == {"comprehension"}:
        assert len(made) == 1
    else:
        assert made == expected


@pytest.mark.parametrize(
    "source",
    [
        '"""A docstring."""',
        "x = f'{a + 1}'",
        "x = 'a' + b",
        "import a",
        "assert a",
        "log.debug('%s', a + 1)",
        "x = None",
        "def f(a: 'int | 3') -> None: ...",
        "raise AssertionError('cannot happen')",
    ],
)
def test_what_people_read_and_what_cannot_happen_is_left_alone(source: str) -> None:
    assert changes(source) == []


def test_a_mutant_is_named_by_its_place_and_knows_the_lines_that_reach_it() -> None:
    method = "    def f(self, b):\n        if (\n            b\n        ):\n            return 1\n        return 2\n"
    source = f"class A:\n{method}X = 1\n"
    found = {str(mutant): mutant.lines for mutant in mutants_of(source)}
    assert found["A.f: if b: -> if True:"] == frozenset({3, 4, 5})
    assert found["A.f: 1 -> 2"] == frozenset({6})
    assert found["module: 1 -> 2"] is None


def test_the_tree_of_a_mutant_differs_in_that_place_alone() -> None:
    (mutant,) = mutants_of("x = a < b\ny = [a for a in b]")
    assert ast.unparse(mutant.tree) == "x = a <= b\ny = [a for a in b]"


SAMPLE = """
def sign(x):
    if x > 0:
        return 1
    return -1

def unused():
    return 7
"""
TESTS = """
from sample import sign
def test_sign():
    assert sign(5) == 1 and sign(-5) == -1
"""
PROGRAM = """
import sys
from pathlib import Path
from tests.mutation.mutate import mutants_of
from tests.mutation.trial import Subject, measure, try_all
room = Path(sys.argv[1])
sys.path.insert(0, str(room))
subject = Subject("sample", (str(room / "test_sample.py"),), room)
mutants = mutants_of(subject.path.read_text())
for mutant, outcome in try_all(subject, mutants, measure(subject, room), room, 2):
    print(f"{mutant} | {outcome.value}")
"""


def run_trial(room: Path, tests: str) -> subprocess.CompletedProcess[str]:
    (room / "sample.py").write_text(SAMPLE)
    (room / "test_sample.py").write_text(tests)
    words = [sys.executable, "-c", PROGRAM, str(room)]
    return subprocess.run(words, capture_output=True, text=True, cwd=REPO, check=False)


def test_a_change_that_a_test_notices_is_killed_and_another_survives(tmp_path: Path) -> None:
    done = run_trial(tmp_path, TESTS)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == {
        "sign: if x > 0: -> if True: | killed",
        "sign: if x > 0: -> if False: | killed",
        "sign: x > 0 -> x >= 0 | survived",
        "sign: 0 -> 1 | survived",
        "sign: return 1 -> return None | killed",
        "sign: 1 -> 2 | killed",
        "sign: return -1 -> return None | killed",
        "unused: return 7 -> return None | not covered",
        "unused: 7 -> 8 | not covered",
    }


def test_tests_that_fail_without_a_change_prove_nothing(tmp_path: Path) -> None:
    done = run_trial(tmp_path, TESTS + "    assert False\n")
    assert done.returncode != 0
    assert "the tests of sample fail without a change" in done.stderr


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.module)
def test_a_named_module_and_its_tests_exist(subject: Subject) -> None:
    assert subject.path.is_file()
    assert subject.tests
    assert [test for test in subject.tests if not (REPO / test).is_file()] == []


def test_each_equivalent_mutant_is_of_a_named_module_and_has_a_reason() -> None:
    named = {subject.module for subject in SUBJECTS}
    assert [entry for entry in EQUIVALENT if entry.module not in named or not entry.reason] == []
