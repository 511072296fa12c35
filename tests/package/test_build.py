"""What the built packages hold; test_story.py installs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.shells import completed_by_zsh, offered
from tests.package.debian import ROOT
from volattachd import config
from volattachd.config import keys


@pytest.fixture(scope="module")
def built(packages: Path) -> Path:
    """One version of them."""
    return packages / "now"


def unpack(built: Path, directory: Path, *names: str) -> Path:
    """The files of these packages."""
    for name in names:
        (package,) = built.glob(f"{name}_*_all.deb")
        subprocess.run(["dpkg-deb", "-x", str(package), str(directory)], check=True)
    return directory


def test_lintian_has_no_error_and_no_warning(built: Path) -> None:
    (changes,) = built.glob("*.changes")
    words = ["lintian", "--allow-root", "--fail-on=error,warning", str(changes)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_the_client_half_runs_without_the_daemon_and_its_dependencies(built: Path, tmp_path: Path) -> None:
    root = unpack(built, tmp_path, "volattach-agent", "python3-volattachd")
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


def test_the_installed_configuration_is_all_comments_and_has_every_key(built: Path, tmp_path: Path) -> None:
    written = unpack(built, tmp_path, "volattachd") / "etc/volattachd/volattachd.toml"
    assert config.load(written) == config.Config()
    assert re.findall(r"^# (\w+) = ", written.read_text(), re.MULTILINE) == [name for _, name, _, _ in keys()]
    assert not re.search(r"^\w", written.read_text(), re.MULTILINE)


def test_the_daemon_is_installed_whole(built: Path, tmp_path: Path) -> None:
    """Every module of the tree is in exactly one package."""
    found = []
    for name in ("volattachd", "volattach-agent", "python3-volattachd"):
        library = unpack(built, tmp_path / name, name) / "usr/lib/python3/dist-packages"
        found += [str(path.relative_to(library)) for path in library.rglob("*.py")]
    assert sorted(found) == sorted(str(path.relative_to(ROOT)) for path in (ROOT / "volattachd").rglob("*.py"))


def test_the_shells_complete_by_what_is_installed(built: Path, tmp_path: Path) -> None:
    """Where each shell looks by itself, made and asked with Debian's own argcomplete."""
    root = unpack(built, tmp_path, "volattach-agent", "python3-volattachd")
    path = f"{root}/usr/bin:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": f"{root}/usr/lib/python3/dist-packages"}
    share, asked = root / "usr/share", "volattach unreg"
    assert offered("bash", f"source {share}/bash-completion/completions/volattach", asked, env) == {"unregister"}
    assert offered("fish", f"source {share}/fish/vendor_completions.d/volattach.fish", asked, env) == {"unregister"}
    by_path = completed_by_zsh(asked, before=f"fpath=({share}/zsh/vendor-completions $fpath)", env=env)
    assert by_path == "volattach unregister"


def test_the_daemon_finds_its_bundled_libraries_by_either_name(built: Path, tmp_path: Path) -> None:
    """As ``volattachd`` and as ``python3 -m volattachd``: one way in, and it knows the place."""
    root = unpack(built, tmp_path, "volattachd", "volattach-agent", "python3-volattachd")
    entry = (root / "usr/lib/python3/dist-packages/volattachd/__main__.py").read_text()
    (vendor,) = re.findall(r'sys\.path\.append\("(.*)"\)', entry)
    assert {path.name for path in (root / vendor.strip("/")).iterdir()} == {"jsonrpcserver", "oslash"}
    assert "from volattachd.__main__ import main" in (root / "usr/sbin/volattachd").read_text()
