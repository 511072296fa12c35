"""The composition root: command line, start, signals, watchdog, end. Everything is made here and handed in.

The order of the start is a promise: the journal is locked and read, the target made equal to it (revocations
included), and only then is the first call answered. With systemd's socket a caller may connect earlier; it waits.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import sdnotify

from volattachd import __version__, config
from volattachd.api import openrpc
from volattachd.api.access import Access
from volattachd.api.audit import Audit
from volattachd.api.methods import METHODS
from volattachd.concurrency.locks import Turns, Workers
from volattachd.drivers import registry
from volattachd.drivers.base import Portal, TargetDriver, TargetSilent
from volattachd.errors import ConfigError, DriverError, JournalDamaged, JournalUnusable
from volattachd.host.devices import examine_device, verify_device, verify_opened
from volattachd.host.portals import names_interface, resolve_portals
from volattachd.host.watch import HostWatch
from volattachd.model import Attachment, Caller
from volattachd.reconcile.applier import Converger
from volattachd.reconcile.controller import Upkeep
from volattachd.reconcile.reconciler import Conditions, Repairer
from volattachd.rpc import server, strictjson
from volattachd.rpc.dispatch import Dispatcher
from volattachd.rpc.limits import Limits
from volattachd.service.attachments import AttachmentCalls
from volattachd.service.chap import InitiatorBindings
from volattachd.service.core import Core
from volattachd.service.exclusive import Exclusive
from volattachd.service.holdings import Holdings
from volattachd.service.lookup import Selection
from volattachd.service.operations import OperationCalls
from volattachd.service.queries import QueryCalls
from volattachd.service.reservations import ReservationDeadlines, Reservations
from volattachd.service.transition import Transitions
from volattachd.service.volumes import VolumeCalls
from volattachd.state.database import check_state
from volattachd.state.history import Trimmer
from volattachd.state.journal import Journal
from volattachd.state.lock import lock_to_look
from volattachd.telemetry import journald, messages
from volattachd.telemetry.metrics import Metrics
from volattachd.telemetry.throttle import Throttle
from volattachd.watchdog import Watchdog

#: Those that have a name in sysexits.h are as there: EX_DATAERR, EX_CONFIG. The unit does not start again after them.
EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_DAMAGED, EXIT_CONFIG = 0, 1, 2, 65, 78


def main(argv: Sequence[str] | None = None) -> int:
    """The program ``volattachd``; the answer is its exit code."""
    options = build_parser().parse_args(argv)
    journald.set_up(logging.DEBUG if options.debug else logging.INFO)
    try:
        return _run(options)
    finally:
        journald.let_go(sys.stderr)


def _run(options: argparse.Namespace) -> int:
    try:
        settings = _settings(options)
        if options.check_config:
            _check(settings)
            return EXIT_OK
        if options.verify_journal:
            _verify_journal(settings.state_dir)
            return EXIT_OK
        return Daemon(settings).run()
    except ConfigError as error:
        messages.CONFIG_REFUSED.tell(reason=error)
        return _end_with(error, EXIT_CONFIG)
    except (JournalUnusable, DriverError) as error:
        messages.START_FAILED.tell(reason=error)
        return _end_with(error, EXIT_DAMAGED if isinstance(error, JournalDamaged) else EXIT_FAILED)


def _end_with(error: Exception, code: int) -> int:
    """Say why there is no daemon where ``systemctl status`` shows it; the answer is the exit code."""
    sdnotify.SystemdNotifier().notify("STATUS=" + str(error).translate({ord("\n"): " "}))
    return code


def build_parser() -> argparse.ArgumentParser:
    """The options of the program; the manual is made from them too."""
    parser = argparse.ArgumentParser(prog="volattachd", description="Attach and detach volumes over iSCSI.")
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"configuration (default {config.DEFAULT_FILE})")
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="where the journal is kept")
    parser.add_argument("--socket", type=Path, metavar="PATH", help="the Unix socket to serve")
    parser.add_argument("--driver", metavar="NAME", help="auto, lio, tgt, memory, or a plug-in's name")
    parser.add_argument("--check-config", action="store_true", help="read the configuration, say what is wrong, end")
    parser.add_argument(
        "--verify-journal",
        action="store_true",
        help="check every file of the state directory, change nothing, end: 0 if it is good, 65 if it is damaged",
    )
    parser.add_argument("--debug", action="store_true", help="log reads as well")
    parser.add_argument("--version", action="version", version=f"volattachd {__version__}")
    return parser


def _settings(options: argparse.Namespace) -> config.Config:
    """The configuration file, then what the command line says. Only a file that was named must be there."""
    path = options.config or config.DEFAULT_FILE
    settings = config.load(path) if options.config or path.exists() else config.Config()
    if options.state_dir:
        settings = replace(settings, state_dir=options.state_dir.absolute())
    if options.socket:
        settings = replace(settings, socket=options.socket.absolute())
    return replace(settings, driver=options.driver or settings.driver)


def _check(settings: config.Config) -> None:
    Access(settings)
    InitiatorBindings(settings.initiators)
    resolve_portals(settings.portals)
    print(f"configuration is good: driver {registry.load(settings.driver).name}, socket {settings.socket}")


def _verify_journal(state_dir: Path) -> None:
    with lock_to_look(state_dir):
        contents = check_state(state_dir)
    if contents is None:
        print(f"the journal in {state_dir} is empty, or has an older version whose tables are good")
        return
    print(
        f"the journal in {state_dir} is good: {len(contents.volumes)} volumes, {len(contents.attachments)} attachments,"
        f" history {contents.anchor.seq + 1} to {contents.seq}"
    )


@dataclass(frozen=True)
class _Parts:
    """What a running daemon is made of."""

    journal: Journal
    driver: TargetDriver
    service: Service
    server: server.Server
    watchdog: Watchdog


class Daemon:
    """One run of the daemon."""

    def __init__(self, settings: config.Config) -> None:
        self._settings = settings
        self._notify: Callable[[str], None] = sdnotify.SystemdNotifier().notify
        #: The main thread sleeps on this pipe. A signal may be taken by any thread, which wakes no lock that the main
        #: thread waits for; but whoever takes it writes its number here (signal.set_wakeup_fd). 0 stands for a failure.
        self._woken, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._exit_code = EXIT_OK

    def run(self) -> int:
        """Start, serve until a signal or a failure, stop; the answer is the exit code."""
        parts = self._start()
        self._set_up_signals()
        controller = parts.service.controller
        threads = [
            threading.Thread(target=self._or_end, args=(body,), name=name, daemon=True)
            for name, body in (("accept", parts.server.run), ("controller", controller.run))
        ]
        follows = names_interface(self._settings.portals)
        HostWatch(controller.note_device, controller.note_everything, addresses=follows).start()
        for thread in threads:
            thread.start()
        parts.watchdog.start()
        gc.freeze()  # what a start has made stays: no collection, which every call would wait for, looks at it again
        gc.enable()
        messages.READY.tell(socket=self._settings.socket)
        self._notify("READY=1")
        self._tell_status(parts.service)
        self._wait(parts)
        self._stop(parts)
        return self._exit_code

    def _start(self) -> _Parts:
        settings = self._settings
        access = Access(settings)
        driver = registry.load(settings.driver)(settings.iqn_prefix, _portals_at_start(settings))
        metrics = Metrics(method.name for method in METHODS)
        journal = Journal(settings.state_dir, on_failure=self._journal_failed, on_commit=metrics.measure_commit)
        messages.STARTING.tell(
            version=__version__,
            driver=driver.name,
            portals=", ".join(map(str, driver.portals)),
            state_dir=settings.state_dir,
            volumes=len(journal.volumes),
            attachments=len(journal.attachments),
        )
        # Bound before the target is looked at, listening but not accepting: a second daemon ends here.
        listener = server.activated_socket() or server.bind_socket(settings.socket)
        try:
            driver.start()
        except TargetSilent as error:
            messages.PASS_FAILED.tell(reason=error.message)  # what needs no target is served; looks ask it again
        limits = Limits.of(settings)
        throttle = Throttle(limits.max_logged_refusals)
        audit = Audit(metrics.count_call, throttle)
        service = build_service(settings, journal, driver, metrics, audit)
        service.controller.start_up()
        dispatcher = Dispatcher(service.handlers, audit, limits)
        served = server.Server(listener, dispatcher, access, limits, throttle)
        watchdog = Watchdog(served.connect, partial(self._feed_watchdog, service), _watchdog_pause())
        return _Parts(journal, driver, service, served, watchdog)

    def _or_end(self, body: Callable[[], None]) -> None:
        """A thread that everybody depends on: where it fails, a new daemon is better than half of this one."""
        try:
            body()
        except Exception:  # noqa: BLE001 - told with its traceback, and the daemon ends
            messages.THREAD_FAILED.tell(thread=threading.current_thread().name)
            self._fail()

    def _set_up_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, frame: None)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)

    def _journal_failed(self, error: BaseException) -> None:
        """What is on the disk is unknown until it is read again: end, and let the supervisor start us anew."""
        messages.JOURNAL_FAILED.tell(reason=error)
        self._fail()

    def _fail(self) -> None:
        self._exit_code = EXIT_FAILED
        os.write(self._waker, b"\0")

    def _wait(self, parts: _Parts) -> None:
        """Until a signal or a failure."""
        while self._exit_code == EXIT_OK:
            select.select([self._woken], [], [])
            if any(number != signal.SIGHUP for number in os.read(self._woken, 4096)):
                return
            self._reload(parts)

    def _reload(self, parts: _Parts) -> None:
        """SIGHUP: names of users and groups are looked up again. Other keys need a restart, which harms nobody."""
        try:
            access, bindings = Access(self._settings), InitiatorBindings(self._settings.initiators)
            parts.server.access = access
            parts.service.attachments.bind_initiators(bindings)
            messages.RELOADED.tell()
        except ConfigError as error:
            messages.NOT_RELOADED.tell(reason=error)

    def _feed_watchdog(self, service: Service) -> None:
        self._notify("WATCHDOG=1")
        self._tell_status(service)

    def _tell_status(self, service: Service) -> None:
        volumes, attachments = len(service.core.journal.volumes), len(service.core.journal.attachments)
        degraded = len({name for name, _ in service.core.degraded()})
        self._notify(f"STATUS={volumes} volumes, {attachments} attachments, {degraded} degraded")

    def _stop(self, parts: _Parts) -> None:
        self._notify("STOPPING=1")
        messages.STOPPING.tell()
        parts.watchdog.stop()
        parts.server.stop()
        parts.service.controller.stop()
        parts.driver.stop()
        parts.journal.close()


def _portals_at_start(settings: config.Config) -> tuple[Portal, ...]:
    """The portals to begin with; with none, a start would take the portals of live sessions away."""
    portals = resolve_portals(settings.portals)
    if not portals:
        raise DriverError(f"none of the portals {', '.join(settings.portals)} has an address yet", "bring one up")
    return portals


def _watchdog_pause() -> float | None:
    """Half of what systemd allows (sd_watchdog_enabled(3)), in seconds; None without a watchdog of ours."""
    microseconds = os.environ.get("WATCHDOG_USEC")
    is_ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(microseconds) / 2e6 if microseconds and is_ours else None


@cache
def _document() -> strictjson.Written:
    """What rpc.discover answers, made and written when it is asked for first."""
    return strictjson.Written(strictjson.dumps(openrpc.document()))


def _discover(caller: object) -> strictjson.Written:
    return _document()


@dataclass(frozen=True)
class Service:
    """The calls of the method table by name, and what they run on."""

    core: Core
    attachments: AttachmentCalls
    controller: Upkeep
    reservations: Reservations
    handlers: Mapping[str, Callable[..., Any]]


def build_service(
    settings: config.Config,
    journal: Journal,
    driver: TargetDriver,
    metrics: Metrics,
    audit: Audit,
    transitions: type[Transitions] = Transitions,
) -> Service:
    """Make the calls and the controller over one journal and one target. ``transitions`` carries out decisions."""
    conditions, locks, workers = Conditions(), Turns(), Workers()
    applier = Converger(driver, verify_device, verify_opened)
    reconciler = Repairer(journal, applier, conditions, examine_device)
    deadlines = ReservationDeadlines(journal, settings.ttl)
    holdings = Holdings(journal.attachments.all(), settings.attachments_per_uid)

    def on_transition(caller: Caller, call: str, before: Attachment | None, after: Attachment | None) -> None:
        deadlines.note_transition(caller, call, before, after)
        if before is not None and after is None:
            holdings.remove(before)
        audit.note_transition(caller, call, before, after)

    core = Core(
        journal,
        driver,
        Selection(journal),
        conditions,
        reconciler,
        Exclusive(locks, workers, conditions, applier.current, settings.call_seconds),
        transitions(journal, reconciler, on_transition),
    )
    reservations = Reservations(core, deadlines)
    trimmer = Trimmer(journal, settings.days, settings.rows, max_bytes=settings.max_bytes)

    def housekeeping() -> None:
        reservations.expire()
        trimmer.look()

    controller = Upkeep(
        journal,
        applier,
        reconciler,
        conditions,
        locks,
        workers,
        interval=settings.interval,
        patience=settings.call_seconds,
        housekeeping=housekeeping,
        resolve_portals=partial(resolve_portals, settings.portals),
        on_repair=metrics.count_repairs,
    )
    attachments = AttachmentCalls(core, holdings, InitiatorBindings(settings.initiators))
    groups = (
        attachments,
        VolumeCalls(core, settings.state_dir, controller.forget_volume),
        QueryCalls(core, settings.max_page_bytes),
        OperationCalls(core, controller, metrics),
    )
    return Service(core, attachments, controller, reservations, _handlers(groups))


def _handlers(groups: Sequence[object]) -> dict[str, Callable[..., Any]]:
    """A handler for each row of the method table: the method of that name of one of the groups."""
    handlers: dict[str, Callable[..., Any]] = {"rpc.discover": _discover}
    for method in METHODS:
        for group in groups:
            if hasattr(group, method.name):
                handlers[method.name] = getattr(group, method.name)
    return handlers


if __name__ == "__main__":
    sys.exit(main())
