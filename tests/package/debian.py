"""Builds the Debian packages of this tree, and names what came out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

#: The version that an upgrade is tried with.
NEXT = "0.1.0-2"
ROOT = Path(__file__).parents[2]


def build_packages(output: Path, version: str | None = None) -> Path:
    """The packages of the tree as it stands, in a directory of their own; ``version`` in place of the changelog's."""
    words = [str(ROOT / "packaging/build-deb"), str(output), *([version] if version else [])]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def unpack_source(packages: Path, directory: Path) -> None:
    """The source package as a tree, which autopkgtest reads."""
    (source,) = packages.glob("*.dsc")
    words = ["dpkg-source", "--no-check", "--extract", str(source), str(directory)]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
