"""docs/performance/README.md, made of the numbers: figures against their bars, the peers, and where the time goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.summary import (
    BUDGET,
    COMPARED,
    CYCLE_PARTS,
    PATIENCE,
    as_milliseconds,
    beside,
    cycle_seconds,
    floor_of,
    median,
    parts_of,
    quantile,
)

Results = dict[str, Any]

_HEAD = """\
# Performance

Written by `make bench`, by hand in no line. All of it comes from one run, in one guest; what needs two processors has
a guest of its own.

What is compared: a *cycle* is one attach and one detach of a volume for one initiator. volattachd's is the six calls
through its socket on one connection. *Bare configfs* is the floor: a script that makes the same objects with the same
attributes by the fewest system calls and remembers nothing; before anything is measured, the two results are compared
attribute by attribute. Whoever is measured, the target is looked at after each attach (it must let the initiator in)
and after each detach (it must be gone). *Others* are exports of attached volumes that are there all the time.

![Cycles beside other exports](cycles.png)
"""

_METHOD = """\
## Method

- The guest is Debian on User-Mode Linux: a real LIO, one processor, system calls that cost more than on a host. So
  ratios tell more than times. The journal is on the guest's disk, a file of the machine that it runs on.
- Medians of {runs} cycles; volattachd, the floor, SQLite and the echo are taken in turns, so noise meets them alike.
  A peer gets {budget:g} seconds at each size and at least one cycle; one that needs {patience:g} seconds for a cycle
  is not tried beside more.
- While peers are measured, volattachd is stopped; its exports stay, and they are the others that LIO's tools meet. tgt
  does not see them, and is measured alone.
- rtslib-fb is a library in a running process, and saves after each change as its users do. targetcli-fb is one process
  for an attach and one for a detach. Cinder's helper is run with the calls of its volume service, without rootwrap.
- The slow disk is dm-delay over a file: 8 ms for each write and each flush, about what a rotating disk takes, and
  rounded up to this kernel's ticks of 10 ms. All other figures are of the machine's own disk.
- A bare SQLite commit is one row of 1 KiB with the journal's settings (WAL, `synchronous=FULL`, as long a log) on the
  same disk. A bare echo is a Python process that answers each line that comes with as many bytes as volattachd's
  answer has.
"""

_METHOD_TOGETHER = """\
- Many volumes at once are measured in another guest: QEMU's software emulation of {processors} processors, with
  Debian's kernel {kernel}. Whatever is computed takes some 15 times longer there than on a host, and what is waited
  for should not; bare configfs waits more than it computes. So a host's ratio should be better, which is not
  measured; it is seen to be worse where this machine has other work. {count} connections, which one thread of a
  client serves, take a volume each through the six calls, and {count} threads of one process do as much with bare
  configfs: {rounds} rounds of both in turns, after one that does not count. Portals of one address cannot be made
  by several threads at once; both sides have a lock for that.
"""


@dataclass(frozen=True)
class Figure:
    """One line of the first table."""

    name: str
    value: float
    bar: float
    at_least: bool
    words: str
    #: What the time goes to, for who reads that the bar is not met.
    why: str = ""

    @property
    def is_met(self) -> bool:
        return self.value >= self.bar if self.at_least else self.value <= self.bar


def write_report(results: Results) -> str:
    """The page."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    runs = len(beside(results, min(map(int, results["cycles"])))["ours"]["attach"])
    parts = [
        _HEAD,
        *([_figures_table(figures)] if (figures := figures_of(results)) else []),
        _parts_table(results),
        _calls_table(results),
        _peers_table(results),
        _METHOD.format(runs=runs, budget=BUDGET, patience=PATIENCE) + _method_together(results),
        f"Measured with: {versions}. The run took {results['seconds'] / 60:.0f} minutes.\n",
    ]
    return "\n".join(parts)


def figures_of(results: Results) -> list[Figure]:
    """Every figure that has a bar, as far as it was measured."""
    alone = _FIGURES if results["figures"] else ()
    slowly = (_reserving_slowly,) if "reserving_slowly" in results["figures"] else ()
    together = (_together,) if "together" in results else ()
    return [make(results) for make in (*alone, *slowly, *together)]


