"""The packages, built once for all tests of them, and a guest's image with what these tests look at them with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.fixtures import image_of
from tests.package.debian import NEXT, build_packages, unpack_source

#: autopkgtest runs the package's own test, the node exporter takes the daemon's figures, argcomplete completes.
MORE = ("autopkgtest", "dpkg-dev", "prometheus-node-exporter", "python3-argcomplete")


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions, ``now`` and ``next``, and the ``source`` of the first."""
    directory = tmp_path_factory.mktemp("packages")
    build_packages(directory / "now")
    build_packages(directory / "next", NEXT)
    unpack_source(directory / "now", directory / "source")
    return directory


@pytest.fixture(scope="session")
def guest_image(pytestconfig: pytest.Config) -> Path:
    """In place of the one of tests/guest."""
    return image_of(pytestconfig, MORE)
