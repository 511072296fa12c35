from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support import PATIENCE, in_thread
from volattachd.lean import without_init


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package whose ``__init__`` and whose one module leave a mark when they are run."""
    name = f"big_{tmp_path.name}"
    place = tmp_path / "packages" / name
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("from . import small\nis_whole = True\n")
    (place / "small.py").write_text("runs = []\nruns.append(1)\n")
    monkeypatch.syspath_prepend(str(place.parent))
    return name


def test_a_module_is_run_and_its_package_is_not(package: str) -> None:
    with without_init(package):
        small = __import__(f"{package}.small", fromlist=["runs"])
        assert not hasattr(sys.modules[package], "is_whole")
    assert small.runs == [1]
    assert package not in sys.modules


def test_whoever_imports_the_package_afterwards_gets_all_of_it_and_the_same_module(package: str) -> None:
    with without_init(package):
        small = __import__(f"{package}.small", fromlist=["runs"])
    whole = __import__(package)
    assert whole.is_whole
    assert whole.small is small
    assert small.runs == [1]


def test_a_package_that_is_there_already_is_left_as_it_is(package: str) -> None:
    whole = __import__(package)
    with without_init(package):
        assert sys.modules[package] is whole
    assert sys.modules[package] is whole


def test_after_an_error_the_package_can_be_imported(package: str) -> None:
    with pytest.raises(RuntimeError, match="no"), without_init(package):
        raise RuntimeError("no")
    assert __import__(package).is_whole


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'not_there'") as caught, without_init("not_there"):
        raise AssertionError("not reached")
    assert caught.value.name == "not_there"


def test_two_threads_do_it_one_after_the_other(package: str) -> None:
    entered = threading.Event()

    def enter() -> None:
        with without_init(package):
            entered.set()

    with without_init(package):
        waiting = in_thread(enter)
        assert not entered.wait(0.05)
        assert package in sys.modules
    assert entered.wait(PATIENCE)
    waiting()
    assert package not in sys.modules


def test_the_way_to_an_initiator_is_asked_for_without_all_of_pyroute2() -> None:
    """Where this fails the daemon works, and its first attachment takes eight times as long to import what it needs."""
    program = """if True:
        import sys
        from volattachd.host.portals import default_portals, reachable_portals
        print(reachable_portals(default_portals(), "127.0.0.1")[0].address, {"asyncio", "pyroute2"} & set(sys.modules))
        import pyroute2
        print(pyroute2.IPRoute.__name__)"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["127.0.0.1", "set()", "IPRoute"]