def _method_together(results: Results) -> str:
    if "together" not in results:
        return "- Not measured: many volumes at once on two processors.\n"
    found = results["together"]
    return _METHOD_TOGETHER.format(**found, rounds=len(found["ours"]["attach"]))


def _cycle(results: Results) -> Figure:
    found = beside(results, COMPARED)
    whole, floor = cycle_seconds(found["ours"]), floor_of(found)
    size = COMPARED if str(COMPARED) in results["cycles"] else max(map(int, results["cycles"]))
    words = f"{as_milliseconds(whole)} over {as_milliseconds(floor)}, beside {size} others"
    why = "The table of a cycle's parts, below, says what the time goes to."
    return Figure("a cycle, over bare configfs, six SQLite commits and six echoes", whole / floor, 3, False, words, why)


def _growth(results: Results) -> Figure:
    """Beside none it is measured at the beginning and at the end: a guest's pace is not the same for twenty minutes."""
    sizes = sorted(map(int, results["cycles"]))
    begun, last = (beside(results, size) for size in (sizes[0], sizes[-1]))
    alone = [begun, *([results["again"]] if "again" in results else [])]
    ours, bare = ([cycle_seconds(found[side]) for found in alone] for side in ("ours", "bare"))
    first, now = sum(ours) / len(ours), cycle_seconds(last["ours"])
    words = (
        f"{' and '.join(map(as_milliseconds, ours))} to {as_milliseconds(now)}, bare configfs grows by "
        f"{cycle_seconds(last['bare']) / (sum(bare) / len(bare)):.2f}"
    )
    parts = [parts_of(found) for found in (begun, last)]
    more = ", ".join(f"{as_milliseconds(parts[1][part] - parts[0][part])} {part}" for part in CYCLE_PARTS)
    why = (
        "The calls do the same operations beside any number of others (tests count them), and the kernel takes longer "
        f"for them. Against the first measurement, what is more: {more}. Rounds over all exports go on meanwhile, and "
        "have a tenth of the only processor: that is in the last, where the whole of a cycle is measured."
    )
    return Figure(f"growth of a cycle from {sizes[0]} to {sizes[-1]} others", now / first, 1.05, False, words, why)


def _reserving(results: Results) -> Figure:
    rates = {clients: median(found) for clients, found in results["figures"]["reserving"].items()}
    words = f"{rates['64']:.0f} calls a second over {rates['1']:.0f}"
    call, commit = 1 / rates["1"], median(beside(results, 0)["commits"]) / 6
    most = call / (call - commit) if call > commit else float("inf")
    why = (
        f"One call of one client takes {as_milliseconds(call)}, a bare commit {as_milliseconds(commit)} of "
        f"it on this disk: grouping commits saves that part alone, and cannot give more than {most:.2g} "
        "times on one processor. The rest is Python, and 64 connections' threads take turns at it."
    )
    return Figure("reserve_volume, 64 clients over one", rates["64"] / rates["1"], 8, True, words, why)


def _reserving_slowly(results: Results) -> Figure:
    found = results["figures"]["reserving_slowly"]
    rates = {clients: median(rate) for clients, rate in found.items()}
    words = f"{rates['64']:.0f} calls a second over {rates['1']:.0f}"
    why = (
        f"One client's call takes {as_milliseconds(1 / rates['1'])}, nearly all of it the commit, and about "
        f"{rates['64'] / rates['1']:.1f} calls of 64 share one. The rest of the time is Python for these calls."
    )
    name = "reserve_volume, 64 clients over one, on a slow disk"
    return Figure(name, rates["64"] / rates["1"], 8, True, words, why)


def _showing(results: Results) -> Figure:
    ours, echo = results["figures"]["showing"]
    words = f"{ours:.0f} calls a second over {echo:.0f}"
    why = (
        f"A call takes {1e6 / ours:.0f} µs, an echo {1e6 / echo:.0f} µs: it looks at nothing, where a call "
        "is strict JSON, two schema checks, jsonrpcserver's dispatch, a record of the call, and JSON again."
    )
    return Figure("show_volume, pipelined, over an echo of as many bytes", ours / echo, 0.2, True, words, why)


