"""The Debian packages and the units, without a guest; tests/guest/test_package.py installs them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.debian import ROOT, build_packages
from volattachd import config, daemon
from volattachd.config import keys

UNITS = ROOT / "packaging/systemd"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_packages(tmp_path_factory.mktemp("packages"))


def unpack(packages: Path, directory: Path, *names: str) -> Path:
    """The files of these packages."""
    for name in names:
        (package,) = packages.glob(f"{name}_*_all.deb")
        subprocess.run(["dpkg-deb", "-x", str(package), str(directory)], check=True)
    return directory


def service() -> dict[str, list[str]]:
    """The lines of the service, by their keys."""
    lines: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", (UNITS / "volattachd.service").read_text(), re.MULTILINE):
        lines.setdefault(key, []).append(value)
    return lines


def test_lintian_has_no_error_and_no_warning(packages: Path) -> None:
    (changes,) = packages.glob("*.changes")
    words = ["lintian", "--allow-root", "--fail-on=error,warning", str(changes)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_the_client_half_runs_without_the_daemon_and_its_dependencies(packages: Path, tmp_path: Path) -> None:
    root = unpack(packages, tmp_path, "volattach-agent", "python3-volattachd")
    library = root / "usr/lib/python3/dist-packages"
    assert not (library / "volattachd/daemon.py").exists()
    modules = [path.relative_to(library).with_suffix("") for path in library.rglob("*.py")]
    names = [".".join(path.parts).removesuffix(".__init__") for path in modules if path.name != "__main__"]
    program = f"import {', '.join(names)}"
    # -I -S: no site-packages, no PYTHONPATH. What they import beyond Python is in these two packages.
    words = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(library)!r}); {program}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    words = ["/usr/bin/python3", str(root / "usr/bin/volattach"), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(library)})
    assert done.returncode == 0, done.stderr


def test_the_installed_configuration_is_all_comments_and_has_every_key(packages: Path, tmp_path: Path) -> None:
    written = unpack(packages, tmp_path, "volattachd") / "etc/volattachd/volattachd.toml"
    assert config.load(written) == config.Config()
    assert re.findall(r"^# (\w+) = ", written.read_text(), re.MULTILINE) == [name for _, name, _, _ in keys()]
    assert not re.search(r"^\w", written.read_text(), re.MULTILINE)


def test_the_daemon_is_installed_whole(packages: Path, tmp_path: Path) -> None:
    """Every module of the tree is in exactly one package."""
    found = []
    for name in ("volattachd", "volattach-agent", "python3-volattachd"):
        library = unpack(packages, tmp_path / name, name) / "usr/lib/python3/dist-packages"
        found += [str(path.relative_to(library)) for path in library.rglob("*.py")]
    assert sorted(found) == sorted(str(path.relative_to(ROOT)) for path in (ROOT / "volattachd").rglob("*.py"))


def test_the_bundled_libraries_are_the_ones_that_the_project_asks_for() -> None:
    pinned = re.findall(r"^(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}$", components(), re.MULTILINE)
    assert [name.lower() for name, _ in pinned] == ["jsonrpcserver", "oslash"]
    lower, upper = re.search(r'"jsonrpcserver>=([\d.]+),<(\d+)"', (ROOT / "pyproject.toml").read_text()).groups()  # type: ignore[union-attr]
    assert pinned[0][1].startswith(lower.split(".")[0]) and int(pinned[0][1].split(".")[0]) < int(upper)


def components() -> str:
    return (ROOT / "packaging/components.txt").read_text()


def test_what_another_start_would_not_mend_is_not_started_again() -> None:
    kept_down = {daemon.EXIT_USAGE, daemon.EXIT_DAMAGED, daemon.EXIT_CONFIG}
    assert {int(code) for code in service()["RestartPreventExitStatus"][0].split()} == kept_down
    assert service()["Restart"] == ["on-failure"]


def test_the_socket_is_where_the_daemon_and_its_clients_expect_it() -> None:
    lines = dict(re.findall(r"^(\w+)=(.*)$", (UNITS / "volattachd.socket").read_text(), re.MULTILINE))
    assert lines["ListenStream"] == str(config.Config().socket)
    assert (lines["SocketUser"], lines["SocketGroup"], lines["SocketMode"]) == ("root", "volattach", "0660")
    assert str(config.Config().state_dir) == f"/var/lib/{service()['StateDirectory'][0]}"
