from __future__ import annotations

from pathlib import Path

import pytest

from docgen.__main__ import main
from docgen.files import FILES, stale

ROOT = Path(__file__).parents[2]


def test_every_file_is_up_to_date() -> None:
    assert stale(ROOT) == [], "run: make docs"


def test_check_names_what_is_stale_and_writing_mends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--root", str(tmp_path)]
    assert main(["--check", *where]) == 1
    assert capsys.readouterr().err.splitlines() == [f"{name} is stale: run python -m docgen" for name in FILES]
    assert main(where) == 0
    assert main(["--check", *where]) == 0
    name = next(iter(FILES))
    (tmp_path / name).write_text("old")
    assert stale(tmp_path) == [name]
