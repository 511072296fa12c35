from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ADMIN, Rig, serving
from volattachd.agent.connectors import registry
from volattachd.agent.connectors.base import Connector
from volattachd.agent.errors import ConnectorUnusable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
THIRD_PARTY = Path(__file__).parent / "third_party"


def test_the_built_in_connectors_are_those_of_the_entry_points() -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["entry-points"][registry.GROUP] == registry.BUILT_IN


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_a_connector_is_made_by_its_name(name: str) -> None:
    made = registry.make_connector(name)
    assert isinstance(made, Connector) and made.name == name


@pytest.mark.parametrize("name", ["", "ISCSI", "nonsense", "volattachd.agent.connectors.iscsi:IscsiConnector"])
def test_an_unknown_connector_is_refused_and_the_known_ones_are_named(name: str) -> None:
    with pytest.raises(ConnectorUnusable, match=f"no connector {name!r}") as caught:
        registry.make_connector(name)
    assert all(known in str(caught.value.correction) for known in registry.BUILT_IN)


def installed(directory: Path, entries: dict[str, str]) -> dict[str, str]:
    """The environment of a program on a host where the example package is installed, with these entry points."""
    shutil.copytree(THIRD_PARTY / "example_connector", directory / "example_connector")
    info = directory / "example_connector-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example-connector\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{registry.GROUP}]", *lines]) + "\n")
    return {**os.environ, "PYTHONPATH": f"{directory}:{ROOT}"}


def its_entries() -> dict[str, str]:
    project: dict[str, Any] = tomllib.loads((THIRD_PARTY / "pyproject.toml").read_text())
    entries: dict[str, str] = project["project"]["entry-points"][registry.GROUP]
    return entries


def test_a_third_partys_package_attaches_and_detaches_through_the_command_line(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.register("vol-1")
    (tmp_path / "links").mkdir()
    environment = installed(tmp_path / "site", its_entries()) | {"VOLATTACH_LINKS": str(tmp_path / "links")}

    def volattach(*words: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "volattachd.cli", "--socket", str(tmp_path / "d.sock"), "--json", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    with serving(tmp_path / "d.sock", rig.service):
        link = Path(volattach("attach", "vol-1", "--connector", "symlink")["device"])
        assert str(link.resolve()) == rig.service.show_volume(ADMIN, "vol-1")["path"]
        assert volattach("detach", "vol-1")["status"] == "available", "the daemon has kept which connector it was"
    assert not link.is_symlink()


def test_a_third_partys_connector_cannot_take_the_name_of_a_built_in_one(tmp_path: Path) -> None:
    told = refusal(tmp_path, {"iscsi": "example_connector:SymlinkConnector"}, "another")
    assert "the connector 'iscsi' is built in, but example_connector:SymlinkConnector claims its name too" in told


@pytest.mark.parametrize("value", ["example_connector:Path", "example_connector:nothing", "nowhere:Connector"])
def test_what_is_no_connector_is_refused(value: str, tmp_path: Path) -> None:
    told = refusal(tmp_path, {"odd": value}, "odd")
    assert "ConnectorUnusable" in told and f"the connector 'odd' ({value})" in told


def refusal(directory: Path, entries: dict[str, str], name: str) -> str:
    program = f"from volattachd.agent.connectors import registry\nregistry.make_connector({name!r})"
    environment = installed(directory / "site", entries)
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stderr


def test_a_connector_that_is_not_used_is_not_imported() -> None:
    program = "import sys; from volattachd.agent.connectors.registry import make_connector as make; make('qemu')"
    program += "; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert not {"volattachd.agent.connectors.iscsi", "volattachd.agent.connectors.local", "pyudev"} & loaded
