"""The examples of docs/python.md run, and print what the page says that they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import PATIENCE, Rig, serving
from volattachd.client import sync

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/python.md").read_text(encoding="utf-8")
EXAMPLES: list[tuple[str, str]] = re.findall(
    r"```python\n(.*?)```(?:(?!```python).)*?```text\n(.*?)```", PAGE, re.DOTALL
)


def test_every_example_says_what_it_prints() -> None:
    assert len(EXAMPLES) == PAGE.count("```python\n") > 4


@pytest.mark.parametrize(("program", "printed"), EXAMPLES)
def test_an_example_prints_what_the_page_says(program: str, printed: str, tmp_path: Path) -> None:
    """As a program of its own, under mypy's eyes apart: the socket's path alone is another one."""
    rig = Rig(tmp_path)
    rig.register("vol-1")
    rig.service.upkeep.start_up()
    path = tmp_path / "d.sock"
    with serving(path, rig.service):
        text = program.replace(sync.DEFAULT_SOCKET, str(path))
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "error", "-c", text]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment)
    assert (done.stdout, done.stderr) == (printed, "")


def test_the_page_names_every_error_of_the_client() -> None:
    named = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    errors = {name for name in sync.__all__ if isinstance(getattr(sync, name), type) and name != "Client"}
    assert named == errors - {"ClientError"}
