"""What is counted, measured and there now, in Prometheus' text format.

What is there now is read when somebody asks, from memory alone: no question of a monitor's reaches the target, where
it could wait for a stalled device. prometheus_client is imported with this module and this module when somebody asks:
it would be a tenth of a daemon's start.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from itertools import accumulate

import prometheus_client as prometheus
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from volattachd import __version__
from volattachd.lifecycle import status_of
from volattachd.model import State, Status
from volattachd.reconcile.controller import Upkeep
from volattachd.reconcile.reconciler import Conditions
from volattachd.state.journal import Journal
from volattachd.telemetry.messages import CONDITIONS
from volattachd.telemetry.metrics import Durations, Metrics


def write_text(*collectors: Collector) -> str:
    """Everything that the collectors give."""
    registry = prometheus.CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return prometheus.generate_latest(registry).decode()


class Counted(Collector):
    """What has happened since the daemon started."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        metrics = self._metrics
        calls = CounterMetricFamily("volattachd_calls", "Calls that were answered.", labels=("call", "outcome"))
        for labels, count in list(metrics.calls.items()):
            calls.add_metric(labels, count)
        yield calls
        times = HistogramMetricFamily(
            "volattachd_call_duration_seconds", "Time from a call's arrival to its answer.", labels=("call",)
        )
        for call, durations in list(metrics.call_seconds.items()):
            _add(times, (call,), durations)
        yield times
        commits = HistogramMetricFamily(
            "volattachd_journal_commit_seconds", "Time that a commit of the journal took, its sync included."
        )
        _add(commits, (), metrics.commit_seconds)
        yield commits
        repairs = CounterMetricFamily(
            "volattachd_repairs", "Differences of the target that passes mended.", labels=("kind",)
        )
        for kind, count in list(metrics.repairs.items()):
            repairs.add_metric((kind,), count)
        yield repairs


class Present(Collector):
    """What there is now, by what the journal, the conditions and the last passes say."""

    def __init__(self, journal: Journal, conditions: Conditions, upkeep: Upkeep, driver: str) -> None:
        self._journal = journal
        self._conditions = conditions
        self._upkeep = upkeep
        self._driver = driver

    def collect(self) -> Iterable[Metric]:
        rows, journal = self._journal.attachments, self._journal
        volumes = list(journal.volumes)
        statuses = Tally(status_of(rows.of_volume(volume)).value for volume in volumes)
        states = Tally(row.state.value for row in rows.all())
        degraded = self._conditions.all()
        kinds = Tally(condition.kind for found in degraded.values() for condition in found)
        sessions = sum(self._upkeep.sessions.get(volume, 0) for volume in volumes)
        info = {"version": __version__, "driver": self._driver}
        yield InfoMetricFamily("volattachd", "The daemon.", value=info)
        yield _by("volattachd_volumes", "Registered volumes.", "status", [s.value for s in Status], statuses)
        held = [state.value for state in State if state is not State.GONE]
        yield _by("volattachd_attachments", "Attachments.", "state", held, states)
        yield _by("volattachd_conditions", "What is wrong with volumes.", "kind", CONDITIONS, kinds)
        yield _gauge("volattachd_degraded_volumes", "Volumes with a condition.", len(degraded))
        yield _gauge("volattachd_sessions", "Initiators that were logged in at the last look.", sessions)
        yield CounterMetricFamily("volattachd_passes", "Looks at all volumes.", self._upkeep.passes)
        yield CounterMetricFamily("volattachd_journal_rows", "Rows of history ever written.", journal.seq)
        yield _gauge("volattachd_journal_bytes", "The journal's file and its log.", journal.size())


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], durations: Durations) -> None:
    """One histogram: a bucket holds what lies below its bound, so each holds those before it as well."""
    bounds = [*map(floatToGoString, durations.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(durations.counts), strict=True))
    family.add_metric(labels, buckets, durations.seconds)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _by(name: str, text: str, label: str, known: Iterable[str], found: Mapping[str, int]) -> Metric:
    """A gauge by a label; what is known and not there is 0, so that an alert has something to look at."""
    family = GaugeMetricFamily(name, text, labels=(label,))
    for value, count in {**dict.fromkeys(known, 0), **found}.items():
        family.add_metric((value,), count)
    return family
