"""The files of the manual: where each is, and what makes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from docgen.catalogue import write_catalogue
from docgen.example import write_example
from docgen.pages import write_client_page, write_config_page, write_daemon_page

FILES: dict[str, Callable[[], str]] = {
    "docs/volattachd.toml": write_example,
    "docs/man/volattachd.8": write_daemon_page,
    "docs/man/volattach.1": write_client_page,
    "docs/man/volattachd.toml.5": write_config_page,
    "packaging/systemd/catalog/volattachd.catalog": write_catalogue,
}


def write(root: Path) -> None:
    """Write every file."""
    for name, make in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make(), encoding="utf-8")


def stale(root: Path) -> list[str]:
    """The names of the files that are missing or differ from what the tables say."""
    return [name for name, make in FILES.items() if _read(root / name) != make()]


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
