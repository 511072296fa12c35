"""What is counted, measured and there now, in Prometheus' text format.

Two halves. What happens is counted where it happens, by functions that are handed in there: calls, commits, repairs.
What is there is read when somebody asks, from memory alone (``Present``): no question of a monitor's reaches the
target, where it could wait for a stalled device.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Mapping

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from volattachd import __version__
from volattachd.drivers.base import Difference
from volattachd.journal import Journal
from volattachd.lifecycle import status_of
from volattachd.model import State, Status
from volattachd.records import CONDITIONS
from volattachd.repair import Conditions
from volattachd.upkeep import Upkeep

#: Upper bounds in seconds: a call commits in less than a millisecond and may wait for half a minute.
_CALL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_COMMIT_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Metrics:
    """The numbers of one daemon, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = prometheus.CollectorRegistry()
        self._calls = prometheus.Counter(
            "volattachd_calls", "Calls that were answered.", ("call", "outcome"), registry=self._registry
        )
        self._call_seconds = prometheus.Histogram(
            "volattachd_call_duration_seconds",
            "Time from a call's arrival to its answer.",
            ("call",),
            buckets=_CALL_BUCKETS,
            registry=self._registry,
        )
        self._commit_seconds = prometheus.Histogram(
            "volattachd_journal_commit_seconds",
            "Time that a commit of the journal took, its sync included.",
            buckets=_COMMIT_BUCKETS,
            registry=self._registry,
        )
        self._repairs = prometheus.Counter(
            "volattachd_repairs", "Differences of the target that passes mended.", ("kind",), registry=self._registry
        )
        for difference in Difference:
            self._repairs.labels(difference.value)
        #: The two series of each call and outcome: looking them up by their labels takes longer than counting.
        self._of_call: dict[tuple[str, str], tuple[prometheus.Counter, prometheus.Histogram]] = {}

    def count_call(self, call: str, outcome: str, seconds: float) -> None:
        """A call was answered: "ok", or the kind of its error."""
        key = (call, outcome)
        if key not in self._of_call:
            self._of_call[key] = (self._calls.labels(call, outcome), self._call_seconds.labels(call))
        counter, histogram = self._of_call[key]
        counter.inc()
        histogram.observe(seconds)

    def measure_commit(self, seconds: float) -> None:
        """The journal has committed."""
        self._commit_seconds.observe(seconds)

    def count_repairs(self, differences: Iterable[str]) -> None:
        """A pass has mended a target that differed in these ways."""
        for difference in differences:
            self._repairs.labels(difference).inc()

    def show(self, present: Collector) -> None:
        """Read also this, whenever somebody asks."""
        self._registry.register(present)

    def text(self) -> str:
        """Everything, in the text format."""
        return prometheus.generate_latest(self._registry).decode()


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


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _by(name: str, text: str, label: str, known: Iterable[str], found: Mapping[str, int]) -> Metric:
    """A gauge by a label; what is known and not there is 0, so that an alert has something to look at."""
    family = GaugeMetricFamily(name, text, labels=(label,))
    for value, count in {**dict.fromkeys(known, 0), **found}.items():
        family.add_metric((value,), count)
    return family
