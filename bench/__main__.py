"""``python -m bench``: a guest, the measurements in it, and docs/performance/ made of what they gave."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from bench import plots, report, smp
from tests.guest.harness.guest import REPO, Guest
from tests.guest.harness.image import ensure_image

PAGES = REPO / "docs" / "performance"
_LIMIT = 7200.0
#: Of many volumes at once: one takes some seconds in software emulation.
ROUNDS = 7
#: What only the bench needs in its guest: Cinder's helper brings most of Cinder along.
PACKAGES = ("cinder-common",)
#: Compiled on the guest's own disk, as a package would be: nothing is measured through the host's files.
_PREPARE = "mkdir /root/tree && cp -r /host/repo/volattachd /host/repo/bench /host/repo/tests /root/tree && "
_PREPARE += "python3 -m compileall -q /root/tree/volattachd /root/tree/bench /root/tree/tests"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--sizes", default="0,100,400,1000", help="how many other exports")
    parser.add_argument("--runs", type=int, default=30, help="cycles of each kind")
    parser.add_argument("--no-peers", action="store_true", help="volattachd and its floor alone")
    parser.add_argument("--no-figures", action="store_true", help="cycles alone: no throughput, start, memory")
    parser.add_argument("--no-smp", action="store_true", help="nothing on two processors, which needs QEMU")
    parser.add_argument("--only-smp", action="store_true", help="that alone, beside the last results of the rest")
    parser.add_argument("--into", type=Path, default=PAGES, help="the directory of the report")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: report and plots of the last results")
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    kept = options.into / "results.json"
    if not options.redraw:
        kept.write_text(json.dumps(measure(options, kept), indent=1) + "\n")
    results = json.loads(kept.read_text())
    (options.into / "README.md").write_text(report.write_report(results))
    plots.draw(results, options.into)
    print(f"bench: {options.into / 'README.md'}")


def measure(options: argparse.Namespace, kept: Path) -> dict[str, Any]:
    """What was asked for."""
    found: dict[str, Any] = json.loads(kept.read_text()) if options.only_smp else measure_peers(options)
    if not options.no_smp:
        found["together"] = smp.measure_together(ROUNDS)
    return found


def measure_peers(options: argparse.Namespace) -> dict[str, Any]:
    """One guest, one run."""
    left_out = [word for word in ("--no-peers", "--no-figures") if getattr(options, word[2:].replace("-", "_"))]
    with Guest(ensure_image(PACKAGES), memory="2048M", name="bench") as guest:
        guest.run(_PREPARE, timeout=300, check=True)
        words = ["python3", "-m", "bench.inside", "/host/out/results.json", "--sizes", options.sizes]
        words += ["--runs", str(options.runs)]
        command = f"{shlex.join([*words, *left_out])} >/host/out/log 2>&1"
        try:
            guest.run(command, timeout=_LIMIT, check=True, cwd="/root/tree")
        except BaseException:
            sys.stderr.write((guest.out / "log").read_text())
            raise
        found: dict[str, Any] = json.loads(Path(guest.out, "results.json").read_text())
        return found


if __name__ == "__main__":
    main()
