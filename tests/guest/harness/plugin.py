"""The outer pytest's side: test modules below one directory run in guests, and their results count as if run here."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

import pytest

from . import guest as guests
from .errors import Unavailable
from .image import ensure_image
from .remote import LIMIT, Boot, GuestLike, GuestResult, GuestRun, run_guest

WORKERS = min(2, len(os.sched_getaffinity(0)))
Longrepr = str | tuple[str, int, str] | None


def in_ci() -> bool:
    """Where guests must work: there, a test that cannot run is a failure."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def unavailable(error: Unavailable) -> NoReturn:
    """The end of a test that needs a guest where none can be had."""
    if in_ci():
        pytest.fail(f"no guest: {error}", pytrace=False)
    pytest.skip(f"no guest: {error}")


class Bridge:
    """Takes over the tests below `inside`. Those of one module share one boot, and so do modules that name the same
    word in GUEST["together"]; two guests run at a time, where there are two processors."""

    def __init__(self, config: pytest.Config, inside: Path, boot: Boot | None = None) -> None:
        self._config, self._inside = config, inside
        self._boot = boot
        self._results: dict[Path, Future[GuestResult]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._live: set[Any] = set()
        self._closed = False

    def takes(self, item: pytest.Item) -> bool:
        """Whether this test is to run in a guest."""
        return self._inside in item.path.parents

    # -- collection ---------------------------------------------------------------------------------

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """So that `-m 'not guest'` leaves them out."""
        if self.takes(item):
            item.add_marker("guest")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Last, so that the other tests run while the guests are at work."""
        items.sort(key=self.takes)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """The guests begin with the first test of all."""
        if not session.config.option.collectonly and any(self.takes(item) for item in session.items):
            self._submit(session)

    # -- running ------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Report what the guest reported. Nothing of the test is set up out here, but what is no longer needed of
        other tests' set-up goes now, as after any test."""
        if not self.takes(item):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in [*self._reports(item), *_teardown(item, nextitem)]:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _reports(self, item: pytest.Item) -> list[pytest.TestReport]:
        return reports(item, self._results[item.path].result())  # bounded: boots and runs have limits

    def _submit(self, session: pytest.Session) -> None:
        """All at once: the pool starts the two that may take longest, and the rest as these end."""
        boot = self._boot or self._real_boot()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="guest")
        mine = sorted(
            (item for item in session.items if self.takes(item)), key=lambda item: (_boot_of(item), item.path)
        )
        groups = [list(items) for _, items in groupby(mine, key=_boot_of)]
        runs = [(group_run(self._config.rootpath, items), items) for items in groups]
        for run, items in sorted(runs, key=lambda found: -found[0].limit):
            result = self._pool.submit(run_guest, run, self._tracked(boot))
            self._results.update(dict.fromkeys((item.path for item in items), result))

    def _real_boot(self) -> Boot:
        """The image first, and visibly: building one takes a while. Without one, each module says so itself."""
        capture = self._config.pluginmanager.getplugin("capturemanager")
        try:
            with capture.global_and_fixture_disabled():
                ensure_image()
        except Unavailable as error:
            return _refuse(error)
        return guests.Guest

    def _tracked(self, boot: Boot) -> Boot:
        """Guests that close() can find."""

        @contextmanager
        def tracked(**settings: Any) -> Iterator[GuestLike]:
            context = boot(**settings)
            with self._lock:
                if self._closed:
                    raise Unavailable("the test run is ending")
                self._live.add(context)
            try:
                with context as guest:
                    yield guest
            finally:
                with self._lock:
                    self._live.discard(context)

        return tracked

    def pytest_sessionfinish(self) -> None:
        """Also after an interrupt or -x: no guest outlives the run."""
        with self._lock:
            self._closed = True
            live = list(self._live)
        for guest in live:
            guest.kill()
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    # -- telling ------------------------------------------------------------------------------------

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """How many guests were booted, and how fast."""
        if seconds := guests.BOOTS:
            worst, mean = max(seconds), sum(seconds) / len(seconds)
            terminalreporter.write_line(f"guests: {len(seconds)} booted, {mean:.1f} s each, {worst:.1f} s at most")


def _settings_of(item: pytest.Item) -> dict[str, Any]:
    module = item.getparent(pytest.Module)
    return dict(getattr(module.obj, "GUEST", {})) if module else {}


def _boot_of(item: pytest.Item) -> str:
    """What the tests of one guest have in common."""
    return str(_settings_of(item).get("together", item.path))


def group_run(root: Path, items: list[pytest.Item]) -> GuestRun:
    """The items of one guest, by names that mean the same inside. Modules that share it agree in what they ask for,
    and each has its own time."""
    modules = {item.path: _settings_of(item) for item in items}
    limit = sum(settings.pop("timeout", LIMIT) for settings in modules.values())
    settings, *others = modules.values()
    names = [str(item.path.relative_to(root)) + item.nodeid[item.nodeid.index("::") :] for item in items]
    problem = "modules that share a guest ask for different ones" if any(s != settings for s in others) else ""
    settings.pop("together", None)
    return GuestRun(root, tuple(names), settings, limit, problem)


def reports(item: pytest.Item, result: GuestResult) -> list[pytest.TestReport]:
    """The reports that the guest gave for this item, completed if the guest did not get that far."""
    if result.unavailable:
        outcome = "failed" if in_ci() else "skipped"
        return [_report(item, "setup", outcome, f"no guest: {result.problem}", result.sections)]
    suffix = item.nodeid[item.nodeid.index("::") :]
    records = [r for nodeid, rs in result.records.items() if nodeid.endswith(item.path.name + suffix) for r in rs]
    found = [_translate(item, record, result) for record in records]
    if not records or records[-1]["when"] != "teardown":
        why = result.problem or "the guest's pytest gave no (complete) result for this test"
        found.append(_report(item, "call" if found else "setup", "failed", why, result.sections))
    return found


def _translate(item: pytest.Item, record: dict[str, Any], result: GuestResult) -> pytest.TestReport:
    sections = [(name, text) for name, text in record["sections"]]
    if record["outcome"] == "failed":
        sections += result.sections
    report = _report(item, record["when"], record["outcome"], record["longrepr"], sections, record["duration"])
    report.user_properties = [(name, value) for name, value in record["properties"]]
    if "wasxfail" in record:
        vars(report)["wasxfail"] = record["wasxfail"]
    return report


def _report(
    item: pytest.Item, when: Any, outcome: Any, text: str, sections: Iterable[tuple[str, str]], duration: float = 0.0
) -> pytest.TestReport:
    longrepr: Longrepr = text or None
    if outcome == "skipped":
        longrepr = (str(item.path), (item.location[1] or 0) + 1, text)
    return pytest.TestReport(
        item.nodeid, item.location, dict.fromkeys(item.keywords, 1), outcome, longrepr, when, sections, duration
    )


def _teardown(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    """A report only if it failed. pytest has no public name for this half of its own protocol."""
    call = pytest.CallInfo.from_call(lambda: item.session._setupstate.teardown_exact(nextitem), when="teardown")
    return [pytest.TestReport.from_item_and_call(item, call)] if call.excinfo else []


def _refuse(error: Unavailable) -> Boot:
    def refuse(**_settings: Any) -> NoReturn:
        raise error

    return refuse
