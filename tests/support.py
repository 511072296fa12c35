"""What the daemon's tests have in common: rows, a target that can be told to fail, a service over both, a socket."""

from __future__ import annotations

import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from volattachd.api.access import Access
from volattachd.api.audit import Audit
from volattachd.config import Config
from volattachd.daemon import build_service
from volattachd.drivers.base import Portal, Step, TargetDriver
from volattachd.drivers.memory import MemoryDriver, SimulatedExport
from volattachd.errors import Busy, DriverError
from volattachd.model import Attachment, Caller, Device, Export, Mode, Secret, State, Volume
from volattachd.rpc.dispatch import Dispatcher
from volattachd.rpc.limits import Limits
from volattachd.rpc.server import Server
from volattachd.service.transition import Transitions
from volattachd.state.journal import Journal
from volattachd.telemetry.metrics import Metrics

IQN_PREFIX = "iqn.2026-11.org.volattachd.test"
HOST_A = "iqn.2026-11.org.example:host-a"
HOST_B = "iqn.2026-11.org.example:host-b"

ADMIN = Caller(uid=0, pid=1, admin=True, role="admin")
AGENT = Caller(uid=1000, pid=2, role="agent")
OTHER_AGENT = Caller(uid=1001, pid=3, role="agent")

#: Long enough for the slowest machine, and never waited for by a test that passes.
PATIENCE = 30.0

MIB = 1 << 20


def connector(initiator: str = HOST_A, **members: Any) -> dict[str, Any]:
    """A connector as os-brick gives it, cut down to what every call needs."""
    return {"initiator": initiator, "ip": "127.0.0.1", **members}


def attachment_id(number: int) -> str:
    """The number as a UUID."""
    return f"00000000-0000-4000-8000-{number:012x}"


def make_file(path: Path, size: int = MIB) -> str:
    """A sparse file that a volume can be made of."""
    with open(path, "wb") as file:
        file.truncate(size)
    return str(path)


def new_volume(name: str = "vol-1", number: int = 1, **members: Any) -> Volume:
    """A volume's row, over a file that need not exist."""
    serial = f"{number:08x}-0000-4000-8000-000000000000"
    row = Volume(
        id=name,
        path=f"/srv/{name}",
        device=Device("file", MIB, {"inode": "5"}, True),
        multiattach=False,
        read_only=False,
        target_name=f"{IQN_PREFIX}:{name}.{serial[:8]}",
        serial=serial,
        created_at=1.0,
    )
    return replace(row, **members)


def new_attachment(number: int = 1, volume: str = "vol-1", state: State = State.RESERVED, **members: Any) -> Attachment:
    """An attachment's row; one with a connection has connector and secret."""
    row = Attachment(attachment_id(number), volume, state, Mode.RW, 1000, 1.0, 1.0)
    if state not in (State.RESERVED, State.GONE):
        row = replace(row, connector=connector(), secret=Secret(row.id, f"password-{number}"))
    return replace(row, **members)


def wait_until(condition: Callable[[], object]) -> None:
    """Return when the condition holds; fail where it never does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.001)


def insist(call: Callable[[], Any]) -> Any:
    """Send a call again while it is told Busy, as its contract allows; a slow machine fails no test by that."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except Busy:
            assert time.monotonic() < deadline, "it stays busy"


def in_thread(body: Callable[[], Any]) -> Callable[[], Any]:
    """Run ``body`` in a thread; the answer waits for it and gives its result or raises its error."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((body(), None))
        except BaseException as error:  # noqa: BLE001 - raised again where the test asks for it
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(PATIENCE)
        assert outcome, "the thread did not end"
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    return result


@contextmanager
def full_disk() -> Iterator[None]:
    """Every write of this process to a regular file fails, as on a full disk: EFBIG comes from the kernel itself.

    (Python ignores SIGXFSZ, so write(2) fails instead of ending the process.)
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class ObedientDriver(MemoryDriver):
    """The simulator, with a hook before each of its steps: it may record, block, or raise DriverError.

    The hook is given the step as people read it ("create grant IQN INITIATOR").
    """

    def __init__(self, exports: dict[str, SimulatedExport] | None = None) -> None:
        super().__init__(IQN_PREFIX, [Portal(ip_address("127.0.0.1"))], exports)
        self.before_step: Callable[[str], None] = lambda step: None
        self.before_plan: Callable[[], None] = lambda: None
        self.before_list: Callable[[], None] = lambda: None
        self.ran: list[str] = []

    def plan(self, want: Export) -> list[Step]:
        self.before_plan()
        steps = super().plan(want)
        return [self._watched(step) for step in steps] if want.exported else steps

    def plan_removal(self, target_name: str) -> list[Step]:
        return [self._watched(step) for step in super().plan_removal(target_name)]

    def list_exports(self) -> list[str]:
        self.before_list()
        return super().list_exports()

    def _watched(self, step: Step) -> Step:
        def run() -> None:
            self.before_step(str(step))
            step.run()
            self.ran.append(str(step))

        return replace(step, run=run)


class FailOnce:
    """A hook that fails the step with this number (from 0), and lets all later ones pass."""

    def __init__(self, at: int) -> None:
        self._left = at
        self.failed: str | None = None

    def __call__(self, step: str) -> None:
        if self._left == 0:
            self.failed = step
            self._left -= 1
            raise DriverError(f"cannot {step}: the kernel said no")
        self._left -= 1


class Gate:
    """A hook that holds steps whose text has ``word`` in it, until it is opened."""

    def __init__(self, word: str = "") -> None:
        self._word = word
        self.reached = threading.Event()
        self._opened = threading.Event()

    def __call__(self, step: str = "") -> None:
        if self._word in step:
            self.reached.set()
            assert self._opened.wait(PATIENCE)

    def open(self) -> None:
        self._opened.set()