def _restart(results: Results) -> Figure:
    found = results["figures"]["restart"]
    start, bare, size = median(found["starts"]), median(found["bare"]), results["figures"]["crowd"]
    words = f"{start:.2f} s over {bare:.2f} s, {found['reads']} reads and {found['writes']} writes"
    empty = _start_of_none(results)
    why = (
        f"{as_milliseconds(bare)} are the reading. {_parts_of_a_start(results)} What is left are "
        f"{as_milliseconds((start - bare - empty) / size)} for each export: its rows in the journal, a look at its "
        "device, the plan, and the Python around each read. More needs fewer imports, or another language."
    )
    return Figure(f"restart with {size} exports until READY, over bare reading", start / bare, 1.5, False, words, why)


def _restore(results: Results) -> Figure:
    found, size = results["figures"]["restore"], results["figures"]["crowd"]
    start, bare = (median([run[name] for run in found]) for name in ("start", "bare"))
    empty = _start_of_none(results)
    why = (
        f"{as_milliseconds(bare)} are the creation. {_parts_of_a_start(results)} What is left are "
        f"{as_milliseconds((start - bare - empty) / size)} for each export: its rows in the journal, a look at its "
        "device, the plan, and that each attribute is read back as it is written, which is a promise that bare "
        "creation does not make."
    )
    name = f"restore of {size} exports until READY, over bare creation"
    return Figure(name, start / bare, 1.5, False, f"{start:.2f} s over {bare:.2f} s", why)


def _start_of_none(results: Results) -> float:
    return median(results["figures"]["start"]["none"])


def _parts_of_a_start(results: Results) -> str:
    """What a start takes where there is nothing to be looked at."""
    none, interpreter, imports = (median(results["figures"]["start"][name]) for name in ("none", "bare", "imports"))
    return (
        f"{as_milliseconds(none)} are a start without volumes: {as_milliseconds(interpreter)} the interpreter, "
        f"{as_milliseconds(imports - interpreter)} imports, {as_milliseconds(none - imports)} all else."
    )


def _latency(results: Results) -> Figure:
    found = results["figures"]["latency"]
    quiet, during = (quantile(found[name], 0.99) for name in ("quiet", "during"))
    words = f"{as_milliseconds(during)} over {as_milliseconds(quiet)}; a pass takes {median(found['passes']):.2f} s"
    why = (
        "Passes that somebody asked for followed one another here without a pause; on one processor a call "
        "then has half of it. The daemon's own rounds rest nine times as long as they work."
    )
    return Figure("the six calls' 99th percentile, during passes over without", during / quiet, 2, False, words, why)


def _resident(results: Results) -> Figure:
    value = results["figures"]["resident"]
    name = f"resident memory with {results['figures']['crowd']} exports, in MiB"
    return Figure(name, value, 48, False, f"{value:.1f} MiB")


def _idle(results: Results) -> Figure:
    woken, used = results["figures"]["idle_alone"]
    many, burnt = results["figures"]["idle_crowd"]
    crowd = results["figures"]["crowd"]
    words = f"{used:.1%} of a processor; with {crowd} exports {many:.0f} a second and {burnt:.0%}"
    return Figure("wake-ups of an idle daemon, a second", woken, 1, False, words)


def _command(results: Results) -> Figure:
    found = results["figures"]["command"]
    ours, bare = median(found["ours"]), median(found["bare"])
    words = f"{as_milliseconds(ours)} over {as_milliseconds(bare)}"
    return Figure("start of `volattach list` over a bare interpreter", ours / bare, 2, False, words)


def _together(results: Results) -> Figure:
    found = results["together"]
    count, processors = found["count"], found["processors"]
    whole, floor = (cycle_seconds(found[side]) for side in ("ours", "bare"))
    ours, bare = (_split_processors(found[side], processors) for side in ("ours", "bare"))
    why = (
        f"Of the {as_milliseconds(processors * whole)} that {processors} processors have in that time, {ours['user']} "
        f"are volattachd's Python, which one thread at a time can run, {ours['kernel']} the kernel's work for it, "
        f"{ours['client']} the client, {ours['rest']} nobody's. Of bare configfs' "
        f"{as_milliseconds(processors * floor)}, {bare['user']} are Python, {bare['kernel']} the kernel's work, "
        f"{bare['rest']} nobody's: it waits for the kernel, and emulation should not make that longer. The "
        f"{6 * count} changes of the journal are made durable by {found['commits']:.0f} commits, "
        f"{as_milliseconds(found['committing'])} in all."
    )
    name = f"{count} volumes at once on {processors} processors, over {count} threads of bare configfs"
    return Figure(name, whole / floor, 1.5, False, f"{as_milliseconds(whole)} over {as_milliseconds(floor)}", why)


