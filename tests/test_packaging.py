"""The packaging and the units as they are written; tests/package builds and installs them."""

from __future__ import annotations

import re
from pathlib import Path

from volattachd import config, daemon

ROOT = Path(__file__).parents[1]
UNITS = ROOT / "packaging/systemd"
DEBIAN = ROOT / "packaging/debian"


def service() -> dict[str, list[str]]:
    """The lines of the service, by their keys."""
    lines: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", (UNITS / "volattachd.service").read_text(), re.MULTILINE):
        lines.setdefault(key, []).append(value)
    return lines


def test_the_bundled_libraries_are_the_ones_that_the_project_asks_for() -> None:
    pinned = re.findall(r"^(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}$", components(), re.MULTILINE)
    assert [name.lower() for name, _ in pinned] == ["jsonrpcserver", "oslash"]
    lower, upper = re.search(r'"jsonrpcserver>=([\d.]+),<(\d+)"', (ROOT / "pyproject.toml").read_text()).groups()  # type: ignore[union-attr]
    assert pinned[0][1].startswith(lower.split(".")[0]) and int(pinned[0][1].split(".")[0]) < int(upper)


def components() -> str:
    return (ROOT / "packaging/components.txt").read_text()


def test_the_distributions_patches_apply_as_they_are() -> None:
    """dpkg-source allows no fuzz: each hunk's old lines stand where it says."""
    hunks = 0
    for name in (DEBIAN / "patches/series").read_text().split():
        patch = (DEBIAN / "patches" / name).read_text()
        path, body = re.search(r"^\+\+\+ b/(\S+)\n(.*)", patch, re.MULTILINE | re.DOTALL).groups()  # type: ignore[union-attr]
        now = (ROOT / path).read_text().splitlines()
        for start, lines in re.findall(r"^@@ -(\d+),\d+ .*\n((?:[ +-].*\n)+)", body, re.MULTILINE):
            old = [line[1:] for line in lines.splitlines() if line[0] != "+"]
            assert now[int(start) - 1 :][: len(old)] == old, f"{name} does not apply to {path}"
            hunks += 1
    assert hunks


def test_what_another_start_would_not_mend_is_not_started_again() -> None:
    kept_down = {daemon.EXIT_USAGE, daemon.EXIT_DAMAGED, daemon.EXIT_CONFIG}
    assert {int(code) for code in service()["RestartPreventExitStatus"][0].split()} == kept_down
    assert service()["Restart"] == ["on-failure"]


def test_the_socket_is_where_the_daemon_and_its_clients_expect_it() -> None:
    lines = dict(re.findall(r"^(\w+)=(.*)$", (UNITS / "volattachd.socket").read_text(), re.MULTILINE))
    assert lines["ListenStream"] == str(config.Config().socket)
    assert (lines["SocketUser"], lines["SocketGroup"], lines["SocketMode"]) == ("root", "volattach", "0660")
    assert str(config.Config().state_dir) == f"/var/lib/{service()['StateDirectory'][0]}"
