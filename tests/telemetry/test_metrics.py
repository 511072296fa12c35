"""What a monitor reads, through its own parser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import (
    ADMIN,
    HOST_A,
    FailOnce,
    Gate,
    Rig,
    attachment_id,
    connector,
    in_thread,
    new_attachment,
    new_volume,
    request,
)
from volattachd.api.access import Peer
from volattachd.api.audit import Audit
from volattachd.api.methods import METHODS, Role
from volattachd.drivers.base import Difference
from volattachd.model import State, Status
from volattachd.rpc.dispatch import Client, Dispatcher
from volattachd.state.journal import Change, Journal
from volattachd.telemetry import messages
from volattachd.telemetry.metrics import ALERTING, Metrics
from volattachd.telemetry.prometheus import Counted, write_text

Sample = tuple[str, tuple[tuple[str, str], ...]]
CLIENT = Client(Peer(42, 0, frozenset()), Role.ADMIN)


def read(text: str) -> dict[Sample, float]:
    """Every sample by its name and labels."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}
    assert len(found) == len(samples), "a sample is there twice"
    return found


def value(samples: dict[Sample, float], name: str, **labels: str) -> float | None:
    return samples.get((f"volattachd_{name}", tuple(sorted(labels.items()))))


def ask(rig: Rig) -> dict[Sample, float]:
    return read(rig.service.get_metrics(ADMIN))


def test_a_text_has_a_type_and_a_help_for_each_family(rig: Rig) -> None:
    text = rig.service.get_metrics(ADMIN)
    families = list(text_string_to_metric_families(text))
    assert len(families) > 10
    for family in families:
        assert family.name.startswith("volattachd")
        assert family.type in ("gauge", "counter", "histogram")
        assert family.documentation.endswith(".")


def test_what_may_be_counted_is_there_from_the_start(rig: Rig) -> None:
    samples = ask(rig)
    for status in Status:
        assert value(samples, "volumes", status=status.value) == 0
    for state in set(State) - {State.GONE}:
        assert value(samples, "attachments", state=state.value) == 0
    for kind in messages.CONDITIONS:
        assert value(samples, "conditions", kind=kind) == 0
    for difference in Difference:
        assert value(samples, "repairs_total", kind=difference.value) == 0
    for name in ("degraded_volumes", "sessions", "passes_total", "journal_rows_total"):
        assert value(samples, name) == 0


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (State.RESERVED, "attaching"),
        (State.CONNECTED, "attaching"),
        (State.ATTACHED, "in-use"),
        (State.DETACHING, "detaching"),
        (State.DISCONNECTED, "detaching"),
    ],
)
def test_volumes_are_counted_by_status_and_attachments_by_state(rig: Rig, state: State, status: str) -> None:
    rig.register()
    rig.register("vol-2")
    rig.reach(state)
    samples = ask(rig)
    assert {s.value: value(samples, "volumes", status=s.value) for s in Status} == {
        **{s.value: 0 for s in Status},
        "available": 1,
        status: 1,
    }
    assert value(samples, "attachments", state=state.value) == 1
    assert sum(value(samples, "attachments", state=s.value) or 0 for s in State) == 1
    assert value(samples, "journal_rows_total") == rig.journal.seq


def test_calls_are_counted_by_outcome_and_timed(rig: Rig) -> None:
    metrics = Metrics()
    dispatcher = Dispatcher(rig.service.handlers, Audit(metrics.count_call))
    for question in [request("get_status")] * 3 + [request("detach", volume="v"), request("nonsense")] * 2:
        dispatcher.answer(json.dumps(question).encode(), CLIENT)
    samples = read(write_text(Counted(metrics)))
    assert value(samples, "calls_total", call="get_status", outcome="ok") == 3
    assert value(samples, "calls_total", call="detach", outcome="VolumeNotFound") == 2
    assert value(samples, "call_duration_seconds_count", call="detach") == 2
    assert value(samples, "call_duration_seconds_bucket", call="detach", le="+Inf") == 2
    assert (value(samples, "call_duration_seconds_sum", call="detach") or -1) >= 0
    assert not [labels for _, labels in samples if ("call", "nonsense") in labels], "names that callers made up"


ALERT = re.compile(r'^    increase\(volattachd_calls_total\{outcome=~"(?P<outcomes>[^"]+)"\}', re.MULTILINE)


def test_every_call_has_the_outcomes_that_the_documented_alert_asks_for_at_0_from_the_start() -> None:
    found = ALERT.search(Path("docs/monitoring.md").read_text())
    assert found
    samples = read(write_text(Counted(Metrics(method.name for method in METHODS))))
    for method in METHODS:
        for outcome in ("ok", *found["outcomes"].split("|")):
            assert value(samples, "calls_total", call=method.name, outcome=outcome) == 0
    assert sum(name == "volattachd_calls_total" for name, _ in samples) == len(METHODS) * (1 + len(ALERTING))


def test_a_commit_is_timed(tmp_path: Path) -> None:
    metrics = Metrics()
    journal = Journal(tmp_path / "state", on_commit=metrics.measure_commit)
    for number in (1, 2, 3):
        journal.commit(Change("register_volume", ADMIN, f"v{number}", put=new_volume(f"v{number}", number)))
    journal.close()
    samples = read(write_text(Counted(metrics)))
    assert value(samples, "journal_commit_seconds_count") == 3
    assert (value(samples, "journal_commit_seconds_sum") or 0) > 0