class Service:
    """The daemon's parts, as a daemon makes them, with every call as an attribute."""

    def __init__(
        self,
        config: Config,
        journal: Journal,
        driver: TargetDriver,
        metrics: Metrics | None = None,
        audit: Audit | None = None,
        transitions: type[Transitions] = Transitions,
    ) -> None:
        self.audit = audit or Audit()
        parts = build_service(config, journal, driver, metrics or Metrics(), self.audit, transitions)
        self.journal = journal
        self.driver = driver
        self.core = parts.core
        self.upkeep = parts.controller
        self.handlers = parts.handlers
        self.reservations = parts.reservations
        self.degraded = parts.core.degraded
        self.expire_reservations = parts.reservations.expire
        self.bind_initiators = parts.attachments.bind_initiators

    def __getattr__(self, name: str) -> Any:
        try:
            return self.handlers[name]
        except KeyError:
            raise AttributeError(name) from None


class Rig:
    """A service over a journal in ``directory`` and an obedient target; ``restart`` plays the daemon's crash."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        self.config = replace(Config(), state_dir=directory / "state", **settings)
        self.driver = ObedientDriver()
        self._open()

    def _open(self) -> None:
        self.journal = Journal(self.config.state_dir)
        self.service = Service(self.config, self.journal, self.driver)

    def restart(self) -> None:
        """The daemon again, over the same state and the same target; start-up passes are the test's."""
        self.journal.close()
        self.driver = ObedientDriver(self.driver.exports)
        self._open()

    def register(self, name: str = "vol-1", **members: Any) -> str:
        """A volume over a file of its own."""
        path = make_file(self.directory / f"{name}.img")
        self.service.register_volume(ADMIN, name, path, **members)
        return name

    def reach(
        self, state: State, volume: str = "vol-1", number: int = 1, caller: Caller = AGENT, initiator: str = HOST_A
    ) -> str:
        """Bring a new attachment into a state by the documented calls; the answer is its id."""
        name = attachment_id(number)
        calls: list[tuple[State, Callable[[], Any]]] = [
            (State.RESERVED, lambda: self.service.reserve_volume(caller, volume, name)),
            (
                State.CONNECTED,
                lambda: self.service.initialize_connection(caller, volume, connector(initiator), name),
            ),
            (
                State.ATTACHED,
                lambda: self.service.attach(caller, volume, host_name="h", mount_point="/dev/vdb", attachment_id=name),
            ),
            (State.DETACHING, lambda: self.service.begin_detaching(caller, volume, name)),
            (
                State.DISCONNECTED,
                lambda: self.service.terminate_connection(caller, volume, connector(initiator), attachment_id=name),
            ),
            (State.GONE, lambda: self.service.detach(caller, volume, name)),
        ]
        for reached, call in calls:
            insist(call)
            if reached is state:
                break
        return name

    def state(self, number: int = 1) -> State:
        """The state of an attachment as the journal has it."""
        row = self.journal.attachments.get(attachment_id(number))
        return State.GONE if row is None else row.state

    def granted(self, volume: str = "vol-1") -> set[str]:
        """The initiators that the target lets in to a volume."""
        row = self.journal.volumes[volume]
        export = self.driver.exports.get(row.target_name)
        return set() if export is None else set(export.grants)

    def exported(self, volume: str = "vol-1") -> bool:
        """Whether the target holds the volume."""
        return self.journal.volumes[volume].target_name in self.driver.exports

    def conditions(self, volume: str = "vol-1") -> list[str]:
        """The kinds of what is wrong with a volume."""
        return [c["kind"] for c in self.service.show_volume(ADMIN, volume)["conditions"]]


LIMITS = replace(Limits.of(Config()), message_seconds=PATIENCE, unread_seconds=PATIENCE)


class Wire:
    """A client that sends bytes as they are, and reads answers line by line."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self._received = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes | Mapping[str, Any] | list[Any]) -> None:
        """Bytes as they are; anything else as JSON without a newline."""
        self.socket.sendall(data if isinstance(data, bytes) else json.dumps(data).encode())

    def end(self) -> None:
        """Say that nothing more is sent."""
        self.socket.shutdown(socket.SHUT_WR)

    def answer(self) -> Any:
        """The next answer; None where the daemon closed the connection instead."""
        while b"\n" not in self._received:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                return None  # how a Unix socket tells that what we sent was not read to its end
            if not data:
                assert not self._received, "half an answer"
                return None
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def ask(self, data: bytes | Mapping[str, Any] | list[Any]) -> Any:
        """Send, and read one answer."""
        self.send(data)
        return self.answer()

    def call(self, method: str, *args: Any, **params: Any) -> Any:
        """The result of one call; fails on an error."""
        answer = self.ask(request(method, *args, **params))
        assert "error" not in answer, answer
        return answer["result"]


def request(method: str, *args: Any, call_id: Any = 1, **params: Any) -> dict[str, Any]:
    """A JSON-RPC request."""
    return {"jsonrpc": "2.0", "id": call_id, "method": method, "params": list(args) if args else params}


@contextmanager
def serving(
    path: Path,
    handlers: Mapping[str, Callable[..., Any]] | Service,
    limits: Limits = LIMITS,
    access: Access | None = None,
) -> Iterator[Server]:
    """A served socket, open to everybody, for the length of a ``with``."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o666)
    listener.listen(128)
    if isinstance(handlers, Service):
        dispatcher = Dispatcher(handlers.handlers, handlers.audit, limits)
    else:
        dispatcher = Dispatcher(handlers, Audit(), limits)
    server = Server(listener, dispatcher, access or Access(Config()), limits)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(PATIENCE)
