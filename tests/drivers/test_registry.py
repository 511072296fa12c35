from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from volattachd.drivers import registry
from volattachd.drivers.base import TargetDriver
from volattachd.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


def test_the_built_in_drivers_are_those_of_the_entry_points() -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["entry-points"][registry.GROUP] == registry.BUILT_IN


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_a_driver_is_loaded_by_its_name(name: str) -> None:
    driver = registry.load(name)
    assert issubclass(driver, TargetDriver)
    assert driver.name == name


@pytest.mark.parametrize("name", ["", "LIO", "nonsense", "lio ", "volattachd.drivers.lio:LioDriver"])
def test_an_unknown_driver_is_refused_and_the_known_ones_are_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown driver {name!r}") as caught:
        registry.load(name)
    for known in registry.BUILT_IN:
        assert known in str(caught.value)


def run(directory: Path, entry: str, program: str) -> str:
    """What a program prints on a host where somebody installed a package with this entry point."""
    info = directory / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{entry}\n")
    (directory / "other.py").write_text(
        "from volattachd.drivers.memory import MemoryDriver\n"
        "class Other(MemoryDriver):\n    name = 'other'\n"
        "thing = 5\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{directory}:{ROOT}"}
    command = [sys.executable, "-c", f"from volattachd.drivers import registry\n{program}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.stdout + done.stderr


def test_a_third_partys_driver_is_found_by_its_entry_point(tmp_path: Path) -> None:
    assert run(tmp_path, "other = other:Other", "print(registry.load('other').name)") == "other\n"


def test_a_third_partys_driver_cannot_take_the_name_of_a_built_in_one(tmp_path: Path) -> None:
    told = run(tmp_path, "lio = other:Other", "print(registry.load('lio').__module__); registry.available()")
    assert told.startswith("volattachd.drivers.lio\n")
    assert "ConfigError: the driver 'lio' is built in, but other:Other claims its name too" in told


def test_what_is_no_driver_is_refused(tmp_path: Path) -> None:
    told = run(tmp_path, "odd = other:thing", "registry.load('odd')")
    assert "ConfigError: the driver 'odd' (other:thing) is not a TargetDriver" in told


def test_a_driver_that_is_not_used_is_not_imported() -> None:
    program = "import sys; from volattachd.drivers import registry; registry.load('memory'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"volattachd.drivers.lio", "volattachd.drivers.tgt.driver"} & set(done.stdout.split())