def test_the_journals_size_is_that_of_its_files(rig: Rig) -> None:
    for _ in range(39):
        rig.journal.commit(Change("test", ADMIN, "v", before={"text": "x" * 4000}))
    there = sum(path.stat().st_size for path in rig.config.state_dir.glob("journal.db*"))
    assert value(ask(rig), "journal_bytes") == there > 39 * 4000


def test_asking_for_the_size_leaves_the_journals_locks(rig: Rig) -> None:
    """A closed descriptor of the file would end SQLite's locks, and another program could write to it."""
    rig.register()
    path = rig.config.state_dir / "journal.db"
    inode = path.stat().st_ino

    def locks() -> list[list[str]]:
        found = [line.split()[1:] for line in Path("/proc/locks").read_text().splitlines()]
        return sorted(words for words in found if any(word.endswith(f":{inode}") for word in words))

    before = locks()
    assert before
    assert (value(ask(rig), "journal_bytes") or 0) > 0
    assert locks() == before


def test_sessions_are_those_that_the_last_pass_saw(rig: Rig) -> None:
    rig.register()
    rig.register("vol-2")
    rig.reach(State.ATTACHED)
    row = rig.journal.volumes["vol-1"]
    (secret,) = [a.secret for a in rig.journal.attachments.all()]
    assert secret is not None
    rig.driver.login(row.target_name, HOST_A, secret.username, secret.password)
    rig.service.reconcile(ADMIN)
    samples = ask(rig)
    assert (value(samples, "sessions"), value(samples, "passes_total")) == (1, 1)
    rig.service.terminate_connection(ADMIN, "vol-1", connector(), force=True)
    rig.service.reconcile(ADMIN)
    assert value(ask(rig), "sessions") == 0


def test_a_volume_that_was_unregistered_has_no_sessions(rig: Rig) -> None:
    rig.register()
    rig.service.reconcile(ADMIN)
    assert rig.service.upkeep.sessions == {"vol-1": 0}
    rig.service.unregister_volume(ADMIN, "vol-1")
    assert rig.service.upkeep.sessions == {}


def test_a_stalled_device_keeps_nobody_from_the_metrics(quick_path: Path) -> None:
    rig = Rig(quick_path, call_seconds=0.05)
    try:
        rig.register()
        rig.service.reserve_volume(ADMIN, "vol-1", attachment_id(1))
        gate = rig.driver.before_plan = Gate()
        stuck = in_thread(lambda: rig.service.reconcile(ADMIN))
        assert gate.reached.wait()
        assert stuck()["volumes"][0]["error"]
        samples = ask(rig)
        assert (value(samples, "degraded_volumes"), value(samples, "conditions", kind="Pending")) == (1, 1)
        gate.open()
    finally:
        rig.journal.close()


def test_a_target_that_refuses_makes_its_volume_degraded_and_a_repair_is_counted(rig: Rig) -> None:
    rig.register()
    rig.reach(State.ATTACHED)
    del rig.driver.exports[rig.journal.volumes["vol-1"].target_name]
    rig.driver.before_step = FailOnce(0)
    rig.service.reconcile(ADMIN)
    samples = ask(rig)
    assert (value(samples, "degraded_volumes"), value(samples, "conditions", kind="TargetError")) == (1, 1)
    assert value(samples, "repairs_total", kind="ExportMissing") == 0
    rig.service.reconcile(ADMIN)
    samples = ask(rig)
    assert value(samples, "degraded_volumes") == 0
    assert value(samples, "repairs_total", kind="ExportMissing") == 1


def test_an_orphan_that_was_removed_is_a_repair(rig: Rig) -> None:
    rig.register()
    rig.reach(State.CONNECTED)
    row = rig.journal.volumes["vol-1"]
    rig.journal.commit(Change("test", ADMIN, "vol-1", put=None, drop=new_attachment(1, state=State.CONNECTED)))
    rig.journal.commit(Change("test", ADMIN, "vol-1", drop=row))
    rig.service.reconcile(ADMIN)
    assert value(ask(rig), "repairs_total", kind="ExportUnexpected") == 1


def test_a_daemons_metrics_are_its_own(tmp_path: Path) -> None:
    one, other = Metrics(), Metrics()
    one.count_call("attach", "ok", 0.1)
    samples: dict[Sample, Any] = read(write_text(Counted(other)))
    assert value(samples, "calls_total", call="attach", outcome="ok") is None


def test_a_bucket_holds_what_took_no_longer_than_its_bound() -> None:
    metrics = Metrics()
    for seconds in (0.0001, 0.001, 0.0011, 0.3, 31.0):
        metrics.count_call("attach", "ok", seconds)
    samples = read(write_text(Counted(metrics)))
    bounds = {"0.001": 2, "0.0025": 3, "0.25": 3, "0.5": 4, "30.0": 4, "+Inf": 5}
    found = {le: value(samples, "call_duration_seconds_bucket", call="attach", le=le) for le in bounds}
    assert found == bounds
    assert value(samples, "call_duration_seconds_count", call="attach") == 5
    assert value(samples, "call_duration_seconds_sum", call="attach") == pytest.approx(31.3022)


def test_no_call_is_lost_where_many_threads_count() -> None:
    metrics = Metrics()

    def count() -> None:
        for _ in range(2000):
            metrics.count_call("attach", "ok", 0.001)

    for thread in [in_thread(count) for _ in range(8)]:
        thread()
    assert metrics.calls["attach", "ok"] == sum(metrics.call_seconds["attach"].counts) == 16000
