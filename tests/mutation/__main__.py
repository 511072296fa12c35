"""``python -m tests.mutation``: try every mutant of the named modules, print the survivors, fail above the bar."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.mutation.equivalent import EQUIVALENT
from tests.mutation.modules import SUBJECTS
from tests.mutation.mutate import Mutant, mutants_of
from tests.mutation.trial import REPO, Outcome, Subject, measure, try_all

#: Surviving mutants of all that are not equivalent, in percent, at the most.
BAR = 5.0
NOTICED = (Outcome.KILLED, Outcome.TIMED_OUT)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; the answer is its exit code."""
    options = _parser().parse_args(argv)
    os.chdir(REPO)
    chosen = [s for s in SUBJECTS if not options.modules or s.module.removeprefix("volattachd.") in options.modules]
    with _room() as room:
        counts = [_run(subject, options, room) for subject in chosen]
    total = sum(counts, Counter[str]())
    if len(counts) > 1:
        print(_summary("all", total))
    return 0 if _percent(total) <= BAR and not total["stale"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=(__doc__ or "").partition("\n")[0])
    names = [subject.module.removeprefix("volattachd.") for subject in SUBJECTS]
    parser.add_argument("modules", nargs="*", choices=[*names, []], metavar="MODULE", help=", ".join(names))
    parser.add_argument("--where", default="", help="only the places whose name begins so: Service.detach")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="mutants at a time")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th mutant")
    return parser


@contextmanager
def _room() -> Iterator[Path]:
    """A directory in memory, if there is one, for whatever the tests write."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="volattachd-mutants-", dir=parent) as directory:
        room = Path(directory)
        room.chmod(0o711)  # tests run programs as other users
        os.environ |= {"TMPDIR": directory, "VOLATTACHD_TEST_MEMORY": directory}
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(room / "hypothesis")
        yield room


def _run(subject: Subject, options: argparse.Namespace, room: Path) -> Counter[str]:
    mutants = [m for m in mutants_of(subject.path.read_text()) if m.where.startswith(options.where)][:: options.every]
    print(f"==> {subject.module}: {len(mutants)} mutants", flush=True)
    known = {(e.where, e.change): e for e in EQUIVALENT if e.module == subject.module}
    found: Counter[str] = Counter()
    for mutant, outcome in try_all(subject, mutants, measure(subject, room), room, options.jobs):
        is_known = known.get((mutant.where, mutant.change)) is not None
        if is_known and outcome in NOTICED:
            print(f"listed as equivalent, but noticed: {_told(subject, mutant)}", flush=True)
        elif not is_known and outcome not in NOTICED:
            print(f"{outcome.value}: {_told(subject, mutant)}", flush=True)
        found["equivalent" if is_known else outcome.value] += 1
        found["stale"] += is_known and outcome in NOTICED
    if not options.where and options.every == 1:
        names = {(mutant.where, mutant.change) for mutant in mutants}
        for where, change in known.keys() - names:
            print(f"listed as equivalent, but there is no such mutant: {subject.module}: {where}: {change}")
            found["stale"] += 1
    print(_summary(subject.module, found), flush=True)
    return found


def _told(subject: Subject, mutant: Mutant) -> str:
    return f"{subject.path.relative_to(REPO)}:{mutant.line}: {mutant}"


def _percent(found: Counter[str]) -> float:
    tried = sum(found[outcome.value] for outcome in Outcome)
    survived = sum(found[outcome.value] for outcome in Outcome if outcome not in NOTICED)
    return 100 * survived / tried if tried else 0.0


def _summary(name: str, found: Counter[str]) -> str:
    parts = ", ".join(f"{found[outcome.value]} {outcome.value}" for outcome in Outcome)
    return f"{name}: {parts}, {found['equivalent']} equivalent: {_percent(found):.1f} % survive (bar {BAR:g} %)"


if __name__ == "__main__":
    sys.exit(main())
