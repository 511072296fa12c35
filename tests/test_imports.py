"""Imports point one way: a module may import what lies below it, and nothing else of the package.

Each row gives the layer, its modules, and why it must not know of those above it. What is not in the table is an
error: a new module has to be given its place.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Lowest first: a package, or a module of the root. What belongs elsewhere in a package has a row of its own.
LAYERS: list[tuple[str, set[str], str]] = [
    ("errors", {"", "errors"}, "every layer raises them, the clients' half included"),
    ("lean", {"lean"}, "it is about packages of others, and imports none itself"),
    ("model", {"model"}, "it is plain data, for people to read and for tests to build without a daemon"),
    ("config", {"config"}, "the table of keys is read by the documentation, without a daemon"),
    ("lifecycle", {"lifecycle"}, "it decides, and does nothing: no I/O can be in the way of a decision"),
    ("telemetry", {"telemetry"}, "every layer may log; how a message reaches a reader is known here alone"),
    ("concurrency", {"concurrency"}, "it serves the callers that wait, and knows neither volumes nor targets"),
    ("drivers", {"drivers"}, "a third party's driver sees the model and the contract, and never the service"),
    ("metrics", {"telemetry.metrics"}, "it counts what it is given"),
    ("host", {"host"}, "it looks at the host and changes nothing"),
    ("api", {"api"}, "what can be called, and by whom, does not depend on how a call arrives"),
    ("state", {"state"}, "durability depends on nothing that could fail with the target"),
    ("reconcile", {"reconcile"}, "it is the only writer of the target; start and repair must work without a call"),
    ("prometheus", {"telemetry.prometheus"}, "it shows what is counted and what is there"),
    ("service", {"service"}, "the calls know nothing of JSON, of sockets, or of who carries them"),
    ("rpc", {"rpc"}, "the wire is one way among others to reach the service"),
    ("client", {"client"}, "it speaks to a daemon, and has none"),
    ("daemon", {"daemon", "watchdog", "__main__"}, "the composition root is imported by nobody"),
    ("agent", {"agent"}, "it works through the client"),
    ("cli", {"cli"}, "a command is one of many users of the client"),
]

#: What runs on hosts without a daemon, and what it may know of the package.
CLIENTS_HALF = {"client", "agent", "cli"}
CLIENTS_MAY = {"", "errors", "model", "lifecycle", "api", "api.methods", "rpc", "rpc.strictjson"}


def modules() -> dict[str, Path]:
    """Every module of the package by its name within it; "" is the package itself."""
    found = {}
    for path in sorted((ROOT / "volattachd").rglob("*.py")):
        parts = path.relative_to(ROOT / "volattachd").with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()


def imported(name: str) -> Iterator[tuple[str, int]]:
    """The modules of the package that a module imports anywhere, functions included, with their lines."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: imports are written out in full"
            words = [f"{node.module}.{alias.name}" for alias in node.names]
            words = [word if word.removeprefix("volattachd.") in MODULES else str(node.module) for word in words]
        elif isinstance(node, ast.Import):
            words = [alias.name for alias in node.names]
        else:
            continue
        for word in words:
            if word == "volattachd" or word.startswith("volattachd."):
                yield word.removeprefix("volattachd").removeprefix("."), node.lineno


def is_clients(name: str) -> bool:
    return name.partition(".")[0] in CLIENTS_HALF


def level(name: str) -> int:
    """The row of a module: its own, or else that of its package."""
    for wanted in (name, name.partition(".")[0]):
        for number, (_, members, _) in enumerate(LAYERS):
            if wanted in members:
                return number
    raise AssertionError(f"volattachd.{name} has no layer: give its package a row in the table of this test")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_what_lies_below_it_alone(name: str) -> None:
    layer, _, why = LAYERS[level(name)]
    for other, line in imported(name):
        assert level(other) <= level(name), f"volattachd.{name}:{line} imports {other}, above {layer}: {why}"


@pytest.mark.parametrize("name", [name for name in MODULES if not is_clients(name)])
def test_the_daemons_half_never_imports_the_clients(name: str) -> None:
    for other, line in imported(name):
        assert not is_clients(other), f"volattachd.{name}:{line} imports {other}: the daemon needs no client"


@pytest.mark.parametrize("name", [name for name in MODULES if is_clients(name)])
def test_the_clients_half_never_imports_the_daemons(name: str) -> None:
    for other, line in imported(name):
        assert other in CLIENTS_MAY or is_clients(other), (
            f"volattachd.{name}:{line} imports {other}, which belongs to the daemon:"
            " a host that only attaches has neither its dependencies nor its rights"
        )


def test_no_modules_import_each_other_in_a_circle() -> None:
    edges = {name: {other for other, _ in imported(name) if other and other != name} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle of imports: {' -> '.join((*way[way.index(name) :], name))}"
        if name in done:
            return
        for other in sorted(edges[name]):
            visit(other, (*way, name))
        done.add(name)

    for name in sorted(edges):
        visit(name, ())


@pytest.mark.parametrize("name", ["errors", "model", "lifecycle"])
def test_what_decides_does_no_input_or_output(name: str) -> None:
    allowed = {"__future__", "collections", "dataclasses", "enum", "re", "time", "typing", "volattachd"}
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
    assert found <= allowed, f"volattachd.{name} is pure: it must not import {', '.join(sorted(found - allowed))}"


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("rpc.")])
def test_only_rpc_knows_json_rpc(name: str) -> None:
    text = MODULES[name].read_text()
    for word in ("jsonrpcserver", "fastjsonschema"):
        assert f"import {word}" not in text, f"volattachd.{name} imports {word}: only rpc/ knows the wire"
        assert f"from {word}" not in text, f"volattachd.{name} imports {word}: only rpc/ knows the wire"


def test_the_root_has_at_most_14_modules() -> None:
    assert len([name for name in MODULES if "." not in name and MODULES[name].name != "__init__.py"]) <= 14


@pytest.mark.parametrize("name", MODULES)
def test_only_the_applier_and_the_drivers_run_the_steps_of_a_target(name: str) -> None:
    """One writer: a second path to the target would be a second recovery that could be wrong."""
    if name == "reconcile.applier" or name.startswith("drivers."):
        return
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            assert not called.endswith(("step.run", "driver.plan")), (
                f"volattachd.{name}:{node.lineno} calls {called}: only the applier writes to the target"
            )