def _split_processors(side: dict[str, list[float]], processors: int) -> dict[str, str]:
    """What the processors' time of one side's round went to; with ``rest`` it is all of it."""
    used = {what: median(side[what]) for what in ("user", "kernel", "client") if what in side}
    rest = processors * cycle_seconds(side) - sum(used.values())
    return {what: as_milliseconds(seconds) for what, seconds in [*used.items(), ("rest", rest)]}


_FIGURES: tuple[Callable[[Results], Figure], ...] = (
    _cycle,
    _growth,
    _reserving,
    _showing,
    _restart,
    _restore,
    _latency,
    _resident,
    _idle,
    _command,
)


def _figures_table(figures: Sequence[Figure]) -> str:
    lines = ["## Figures", "", "| Figure | Measured | Bar | | |", "| --- | --- | --- | --- | --- |"]
    for figure in figures:
        bar = f"{'≥' if figure.at_least else '≤'} {figure.bar:g}"
        met = "met" if figure.is_met else "**not met**"
        lines.append(f"| {figure.name} | {figure.value:.2f} | {bar} | {met} | {figure.words} |")
    missed = [f"- **{figure.name}**: {figure.why}" for figure in figures if figure.why and not figure.is_met]
    return "\n".join([*lines, "", *missed]) + "\n"


_PARTS_TOLD = """\
Changes and reads of the target and the journal are timed at the seams that tests use, in a run without the socket;
what is left of that run is volattachd's own work, and the socket is the rest of the whole. Each line is a median of
its own, and the last three are the floor.

![What a cycle is made of](parts.png)
"""


def _parts_table(results: Results) -> str:
    """What a cycle is made of: the parts add up to the whole."""
    sizes = sorted(map(int, results["cycles"]))
    lines = ["## Where a cycle's time goes", "", f"| Part | {' | '.join(f'{size} others' for size in sizes)} |"]
    lines.append("| --- |" + " --- |" * len(sizes))
    columns = [parts_of(beside(results, size)) for size in sizes]
    for name in columns[0]:
        lines.append(f"| {name} | " + " | ".join(as_milliseconds(column[name]) for column in columns) + " |")
    return "\n".join([*lines, "", _PARTS_TOLD])


def _calls_table(results: Results) -> str:
    sizes = sorted(map(int, results["cycles"]))
    lines = ["## Each call", "", f"| Call | {' | '.join(f'{size} others' for size in sizes)} |"]
    lines.append("| --- |" + " --- |" * len(sizes))
    for call in beside(results, sizes[0])["calls"]:
        cells = [as_milliseconds(median(beside(results, size)["calls"][call])) for size in sizes]
        lines.append(f"| `{call}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _peers_table(results: Results) -> str:
    sizes = sorted(map(int, results["cycles"]))
    lines = ["## The peers", "", f"| A cycle of | {' | '.join(f'{size} others' for size in sizes)} |"]
    lines.append("| --- |" + " --- |" * len(sizes))
    floor = {size: cycle_seconds(beside(results, size)["bare"]) for size in sizes}
    for name, cycles in all_cycles(results).items():
        cells = [_cell(cycles.get(str(size)), floor[size]) for size in sizes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "The factor is that over bare configfs beside as many others. A dash: not measured, see below."]
    return "\n".join(lines) + "\n"


def all_cycles(results: Results) -> dict[str, dict[str, Any]]:
    """Everybody's cycles by size: the floor, ours, and the peers that were there."""
    own = {
        name: {size: found[key] for size, found in results["cycles"].items()}
        for name, key in (("bare configfs", "bare"), ("volattachd", "ours"))
    }
    return {**own, **{name: found for name, found in results["peers"].items() if found}}


def _cell(cycles: Any, floor: float) -> str:
    if cycles is None:
        return "-"
    seconds, runs = cycle_seconds(cycles), len(cycles["attach"])
    few = "" if runs >= 5 else f", {runs} run{'s' if runs > 1 else ''}"
    return f"{as_milliseconds(seconds)} ({seconds / floor:.3g} ×{few})"
