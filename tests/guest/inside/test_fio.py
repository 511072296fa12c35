"""Twenty restarts of the daemon, half of them by SIGKILL, while fio writes and verifies through a real session."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.figures import RecordFigure
from tests.guest.inside.initiator import Initiator
from tests.guest.inside.program import OUT, Program, connector
from tests.soak import PART, times

RESTARTS = times(20, 1_000)
GUEST = {"timeout": 86400 if PART else 600}
REPORT = OUT / "fio.json"


def start_fio(disk: Path) -> subprocess.Popen[bytes]:
    """Random writes, each read back and verified, until it is interrupted; the daemon is left a processor."""
    words = ["fio", "--name=load", f"--filename={disk}", "--rw=randwrite", "--bs=4k", "--size=8m", "--direct=1"]
    words += ["--ioengine=psync", "--verify=crc32c", "--verify_backlog=16", "--time_based", "--runtime=3600"]
    words += ["--rate_iops=100"]
    words += ["--output-format=json", f"--output={REPORT}"]
    return subprocess.Popen(words)


def fio_report() -> dict[str, Any]:
    """fio's own account. It may say a line of its own before the JSON begins."""
    text = REPORT.read_text()
    report: dict[str, Any] = json.loads(text[text.index("{") :])["jobs"][0]
    return report


def test_restarts_under_load_cost_no_io_error_and_no_session(
    program: Program, host1: Initiator, new_device: Callable[[str], str], record_figure: RecordFigure
) -> None:
    program.call("register_volume", volume="load", path=new_device("block"))
    program.call("reserve_volume", volume="load")
    info = program.call("initialize_connection", volume="load", connector=connector(host1.name))
    program.call("attach", volume="load", host_name="guest")
    assert host1.login(info)
    target = info["data"]["target_iqn"]
    sessions = host1.sessions(target)
    fio = start_fio(host1.disk(info))
    for number in range(RESTARTS):
        program.restart(signal.SIGKILL if number % 2 else signal.SIGTERM)
        assert program.call("show_volume", volume="load")["status"] == "in-use"
        assert fio.poll() is None, f"fio ended after {number} restarts"
    fio.send_signal(signal.SIGINT)
    fio.wait(60)
    job = fio_report()
    drops = sum(1 for _ in sessions if host1.sessions(target) != sessions)
    told = f"I/O errors: {job['error']}, session drops: {drops}, writes verified: {job['read']['total_ios']}"
    record_figure("daemon restarts under fio", f"{RESTARTS}, {told}")
    assert (job["error"], drops) == (0, 0)
    assert job["read"]["total_ios"] > RESTARTS, "it did verify what it wrote"
    assert "detected conn error" not in subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    host1.logout(info)
    program.call("begin_detaching", volume="load")
    program.call("terminate_connection", volume="load", connector=connector(host1.name))
    program.call("detach", volume="load")
    program.call("unregister_volume", volume="load")
